"""Fourier transforms of images: SciPy's, or CuPy's for arrays on a GPU, to which NumPy hands on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from ..accumulate import Blocks
from ..accumulate.threads import cores
from .sums import here

__all__ = ["THREADS", "irfft2", "pixel_spectra", "rfft2", "slow"]

#: Threads of a Fourier transform of so many points or more: two help, hundreds would only wait for
#: each other. Smaller ones gain nothing, and would wait where other cores are busy.
THREADS, _LARGE = min(4, cores()), 1 << 18

#: What of a function is left beside others, below which it is their sum.
_ALIKE = 1e-6


def rfft2(values: NDArray[Any]) -> NDArray[Any]:
    """Half-spectra of real values, (..., rows, columns) to (..., rows, columns // 2 + 1)."""
    spectrum: NDArray[Any]
    if isinstance(values, np.ndarray):
        spectrum = scipy.fft.rfft2(values, workers=_threads(values))
    else:
        spectrum = np.fft.rfft2(values)
    return spectrum


def irfft2(spectrum: NDArray[Any], columns: int, threads: int | None = None) -> NDArray[Any]:
    """Real values of a half-spectrum, which is overwritten.

    `scipy.fft.irfft2` spends a third of its time on temporaries.

    Parameters
    ----------
    spectrum : (rows, columns // 2 + 1) complex
        As `rfft2` returns it.
    columns
        Of the values: the half-spectrum does not tell whether they are even or odd.
    threads
        How many to use on the host. Default: as many as help.
    """
    if not isinstance(spectrum, np.ndarray):
        there: NDArray[Any] = np.fft.irfft2(spectrum, (spectrum.shape[0], columns))
        return there
    threads = _threads(spectrum) if threads is None else threads
    rows = scipy.fft.ifft(spectrum, axis=0, overwrite_x=True, workers=threads)
    values: NDArray[Any] = scipy.fft.irfft(rows, columns, axis=1, overwrite_x=True, workers=threads)
    return values


def pixel_spectra(
    blocks: Blocks, scanned: NDArray[np.bool_], without: NDArray[np.float32] | None = None
) -> Iterator[tuple[slice, NDArray[np.float64], Any]]:
    """Transform the images that single pixels see, less their means.

    Parameters
    ----------
    blocks
        Of `Stack.with_images`.
    scanned : (Ny, Nx) bool
        Scan positions that are there. The others are as the mean, and say nothing.
    without : (K, Ny Nx) float32
        Orthonormal functions of the scan that are taken off, too: see `slow`.

    Yields
    ------
    slice
        Which pixels.
    (m,) float64
        Their means.
    (m, Ny, Nx // 2 + 1) complex64
        Half-spectra, where the images are: they may be CuPy's.
    """
    count = max(1, int(scanned.sum()))
    there = None if scanned.all() else scanned.ravel().astype(np.float32)
    for part, images in blocks:
        values = images.reshape(len(images), -1)
        there, without = (
            None if function is None else np.asarray(function, like=values)
            for function in (there, without)
        )
        if there is not None:
            values *= there
        means = values.sum(axis=1, dtype=np.float64) / count
        values -= means.astype(np.float32)[:, None]
        if there is not None:
            values *= there
        if without is not None:
            values -= values @ without.T @ without
        yield part, here(means), rfft2(values.reshape(images.shape))


def slow(scanned: NDArray[np.bool_], degree: int = 2) -> NDArray[np.float32]:
    """Make functions that the specimen is not, orthonormal over the scan.

    Polynomials of second degree: where the beam moves on the detector while it scans, pixels at the
    rim of the disk become brighter to one side of the scan, by much more than specimens do.

    Parameters
    ----------
    scanned : (Ny, Nx) bool
        Scan positions that are there.
    degree
        Those of higher degree than the second, up to this one, are along rows or along columns.

    Returns
    -------
    (K, Ny Nx) float32
        First a constant, then what changes along rows, and along columns, and three of second
        degree. Two for each degree more: along rows, and along columns. 0 where nothing was
        scanned, and where a few positions make a function no other than those before.
    """
    y, x = ((np.indices(scanned.shape) + 0.5) / np.reshape(scanned.shape, (2, 1, 1)) - 0.5).reshape(
        2, -1
    )
    higher = [axis**power for power in range(3, degree + 1) for axis in (y, x)]
    functions = np.stack([np.ones_like(y), y, x, y * y, y * x, x * x, *higher]) * scanned.ravel()
    functions /= np.maximum(np.linalg.norm(functions, axis=1, keepdims=True), 1e-30)
    orthonormal, left = np.linalg.qr(functions.T)
    orthonormal[:, abs(np.diagonal(left)) < _ALIKE] = 0
    return np.ascontiguousarray(orthonormal.T, np.float32)


def _threads(values: NDArray[Any]) -> int:
    return THREADS if values.size * (1 + np.iscomplexobj(values)) >= _LARGE else 1
