"""Other defoci: a curve of sharpness over them, and a series that is played."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from inspect import GEN_CLOSED, getgeneratorstate
from typing import Any

import numpy as np
from bokeh.models import Row, Spinner, Toggle

from ..maker import sharpness
from ..tuning import Tuning
from .drawing import on_change
from .knobs import Knobs

__all__ = ["Depth", "Sharpness"]

#: Points of the curve of sharpness.
_POINTS = 61

#: Parameters beside aberrations with which the curve changes.
_MATTERS = (
    "rotation_angle",
    "center",
    "semiangle_cutoff",
    "detector_flip_rows",
    "detector_flip_cols",
    "detector_transpose",
    "scan_sampling",
)


class Sharpness:
    """Makes the curve of sharpness when a `Tuning` has nothing else to do.

    Parameters
    ----------
    tuning
        Whose stack and parameters it is of.
    knobs
        That show it.
    """

    def __init__(self, tuning: Tuning, knobs: Knobs) -> None:
        self._tuning, self._knobs = tuning, knobs
        self._of: Any = None
        self._points: list[tuple[float, float]] = []
        self._steps = self._make(self._points, 0.0)

    def follow(self) -> None:
        """Have it made anew, where it is of other knobs; or show what there is of it."""
        parameters, reach = self._tuning.parameters, self._knobs.reach
        coefs = {k: v for k, v in parameters.get("aberration_coefs", {}).items() if k != "C10"}
        others = tuple(parameters.get(name) for name in _MATTERS)
        key = (self._tuning.stack, reach, tuple(coefs.items()), *others)
        if key != self._of:
            self._of, self._points = key, []
            self._steps = self._make(self._points, reach)
            self._tuning.when_idle(self._steps)
            return
        if len(self._points) != len(self._knobs.curve.source.data["x"]):
            self._knobs.curve.show(self._points)
        # Another window may have wanted its own first.
        if not self._tuning.has_more and getgeneratorstate(self._steps) != GEN_CLOSED:
            self._tuning.when_idle(self._steps)

    def _make(self, points: list[tuple[float, float]], reach: float) -> Generator[None, None, None]:
        tuning = self._tuning
        for defocus in np.linspace(-reach, reach, _POINTS):
            try:
                value = sharpness(tuning.stack, tuning.parameters, -10 * defocus)
            except ValueError:
                return  # the picture tells
            points.append((float(defocus), value))
            yield


class Depth:
    """Plays a series of defoci around the present one, forth and back.

    Parameters
    ----------
    tuning
        Whose defocus to change.
    """

    def __init__(self, tuning: Tuning) -> None:
        self._tuning = tuning
        self._playing: Iterator[float] | None = None
        first, last, steps = (
            Spinner(title=title, name=name, value=value, step=step, low=low, format="0[.]0",
                    sizing_mode="stretch_width")
            for title, name, value, step, low in (
                ("From, nm", "depth_from", -50, 10, None), ("to, nm", "depth_to", 50, 10, None),
                ("steps", "depth_steps", 21, 1, 2),
            )
        )  # fmt: skip
        self._first, self._last, self._steps = first, last, steps
        play = Toggle(label="Play", name="play", width=56)
        on_change(play, "active", lambda on: self._play() if on else self.stop())
        self.row = Row(
            first, last, steps, play, css_classes=["pair", "low"], sizing_mode="stretch_width"
        )

    def _play(self) -> None:
        here = -self._tuning.parameters.get("aberration_coefs", {}).get("C10", 0.0) / 10
        steps = np.linspace(self._first.value, self._last.value, max(2, int(self._steps.value)))

        def forth_and_back() -> Iterator[float]:
            while True:
                for step in (*steps, *steps[-2:0:-1]):
                    yield here + float(step)

        self._playing = forth_and_back()
        self.follow()

    def stop(self) -> None:
        """Stay where it is."""
        self._playing = None

    def follow(self) -> None:
        """Take the next defocus, now that the last one is shown, if it is played."""
        if self._playing is not None:
            self._tuning.aberrate(C10=-10 * next(self._playing))
