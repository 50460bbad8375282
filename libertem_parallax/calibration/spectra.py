"""Fourier transforms of the images that bright-field pixels see, with white noise of power 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .. import weak_object
from ..accumulate import Blocks, Stack
from ..images.fourier import pixel_spectra, slow
from ..images.sums import here
from .failure import CalibrationError

__all__ = ["Spectra", "independent", "transform"]

#: Power of a pixel's image over that of others, where the specimen shows little, that is too much.
_BLINKS = 2.5

#: Power of a frequency above that of noise, in standard deviations, which chance does not reach.
_STRONG = 6.0


@dataclass(frozen=True, eq=False)
class Spectra:
    """Images of bright-field pixels at some spatial frequencies.

    Parameters
    ----------
    images : (Q, M) complex64
        Fourier coefficients over the noise's standard deviation, weighted so that a pixel whose
        mean is lower counts less, as `libertem_parallax.likelihood` expects it.
    index : (Q, 2) int64
        Row and column of each frequency in the half-spectrum of `scipy.fft.rfft2`.
    q : (Q, 2) float64
        The frequencies in 1/Å, along rows and columns of the scan.
    power : (Q,) float32
        Mean power of the pixels' images before those that are above noise were divided by its root.
    pixels : (M, 2) int64
        Rows and columns of the detector pixels.
    scan_shape
        Rows and columns of the scan.
    noise
        What the power of the noise was, over that of counted electrons: below 1 where a pixel
        counts several electrons as one.
    there : (Q, M) complex64
        CuPy's array of the same images, if they were made on a GPU.
    """

    images: NDArray[np.complex64]
    index: NDArray[np.int64]
    q: NDArray[np.float64]
    power: NDArray[np.float32]
    pixels: NDArray[np.int64]
    scan_shape: tuple[int, int]
    noise: float
    there: Any = None

    @property
    def strong(self) -> NDArray[np.bool_]:
        """Frequencies whose power no noise has, (Q,): those of a crystal."""
        strong: NDArray[np.bool_] = self.power > 1 + _STRONG / np.sqrt(len(self.pixels))
        return strong

    def take(self, frequencies: Any, pixels: Any = slice(None)) -> Self:
        """Take some frequencies and pixels."""
        images = np.ascontiguousarray(self.images[frequencies][:, pixels])
        whole = isinstance(frequencies, slice) and pixels == slice(None)
        return type(self)(
            images,
            self.index[frequencies],
            self.q[frequencies],
            self.power[frequencies],
            self.pixels[pixels],
            self.scan_shape,
            self.noise,
            self.there[frequencies] if self.there is not None and whole else None,
        )


def independent(
    scan_shape: tuple[int, int], scan_sampling: tuple[float, float], limit: float
) -> NDArray[np.int64]:
    """List spatial frequencies that say different things, nearest to 0 first.

    Parameters
    ----------
    scan_shape
        Rows and columns of the scan.
    scan_sampling
        Its step along both in Å.
    limit
        Highest frequency in 1/Å.

    Returns
    -------
    (Q, 2) int64
        Rows and columns in the half-spectrum of `scipy.fft.rfft2`. Not among them are 0, one of two
        that are opposite, and Nyquist frequencies.
    """
    ny, nx = scan_shape
    q = weak_object.frequencies(scan_shape, scan_sampling)
    radius = np.hypot(q[..., 0], q[..., 1])
    rows, cols = np.indices(radius.shape)
    signed = np.where(rows > ny // 2, rows - ny, rows)
    wanted = (radius <= limit) & (radius > 0) & ((cols > 0) | (signed > 0))
    wanted &= (2 * np.abs(signed) != ny) & (2 * cols != nx)
    index = np.argwhere(wanted)
    order: NDArray[np.int64] = index[np.argsort(radius[wanted], kind="stable")]
    return order


def transform(
    stack: Stack,
    scan_sampling: tuple[float, float],
    index: NDArray[np.int64],
    progress: Callable[[float], None] = lambda _: None,
) -> Spectra:
    """Transform the images of all pixels of a stack.

    Parameters
    ----------
    stack
        Bright-field pixels.
    scan_sampling
        Step of the scan along rows and columns in Å.
    index : (Q, 2) int64
        Frequencies that are wanted: see `independent`.
    progress
        Called with the fraction that is done.

    Returns
    -------
    Spectra
        Of the stack's pixels, but for those that count nothing, or now and then much.

    Raises
    ------
    CalibrationError
        If there is no such pixel.
    """
    ny, nx = stack.scan_shape
    count, M = max(1, int(stack.scanned.sum())), len(stack.pixels)
    smooth = slow(stack.scanned)
    # Where in a half-spectrum the wanted frequencies are, and those that tell the noise.
    places = np.ravel_multi_index(tuple(index.T), (ny, nx // 2 + 1)), _quiet((ny, nx))
    means, powers = np.empty(M), np.empty(M)

    def made(blocks: Blocks) -> tuple[Any, Any, NDArray[np.bool_], NDArray[Any], float]:
        images: Any = None
        for part, mean, spectra in pixel_spectra(blocks, stack.scanned, smooth):
            if images is None:
                images = np.empty_like(spectra, shape=(len(index), M))
                wanted, quiet = (np.asarray(place, like=spectra) for place in places)
            weight = np.divide(1, mean * count, out=np.zeros_like(mean), where=mean > 0)
            spectra *= np.asarray(np.sqrt(weight).astype(np.float32), like=spectra)[:, None, None]
            flat = spectra.reshape(len(mean), -1)
            images[:, part] = np.take(flat, wanted, axis=1).T
            means[part] = mean
            powers[part] = here(_power(np.take(flat, quiet, axis=1)))
            progress(part.stop / M)
        used = means > 0
        noise = float(np.median(powers[used])) if used.any() else 0.0
        # Pixels that blink see no specimen.
        used &= powers <= _BLINKS * noise
        if not noise or not used.any():
            return None, None, used, powers, 0.0
        if not used.all():
            images = np.take(images, np.asarray(np.flatnonzero(used), like=images), axis=1)
        images /= np.float32(np.sqrt(noise))
        # Where there is more than noise, little of it is the specimen: it is noise to all models
        # alike.
        power = _power(images)
        images /= np.sqrt(np.maximum(power, 1))[:, None]
        return images, here(images), used, here(power), noise

    there, images, used, power, noise = stack.with_images(np.arange(M), made)
    if there is None:
        raise CalibrationError(
            "the bright field counts nothing, or the same everywhere, or the scan is tiny: check "
            "center, the sampling and bf_mask, and how the data were loaded."
        )
    q = weak_object.frequencies(stack.scan_shape, scan_sampling)[tuple(index.T)]
    there = None if there is images else there
    return Spectra(images, index, q, power, stack.pixels[used], stack.scan_shape, noise, there)


def _power(values: Any) -> Any:
    """Mean power of complex values, along the last axis."""
    return np.mean(values.real**2 + values.imag**2, axis=-1)


def _quiet(scan_shape: tuple[int, int]) -> NDArray[np.int64]:
    """Tell which frequencies hold the least of a specimen, as places: the highest ones."""
    y = np.abs(np.fft.fftfreq(scan_shape[0]))[:, None]
    x = np.fft.rfftfreq(scan_shape[1])
    # Scans of one or three rows have none that are so high.
    return np.flatnonzero((y > min(0.35, y.max() - 1e-9)) & (x > min(0.35, x.max() - 1e-9)))
