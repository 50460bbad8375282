"""An image while it grows: who shows or keeps it gets it now and then, and may fail."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..files import About, replacing
from ..throttle import Throttle
from .pictures import blur, gray_limits, write_gray

__all__ = ["Growing", "Screen", "Show", "grown", "snapshots", "to_gray"]

#: Part of the time that pictures of the growing image may take.
_SCREEN_SHARE = 1 / 20


class Growing(NamedTuple):
    """An image that is not complete yet."""

    image: NDArray[np.float32]  #: (u Ny, u Nx)
    scanned: NDArray[np.bool_]  #: (Ny, Nx), which frames it is of

    @property
    def frames(self) -> int:
        """Frames that were added."""
        return int(self.scanned.sum())


#: Takes an image, and may fail.
Show = Callable[[Growing], object]


def grown(results: Any) -> Growing:
    """Make the image of what was added so far.

    Parameters
    ----------
    results : UDFResults
        From `live.stream`.
    """
    return Growing(next(iter(results.buffers[0].values())).data, results.damage.data)


def to_gray(
    growing: Growing, pixel_size: tuple[float, float], sigma: float
) -> tuple[NDArray[Any], tuple[float, float]]:
    """Blur an image, and choose what is black and white for what is scanned.

    Parameters
    ----------
    growing
        The image.
    pixel_size
        Height and width of its pixels in Å.
    sigma
        Standard deviation of a Gaussian in Å.

    Returns
    -------
    picture : numpy.ndarray
        Of the image's shape; zero, the mean of an image, where nothing was scanned.
    limits : tuple of float
        Values to be black and white.
    """
    scanned, factor = growing.scanned, growing.image.shape[0] // growing.scanned.shape[0]
    pixels = scanned.repeat(factor, axis=0).repeat(factor, axis=1)
    # Filters leave traces where there was no frame: no part of the specimen.
    picture = np.where(pixels, blur(growing.image, pixel_size, sigma), np.float32(0))
    return picture, gray_limits(picture[pixels])


def snapshots(path: Path, pixel_size: tuple[float, float], sigma: float = 0) -> Show:
    """Show the image as a file, written anew for each; viewers never see half of one.

    Parameters
    ----------
    path
        Of the .png file.
    pixel_size, sigma
        See `to_gray`.
    """

    def show(growing: Growing) -> None:
        about = About(pixel_size, made={"blur": sigma, "frames": growing.frames})
        with replacing(path) as file:
            gray, limits = to_gray(growing, pixel_size, sigma)
            write_gray(file, gray, limits, pixel_size, about.texts())

    return show


class Screen:
    """Shows an image while it grows, for a small part of the time at most.

    Parameters
    ----------
    shows
        What to call with the image, by what it is called in a warning if it fails. That is no
        reason for a recording to end: the next image may get through again.
    interval
        Seconds between two images, at least.
    """

    def __init__(self, shows: Mapping[str, Show], interval: float) -> None:
        self._shows, self._throttle = shows, Throttle(_SCREEN_SHARE, interval)

    def due(self) -> bool:
        """Whether there is time for an image."""
        return self._throttle.due()

    def show(self, results: Any) -> None:
        """Show what was added so far.

        Parameters
        ----------
        results : UDFResults
            See `grown`.

        Warns
        -----
        UserWarning
            If it cannot be shown.
        """
        with self._throttle:
            try:
                growing = grown(results)
            except Exception as error:
                warnings.warn(f"the growing image: {error}", stacklevel=2)
                return
            for name, show in self._shows.items():
                try:
                    show(growing)
                except Exception as error:
                    warnings.warn(f"{name}: {error}", stacklevel=2)
