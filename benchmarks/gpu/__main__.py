"""Command line of the benchmarks of a GPU."""

from __future__ import annotations

import datetime
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click

from libertem_parallax.accumulate import CudaError
from libertem_parallax.accumulate.cuda import describe, memory

from ..workloads import WORKLOADS
from . import floors, parts
from .parts import Row

#: Of the workloads: what kernels add; of what a stack is kept; what runs through LiberTEM.
FRAMES = tuple(workload for workload in WORKLOADS if workload.storage == "npy")
STACKS = tuple(w for w in FRAMES if w.shape[0] == 256)
RUNS = tuple(w for w in FRAMES if w.shape[0] >= 128)


def measure(size: int) -> Iterator[Row]:
    """Measure all that can be fast or slow; see `main`."""
    best = floors.measure(size)
    yield Row("copies from pinned memory of the host", f"{best.upload / 1e9:.3g} GB/s")
    yield Row("copies on the device, read and written", f"{best.copy / 1e9:,.4g} GB/s")
    for dtype, rate in best.additions.items():
        yield Row(f"additions to global memory, {dtype}", f"{rate / 1e9:,.4g} G/s")
    for workload in FRAMES:
        yield from parts.kernels(workload, size, best)
    for workload in STACKS:
        yield from parts.stacks(workload, best)
    for workload in STACKS[:1]:
        yield from parts.likelihoods(workload, best)
    with tempfile.TemporaryDirectory() as folder:
        for workload in RUNS:
            yield from parts.end_to_end(workload, Path(folder))
    for workload in RUNS[-1:]:
        yield from parts.live(workload)


@click.command()
@click.option("--size", default=256, show_default=True, help="MiB of frames for kernels alone.")
@click.option("--check", is_flag=True, help="Compare sums only, and measure nothing.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where to write the table, too.",
)
def main(size: int, check: bool, output: Path | None) -> None:
    """Say whether GPU 0 adds right, and how fast, as a table in Markdown.

    Sums of frames, events and stacks of all dtypes are compared with NumPy's, also under CUDA's
    compute-sanitizer where that is installed. Then kernels alone are measured against what the GPU
    can do at best, engines alone, stacks that stay on the GPU, the sums of a calibration, and runs
    through LiberTEM against all cores of this machine. Exits with 1 if a sum is wrong.
    """
    if output is not None and output.exists():
        raise click.ClickException(f"{output} exists: give another --output, or remove it.")
    lines = []

    def say(line: str) -> None:
        click.echo(line)
        lines.append(line)

    try:
        free, total = memory()
        say(f"{describe()}; {free / 2**30:.1f} of {total / 2**30:.1f} GiB free;")
        say(
            f"libertem-parallax {version('libertem-parallax')}, LiberTEM {version('libertem')}, "
            f"{datetime.date.today().isoformat()}"
        )
        say("")
        say("| what | figure | against |")
        say("|---|---|---|")
        rows, good = parts.correctness()
        if not check:
            more, clean = parts.sanitizer()
            rows, good = rows + more, good and clean
        for row in rows:
            say(f"| {' | '.join(row)} |")
        if good and not check:
            for row in measure(size << 20):
                say(f"| {' | '.join(row)} |")
    except CudaError as error:
        raise click.ClickException(str(error)) from error
    if output is not None:
        output.write_text("\n".join([*lines, ""]), encoding="utf-8")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
