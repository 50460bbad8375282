"""An image while it grows: in a window, or as a file that is written anew."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import replacing
from .pictures import blur, gray_limits, write_gray

__all__ = ["Screen", "open_window", "snapshot"]

#: Part of the time that pictures of the growing image may take.
_SCREEN_SHARE = 1 / 20


def snapshot(path: Path, image: NDArray[Any], limits: tuple[float, float]) -> None:
    """Write an image that is not complete yet, to look at; viewers never see half a file.

    Parameters
    ----------
    path
        Of the .png file.
    image
        Rows and columns of real numbers.
    limits
        Values to be black and white.
    """
    with replacing(path) as file:
        write_gray(file, image, limits)


def open_window(title: str) -> Callable[[NDArray[Any], tuple[float, float]], None] | None:
    """Open a window for an image that grows.

    Parameters
    ----------
    title
        Of the window.

    Returns
    -------
    callable or None
        Takes an image and the values to be black and white. None where there is no display.
    """
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(num=title)
    if type(figure.canvas).required_interactive_framework is None:
        pyplot.close(figure)
        return None
    axes.set_axis_off()

    def show(image: NDArray[Any], limits: tuple[float, float]) -> None:
        if axes.images:
            axes.images[0].set_data(image)
        else:
            axes.imshow(image, cmap="gray", interpolation="nearest")
            figure.show()
        axes.images[0].set_clim(*limits)
        figure.canvas.draw_idle()
        figure.canvas.flush_events()

    return show


class Screen:
    """Shows an image while it grows, for a small part of the time at most.

    Parameters
    ----------
    show
        Takes an image and the values to be black and white.
    interval
        Seconds between two pictures, at least.
    pixel_size
        Height and width of the image's pixels in Å.
    sigma
        Standard deviation in Å of a Gaussian that blurs the pictures, and only these.
    """

    def __init__(
        self,
        show: Callable[[NDArray[Any], tuple[float, float]], None],
        interval: float,
        pixel_size: tuple[float, float] = (1, 1),
        sigma: float = 0,
    ) -> None:
        self._show, self._interval = show, interval
        self._pixel_size, self._sigma = pixel_size, sigma
        self._next = -math.inf

    def due(self) -> bool:
        """Whether there is time for a picture."""
        return time.perf_counter() >= self._next

    def show(self, results: Any) -> tuple[int, NDArray[np.float32]]:
        """Show what was added so far; contrast is made for what is scanned.

        Parameters
        ----------
        results : UDFResults
            From `stream`.

        Returns
        -------
        count : int
            Frames that were added.
        image : (u Ny, u Nx) float32
            The image, not blurred.
        """
        begin = time.perf_counter()
        image: NDArray[np.float32] = next(iter(results.buffers[0].values())).data
        scanned = results.damage.data
        factor = image.shape[0] // scanned.shape[0]
        pixels = scanned.repeat(factor, axis=0).repeat(factor, axis=1)
        picture = blur(image, self._pixel_size, self._sigma)
        self._show(picture, gray_limits(picture[pixels]))
        end = time.perf_counter()
        self._next = end + max(self._interval, (end - begin) / _SCREEN_SHARE)
        return int(scanned.sum()), image
