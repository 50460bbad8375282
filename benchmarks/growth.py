"""How rates change as scan, detector, bright field, image and partitions grow.

Command: ``python -m benchmarks.growth``.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from .__main__ import Worker, measure
from .report import Row
from .worker import prepare
from .workloads import PARAMETERS, Workload, write

#: From one row of a table to the next, time for a value may grow by so much, or it is a cliff.
_CLIFF = 2.0


def bright(radius: float) -> dict[str, Any]:
    """Parameters with a bright field of that radius in pixels, and the same shifts at its edge."""
    step = PARAMETERS["semiangle_cutoff"] / (radius + 0.1)
    return PARAMETERS | {"angular_sampling": (step, step)}


#: What grows, and how much. Files take 1 GiB at most.
GROWTH: dict[str, list[tuple[str, Workload]]] = {
    "scan (detector 16 x 16)": [
        (f"{n} x {n}", Workload("", (n, n, 16, 16), parameters=bright(6)))
        for n in (24, 64, 128, 256, 512, 1024, 2048)
    ],
    "bright field (scan 64 x 64, detector 256 x 256)": [
        (f"radius {r:g}", Workload("", (64, 64, 256, 256), parameters=bright(r)))
        for r in (1.8, 5.6, 18, 56, 98)
    ],
    "detector (radius 10)": [
        (f"{n} x {n}", Workload("", (scan, scan, n, n), parameters=bright(10)))
        for n, scan in ((32, 64), (64, 64), (128, 64), (256, 64), (512, 32), (1024, 16), (2048, 16))
    ],
    "upsampling factor (scan 128 x 128)": [
        (f"{u}", Workload("", (128, 128, 64, 64), parameters=PARAMETERS | {"upsampling_factor": u}))
        for u in (1, 2, 4, 8)
    ],
    "partitions (scan 128 x 128)": [
        (f"{n}", Workload("", (128, 128, 64, 64), partitions=n)) for n in (1, 4, 16, 64, 256, 4096)
    ],
}


#: Rows and columns of scans, and upsampling, whose memory is looked at.
IMAGES = [(128, 2), (512, 2), (1024, 2), (512, 8)]


def table(title: str, rows: list[tuple[str, Row]]) -> Iterator[str]:
    """Lines of a table in Markdown: rates, and how the time for a value changes.

    Parameters
    ----------
    title
        What grows.
    rows
        How large it is, and what was measured.
    """
    yield f"| {title} | pixels | frames/s | values/s | time for a value, to the row above |"
    yield "|---|---|---|---|---|"
    before = 0.0
    for size, row in rows:
        best = row.frames / min(row.seconds)  # a cliff is there every time
        rate = best * row.pixels
        change = f"{before / rate:.2f}" if before else ""
        cliff = " **cliff**" if before > _CLIFF * rate else ""
        yield f"| {size} | {row.pixels} | {best:,.0f} | {rate / 1e6:,.0f} M | {change}{cliff} |"
        before = rate
    yield ""


def memory() -> Iterator[str]:
    """Lines of a table of the memory that runs take beyond their data, by images."""
    yield "| memory beyond the data | accumulator / MB | MB at most | twice and 100 MB |"
    yield "|---|---|---|---|"
    for n, u in IMAGES:
        parameters = bright(6) | {"upsampling_factor": u}
        workload = Workload("", (n, n, 16, 16), parameters=parameters, storage="memory")
        with tempfile.TemporaryDirectory() as folder:
            question = dataclasses.asdict(workload) | {"file": str(write(workload, Path(folder)))}
            run, image, *_ = prepare("numba", question)
            tracemalloc.start()
            run()
            most = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
        size = 8 * image.size / 1e6  # of 64 bits, where it is summed up
        over = "" if most <= 2 * size + 100 else " **more**"
        yield f"| scan {n} x {n}, u = {u} | {size:.0f} | {most:.0f} | {2 * size + 100:.0f}{over} |"


def tables(rounds: int) -> Iterator[str]:
    """Lines of all tables; see `main`."""
    worker = Worker(sys.executable)
    try:
        for title, curve in GROWTH.items():
            rows = []
            for size, workload in curve:
                with tempfile.TemporaryDirectory() as folder:
                    [row] = measure(workload, {"numba": worker}, rounds, Path(folder))
                rows.append((size, row))
            yield from table(title, rows)
    finally:
        worker.close()
    yield from memory()


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Runs of every row.")
def main(rounds: int) -> None:
    """Print tables of rates of whole runs by Numba's engine on one core, as something grows.

    Each is that of the best round. A value is a bright-field pixel of a frame. Where the time for
    one is more than twice that of the row above, it is a cliff. Last comes the memory that NumPy's
    arrays take at most, beyond the data.
    """
    for line in tables(rounds):
        click.echo(line)


if __name__ == "__main__":
    main()
