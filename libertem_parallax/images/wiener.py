"""How strong signal and noise are in an image, found from the image itself.

What is measured, M(q) = P(q) φ(q) + noise, has powers that are distributed exponentially, with mean

    μ(q) = |P(q)|² S(|q|) + g N(q)

S is the power of φ, N that of the noise as expected, and g a factor: detectors have one that do not
count electrons one by one. Beyond the frequencies that the scan tells apart it is another one, as
what the scan aliases there is no signal. All are found by maximum likelihood (Whittle 1953). S is
near a power law, as that of most specimens, and smooth, as far as the data do not say otherwise: so
no frequency is cut off, and what is hidden by noise at some is concluded from others.

Crystals have spots, which are no part of anything smooth. What is far above μ is left out of the
fit. Where contrast is good, it has an S of its own. Where there is next to none, it is no signal,
but something that the model knows nothing of, such as a disk that moves: it is counted as noise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..accumulate.disk import keep_on_disk

__all__ = ["Found", "Spectrum"]

# Prices and bounds are chosen on simulated specimens. What a part or a multiple of each does to
# them is in benchmarks/tried.md: little, but for prices where next to nothing shows.

#: Where log S is given on the axis of log |q|; it is linear between. Places for frequencies there.
_KNOTS, _PLACES = 24, 64

#: Powers of P that are told apart: so many for each factor of 2, over a factor of 2**_RANGE.
_LEVELS, _RANGE = 2, 20

#: Price of slope and curvature that log S has beyond the power law's, by differences from knot to
#: knot.
_SLOPE, _CURVATURE = 3.0, 4.0

#: Price of log g.
_GAIN = 0.05

#: Powers of P, over the largest, below which errors of the model exceed what could be learnt; below
#: the second, there is none, and noise is measured.
_LEAST, _NONE = 1e-3, 1e-6

#: Spots: by how much they are above μ, at least, and from which power of P over the largest on they
#: are signal. Among as many frequencies as there are, noise should be so in one scan of thousands.
_SPOT, _SPOT_LEAST, _SPOT_RARE, _ROUNDS = 12.0, 1e-2, 8.0, 3

#: Steps to the maximum, the largest of one, in log S, and the gain in log likelihood that is too
#: little for another: where there is no signal, log S has no end.
_STEPS, _STEP, _ENOUGH = 20, 2.0, 1e-3


class Found(NamedTuple):
    """Signal and noise."""

    S: NDArray[np.float64]  # (places,) to be looked up at `Spectrum.place`
    noise: NDArray[np.float64]  # (2,) g times the factor of N, the second for beyond the scan's
    spots: NDArray[np.intp]  # (spots,) frequencies that are far above what is smooth
    at_spots: NDArray[np.float64]  # (spots,) S there, next to the noise above


class _Cells(NamedTuple):
    """Groups of frequencies with nearly the same μ: a mean tells as much as all of them."""

    of: NDArray[np.int32]  # (Q,) cell of each; 0 is for those that tell nothing
    counts: NDArray[Any]  # (cells,)
    power: NDArray[Any]  # (cells,) means
    noise: NDArray[Any]
    knot: NDArray[np.intp]  # (cells,) below the middle
    share: NDArray[np.float64]  # (cells,) of the knot above, in log S
    beyond: NDArray[np.intp]  # (cells,) which factor belongs to it

    def log_S(self, values: NDArray[Any]) -> NDArray[Any]:  # noqa: N802 - as in formulas
        """Interpolate between values at knots."""
        low, high = values[self.knot], values[self.knot + 1]
        between: NDArray[Any] = low + self.share * (high - low)
        return between


class Spectrum:
    """Finds signal and noise; made once for many images.

    Parameters
    ----------
    power : (Q,) float
        |P|², not 0 everywhere.
    noise : (Q,) float
        N up to a factor; 0 where something suppresses it.
    frequency : (Q,) float
        |q| in any unit.
    beyond : (Q,) bool
        Whether it is beyond those that the scan tells apart.
    law
        The power law: its power, and below how many times the lowest frequency it is flat.
    known
        How well the factor of N is known: the price of log g.
    """

    def __init__(
        self,
        power: NDArray[Any],
        noise: NDArray[Any],
        frequency: NDArray[np.float64],
        beyond: NDArray[np.bool_],
        law: tuple[float, float] = (-3.0, 2.0),
        known: float = _GAIN,
    ) -> None:
        lowest = frequency[frequency > 0].min(initial=1.0)
        place = np.log(np.maximum(frequency / lowest, 1))
        span = max(float(place.max()), 1e-9)
        #: (Q,) Where frequencies are looked up.
        self.place: NDArray[np.intp] = np.rint(place * ((_KNOTS - 1) * _PLACES / span)).astype(int)
        self._power, self._noise, self._beyond = power, noise, beyond.astype(np.intp)
        self._entry = self.place + self._beyond * ((_KNOTS - 1) * _PLACES + 1)
        self._cells = _cells(power, noise, self.place, beyond)
        self._price = _price(known)
        self._law = law[0] / 2 * np.log(np.exp(2 * span * np.linspace(0, 1, _KNOTS)) + law[1] ** 2)
        self._likely = power > _SPOT_LEAST * power.max()
        self._shows = (power > _NONE * power.max()) & (noise > 0)
        self._shown = np.bincount(self.place, self._shows, (_KNOTS - 1) * _PLACES + 1)
        self._spot = max(_SPOT, np.log(len(power)) + _SPOT_RARE)

    def fit(self, measured: NDArray[Any], noise: float) -> Found:
        """Find signal and noise.

        Parameters
        ----------
        measured : (Q,) float
            |M|².
        noise
            Factor of N.
        """
        cells = self._cells
        counts, whole = cells.counts, np.zeros(len(cells.counts))
        _add_up(cells.of, measured, whole)
        whole[0], sums = 0, whole
        theta, spots = self._start(sums, noise), np.zeros(0, np.intp)
        for _ in range(_ROUNDS):
            theta = self._climb(theta, counts, sums, noise)
            S, g = self._values(theta)
            # Most are not even far above the noise. That is soon seen.
            far = np.flatnonzero(measured > self._spot * float((g * noise).min()) * self._noise)
            far = far[self._shows[far]]
            mean = S[self.place[far]] * self._power[far]
            mean += self._noise[far] * (g * noise)[self._beyond[far]]
            found = far[measured[far] > self._spot * mean]
            if len(found) == len(spots):
                break
            spots = found
            counts = cells.counts - np.bincount(cells.of[spots], minlength=len(counts))
            counts[0] = 0
            sums = whole - np.bincount(cells.of[spots], measured[spots], len(whole))
            sums[0] = 0
        seen, power = measured[spots], self._power[spots]
        quiet = self._noise[spots] * (g * noise)[self._beyond[spots]]
        smooth = S[self.place[spots]]
        signal = (seen - quiet) / power
        # The rest is noise, next to which the smooth signal is as this is next to the noise above.
        hidden = smooth * quiet / (seen - power * smooth)
        return Found(S, g * noise, spots, np.where(self._likely[spots], signal, hidden))

    def ratio(self, found: Found, missed: float = 0.0) -> NDArray[np.float32]:
        """Noise over signal, (g / S + missed) N, at every frequency; what filters need.

        Parameters
        ----------
        found
            By `fit`.
        missed
            More noise that is in proportion to the signal.

        Returns
        -------
        (Q,) float32
        """
        table = found.noise[:, None] / np.maximum(found.S, 1e-30) + missed
        ratio: NDArray[np.float32] = np.minimum(table, 1e30).astype(np.float32).take(self._entry)
        spots = found.spots
        ratio[spots] = found.noise[self._beyond[spots]] / np.maximum(found.at_spots, 1e-30) + missed
        ratio *= self._noise
        return ratio

    def variance(self, found: Found, size: int, share: NDArray[Any] | None = None) -> float:
        """Sum S up over all frequencies that P shows, to the variance of φ.

        Parameters
        ----------
        found
            By `fit`.
        size
            Pixels of the image. Of their frequencies, the half-spectrum has half.
        share : (Q,) float
            Of S that counts. Default: all.

        Returns
        -------
        float
        """
        shown, spots, at_spots = self._shown, found.spots, found.at_spots
        smooth = found.S[self.place[spots]]
        if share is not None:
            shown = np.bincount(self.place, self._shows * share, len(shown))
            at_spots, smooth = at_spots * share[spots], smooth * share[spots]
        return 2 * float(shown @ found.S + (at_spots - smooth).sum()) / size**2

    def _values(self, theta: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """S by place, and both g."""
        places = np.arange((_KNOTS - 1) * _PLACES + 1) / _PLACES
        return np.exp(np.interp(places, np.arange(_KNOTS), theta[:-2])), np.exp(theta[-2:])

    def _start(self, sums: NDArray[Any], noise: float) -> NDArray[Any]:
        """Power law with the strength that fits best."""
        counts, p, n = self._cells.counts, self._cells.power, self._cells.noise * noise
        s = np.exp(self._cells.log_S(self._law)) * p
        # Less than a thousandth of the noise is no signal, and has no logarithm.
        least = 1e-3 * (counts * n).sum() / (counts * s).sum()
        strength = max((s * (sums - counts * n)).sum() / (counts * s**2).sum(), least)
        # Where there is less than half of the noise, values are no electrons, but something in
        # proportion to them: from g = 1, the maximum would be too far away.
        share = sums.sum() / (counts * n).sum()
        g = np.log(share) if 1e-20 < share < 0.5 else 0.0
        return np.append(self._law + np.log(strength) + g, (g, g))

    def _climb(
        self, theta: NDArray[Any], counts: NDArray[Any], sums: NDArray[Any], noise: float
    ) -> NDArray[Any]:
        """Go to the maximum, by Fisher's scoring."""
        cells, law = self._cells, np.append(self._law, (0.0, 0.0))
        of = cells.knot, cells.share, cells.beyond, cells.power, cells.noise * noise
        for _ in range(_STEPS):
            gradient, information = -self._price @ (theta - law), self._price.copy()
            _add_slopes(theta, *of, counts, sums, gradient, information)
            step = np.clip(np.linalg.solve(information, gradient), -_STEP, _STEP)
            theta = theta + step
            if gradient @ step < _ENOUGH:
                break
        return theta


def _price(known: float) -> NDArray[np.float64]:
    """Quadratic form of what it costs to leave the power law, and of log g."""
    first, second = (np.diff(np.eye(_KNOTS), order, axis=0) for order in (1, 2))
    price = np.diag(np.append(np.zeros(_KNOTS), (known, known)))
    price[:-2, :-2] = _SLOPE * first.T @ first + _CURVATURE * second.T @ second
    # Where nothing is known at all, next to nothing decides.
    return price + 1e-6 * np.eye(len(price))


def _cells(
    power: NDArray[Any], noise: NDArray[Any], place: NDArray[np.intp], beyond: NDArray[np.bool_]
) -> _Cells:
    relative = power / power.max()
    level = np.rint(_LEVELS * np.log2(np.maximum(relative, 2.0**-_RANGE))).astype(int)
    cell = place // (_PLACES // 4) * (_LEVELS * _RANGE + 1) - level
    tells = (noise > 0) & ((relative > _LEAST) | (relative < _NONE))
    # A first cell for the others, which there may be none of.
    cell = np.append(-1, np.where(tells, 2 * cell + beyond, -1))
    found, of = np.unique(cell, return_inverse=True)
    cell_of: NDArray[np.int32] = of[1:].astype(np.int32)
    counts = np.bincount(cell_of, minlength=len(found)).astype(float)
    power, noise, where = (
        np.bincount(cell_of, values, len(found)) / np.maximum(counts, 1)
        for values in (power, noise, place / _PLACES)
    )
    counts[0], noise[0] = 0, 1
    knot = np.minimum(where.astype(int), _KNOTS - 2)
    return _Cells(cell_of, counts, power, noise, knot, where - knot, found % 2)


@keep_on_disk
def _add_up(of: Any, values: Any, sums: Any) -> None:
    for i in range(len(values)):
        sums[of[i]] += values[i]


@keep_on_disk
def _add_slopes(
    theta: Any,  # (knots + 2,): log S at every knot, log of both g
    knot: Any,  # (cells,): see `_Cells`
    share: Any,
    beyond: Any,
    power: Any,
    noise: Any,  # times its factor
    counts: Any,  # (cells,) frequencies
    sums: Any,  # (cells,) of what is measured
    gradient: Any,  # (knots + 2,) of the log likelihood is added to it
    information: Any,  # (knots + 2, knots + 2) of Fisher's is added to it
) -> None:
    at, slope = np.empty(3, np.intp), np.empty(3)
    for c in range(len(counts)):
        at[0], at[1], at[2] = knot[c], knot[c] + 1, len(theta) - 2 + beyond[c]
        log_S = theta[at[0]] * (1 - share[c]) + theta[at[1]] * share[c]
        signal, expected = np.exp(log_S) * power[c], np.exp(theta[at[2]]) * noise[c]
        mean = signal + expected
        slope[0] = (1 - share[c]) * signal / mean
        slope[1] = share[c] * signal / mean
        slope[2] = expected / mean
        for i in range(3):
            gradient[at[i]] += slope[i] * (sums[c] / mean - counts[c])
            for j in range(3):
                information[at[i], at[j]] += slope[i] * slope[j] * counts[c]
