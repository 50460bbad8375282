"""What is pointed at to turn a knob: the diffraction pattern, pads, curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from bokeh.events import MouseWheel, Pan, PanEnd, PanStart, Tap
from bokeh.models import ColumnDataSource, CustomJS, Label, Range1d, Span
from numpy.typing import NDArray

from ...geometry import Geometry
from .drawing import BACK, LINE, MARK, RED, TEXT, WARM, draw, field, gray, limits, plain, ranges

__all__ = ["Curve", "Diffraction", "Pad", "drag_slowly"]

#: Of a detector, what the surroundings of the disk may be for these to be shown instead.
_MOST = 2 / 3


def drag_slowly(plot: Any) -> CustomJS:
    """Let the pointer rest before it drags, on all drawings; to be run when there is a `plot`.

    Where it rests for 0.3 s, Bokeh takes that for a gesture of its own, which is of no use here.
    """
    gestures = "Bokeh.index.find_one(plot).canvas_view.ui_event_bus.ui_gestures"
    return CustomJS(args={"plot": plot}, code=f"{gestures}.constructor.press_threshold = 2**31 - 1")


class Diffraction:
    """The mean diffraction pattern with the bright field's disk, which can be dragged.

    Parameters
    ----------
    moved
        Takes a new center (row, column) and a new semiangle in mrad.
    """

    def __init__(self, moved: Callable[[tuple[float, float], float], None]) -> None:
        self._moved = moved
        self.source = ColumnDataSource(field(1, 1))
        self._disk = ColumnDataSource({"x": [], "y": [], "width": [], "height": []})
        self._masked = ColumnDataSource({"x": [], "y": []})
        self._odd = ColumnDataSource({"x": [], "y": []})
        self.plot = plain(**ranges(), name="diffraction")
        self.plot.axis.visible = False
        draw(self.plot, self.source)
        self.plot.scatter("x", "y", source=self._masked, marker="x", color=TEXT, size=5)
        self.plot.scatter(
            "x",
            "y",
            source=self._odd,
            marker="square",
            fill_color=None,
            line_color=RED,
            size=8,
        )
        self.plot.ellipse(
            "x", "y", "width", "height", source=self._disk, fill_color=None, line_color=WARM,
            line_width=2,
        )  # fmt: skip
        self.plot.scatter(
            "x", "y", source=self._disk, marker="cross", color=WARM, size=11, line_width=2
        )
        # The view is that of the pattern, wherever the disk goes.
        for axis in (self.plot.x_range, self.plot.y_range):
            axis.renderers = self.plot.renderers[:1]
        self._geometry: Geometry | None = None
        self._mask: NDArray[np.bool_] | None = None
        self._pattern: NDArray[np.float64] | None = None
        self._odd_pixels = np.empty((0, 2), np.int64)
        self._view = slice(0), slice(0)  # rows and columns of the pattern that are shown
        self._grabbed: tuple[str, float, float] | None = None
        self.plot.on_event(PanStart, self._grab)
        self.plot.on_event(Pan, self._drag)
        self.plot.on_event(PanEnd, lambda _: self._release())

    def show_pattern(self, pattern: NDArray[np.float64], odd: NDArray[np.int64]) -> None:
        """Draw a pattern, and mark pixels (rows and columns) that may be dead or hot.

        Of a large detector, the surroundings of the disk are shown, and what is as bright.
        """
        other = self._pattern is None or self._pattern.shape != pattern.shape
        self._pattern, self._odd_pixels = pattern, odd
        if other or self._grabbed is None:
            self._view = self._surroundings(pattern, odd)
        self._odd.data = {"x": odd[:, 1], "y": odd[:, 0]}
        self._draw(pattern)

    def _draw(self, pattern: NDArray[np.float64]) -> None:
        rows, cols = self._view
        level = np.sqrt(np.maximum(pattern, 0)).astype(np.float32)
        known = np.isfinite(level)
        between = limits(level[known], (0.5, 99.8)) if known.any() else (0.0, 1.0)
        index = gray(np.nan_to_num(level), (min(between[0], 0.0), between[1]), known)
        self.source.data = {
            **field(rows.stop - rows.start, cols.stop - cols.start),
            "image": [index[self._view]],
            "x": [cols.start - 0.5],
            "y": [rows.start - 0.5],
        }

    def _surroundings(
        self, pattern: NDArray[np.float64], odd: NDArray[np.int64]
    ) -> tuple[slice, slice]:
        """Choose rows and columns: all, unless those around the disk are far fewer."""
        whole = slice(0, pattern.shape[0]), slice(0, pattern.shape[1])
        if self._geometry is None:
            return whole
        even = np.nan_to_num(pattern)
        even[tuple(odd.T)] = 0
        cutoff = self._geometry.parameters["semiangle_cutoff"]
        view = []
        for axis, n in enumerate(pattern.shape):
            profile = even.sum(axis=1 - axis)
            bright = np.flatnonzero(profile >= profile.max() / 2)
            center, radius = self._geometry.center[axis], cutoff / self._geometry.sampling[axis]
            start = math.floor(min(bright[0], center - radius) - 2 * radius)
            stop = math.ceil(max(bright[-1], center + radius) + 2 * radius) + 1
            view.append(slice(max(start, 0), min(stop, n)))
            if view[-1].stop - view[-1].start > _MOST * n:
                return whole
        return view[0], view[1]

    def _follow(self) -> None:
        """Have the disk in view, unless it is being dragged."""
        if self._pattern is None or self._grabbed is not None or self._geometry is None:
            return
        radius = self._geometry.parameters["semiangle_cutoff"] / np.array(self._geometry.sampling)
        corners = self._geometry.center - radius, self._geometry.center + radius
        first, last = ([getattr(part, end) for part in self._view] for end in ("start", "stop"))
        there = np.less_equal(first, corners[0]) & np.greater_equal(last, corners[1])
        view = self._surroundings(self._pattern, self._odd_pixels)
        if not there.all() and view != self._view:
            self._view = view
            self._draw(self._pattern)

    def _release(self) -> None:
        self._grabbed = None
        self._follow()

    def show_geometry(self, geometry: Geometry) -> None:
        """Draw the disk and the pixels that are left out."""
        self._geometry = geometry
        (row, col), (height, width) = geometry.center, geometry.sampling
        cutoff = geometry.parameters["semiangle_cutoff"]
        disk = {
            "x": [col], "y": [row], "width": [2 * cutoff / width], "height": [2 * cutoff / height],
        }  # fmt: skip
        if self._disk.data != disk:  # drawing takes time
            self._disk.data = disk
        mask = geometry.parameters.get("bf_mask")
        if mask is not self._mask:
            self._mask = mask
            out = np.empty((0, 2)) if mask is None else np.argwhere(~mask)
            self._masked.data = {"x": out[:, 1], "y": out[:, 0]}
        self._follow()

    def _radius(self, x: float, y: float) -> float:
        """Distance from the center in mrad."""
        assert self._geometry is not None
        (row, col), (height, width) = self._geometry.center, self._geometry.sampling
        return math.hypot((y - row) * height, (x - col) * width)

    def _grab(self, event: Any) -> None:
        """Take the edge or the inside, and where on it."""
        self._grabbed = None
        if self._geometry is None or event.x is None:
            return
        cutoff, radius = (
            self._geometry.parameters["semiangle_cutoff"],
            self._radius(event.x, event.y),
        )
        row, col = self._geometry.center
        if radius < 0.7 * cutoff:
            self._grabbed = "center", event.y - row, event.x - col
        elif radius < 1.5 * cutoff:
            self._grabbed = "edge", radius - cutoff, 0.0

    def _drag(self, event: Any) -> None:
        if self._geometry is None or self._grabbed is None or event.x is None:
            return
        what, first, second = self._grabbed
        center = self._geometry.center
        cutoff = self._geometry.parameters["semiangle_cutoff"]
        if what == "center":
            center = event.y - first, event.x - second
        else:
            cutoff = max(self._radius(event.x, event.y) - first, min(self._geometry.sampling))
        self._moved(center, cutoff)


class Pad:
    """A field on which two numbers are chosen by pointing.

    Parameters
    ----------
    name
        Of the figure.
    moved
        Takes both numbers.
    """

    def __init__(self, name: str, moved: Callable[[float, float], None]) -> None:
        self.source = ColumnDataSource({"x": [0.0], "y": [0.0]})
        self._reach = 1.0
        self.plot = plain(x_range=Range1d(-1, 1), y_range=Range1d(-1, 1), name=name)
        self.plot.background_fill_color = BACK
        self.plot.axis.visible = False
        for dimension in ("width", "height"):
            self.plot.add_layout(Span(location=0, dimension=dimension, line_color=LINE))
        self._rings = ColumnDataSource({"radius": [0.5, 1.0]})
        self.plot.circle(
            0, 0, radius="radius", source=self._rings, fill_color=None, line_color=LINE
        )
        self.plot.segment(0, 0, "x", "y", source=self.source, line_color=MARK, line_alpha=0.5)
        self.plot.scatter("x", "y", source=self.source, size=13, color=MARK)
        self.words = Label(
            x=5, y=4, x_units="screen", y_units="screen", text="", text_color=WARM,
            text_font_size="12px", background_fill_color=BACK, name=f"{name}_words",
        )  # fmt: skip
        self.plot.add_layout(self.words)
        self.reach(self._reach)
        for event in (Tap, PanStart, Pan):
            self.plot.on_event(event, lambda e: None if e.x is None else moved(e.x, e.y))

    def show(self, x: float, y: float, words: str) -> None:
        """Draw the point, and write what it means; the field grows with it."""
        self.words.text = words
        if (self.source.data["x"][0], self.source.data["y"][0]) != (x, y):
            self.source.data = {"x": [x], "y": [y]}
        reach = math.hypot(x, y)
        if reach > self._reach or 0 < reach < self._reach / 20:
            self.reach(2 * reach)

    def reach(self, reach: float) -> None:
        """Let the field reach so far."""
        self._reach = reach or 1.0
        for axis in (self.plot.x_range, self.plot.y_range):
            axis.update(start=-1.15 * self._reach, end=1.15 * self._reach)
        self._rings.data = {"radius": [self._reach / 2, self._reach]}


class Curve:
    """Sharpness over defocus in nm: to be pointed at, and to turn the wheel on.

    Parameters
    ----------
    moved
        Takes a defocus in nm.
    turned
        Takes steps of the wheel.
    """

    def __init__(self, moved: Callable[[float], None], turned: Callable[[float], None]) -> None:
        self.source = ColumnDataSource({"x": [], "y": []})
        self.plot = plain(name="curve", x_range=Range1d(-1, 1), y_range=Range1d(0, 1.1), height=92)
        self.plot.sizing_mode = "stretch_width"
        self.plot.background_fill_color = BACK
        self.plot.yaxis.visible = False
        axis = self.plot.xaxis[0]
        axis.update(
            major_label_text_color=TEXT, major_label_text_font_size="10.5px", axis_line_color=LINE,
            major_tick_line_color=LINE, minor_tick_line_color=None, major_label_standoff=2,
        )  # fmt: skip
        axis.ticker.desired_num_ticks = 7
        self.plot.varea("x", 0, "y", source=self.source, fill_color=MARK, fill_alpha=0.15)
        self.plot.line("x", "y", source=self.source, color=MARK, line_width=1.5)
        self.marker = Span(location=0, dimension="height", line_color=WARM, line_width=2)
        self.plot.add_layout(self.marker)
        for event in (Tap, PanStart, Pan):
            self.plot.on_event(event, lambda e: None if e.x is None else moved(e.x))
        self.plot.on_event(MouseWheel, lambda e: turned(math.copysign(1, e.delta)))

    def show(self, points: Iterable[tuple[float, float]]) -> None:
        """Draw the curve, as far as it is known: defocus in nm and sharpness."""
        points = sorted(points)
        top = max((y for _, y in points), default=0) or 1.0
        self.source.data = {"x": [x for x, _ in points], "y": [y / top for _, y in points]}

    def reach(self, reach: float) -> None:
        """Let the axis reach so far to both sides, in nm."""
        self.plot.x_range.update(start=-reach, end=reach)
