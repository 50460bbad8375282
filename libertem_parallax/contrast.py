"""Contrast transfer of the parallax image: what the sum over pixels makes of a weak phase object.

With T as in `weak_object`, and shifts s as rounded to pixels of the image, a weak phase object φ
gives the parallax image, over the counts of a pixel inside the aperture,

    R(q) = P(q) φ(q),    P(q) = Σ_m T_m(q) (exp(-2πi q·s_m) - h(q))

h, the mean of exp(-2πi q·s_m), is there because every frame's mean is taken off. The shot noise of
R has the power C (1 - |h|²), C all counts.

P is summed over all pixels at every frequency without an array of that size. T_m exp(-2πi q·s_m) is
``i (exp(2πi minus) - exp(2πi plus)) exp(-2πi q·(s_m - d_m))`` where d_m is the exact displacement,
and `minus` and `plus` are phases of which the part linear in q is gone: polynomials of the pixel's
direction, constant for aberrations of second order. The last factor is a product of one for rows
and one for columns of q, so that it is found by complex multiplications alone.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from . import aberrations
from .accumulate.disk import keep_on_disk
from .accumulate.threads import cores
from .geometry import Geometry
from .interference import beams, polynomial, slopes
from .likelihood import monomials
from .likelihood.compiled import phase, wave
from .weak_object import aperture

__all__ = ["Contrast", "contrast"]

#: Columns of q after which factors are computed anew, before rounding errors add up.
_RUN = 64

#: Pairs of a pixel and a frequency that a thread should have at least, or starting it takes longer.
_THREAD_PAIRS = 1 << 20

#: Power of the noise, over all counts, below which the transfer is less than its rounding errors.
_ALIKE = 1e-12

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)

#: What a sum's order may be changed for.
_SUM = {"reassoc", "nsz", "contract"}


class Contrast(NamedTuple):
    """Contrast transfer of a geometry's parallax image, on its half-spectrum."""

    P: NDArray[np.complex64]  # (u Ny, u Nx // 2 + 1)
    noise: NDArray[np.float32]  # (u Ny, u Nx // 2 + 1) 1 - |h|²
    pixels: float  # Σ a²: as many pixels inside the aperture would see as many counts


def contrast(geometry: Geometry, threads: int | None = None) -> Contrast:
    """Sum up the transfer of all pixels.

    Parameters
    ----------
    geometry
        Of the acquisition.
    threads
        How many to use at most. Default: one for each core that this process may use.

    Returns
    -------
    Contrast
        The Nyquist frequencies of axes of even length, which an image does not tell from their
        opposites, have neither transfer nor noise. Neither have those of the scan's steps: as
        pixels are not equally bright, the image shows these, whatever the object is.
    """
    plan, wavelength = geometry.plan, geometry.wavelength
    (ny, nx), pixels = plan.image_shape, len(plan.pixels)
    semiangle = geometry.parameters["semiangle_cutoff"] * 1e-3
    edge = geometry.soft_edge / semiangle
    xi = geometry.angles / semiangle
    step = np.asarray(geometry.scan_sampling) / plan.upsampling_factor
    exact = aberrations.gradient(geometry.aberration_coefs, geometry.angles) / step
    a = aperture(xi, 1.0, edge)

    fy, fx = np.fft.fftfreq(ny), np.fft.rfftfreq(nx)  # cycles a pixel
    eta_y, eta_x = (f / d * wavelength / semiangle for f, d in zip((fy, fx), step, strict=True))
    turns = polynomial(geometry.aberration_coefs, semiangle, wavelength)
    slope = slopes(turns)
    degree = (math.isqrt(8 * slope.shape[1] + 1) - 3) // 2
    powers = monomials(degree - 1)
    terms = np.stack([xi[:, 0] ** i * xi[:, 1] ** j for i, j in powers]).astype(np.float32)
    y, x = np.ascontiguousarray(xi.T, np.float32)

    def factors(cycles: NDArray[Any], axis: int) -> NDArray[np.float32]:
        """exp(-2πi q·(s - d)) and exp(2πi q·d) of one axis: (q, 2, real and imaginary, M)."""
        moved = np.stack([exact - plan.shifts, exact])[..., axis]
        turned = np.exp(2j * np.pi * cycles[:, None, None] * moved)
        return np.stack([turned.real, turned.imag], axis=2).astype(np.float32)

    by_start, by_column = factors(fx[::_RUN], 1), factors(np.array([1 / nx]), 1)[0]
    P, bright = np.zeros((2, ny, len(fx)), np.complex64)

    def run(row: int) -> None:
        eta = np.stack([np.full(len(fx), eta_y[row]), eta_x], axis=-1)
        beam, linear = beams(turns, eta), eta @ slope
        minus, plus = (
            np.ascontiguousarray((part - linear)[:, : len(powers)])
            for part in (beam.minus, beam.plus)
        )
        for part in (minus, plus):  # whole turns would cost digits
            part[:, 0] -= np.rint(part[:, 0])
        by_row = factors(fy[row : row + 1], 0)[0] * a.astype(np.float32)
        _run(terms, y, x, edge, eta, minus, plus, by_row, by_start, by_column, P[row], bright[row])

    threads = cores() if threads is None else threads
    with ThreadPoolExecutor(max(1, min(threads, P.size * pixels // _THREAD_PAIRS))) as pool:
        list(pool.map(run, range(ny)))
    h = np.fft.rfft2(plan.histogram.transpose(2, 0, 3, 1).reshape(ny, nx) / pixels)
    P -= h * bright
    noise = (1 - h.real**2 - h.imag**2).astype(np.float32)
    # Where all shifts are alike, nothing is left; what rounding leaves must not be amplified.
    alike = noise < _ALIKE
    P[alike], noise[alike] = 0, 0
    rows, cols = plan.scan_shape
    for values in (P, noise):
        # The mean, and what the scan aliases of it.
        values[::rows, ::cols] = 0
        if ny % 2 == 0:
            values[ny // 2] = 0
        if nx % 2 == 0:
            values[:, -1] = 0
    return Contrast(P, noise, float((a**2).sum()))


@njit(fastmath={"contract"})
def _multiply(a: Any, b: Any, out: Any) -> None:
    for m in range(a.shape[1]):
        re = a[0, m] * b[0, m] - a[1, m] * b[1, m]
        im = a[0, m] * b[1, m] + a[1, m] * b[0, m]
        out[0, m], out[1, m] = re, im


@njit(fastmath={"contract"})
def _disk(y: Any, x: Any, cy: Any, cx: Any, slope: Any, a: Any) -> None:
    for m in range(len(a)):
        dy, dx = y[m] - cy, x[m] - cx
        a[m] = min(max((_ONE - np.sqrt(dy * dy + dx * dx)) * slope + _HALF, _ZERO), _ONE)


@njit(fastmath=_SUM)
def _sum(values: Any, factor: Any) -> tuple[Any, Any]:
    """Sum real values times complex factors."""
    re, im = _ZERO, _ZERO
    for m in range(len(values)):
        re += values[m] * factor[0, m]
        im += values[m] * factor[1, m]
    return re, im


@njit(fastmath={"contract"})
def _interfere(disks: Any, waves: Any) -> None:
    """Turn the waves' first into the difference of both within their disks."""
    for m in range(disks.shape[1]):
        a, b = disks[0, m], disks[1, m]
        waves[0, 0, m] = a * waves[0, 0, m] - b * waves[1, 0, m]
        waves[0, 1, m] = a * waves[0, 1, m] - b * waves[1, 1, m]


@keep_on_disk
def _run(
    terms: Any,  # (T, M) float32: monomials at every pixel
    y: Any,  # (M,) float32: directions in semiangles
    x: Any,
    edge: float,
    eta: Any,  # (Q, 2): frequencies of a row in semiangles
    minus: Any,  # (Q, T): phases of the two beams in turns
    plus: Any,
    by_row: Any,  # (2, 2, M) float32: factors of the row, with shifts and without
    by_start: Any,  # (runs, 2, 2, M) of every first column of a run
    by_column: Any,  # (2, 2, M) from a column to the next
    P: Any,  # (Q,) complex64
    bright: Any,
) -> None:
    M, Q = len(y), len(eta)
    slope = np.float32(1 / edge)
    factor, waves = np.empty((2, 2, M), np.float32), np.empty((2, 2, M), np.float32)
    disks, turns = np.empty((2, M), np.float32), np.empty(M, np.float32)
    for q in range(Q):
        if np.hypot(eta[q, 0], eta[q, 1]) > 2 + edge:
            break  # the disks do not meet, from here on
        for i in range(2):
            if q % _RUN:
                _multiply(factor[i], by_column[i], factor[i])
            else:
                _multiply(by_row[i], by_start[q // _RUN, i], factor[i])
        cy, cx = np.float32(eta[q, 0]), np.float32(eta[q, 1])
        _disk(y, x, cy, cx, slope, disks[0])
        _disk(y, x, -cy, -cx, slope, disks[1])
        sums = np.zeros(2, np.complex128)
        if len(terms) == 1:
            for j in range(2):
                turn = 2j * np.pi * (plus[q, 0] if j else minus[q, 0])
                for i in range(2):
                    re, im = _sum(disks[j], factor[i])
                    sums[i] += (1 - 2 * j) * np.exp(turn) * complex(re, im)
        else:
            phase(terms, minus[q], turns)
            wave(turns, waves[0, 0], waves[0, 1])
            phase(terms, plus[q], turns)
            wave(turns, waves[1, 0], waves[1, 1])
            _interfere(disks, waves)
            for i in range(2):
                re, im = _sum(waves[0, 0], factor[i])
                re_i, im_i = _sum(waves[0, 1], factor[i])
                sums[i] = complex(re - im_i, im + re_i)
        P[q], bright[q] = 1j * sums[0], 1j * sums[1]
