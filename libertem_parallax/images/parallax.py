"""Parallax image: every frame's mean is taken off the sum, where the frame was added."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from ..accumulate.threads import share
from ..geometry import Geometry
from ..weak_object import aperture
from .fourier import THREADS, irfft2, rfft2
from .sums import Image, Imaging, Sums, here

__all__ = ["PARALLAX", "parallax"]

#: Of the pixels that a position could receive: less does not count.
_LEAST_SHARE = 0.1

#: Sub-grids of an image of so many pixels are shared by threads, which gain more than those that
#: share a transform. Smaller ones gain little, and would wait where other cores are busy.
_SHARED = 1 << 19


def parallax(sums: Sums) -> NDArray[np.float32]:
    """Make the parallax image.

    Parameters
    ----------
    sums
        Of the frames.

    Returns
    -------
    (u Ny, u Nx) float32
        ``A - (S / M) ⊛ H``, H the number of pixels by shift, M that of all pixels; in counts.
        Where borders are no period, that is over the share of pixels that a position received.
    """
    if not sums.imaging.geometry.plan.wraps:
        return _covered(sums)
    imaging = sums.imaging
    plan, weights = imaging.geometry.plan, sums.constant(_weights)
    u, nx = plan.upsampling_factor, plan.scan_shape[1]
    spectrum = rfft2(sums.S.astype(np.float64))
    image = np.empty_like(sums.A, np.float32, shape=plan.image_shape)
    large = image.size >= _SHARED and isinstance(image, np.ndarray)
    threads = min(u * u, THREADS) if large else 1

    def subtract(grid: tuple[int, int]) -> None:
        a, b = grid
        background = irfft2(spectrum * weights[a, b], nx, 1 if threads > 1 else None)
        # A and the background are large and nearly equal: their difference is taken in double
        # precision.
        np.subtract(sums.A[a, b], background, out=image[a::u, b::u])

    share(subtract, [(a, b) for a in range(u) for b in range(u)], threads)
    if imaging.suppress_Nyquist_noise and u > 1:
        _suppress_nyquist(image)
    return image


def _weights(imaging: Imaging) -> NDArray[np.complex128]:
    """Half-spectra of the fraction of pixels by shift, (u, u, Ny, Nx // 2 + 1)."""
    plan = imaging.geometry.plan
    weights: NDArray[np.complex128] = scipy.fft.rfft2(plan.histogram / len(plan.pixels))
    return weights


def _covered(sums: Sums) -> NDArray[np.float32]:
    """Make the image of sums from which what left the image is missing.

    Where some pixels are missing, those that are darker, at the rim of the aperture, must not make
    a difference: a frame's counts are taken off, and received, in proportion to the brightness.
    """
    imaging, plan = sums.imaging, sums.imaging.geometry.plan
    u, opened = plan.upsampling_factor, imaging.once(_open)
    shares = imaging.once(_full_shares) if sums.scanned.all() else opened.shares(sums.scanned)
    A, background = here(sums.A), opened(here(sums.S))
    image = np.zeros(plan.image_shape, np.float32)
    for a in range(u):
        for b in range(u):
            difference = A[a, b] - background[a, b]
            # What few pixels saw would be little but noise.
            seen = shares[a, b] >= _LEAST_SHARE
            image[a::u, b::u][seen] = difference[seen] / shares[a, b][seen]
    if imaging.suppress_Nyquist_noise and u > 1:
        _suppress_nyquist(image)
    return image


class _Open(NamedTuple):
    """Spreads values of scan positions to where their pixels go, with nothing that wraps."""

    weights: NDArray[np.complex128]  # (u, u, ...) half-spectra of brightness by shift, 1 in all
    whole: NDArray[np.float64]  # (u, u, 1, 1) what a position receives from all pixels
    shape: tuple[int, int]  # of the grid
    rows: NDArray[np.int64]  # (Ny,) of the grid, which belong to the image
    columns: NDArray[np.int64]  # (Nx,)

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Sum values (Ny, Nx) where pixels go, (u, u, Ny, Nx)."""
        spectrum = scipy.fft.rfft2(values.astype(np.float64), s=self.shape)
        full = scipy.fft.irfft2(spectrum * self.weights, s=self.shape)
        inside: NDArray[np.float64] = full[..., self.rows[:, None], self.columns]
        return inside

    def shares(self, scanned: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Share that every position received of what it could, (u, u, Ny, Nx)."""
        received, can = self(scanned), self.whole > 0
        return np.divide(received, self.whole, out=np.zeros_like(received), where=can)


def _open(imaging: Imaging) -> _Open:
    geometry, plan = imaging.geometry, imaging.geometry.plan
    semiangle = geometry.parameters["semiangle_cutoff"] * 1e-3
    # Pixels at the rim count as many electrons as a part of them is lit.
    brightness = aperture(geometry.angles, semiangle, geometry.soft_edge)
    spread, lowest = plan.spread(brightness / brightness.sum())
    sizes = zip(plan.scan_shape, spread.shape[2:], lowest, strict=True)
    ny, nx = (scipy.fft.next_fast_len(n + more + abs(low), real=True) for n, more, low in sizes)
    rows, cols = (
        (np.arange(n) - low) % size
        for n, low, size in zip(plan.scan_shape, lowest, (ny, nx), strict=True)
    )
    weights = scipy.fft.rfft2(spread, s=(ny, nx))
    return _Open(weights, spread.sum(axis=(2, 3), keepdims=True), (ny, nx), rows, cols)


def _full_shares(imaging: Imaging) -> NDArray[np.float64]:
    return imaging.once(_open).shares(np.ones(imaging.geometry.plan.scan_shape, bool))


def _suppress_nyquist(image: NDArray[np.float32]) -> None:
    """Zero the Nyquist row and column of the spectrum in place; even axes only.

    Their part of the image is its mean with alternating signs along the axis, so no transform is
    needed.
    """
    rows, cols = image.shape
    # No products of matrices: the threads of BLAS would get in the way of the transforms'.
    if rows % 2 == 0:
        alternating = (image[0::2].sum(axis=0) - image[1::2].sum(axis=0)) / rows
        image[0::2] -= alternating
        image[1::2] += alternating
    if cols % 2 == 0:
        # Pairs of neighbors as complex numbers: one pass over contiguous memory.
        pairs = image.view(np.complex64)
        sums = pairs.sum(axis=1, keepdims=True)
        pairs -= (sums.real - sums.imag) / cols * np.complex64(1 - 1j)


def _problem(geometry: Geometry) -> str | None:
    reason = geometry.nothing_shifts
    return None if reason is None else f"the parallax image will be zero: {reason}"


PARALLAX = Image(parallax, "parallax", problem=_problem, memory=26)
