"""Results as a table, as a plot, and against older ones."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["Row", "compare", "plot", "table"]

#: Slower by less than this is noise, however steady the rounds were.
_NOISE = 0.15


@dataclass(frozen=True)
class Row:
    """One path on one workload: seconds of every round."""

    workload: str
    path: str
    frames: int
    pixels: int
    seconds: list[float]

    @property
    def rate(self) -> float:
        """Frames per second, median."""
        return self.frames / statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Interquartile range of the seconds over their median."""
        low, high = np.quantile(self.seconds, [0.25, 0.75])
        return float((high - low) / statistics.median(self.seconds))

    def ratio(self, other: Row) -> float:
        """How many times faster than another path; median of paired rounds.

        What slows the machine down for a while slows both.
        """
        return statistics.median(b / a for a, b in zip(self.seconds, other.seconds, strict=True))


def table(rows: list[Row]) -> Iterator[str]:
    """Lines of a table of the paths on one workload."""
    by_path = {row.path: row for row in rows}
    references = [path for path in ("upstream", "SumUDF", "floor") if path in by_path]
    yield rows[0].workload + f", {rows[0].pixels} bright-field pixels"
    yield (
        f"  {'path':<20}{'frames/s':>12}{'updates/s':>12}{'spread':>8}"
        + "".join(f"{'x ' + path:>12}" for path in references)
    )
    for row in rows:
        updates = "" if row.path in ("floor", "SumUDF") else f"{row.rate * row.pixels / 1e6:.0f} M"
        yield (
            f"  {row.path:<20}{row.rate:>12,.0f}{updates:>12}{row.spread:>8.0%}"
            + "".join(f"{row.ratio(by_path[path]):>12.2f}" for path in references)
        )
    yield ""


def compare(old: list[Row], new: list[Row]) -> list[str]:
    """Lines about what became slower beyond noise.

    Rates are taken relative to the floor of the same run, where there is one, so that a slower
    machine is no slower code.
    """
    before = {(row.workload, row.path): row for row in old}
    after = {(row.workload, row.path): row for row in new}
    slower = []
    for (workload, path), row in after.items():
        was = before.get((workload, path))
        if was is None or path == "floor":
            continue
        floors = before.get((workload, "floor")), after.get((workload, "floor"))
        if floors[0] is None or floors[1] is None:
            change = row.rate / was.rate
        else:
            change = row.ratio(floors[1]) / was.ratio(floors[0])
        if change < 1 - max(_NOISE, row.spread + was.spread):
            slower.append(f"{workload}, {path}: {1 - change:.0%} slower than before")
    return slower


def plot(file: Path, curves: dict[str, list[tuple[float, list[Row]]]]) -> None:
    """Draw frames per second of all paths against one thing at a time, as PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    columns = 4
    figure = Figure(figsize=(4 * columns, 3.6 * -(-len(curves) // columns)), layout="constrained")
    for number, (title, points) in enumerate(curves.items()):
        axes = figure.add_subplot(-(-len(curves) // columns), columns, number + 1)
        for path in sorted({row.path for _, rows in points for row in rows}, reverse=True):
            found = [(x, row) for x, rows in points for row in rows if row.path == path]
            axes.plot([x for x, _ in found], [row.rate for _, row in found], "o-", label=path)
        axes.set(xlabel=title, xscale="log", yscale="log")
        axes.set_xticks([x for x, _ in points])
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
        if number % columns == 0:
            axes.set_ylabel("frames / s")
        if number == 0:
            axes.legend()
    figure.savefig(file, dpi=100)
