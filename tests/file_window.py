"""A backend of Matplotlib whose window is the file window.npy; without it, the window closes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backend_bases import FigureManagerBase, TimerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg

FILE = Path("window.npy")


class FigureCanvas(FigureCanvasAgg):
    """Has something to be drawn to, where there is no display."""

    required_interactive_framework = "headless"
    timers: list[TimerBase] = []  # noqa: RUF012

    def new_timer(self, interval: int | None = None, callbacks: Any = None) -> TimerBase:
        self.timers.append(super().new_timer(interval, callbacks))
        return self.timers[-1]


class FigureManager(FigureManagerBase):
    """Shows the first figure."""

    @classmethod
    def pyplot_show(cls, *, block: bool | None = None) -> None:
        from matplotlib import pyplot

        axes = pyplot.gca()
        cls.save(np.zeros(0))
        shown = None
        while FILE.exists():
            for timer in FigureCanvas.timers:
                timer._on_timer()  # type: ignore[attr-defined]
            if axes.images and axes.images[0].get_array() is not shown:
                shown = axes.images[0].get_array()
                cls.save(np.asarray(shown))
            time.sleep(0.01)

    @staticmethod
    def save(image: Any) -> None:
        """Write the file whole, as somebody may be reading it."""
        part = FILE.with_suffix(".part.npy")
        np.save(part, image)
        part.replace(FILE)


FigureCanvas.manager_class = FigureManager  # type: ignore[assignment]
