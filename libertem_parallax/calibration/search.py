"""Search for shifts, without a first guess: a Fourier transform over the detector.

If defocus, astigmatism, rotation and mirroring shift the image of the pixel at ξ by M ξ, with a
matrix M, the spectra G(q, ξ) add up in phase in

    Σ_ξ G(q, ξ) exp(-2πi q·Mξ)

which is, for all M at once, the Fourier transform of G(q, ·) over the detector, taken at Mᵀq. So
E(q, p) = |FFT G(q, ·)|² is made once, and ``J(M) = Σ_q E(q, Mᵀq)`` costs a look-up per frequency.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from ..accumulate.disk import keep_on_disk
from .model import Optics
from .spectra import Spectra

__all__ = ["Peak", "candidates", "search"]

#: Largest shift at the rim, in steps of the search, that a band of frequencies looks for.
_STEPS = 12

#: Step of the search in Å at the rim, times the band's highest frequency: half of it takes the rim
#: about a sixth of a turn out of phase.
_STEP = 0.3

#: Astigmatism over defocus that the search tries; what lies between is found by refining.
_ASTIGMATISM = 0.5

#: Frequencies that are transformed at once.
_BLOCK = 32

#: Frequencies of a band at most, and peaks that are kept of it.
_FREQUENCIES, _PEAKS = 600, 8

#: Fewer frequencies than that tell no matrix; fewer spots of a crystal.
_FEWEST, _SPOTS = 12, 3

#: Steps for a crystal at most, and so many look-ups that they take about as long as a band.
_MOST_STEPS, _LOOKUPS = 28, 2e7


class Peak(NamedTuple):
    """A matrix of shifts that stands out."""

    shifts: NDArray[np.float64]  # (2, 2) Å along rows and columns of the scan per semiangle
    band: float  # highest frequency of those that showed it, in 1/Å


@keep_on_disk
def _add(E: Any, p: Any, matrices: Any, J: Any) -> None:
    """Add one frequency's E at Mᵀq, interpolated, to all J; p is q per cell of E, (2, 2)."""
    rows, cols = E.shape
    p00, p01, p10, p11 = np.float32(p[0, 0]), np.float32(p[0, 1]), p[1, 0], p[1, 1]
    for c in range(matrices.shape[1]):
        y = matrices[0, c] * p00 + matrices[2, c] * p01
        x = matrices[1, c] * p10 + matrices[3, c] * p11
        fy, fx = math.floor(y), math.floor(x)
        wy, wx = y - fy, x - fx
        i, j = int(fy) % rows, int(fx) % cols
        i1 = i + 1 if i + 1 < rows else 0
        j1 = j + 1 if j + 1 < cols else 0
        J[c] += (1 - wy) * ((1 - wx) * E[i, j] + wx * E[i, j1]) + wy * (
            (1 - wx) * E[i1, j] + wx * E[i1, j1]
        )


class _Band:
    """E of a band of frequencies."""

    def __init__(self, spectra: Spectra, optics: Optics) -> None:
        origin = spectra.pixels.min(axis=0)
        extent = spectra.pixels.max(axis=0) - origin + 1
        # Interpolation between points needs them denser than the pixels call for.
        shape = tuple(scipy.fft.next_fast_len(int(1.5 * n)) for n in extent)
        rows, cols = (spectra.pixels - origin).T
        # Cells of E per 1/Å and Å of shift at the rim.
        scale = np.asarray(optics.sampling) / optics.semiangle * shape
        self._p = scale[:, None] * spectra.q[:, None, :]
        self._E = np.empty((len(spectra.q), *shape), np.float32)
        for start in range(0, len(self._E), _BLOCK):
            part = slice(start, start + _BLOCK)
            frames = np.zeros(self._E[part].shape, np.complex64)
            frames[:, rows, cols] = spectra.images[part]
            spectrum = scipy.fft.fft2(frames, overwrite_x=True)
            self._E[part] = spectrum.real**2 + spectrum.imag**2
        self._E /= np.float32(len(rows) * len(self._E))

    def heights(self, matrices: NDArray[np.floating]) -> NDArray[np.float64]:
        """J over that of white noise, for all matrices (..., 2, 2)."""
        flat = np.ascontiguousarray(matrices.reshape(-1, 4).T, np.float32)
        J = np.zeros(flat.shape[1], np.float32)
        for E, p in zip(self._E, self._p, strict=True):
            _add(E, p, flat, J)
        return J.reshape(matrices.shape[:-2]).astype(np.float64)


def candidates(step: float, largest: float, determinant: int = 1) -> Iterator[NDArray[np.float64]]:
    """Matrices of all defoci, rotations and astigmatisms, in shells of the same defocus.

    Parameters
    ----------
    step
        Between neighbors, in Å at the rim.
    largest
        Shift at the rim by defocus in Å.
    determinant
        Its sign; negative ones mirror.

    Yields
    ------
    (..., 2, 2) float64
        A complex number z = y + ix goes to a z + b z*, with |b| < |a|; the other way round where
        the determinant is negative.
    """
    for n in range(1, round(largest / step) + 1):
        turns = math.ceil(2 * np.pi * n)
        a = n * step * np.exp(2j * np.pi * np.arange(turns) / turns)
        reach = int(_ASTIGMATISM * n)
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        b = (y + 1j * x)[np.hypot(y, x) <= _ASTIGMATISM * n] * step
        first, second = np.broadcast_arrays(a[:, None], b)
        yield matrices(first, second) if determinant > 0 else matrices(second, first)


def matrices(a: Any, b: Any) -> NDArray[np.float64]:
    """Matrices of z -> a z + b z*, z = y + ix."""
    a, b = np.asarray(a), np.asarray(b)
    first, second = a + b, 1j * (a - b)
    M: NDArray[np.float64] = np.stack(
        [
            np.stack([first.real, second.real], axis=-1),
            np.stack([first.imag, second.imag], axis=-1),
        ],
        axis=-2,
    )
    return M


def search(
    spectra: Spectra, optics: Optics, extent: float, determinants: tuple[int, ...] = (1, -1)
) -> Iterator[list[Peak]]:
    """Find matrices of shifts that stand out.

    Parameters
    ----------
    spectra
        Of the data, nearest to 0 first.
    optics
        Of the microscope.
    extent
        Length of the scan in Å. Shifts between opposite rims are smaller.
    determinants
        Signs of the determinant to be tried.

    Yields
    ------
    list
        Peaks of a band of frequencies, the highest first; the bands from low to high, which show
        large shifts and small ones.
    """
    radius = np.hypot(*spectra.q.T)
    for lowest, highest in _bands(extent, float(radius[-1])):
        inside = np.flatnonzero((radius > lowest) & (radius <= highest))
        if len(inside) < _FEWEST:
            continue
        inside = np.sort(inside[np.argsort(-spectra.power[inside])[:_FREQUENCIES]])
        yield _search(spectra.take(inside), optics, extent, highest, _STEPS, determinants)
    # A crystal's few frequencies are high ones, which no band sees where shifts are large.
    strong = np.flatnonzero(spectra.strong)[:_FREQUENCIES]
    if len(strong) >= _SPOTS:
        steps = int(min(_MOST_STEPS, (_LOOKUPS / len(strong)) ** 0.25))
        highest = float(radius[strong].max())
        yield _search(spectra.take(strong), optics, extent, highest, steps, determinants)


def _search(
    spectra: Spectra,
    optics: Optics,
    extent: float,
    highest: float,
    steps: int,
    determinants: tuple[int, ...],
) -> list[Peak]:
    """Find the peaks of some frequencies."""
    band = _Band(spectra, optics)
    step = _STEP / highest
    largest = min(extent / 2, steps * step)
    J, tried = [], []
    for sign in determinants:
        for shell in candidates(step, largest, sign):
            tried.append(shell.reshape(-1, 2, 2).astype(np.float32))
            J.append(band.heights(tried[-1]))
    peaks = _peaks(band, np.concatenate(tried), np.concatenate(J), step)
    return [Peak(M, highest) for M in peaks]


def _bands(extent: float, highest: float) -> Iterator[tuple[float, float]]:
    """Octaves of frequencies: in the first one, all defoci are within reach."""
    first = 2 * _STEPS * _STEP / extent
    count = max(0, math.ceil(math.log2(highest / first))) if first < highest else 0
    for n in range(count + 1):
        yield 0.0 if n == 0 else first * 2 ** (n - 2), min(highest, first * 2**n)


def _peaks(
    band: _Band, tried: NDArray[np.float64], J: NDArray[np.float64], step: float
) -> NDArray[np.float64]:
    """Take the highest, none that is near one before, and refine them."""
    left = np.ones(len(J), bool)
    tops: list[NDArray[np.float64]] = []
    while len(tops) < _PEAKS and left.any():
        best = int(np.argmax(np.where(left, J, -np.inf)))
        M = tried[best]
        tops.append(M)
        left &= np.abs(tried - M).max(axis=(1, 2)) > 2 * step
    # A pattern search, all peaks at once.
    now, size = np.array(tops), step / 2
    moves = np.concatenate([np.zeros((1, 4)), np.eye(4), -np.eye(4)]).reshape(-1, 2, 2)
    for _ in range(5):
        around = now[:, None] + size * moves
        best_move = band.heights(around).argmax(axis=1)
        now = around[np.arange(len(now)), best_move]
        if not best_move.any():
            size /= 2
    return now
