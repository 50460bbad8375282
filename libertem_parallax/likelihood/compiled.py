"""Numba: the default on CPUs, in float32.

Every loop is one that LLVM turns into vector instructions by itself: over pixels, without branches,
over few arrays. Sine and cosine are polynomials for the same reason. The values of a frequency, a
few arrays over all pixels, stay in the cache of a core.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from ..accumulate.disk import keep_on_disk
from ..accumulate.threads import cores
from .engine import Engine, Interference, Sums

__all__ = ["CompiledEngine", "phase", "wave"]

#: Coefficients of sin(2πt) / t as a polynomial of t², by least squares for |t| <= 1/4: the error is
#: 7e-9, less than what float32 resolves.
_S0, _S1, _S2, _S3, _S4 = (
    np.float32(c) for c in (6.28318528, -41.34168067, 81.60248074, -76.58128456, 39.76072208)
)
_ZERO, _QUARTER, _HALF, _ONE = (np.float32(c) for c in (0, 0.25, 0.5, 1))

#: What a sum's order may be changed for, but nothing that treats NaN as if there were none.
_SUM = {"reassoc", "nsz", "contract"}

#: Values that a thread should have to work on at least, or starting it takes longer.
_THREAD_VALUES = 1 << 18


@njit(inline="always")
def _sine(t: Any) -> Any:
    s = t * t
    return t * (_S0 + s * (_S1 + s * (_S2 + s * (_S3 + s * _S4))))


@njit(fastmath={"contract"})
def phase(terms: Any, coefficients: Any, turns: Any) -> None:
    """Polynomial at every pixel, from the monomials there."""
    first = np.float32(coefficients[0])
    for m in range(len(turns)):
        turns[m] = first
    for j in range(1, len(coefficients)):
        c = np.float32(coefficients[j])
        for m in range(len(turns)):
            turns[m] += c * terms[j, m]


@njit(fastmath={"contract"})
def wave(turns: Any, cos: Any, sin: Any) -> None:
    """Cosine and sine of a phase in turns."""
    for m in range(len(turns)):
        t = turns[m]
        t -= np.rint(t)
        cos[m] = _sine(_QUARTER - abs(t))
        opposite = np.copysign(_HALF, t) - t
        sin[m] = _sine(t if abs(t) <= _QUARTER else opposite)


@njit(fastmath={"contract"})
def _disk(y: Any, x: Any, cy: Any, cx: Any, slope: Any, a: Any) -> None:
    for m in range(len(a)):
        dy, dx = y[m] - cy, x[m] - cx
        inside = (_ONE - np.sqrt(dy * dy + dx * dx)) * slope + _HALF
        a[m] = min(max(inside, _ZERO), _ONE)


@njit(fastmath={"contract"})
def _transfer(a: Any, b: Any, first: Any, second: Any, gamma: Any) -> None:
    """γ of one frequency, from disks and waves; real or imaginary parts."""
    for m in range(len(a)):
        gamma[m] = a[m] * first[m] - b[m] * second[m]


@njit(fastmath=_SUM)
def _sum(re: Any, im: Any, G: Any) -> tuple[Any, Any, Any]:
    """N and D of one frequency; G holds real and imaginary parts in turn."""
    N_re, N_im, D = _ZERO, _ZERO, _ZERO
    for m in range(len(re)):
        g_re, g_im = G[2 * m], G[2 * m + 1]
        N_re += re[m] * g_re + im[m] * g_im
        N_im += re[m] * g_im - im[m] * g_re
        D += re[m] * re[m] + im[m] * im[m]
    return N_re, N_im, D


@njit(fastmath={"contract"})
def _response(re: Any, im: Any, G: Any, n_re: Any, n_im: Any, e: Any) -> None:
    """Replace γ by what its derivative is to be multiplied with."""
    for m in range(len(re)):
        g_re, g_im = G[2 * m], G[2 * m + 1]
        h_re = n_re * g_re + n_im * g_im - e * re[m]
        h_im = n_re * g_im - n_im * g_re - e * im[m]
        re[m], im[m] = h_re, h_im


@njit(fastmath={"contract"})
def _turn(cos: Any, sin: Any, re: Any, im: Any) -> None:
    """Replace a wave by its conjugate times the response."""
    for m in range(len(re)):
        u_re = cos[m] * re[m] + sin[m] * im[m]
        u_im = cos[m] * im[m] - sin[m] * re[m]
        cos[m], sin[m] = u_re, u_im


@njit(fastmath=_SUM)
def _moment(a: Any, u: Any, term: Any) -> Any:
    total = _ZERO
    for m in range(len(a)):
        total += a[m] * u[m] * term[m]
    return total


@njit(fastmath=_SUM)
def _rim(y: Any, x: Any, cy: Any, cx: Any, slope: Any, a: Any, u: Any) -> tuple[Any, Any]:
    """Find the derivative by the center of a disk."""
    total_y, total_x = _ZERO, _ZERO
    for m in range(len(a)):
        dy, dx = y[m] - cy, x[m] - cx
        radius = max(np.sqrt(dy * dy + dx * dx), np.float32(1e-12))
        weight = u[m] * slope / radius if _ZERO < a[m] < _ONE else _ZERO
        total_y += weight * dy
        total_x += weight * dx
    return total_y, total_x


@keep_on_disk
def _run(
    images: Any,  # (Q, 2 M) float32: real and imaginary parts in turn
    terms: Any,  # (T, M) float32: monomials at every pixel
    y: Any,  # (M,) float32
    x: Any,
    edge: float,
    minus: Any,  # (Q, T)
    plus: Any,  # (Q, T)
    center: Any,  # (Q, 2)
    N: Any,  # (Q,) complex128
    D: Any,  # (Q,)
    d_minus: Any,  # (Q, T), or (0, T) if no derivatives are wanted
    d_plus: Any,
    d_center: Any,
) -> None:
    M = len(y)
    slope = np.float32(1 / edge)
    turns, a, b = np.empty(M, np.float32), np.empty(M, np.float32), np.empty(M, np.float32)
    cos, sin = np.empty((2, M), np.float32), np.empty((2, M), np.float32)
    re, im = np.empty(M, np.float32), np.empty(M, np.float32)
    for q in range(len(images)):
        G = images[q]
        cy, cx = np.float32(center[q, 0]), np.float32(center[q, 1])
        _disk(y, x, cy, cx, slope, a)
        _disk(y, x, -cy, -cx, slope, b)
        phase(terms, minus[q], turns)
        wave(turns, cos[0], sin[0])
        phase(terms, plus[q], turns)
        wave(turns, cos[1], sin[1])
        _transfer(a, b, cos[0], cos[1], re)
        _transfer(a, b, sin[0], sin[1], im)
        n_re, n_im, d = _sum(re, im, G)
        N[q], D[q] = complex(n_re, n_im), d
        if not len(d_minus) or not d > _ZERO:
            continue
        e = (n_re * n_re + n_im * n_im) / d
        _response(re, im, G, n_re, n_im, e)
        _turn(cos[0], sin[0], re, im)
        _turn(cos[1], sin[1], re, im)
        factor = 2.0 / d
        for j in range(len(terms)):
            d_minus[q, j] = 2 * np.pi * factor * _moment(a, sin[0], terms[j])
            d_plus[q, j] = -2 * np.pi * factor * _moment(b, sin[1], terms[j])
        first_y, first_x = _rim(y, x, cy, cx, slope, a, cos[0])
        second_y, second_x = _rim(y, x, -cy, -cx, slope, b, cos[1])
        d_center[q, 0] = factor * (first_y + second_y)
        d_center[q, 1] = factor * (first_x + second_x)


class CompiledEngine(Engine):
    """`Engine` compiled by Numba, on several threads."""

    def __init__(
        self,
        images: NDArray[np.complex64],
        positions: ArrayLike,
        edge: float,
        threads: int | None = None,
    ) -> None:
        super().__init__(images, positions, edge)
        self._values = np.ascontiguousarray(images).view(np.float32)
        self._threads = threads or cores()

    def _sums(self, interference: Interference) -> Sums:
        return self._run(interference, derivatives=False)[0]

    def _gradients(self, interference: Interference) -> tuple[Sums, Interference]:
        return self._run(interference, derivatives=True)

    def _run(self, interference: Interference, *, derivatives: bool) -> tuple[Sums, Interference]:
        count, terms = interference.minus.shape
        sums = Sums(np.zeros(count, np.complex128), np.zeros(count))
        gradients = Interference(
            *(np.zeros_like(part[: None if derivatives else 0]) for part in interference)
        )
        T = self._terms(terms).astype(np.float32)
        y, x = np.ascontiguousarray(self.positions.T.astype(np.float32))

        def run(start: int, stop: int) -> None:
            part = slice(start, stop)
            _run(
                self._values[part],
                T,
                y,
                x,
                self.edge,
                *(np.ascontiguousarray(values[part]) for values in interference),
                *(values[part] for values in sums),
                *(values[part] for values in gradients),
            )

        threads = max(1, min(self._threads, self.images.size // _THREAD_VALUES))
        if threads == 1:
            run(0, count)
        else:
            cuts = [count * i // threads for i in range(threads + 1)]
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(run, cuts[:-1], cuts[1:]))
        return sums, gradients
