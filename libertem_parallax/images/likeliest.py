"""The most likely powers of signal and noise, and the spots beside them; compiled: see `wiener`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from ..accumulate.disk import keep_on_disk

__all__ = ["PLACES", "fit", "ratio"]

#: Places for frequencies from one knot of log S to the next.
PLACES = 64

#: How often the fit is made again without the spots that were found.
_ROUNDS = 3

#: Steps to the maximum, the largest of one, in log S, and the gain in log likelihood that is too
#: little for another: where there is no signal, log S has no end.
_STEPS, _STEP, _ENOUGH = 20, 2.0, 1e-3

#: Values that are looked at together.
_BLOCK = 256


@keep_on_disk
def fit(
    measured: Any,  # (Q,) as all of these: |M|²
    factor: float,  # of N
    power: Any,  # |P|²
    noise: Any,  # N
    place: Any,
    beyond: Any,
    shown_noise: Any,  # N, and infinite where nothing is shown
    shown: Any,  # (places,): frequencies that P shows
    likely: Any,  # (Q,): whether a spot would be signal
    spot: float,  # how far it is above μ
    cell: Any,
    counts: Any,  # (cells,) as the following: see `_Cells`
    cell_power: Any,
    cell_noise: Any,
    knot: Any,
    share: Any,
    cell_beyond: Any,
    law: Any,  # (knots,): log S of the power law
    price: Any,  # (knots + 2, knots + 2) of what differs from it
) -> Any:
    """Find S by place, both g times the factor, the spots, S there, and the sum of all S."""
    # Loops, and functions that are no calls: other code takes Numba seconds more to compile.
    whole, left, sums, cell_quiet = np.zeros((4, len(counts)))
    for i in range(len(measured)):
        whole[cell[i]] += measured[i]
    for c in range(len(counts)):
        cell_quiet[c] = cell_noise[c] * factor
    of = knot, share, cell_beyond, cell_power, cell_quiet
    theta, g, S = np.zeros(len(law) + 2), np.zeros(2), np.zeros((len(law) - 1) * PLACES + 1)
    spots, far, number, least = np.zeros(0, np.intp), np.zeros(0, np.intp), 0, np.inf
    for turn in range(_ROUNDS):
        for c in range(len(counts)):
            left[c], sums[c] = counts[c], whole[c]
        for k in range(number):
            c = cell[spots[k]]
            left[c] -= 1
            sums[c] -= measured[spots[k]]
        left[0], sums[0] = 0, 0
        if turn == 0:
            _start(theta, law, of, left, sums)
        _climb(theta, law, price, of, left, sums)
        _interpolate(theta, S)
        for k in range(2):
            g[k] = np.exp(theta[len(law) + k]) * factor
        # Most are not even far above the noise. That is soon seen, and once for all rounds.
        if spot * min(g[0], g[1]) < least:
            least = 0.8 * spot * min(g[0], g[1])
            far = _far(measured, shown_noise, np.float32(least))
        found, count = np.empty(len(far), np.intp), 0
        for k in range(len(far)):
            i = far[k]
            if measured[i] > spot * (S[place[i]] * power[i] + g[beyond[i]] * noise[i]):
                found[count] = i
                count += 1
        if count == number:
            break
        spots, number = found, count
    at_spots, total = np.empty(number), 0.0
    for k in range(len(S)):
        total += shown[k] * S[k]
    for k in range(number):
        i = spots[k]
        quiet, smooth = g[beyond[i]] * noise[i], S[place[i]]
        if likely[i]:
            at_spots[k] = (measured[i] - quiet) / power[i]
        else:
            # The rest is noise, next to which the smooth signal is as this is next to the noise
            # above.
            at_spots[k] = smooth * quiet / (measured[i] - power[i] * smooth)
        total += at_spots[k] - smooth
    return S, g, spots[:number], at_spots, total


@keep_on_disk
def ratio(
    missed: float,
    S: Any,  # see `Found`
    g: Any,
    spots: Any,
    at_spots: Any,
    entry: Any,  # (Q,) of S, first next to one g, then next to the other
    beyond: Any,  # (Q,)
    noise: Any,  # (Q,)
) -> Any:
    """Compute (g / S + missed) N: (Q,) float32."""
    table, ratio = np.empty(2 * len(S), np.float32), np.empty(len(entry), np.float32)
    for i in range(len(table)):
        table[i] = min(g[i // len(S)] / max(S[i % len(S)], 1e-30) + missed, 1e30)
    for i in range(len(entry)):
        ratio[i] = table[entry[i]] * noise[i]
    for k in range(len(spots)):
        i = spots[k]
        ratio[i] = (g[beyond[i]] / max(at_spots[k], 1e-30) + missed) * noise[i]
    return ratio


@njit(inline="always")
def _interpolate(theta: Any, S: Any) -> None:
    """Compute S at all places, as its ratio from one to the next is the same between knots."""
    factor = 1.0
    for i in range(len(S)):
        if i % PLACES == 0:
            low = i // PLACES
            S[i] = np.exp(theta[low])
            factor = np.exp((theta[low + 1] - theta[low]) / PLACES)
        else:
            S[i] = S[i - 1] * factor


@njit(inline="always")
def _start(theta: Any, law: Any, of: Any, counts: Any, sums: Any) -> None:
    """Set θ to the power law with the strength that fits best."""
    knot, share, _, power, noise = of
    signal, quiet, known, square, all_sums = 0.0, 0.0, 0.0, 0.0, 0.0
    for c in range(len(counts)):
        s = np.exp(law[knot[c]] * (1 - share[c]) + law[knot[c] + 1] * share[c]) * power[c]
        signal += counts[c] * s
        quiet += counts[c] * noise[c]
        known += s * (sums[c] - counts[c] * noise[c])
        square += counts[c] * s**2
        all_sums += sums[c]
    # Less than a thousandth of the noise is no signal, and has no logarithm.
    strength = np.log(max(known / square, 1e-3 * quiet / signal))
    # Where there is less than half of the noise, values are no electrons, but something in
    # proportion to them: from g = 1, the maximum would be too far away.
    part = all_sums / quiet
    g = np.log(part) if 1e-20 < part < 0.5 else 0.0
    for i in range(len(theta)):
        theta[i] = g + (law[i] + strength if i < len(law) else 0.0)


@njit(inline="always")
def _far(values: Any, noise: Any, factor: Any) -> Any:
    """Find values that are above a factor times the noise; few are."""
    found, count = np.empty(len(values), np.intp), 0
    for start in range(0, len(values), _BLOCK):
        some, quiet = values[start : start + _BLOCK], noise[start : start + _BLOCK]
        if _any_above(some, quiet, factor):
            for i in range(len(some)):
                if some[i] > factor * quiet[i]:
                    found[count] = start + i
                    count += 1
    return found[:count].copy()


@njit(inline="always")
def _any_above(values: Any, noise: Any, factor: Any) -> Any:
    above = np.int32(0)  # a sum, and no end of the loop before: that is done in vectors
    for i in range(len(values)):
        above |= np.int32(values[i] > factor * noise[i])
    return above != 0


@njit(inline="always")
def _climb(theta: Any, law: Any, price: Any, of: Any, counts: Any, sums: Any) -> None:
    """Move θ, log S at every knot and log of both g, to the maximum, by Fisher's scoring."""
    knot, share, beyond, power, noise = of
    knots, size = len(law), len(theta)
    away, gradient = np.empty(size), np.empty(size)
    information = np.empty((size, size))
    for _ in range(_STEPS):
        for i in range(size):
            away[i] = theta[i] - law[i] if i < knots else theta[i]
        for i in range(size):
            gradient[i] = 0
            for j in range(max(i - 2, 0), min(i + 3, size)):  # a band
                gradient[i] -= price[i, j] * away[j]
            for j in range(i + 1):
                information[i, j] = price[i, j]
        g0, g1 = np.exp(theta[knots]), np.exp(theta[knots + 1])
        for c in range(len(counts)):
            k, last = knot[c], knots + beyond[c]
            log_S = theta[k] * (1 - share[c]) + theta[k + 1] * share[c]
            signal, expected = np.exp(log_S) * power[c], (g1 if beyond[c] else g0) * noise[c]
            over = 1 / (signal + expected)
            low, high = (1 - share[c]) * signal * over, share[c] * signal * over
            quiet, more, weight = expected * over, sums[c] * over - counts[c], counts[c]
            gradient[k] += low * more
            gradient[k + 1] += high * more
            gradient[last] += quiet * more
            information[k, k] += low * low * weight
            information[k + 1, k] += high * low * weight
            information[k + 1, k + 1] += high * high * weight
            information[last, k] += quiet * low * weight
            information[last, k + 1] += quiet * high * weight
            information[last, last] += quiet * quiet * weight
        step, gain = _solved(information, gradient), 0.0
        for i in range(size):
            step[i] = min(max(step[i], -_STEP), _STEP)
            theta[i] += step[i]
            gain += gradient[i] * step[i]
        if gain < _ENOUGH:
            break


@njit(inline="always")
def _solved(matrix: Any, values: Any) -> Any:
    """Solve for a symmetric matrix, of which the lower half is there and overwritten (Cholesky)."""
    size, x = len(values), values.copy()
    for i in range(size):
        first = 0
        while matrix[i, first] == 0:  # a band, but for the last rows
            first += 1
        for j in range(first, i + 1):
            for k in range(first, j):
                matrix[i, j] -= matrix[i, k] * matrix[j, k]
            matrix[i, j] = np.sqrt(matrix[i, i]) if i == j else matrix[i, j] / matrix[j, j]
        for k in range(first, i):
            x[i] -= matrix[i, k] * x[k]
        x[i] /= matrix[i, i]
    for i in range(size - 1, -1, -1):
        x[i] /= matrix[i, i]
        for k in range(i):
            x[k] -= matrix[i, k] * x[i]
    return x
