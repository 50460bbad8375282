"""Command line of the benchmarks of a GPU."""

from __future__ import annotations

import contextlib
import datetime
import sys
import tempfile
from collections.abc import Callable, Container, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import click

from libertem_parallax.accumulate import CudaError
from libertem_parallax.accumulate.cuda import describe, memory

from ..workloads import WORKLOADS, Workload, events
from . import floors, parts, whole
from .rows import Row
from .whole import TOLD

#: Of the workloads: what kernels add; of what a stack is kept; what runs through LiberTEM.
FRAMES = tuple(workload for workload in WORKLOADS if workload.storage == "npy")
STACKS = tuple(w for w in FRAMES if w.shape[0] == 256)
RUNS = (*(w for w in FRAMES if w.shape[0] >= 128), events(96, 0.01))


#: Names of what can be asked for: what is right or wrong, and what is fast or slow.
CHECKS = ("tests", "sanitizer")
_FAILED = "failed"
MEASURED = ("kernels", "stacks", "likelihoods", "whole", "runs", "live")


def measure(size: int, wanted: Container[str]) -> Iterator[Row]:
    """Measure what can be fast or slow; see `main`. What fails is told, and the rest goes on."""
    best = floors.measure(size)
    yield Row("copies from pinned memory of the host", f"{best.upload / 1e9:.3g} GB/s")
    yield Row("copies on the device, read and written", f"{best.copy / 1e9:,.4g} GB/s")
    for dtype, rate in best.additions.items():
        yield Row(f"additions to global memory, {dtype}", f"{rate / 1e9:,.4g} G/s")
    with tempfile.TemporaryDirectory() as folder:
        dense = [workload for workload in RUNS if workload.storage == "npy"]
        measured: dict[str, tuple[Callable[[Workload], Iterator[Row]], Sequence[Workload]]] = {
            "kernels": (lambda workload: parts.kernels(workload, size, best), FRAMES),
            "stacks": (lambda workload: parts.stacks(workload, best), STACKS),
            "likelihoods": (lambda workload: parts.likelihoods(workload, best), STACKS[:1]),
            "whole": (lambda workload: whole.wholes(workload, TOLD), STACKS[:1]),
            "runs": (lambda workload: parts.end_to_end(workload, Path(folder)), RUNS),
            "live": (parts.live, dense[-1:]),
        }
        for name in MEASURED:
            make, workloads = measured[name]
            for workload in workloads if name in wanted else ():
                try:
                    yield from make(workload)
                except CudaError as error:
                    yield Row(f"{name}: {workload.name}", _FAILED, str(error))


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

    Sums of frames, events and stacks of all dtypes are compared with NumPy's. If they are right,
    kernels alone are measured against what the GPU can do at best, engines alone, stacks that stay
    on the GPU, the sums of a calibration, whole calibrations and images by direct ptychography, and
    runs through LiberTEM against all cores of this machine. Then the tests that need a GPU are run,
    and sums compared under CUDA's compute-sanitizer, where that is installed. Exits with 1 if
    anything is wrong.
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
    rows, right = parts.correctness()
    good = right

    def told(row: Row) -> bool:
        say(f"| {' | '.join(part.replace('|', '/') for part in row)} |")
        return row.figure != _FAILED

    for row in rows:
        told(row)
    # What takes long comes last.
    if right and any(name in MEASURED for name in wanted):
        for row in measure(size << 20, wanted):
            good &= told(row)
    for name, made in {"tests": parts.tests, "sanitizer": parts.sanitizer}.items():
        if name in wanted:
            rows, clean = made()
            good &= clean
            for row in rows:
                told(row)
    return good


if __name__ == "__main__":
    main()
