"""Results as a table, as a plot, and against older ones."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from libertem_parallax.accumulate import ENGINES

__all__ = ["Row", "compare", "plot", "table"]

#: Slower by less than this is noise, however steady the rounds were; by more than this is not,
#: however unsteady they were.
_NOISE = 0.15, 0.5

#: What paths are measured against, where it was measured.
_REFERENCES = (
    "upstream",
    "SumUDF",
    "numba, dense",
    "floor",
    "scatter floor",
    "bus floor",
    "device floor",
)


@dataclass(frozen=True)
class Row:
    """One path on one workload.

    Parameters
    ----------
    workload, path
        Their names.
    frames
        Of the scan.
    pixels
        Of the bright field.
    electrons
        Counts in the bright field of all frames.
    seconds
        Of every round; none if the image is wrong. Paths that are slow take part in the first
        rounds only.
    correlation
        Of the image with the right one; None where there is none.
    events
        Whether frames came as events, so that no pixel was added but for its electrons.
    """

    workload: str
    path: str
    frames: int
    pixels: int
    electrons: float
    seconds: list[float]
    correlation: float | None = None
    events: bool = False

    @property
    def rate(self) -> float:
        """Frames per second, median."""
        return self.frames / statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Interquartile range of the seconds over their median."""
        low, high = np.quantile(self.seconds, [0.25, 0.75])
        return float((high - low) / statistics.median(self.seconds))

    @property
    def adds(self) -> bool:
        """Whether it makes the image, or the sums for it."""
        return "floor" not in self.path and not self.path.endswith("UDF")

    @property
    def ours(self) -> bool:
        """Whether it is of this package, so that it can become better or worse."""
        return self.path.split(",")[0] in ENGINES

    def ratio(self, other: Row) -> float:
        """How many times faster than another path; median of paired rounds.

        What slows the machine down for a while slows both.
        """
        return statistics.median(b / a for a, b in zip(self.seconds, other.seconds, strict=False))


def table(rows: list[Row]) -> Iterator[str]:
    """Lines of a table of the paths on one workload."""
    by_path = {row.path: row for row in rows if row.seconds}
    references = [path for path in _REFERENCES if path in by_path]
    yield (
        f"{rows[0].workload}, {rows[0].pixels} bright-field pixels, "
        f"{rows[0].electrons / rows[0].frames:,.0f} electrons a frame"
    )
    yield (
        f"  {'path':<21}{'frames/s':>11}{'updates/s':>11}{'electrons/s':>13}{'spread':>8}"
        + "".join(f"{'x ' + path:>{max(len(path) + 4, 10)}}" for path in references)
    )
    for row in rows:
        if not row.seconds:
            yield f"  {row.path:<21}   wrong, correlation {row.correlation:.2f}: not timed"
            continue
        added = [
            f"{row.rate * total / 1e6:,.0f} M" if shown else ""
            for total, shown in (
                (row.pixels, row.adds and not row.events),
                (row.electrons / row.frames, row.adds),
            )
        ]
        yield (
            f"  {row.path:<21}{row.rate:>11,.0f}{added[0]:>11}{added[1]:>13}{row.spread:>8.0%}"
            + "".join(
                f"{row.ratio(by_path[path]):>{max(len(path) + 4, 10)}.2f}" for path in references
            )
        )
    yield ""


def compare(old: list[Row], new: list[Row]) -> list[str]:
    """Lines about what of this package became slower beyond noise, or wrong.

    Rates are taken relative to the floor of the same run, where there is one, so that a slower
    machine is no slower code.
    """
    before = {(row.workload, row.path): row for row in old}
    after = {(row.workload, row.path): row for row in new}
    slower = []
    for (workload, path), row in after.items():
        was = before.get((workload, path))
        if was is None or not was.seconds or not row.ours:
            continue
        if not row.seconds:
            slower.append(f"{workload}, {path}: wrong, correlation {row.correlation:.2f}")
            continue
        floors = before.get((workload, "floor")), after.get((workload, "floor"))
        if floors[0] is None or floors[1] is None:
            change = row.rate / was.rate
        else:
            change = row.ratio(floors[1]) / was.ratio(floors[0])
        low, high = _NOISE
        if change < 1 - min(max(low, row.spread + was.spread), high):
            slower.append(f"{workload}, {path}: {1 - change:.0%} slower than before")
    return slower


def plot(file: Path, curves: dict[str, list[tuple[float | str, list[Row]]]]) -> None:
    """Draw frames per second of all paths against one thing at a time, as PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    columns = 4
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(4 * columns, 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).reshape(-1)
    for axes in panels[len(curves) :]:
        axes.remove()
    colors: dict[str, str] = {}
    for number, (axes, (title, points)) in enumerate(zip(panels, curves.items(), strict=False)):
        known = len(colors)
        for path in sorted({row.path for _, found in points for row in found}, reverse=True):
            colors.setdefault(path, f"C{len(colors)}")
            chosen = [(x, row) for x, found in points for row in found if row.path == path]
            xs, rates = [x for x, _ in chosen], [row.rate for _, row in chosen]
            axes.plot(xs, rates, "o-", color=colors[path], label=path)
        axes.set(xlabel=title, yscale="log")
        if not any(isinstance(x, str) for x, _ in points):
            axes.set_xscale("log")
            axes.set_xticks([x for x, _ in points])
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
        if number % columns == 0:
            axes.set_ylabel("frames / s")
        if len(colors) > known:  # what they mean is said once
            axes.legend()
    figure.savefig(file, dpi=100)
