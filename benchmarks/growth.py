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

#: Where the time of a run, beyond NoOpUDF's, grows by so many times as much as what should make it
#: grow, it is a cliff.
_CLIFF = 2.0


def bright(radius: float) -> dict[str, Any]:
    """Parameters with a bright field of that radius in pixels, and the same shifts at its edge."""
    step = PARAMETERS["semiangle_cutoff"] / (radius + 0.1)
    return PARAMETERS | {"angular_sampling": (step, step)}


#: What grows, and how much: name and size of each row. Of the largest detectors, little is lit, so
#: that little is written and read.
GROWTH: dict[str, list[tuple[str, float, Workload]]] = {
    "scan (detector 16 x 16)": [
        (f"{n} x {n}", n**2, Workload("", (n, n, 16, 16), parameters=bright(6)))
        for n in (24, 64, 128, 256, 512, 1024, 2048)
    ],
    "bright field (scan 64 x 64, detector 256 x 256)": [
        (
            f"{round(3.14 * r**2)} pixels",
            r**2,
            Workload("", (64, 64, 256, 256), parameters=bright(r)),
        )
        for r in (1.8, 5.6, 18, 56, 98)
    ],
    "detector (scan 32 x 32, radius 10)": [
        (f"{n} x {n}", n**2, Workload("", (32, 32, n, n), parameters=bright(10), lit=32))
        for n in (32, 64, 128, 256, 512, 1024, 2048)
    ],
    "upsampling factor (scan 128 x 128)": [
        (
            str(u),
            u**2,
            Workload("", (128, 128, 64, 64), parameters=PARAMETERS | {"upsampling_factor": u}),
        )
        for u in (1, 2, 4, 8)
    ],
    "partitions (scan 128 x 128)": [
        (str(n), n, Workload("", (128, 128, 64, 64), partitions=n))
        for n in (1, 4, 16, 64, 256, 4096)
    ],
}

#: Rows and columns of scans, and upsampling, whose memory is looked at.
IMAGES = [(128, 2), (512, 2), (1024, 2), (512, 8)]


def table(title: str, rows: list[tuple[str, float, Row, Row]]) -> Iterator[str]:
    """Lines of a table in Markdown: times and rates, and how time grows.

    Parameters
    ----------
    title
        What grows.
    rows
        Its name and size, and what was measured: NoOpUDF, and the engine.
    """
    columns = "NoOpUDF / ms | ms more | frames/s | values/s | time over size, to the row above"
    yield f"| {title} | {columns} |"
    yield "|---|---|---|---|---|---|"
    before = 0.0
    for name, size, nothing, row in rows:
        least, best = min(nothing.seconds), min(row.seconds)  # a cliff is there every time
        more = max(best - least, 1e-6)
        change = f"{more / size / before:.2f}" if before else ""
        cliff = " **cliff**" if before and more / size > _CLIFF * before else ""
        yield (
            f"| {name} | {1e3 * least:.1f} | {1e3 * more:.1f} | {row.frames / best:,.0f} "
            f"| {row.frames / best * row.pixels / 1e6:,.0f} M | {change}{cliff} |"
        )
        before = more / size
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
            for name, size, workload in curve:
                with tempfile.TemporaryDirectory() as folder:
                    paths = {"NoOpUDF": worker, "numba": worker}
                    nothing, row = measure(workload, paths, rounds, Path(folder))
                rows.append((name, size, nothing, row))
            yield from table(title, rows)
    finally:
        worker.close()
    yield from memory()


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Runs of every row.")
def main(rounds: int) -> None:
    """Print tables of rates of whole runs by Numba's engine on one core, as something grows.

    Each is that of the best round. A value is a bright-field pixel of a frame. Where a run takes
    longer than NoOpUDF by more than twice as much as what grows explains (frames, bright-field or
    detector pixels, pixels of the image, partitions), it is a cliff. Last comes the memory that
    NumPy's arrays take at most, beyond the data.
    """
    for line in tables(rounds):
        click.echo(line)


if __name__ == "__main__":
    main()
