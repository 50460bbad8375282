"""Parallax image: every frame's mean is taken off the sum, where the frame was added."""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from ..geometry import Geometry
from .fourier import irfft2, rfft2
from .sums import Image, Imaging, Sums

__all__ = ["PARALLAX", "parallax"]


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
    """
    imaging = sums.imaging
    plan, weights = imaging.geometry.plan, sums.constant(_weights)
    u, nx = plan.upsampling_factor, plan.scan_shape[1]
    spectrum = rfft2(sums.S.astype(np.float64))
    image = np.empty_like(sums.A, np.float32, shape=plan.image_shape)
    product = np.empty_like(spectrum)
    for a in range(u):
        for b in range(u):
            np.multiply(spectrum, weights[a, b], out=product)
            background = irfft2(product, nx)
            # A and the background are large and nearly equal: their difference is taken in
            # double precision.
            image[a::u, b::u] = np.subtract(sums.A[a, b], background, out=background)
    if imaging.suppress_Nyquist_noise and u > 1:
        _suppress_nyquist(image)
    return image


def _weights(imaging: Imaging) -> NDArray[np.complex128]:
    """Half-spectra of the fraction of pixels by shift, (u, u, Ny, Nx // 2 + 1)."""
    plan = imaging.geometry.plan
    weights: NDArray[np.complex128] = scipy.fft.rfft2(plan.histogram / len(plan.pixels))
    return weights


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
