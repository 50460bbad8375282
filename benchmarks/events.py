"""What events cost, and dense frames of the same: ``python -m benchmarks.events``."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from .report import Row
from .worker import prepare
from .workloads import Workload, events, write

#: Electrons per pixel on which time should depend linearly, and more.
_LINE = (0.001, 0.01, 0.1)
_MORE = (0.05, 0.2)

#: Electrons per pixel of everything else.
_USUAL = 0.01

_PARTITIONS = (1, 4, 16, 64)


def cases(scan: int) -> list[tuple[str, str, Workload]]:
    """List what is measured.

    Parameters
    ----------
    scan
        Rows and columns of it.

    Returns
    -------
    list of tuple
        What the report calls it, the path of `benchmarks.worker`, and the workload.
    """
    usual = events(scan, _USUAL)
    return [
        *((f"events, {e:.1%}", "numba", events(scan, e)) for e in sorted(_LINE + _MORE)),
        (f"dense, {_USUAL:.1%}", "numba, dense", usual),
        (f"dense, {max(_MORE):.1%}", "numba, dense", events(scan, max(_MORE))),
        (f"made dense, {_USUAL:.1%}", "numba, made dense", usual),
        ("512 x 512 detector", "numba", events(scan, _USUAL, 512)),
        ("512 x 512 detector, 4 partitions", "numba", events(scan, _USUAL, 512, partitions=4)),
        *(
            (f"{n} partition{'s' * (n > 1)}", "numba", events(scan, _USUAL, partitions=n))
            for n in _PARTITIONS
        ),
        *(
            (f"dense, {n} partition{'s' * (n > 1)}", "numba, dense", w)
            for n, w in ((n, events(scan, _USUAL, partitions=n)) for n in (1, 64))
        ),
        ("LiberTEM's reading", "NoOpUDF", usual),
        ("engine alone", "numba, engine alone", usual),
        ("floor", "floor", usual),
        ("scatter floor", "scatter floor", usual),
    ]


def measure(scan: int, rounds: int) -> dict[str, Row]:
    """Time all cases in every round, taking turns.

    Parameters
    ----------
    scan, rounds
        See `main`.

    Returns
    -------
    dict
        By what the report calls them.
    """
    listed = cases(scan)
    runs: dict[str, Callable[[], Any]] = {}
    electrons: dict[str, float] = {}
    seconds: dict[str, list[float]] = {label: [] for label, *_ in listed}
    with tempfile.TemporaryDirectory() as name:
        for label, path, workload in tqdm(listed, desc="Writing"):
            folder = Path(name) / workload.name
            folder.mkdir(exist_ok=True)
            question = dataclasses.asdict(workload) | {"file": str(write(workload, folder))}
            runs[label], _, _, counted = prepare(path, question)
            electrons[label] = counted or 0.0
        for _ in tqdm(range(rounds), desc="Rounds"):
            for label, run in runs.items():
                start = time.perf_counter()
                run()
                seconds[label].append(time.perf_counter() - start)
        runs.clear()  # and with them the files, which are mapped
    return {
        label: Row(workload.name, label, scan * scan, 0, electrons[label], seconds[label])
        for label, _, workload in listed
    }


def fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Fit a line by least squares of the relative deviations.

    Parameters
    ----------
    x, y
        Points, all of them positive.

    Returns
    -------
    tuple
        Value at 0, slope, and the largest relative deviation.
    """
    relative = np.stack([np.ones(len(x)), x], axis=1) / np.asarray(y)[:, np.newaxis]
    start, slope = np.linalg.lstsq(relative, np.ones(len(y)), rcond=None)[0]
    return float(start), float(slope), float(np.abs(relative @ (start, slope) - 1).max())


def report(rows: dict[str, Row]) -> list[str]:
    """Lines of a table in Markdown, and what follows from it."""
    usual, dense = rows[f"events, {_USUAL:.1%}"], rows[f"dense, {_USUAL:.1%}"]
    total = usual.electrons
    lines = ["| case | ms | spread | electrons/s | faster than dense |", "|---|---|---|---|---|"]
    for label, row in rows.items():
        added = row.electrons or total
        rate = "" if "reading" in label else f"{added / row.frames * row.rate / 1e6:,.0f} M"
        lines.append(
            f"| {label} | {1e3 * row.frames / row.rate:.1f} | {row.spread:.0%} | {rate} "
            f"| {row.ratio(dense):.2f} |"
        )

    def median(label: str) -> float:
        return 1e3 * rows[label].frames / rows[label].rate

    labels = [f"events, {e:.1%}" for e in _LINE]
    start, slope, off = fit([rows[k].electrons for k in labels], [median(k) for k in labels])
    wide = rows["512 x 512 detector, 4 partitions"]
    lines += [
        "",
        f"{usual.frames:,} frames of 256 x 256, {total / usual.frames:,.0f} electrons each in the "
        f"bright field at {_USUAL:.1%}.",
        f"At {_USUAL:.1%}, {usual.ratio(dense):.1f} times as fast as the same frames from a dense "
        f"file, {usual.ratio(rows[f'made dense, {_USUAL:.1%}']):.1f} times as those that LiberTEM "
        "makes dense of the events.",
        f"Line through {', '.join(f'{e:.1%}' for e in _LINE)}: {start:.1f} ms and "
        f"{1e6 * slope:.2f} ns an electron in the bright field; off by up to {off:.0%}.",
        "On a detector of 512 x 512, the same events take "
        f"{1 / wide.ratio(rows['4 partitions']):.2f} of the time in as many partitions, "
        f"{1 / rows['512 x 512 detector'].ratio(usual):.2f} in as many as LiberTEM makes.",
    ]
    start, slope, off = fit(
        _PARTITIONS, [median(f"{n} partition{'s' * (n > 1)}") for n in _PARTITIONS]
    )
    lines.append(
        f"A partition costs {slope:.2f} ms, everything else {start:.1f} ms; off by up to {off:.0%}."
    )
    points = sorted(_LINE + _MORE)
    full = rows[f"dense, {max(_MORE):.1%}"]
    ratios = [rows[f"events, {e:.1%}"].ratio(full if e > _USUAL else dense) for e in points]
    if ratios[-1] > 1:
        lines.append(f"Events are faster than dense frames up to {points[-1]:.0%} at least.")
    else:
        equal = np.interp(0, -np.log(ratios), np.log(points))
        lines.append(f"Dense frames are faster from {np.exp(equal):.1%} on.")
    return lines


@click.command()
@click.option("--scan", default=128, show_default=True, help="Rows and columns of the scan.")
@click.option("--rounds", default=7, show_default=True, help="Runs of every case.")
def main(scan: int, rounds: int) -> None:
    """Measure how the cost of events grows, and from when on dense frames are faster.

    Every case is a Context.run_udf on one core, unless it says that it is
    the engine alone or a floor; they take turns. Bright field of 100 pixels in radius on 256 x 256
    pixels. Needs 2.5 GB on disk and in memory with a scan of 128 x 128, four times that with
    256 x 256.
    """
    click.echo("\n".join(report(measure(scan, rounds))))


if __name__ == "__main__":
    main()
