"""From accumulators to images: background, Nyquist suppression, phase flip."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from ..geometry import Geometry

__all__ = ["Finish"]

#: Threads of a Fourier transform of so many points or more: two help, hundreds would only wait for
#: each other. Smaller ones gain nothing, and would wait where other cores are busy.
_THREADS, _LARGE = min(4, os.cpu_count() or 1), 1 << 18


class Finish:
    """The last step, for one geometry; what does not depend on the counts is computed once.

    Parameters
    ----------
    geometry
        Of the acquisition.
    suppress_Nyquist_noise
        Zero the Nyquist frequencies, which rounding the shifts to pixels fills with noise: of the
        parallax image if it is upsampled, of the phase flip always. Axes of odd length have none.
    """

    def __init__(self, geometry: Geometry, *, suppress_Nyquist_noise: bool = True) -> None:
        self.geometry = geometry
        self.suppress_Nyquist_noise = suppress_Nyquist_noise

    @cached_property
    def _weights(self) -> NDArray[np.complex128]:
        """Half-spectra of the fraction of pixels by shift, (u, u, Ny, Nx // 2 + 1)."""
        plan = self.geometry.plan
        return scipy.fft.rfft2(plan.histogram / len(plan.pixels))

    @cached_property
    def _filter(self) -> NDArray[np.float32]:
        return self.geometry.phase_flip_filter(suppress_Nyquist_noise=self.suppress_Nyquist_noise)

    def parallax(self, A: NDArray[Any], S: NDArray[Any]) -> NDArray[np.float32]:
        """Parallax image: every frame's mean is taken off the sum, where the frame was added.

        Parameters
        ----------
        A : plan.folded_shape
            Sum of the shifted frames, as `Plan.fold` returns it.
        S : (Ny, Nx)
            Bright-field sum of each frame; 0 where there was none.

        Returns
        -------
        (u Ny, u Nx) float32
            ``A - (S / M) ⊛ H``, H the number of pixels by shift, M that of all pixels; in counts.
        """
        plan = self.geometry.plan
        u, nx = plan.upsampling_factor, plan.scan_shape[1]
        spectrum = scipy.fft.rfft2(S.astype(np.float64), workers=_threads(S))
        image = np.empty(plan.image_shape, dtype=np.float32)
        product = np.empty_like(spectrum)
        for a in range(u):
            for b in range(u):
                np.multiply(spectrum, self._weights[a, b], out=product)
                background = _inverse(product, nx)
                # A and the background are large and nearly equal: their difference is taken in
                # double precision.
                image[a::u, b::u] = np.subtract(A[a, b], background, out=background)
        if self.suppress_Nyquist_noise and u > 1:
            _suppress_nyquist(image)
        return image

    def phase_flip(self, parallax: NDArray[np.float32]) -> NDArray[np.float32]:
        """Phase-flipped image: contrast reversals of the parallax image undone.

        Parameters
        ----------
        parallax : (u Ny, u Nx) float32
            As `parallax` returns it.

        Returns
        -------
        (u Ny, u Nx) float32
            Its convolution with the kernel of `Geometry.phase_flip_filter`, in counts.
        """
        spectrum = scipy.fft.rfft2(parallax, workers=_threads(parallax))
        spectrum *= self._filter
        return _inverse(spectrum, parallax.shape[1])


def _inverse(spectrum: NDArray[Any], columns: int) -> NDArray[Any]:
    """`scipy.fft.irfft2`, which spends a third of its time on temporaries; overwrites."""
    threads = _threads(spectrum)
    rows = scipy.fft.ifft(spectrum, axis=0, overwrite_x=True, workers=threads)
    return scipy.fft.irfft(rows, columns, axis=1, overwrite_x=True, workers=threads)


def _threads(values: NDArray[Any]) -> int:
    return _THREADS if values.size * (1 + np.iscomplexobj(values)) >= _LARGE else 1


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
