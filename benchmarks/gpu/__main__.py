"""Command line of the benchmarks of a GPU."""

from __future__ import annotations

import contextlib
import datetime
import sys
import tempfile
from collections.abc import Callable, Container, Iterator
from importlib.metadata import version
from pathlib import Path

import click

from libertem_parallax.accumulate import CudaError
from libertem_parallax.accumulate.cuda import describe, memory

from ..workloads import WORKLOADS
from . import floors, parts, whole
from .rows import Row
from .whole import TOLD

#: Of the workloads: what kernels add; of what a stack is kept; what runs through LiberTEM.
FRAMES = tuple(workload for workload in WORKLOADS if workload.storage == "npy")
STACKS = tuple(w for w in FRAMES if w.shape[0] == 256)
RUNS = tuple(w for w in FRAMES if w.shape[0] >= 128)


#: Names of what can be asked for: what is right or wrong, and what is fast or slow.
CHECKS = ("sanitizer", "tests")
MEASURED = ("kernels", "stacks", "likelihoods", "whole", "runs", "live")


def measure(size: int, wanted: Container[str]) -> Iterator[Row]:
    """Measure what can be fast or slow; see `main`."""
    best = floors.measure(size)
    yield Row("copies from pinned memory of the host", f"{best.upload / 1e9:.3g} GB/s")
    yield Row("copies on the device, read and written", f"{best.copy / 1e9:,.4g} GB/s")
    for dtype, rate in best.additions.items():
        yield Row(f"additions to global memory, {dtype}", f"{rate / 1e9:,.4g} G/s")
    for workload in FRAMES if "kernels" in wanted else ():
        yield from parts.kernels(workload, size, best)
    for workload in STACKS if "stacks" in wanted else ():
        yield from parts.stacks(workload, best)
    for workload in STACKS[:1] if "likelihoods" in wanted else ():
        yield from parts.likelihoods(workload, best)
    for workload in STACKS[:1] if "whole" in wanted else ():
        yield from whole.wholes(workload, TOLD)
    with tempfile.TemporaryDirectory() as folder:
        for workload in RUNS if "runs" in wanted else ():
            yield from parts.end_to_end(workload, Path(folder))
    for workload in RUNS[-1:] if "live" in wanted else ():
        yield from parts.live(workload)


@click.command()
@click.option("--size", default=256, show_default=True, help="MiB of frames for kernels alone.")
@click.option("--check", is_flag=True, help="Compare sums only, and measure nothing.")
@click.option(
    "--only",
    "only",
    type=click.Choice([*CHECKS, *MEASURED]),
    multiple=True,
    help="What to do after sums were compared; may be repeated. Default: all.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where to write the table, too, line by line as it grows.",
)
def main(size: int, check: bool, only: tuple[str, ...], output: Path | None) -> None:
    """Say whether GPU 0 adds right, and how fast, as a table in Markdown.

    Sums of frames, events and stacks of all dtypes are compared with NumPy's, also under CUDA's
    compute-sanitizer where that is installed, and the tests that need a GPU are run. Then kernels
    alone are measured against what the GPU can do at best, engines alone, stacks that stay on the
    GPU, the sums of a calibration, whole calibrations and images by direct ptychography, and runs
    through LiberTEM against all cores of this machine. Exits with 1 if anything is wrong.
    """
    if output is not None and output.exists():
        raise click.ClickException(f"{output} exists: give another --output, or remove it.")
    wanted = () if check else only or (*CHECKS, *MEASURED)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(output.open("w", encoding="utf-8")) if output else None

        def say(line: str) -> None:
            click.echo(line)
            if file:  # what was measured so far is kept, whatever happens
                print(line, file=file, flush=True)

        try:
            good = _report(size, wanted, say)
        except CudaError as error:
            raise click.ClickException(str(error)) from error
    sys.exit(0 if good else 1)


def _report(size: int, wanted: tuple[str, ...], say: Callable[[str], None]) -> bool:
    """Write the report; whether all is right."""
    free, total = memory()
    say(f"{describe()}; {free / 2**30:.1f} of {total / 2**30:.1f} GiB free;")
    say(
        f"libertem-parallax {version('libertem-parallax')}, LiberTEM {version('libertem')}, "
        f"{datetime.date.today().isoformat()}"
    )
    say("")
    say("| what | figure | against |")
    say("|---|---|---|")
    good = True
    checks = {"": parts.correctness, "sanitizer": parts.sanitizer, "tests": parts.tests}
    for name, made in checks.items():
        if not name or name in wanted:
            rows, clean = made()
            good &= clean
            for row in rows:
                say(f"| {' | '.join(row)} |")
    if good and any(name in MEASURED for name in wanted):
        for row in measure(size << 20, wanted):
            say(f"| {' | '.join(row)} |")
    return good


if __name__ == "__main__":
    main()
