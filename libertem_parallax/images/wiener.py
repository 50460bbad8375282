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

from .likeliest import PLACES, fit, ratio

__all__ = ["Found", "Spectrum"]

# Prices and bounds are chosen on simulated specimens. What a part or a multiple of each does to
# them is in benchmarks/tried.md: little, but for prices where next to nothing shows.

#: Where log S is given on the axis of log |q|; it is linear between.
_KNOTS = 24

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
_SPOT, _SPOT_LEAST, _SPOT_RARE = 12.0, 1e-2, 8.0


class Found(NamedTuple):
    """Signal and noise."""

    S: NDArray[np.float64]  # (places,) to be looked up at `Spectrum.place`
    noise: NDArray[np.float64]  # (2,) g times the factor of N, the second for beyond the scan's
    spots: NDArray[np.intp]  # (spots,) frequencies that are far above what is smooth
    at_spots: NDArray[np.float64]  # (spots,) S there, next to the noise above
    total: float  # sum of S over all frequencies that P shows


class _Cells(NamedTuple):
    """Groups of frequencies with nearly the same μ: a mean tells as much as all of them."""

    of: NDArray[np.uint16]  # (Q,) cell of each; 0 is for those that tell nothing
    counts: NDArray[Any]  # (cells,)
    power: NDArray[Any]  # (cells,) means
    noise: NDArray[Any]
    knot: NDArray[np.intp]  # (cells,) below the middle
    share: NDArray[np.float64]  # (cells,) of the knot above, in log S
    beyond: NDArray[np.intp]  # (cells,) which factor belongs to it


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
        self.place = np.rint(place * ((_KNOTS - 1) * PLACES / span)).astype(np.uint16)
        self._power, self._noise, self._beyond = power, noise, beyond.astype(np.uint8)
        self._entry = self.place + self._beyond * np.uint16((_KNOTS - 1) * PLACES + 1)
        self._cells = _cells(power, noise, self.place, beyond)
        self._price = _price(known)
        self._law = law[0] / 2 * np.log(np.exp(2 * span * np.linspace(0, 1, _KNOTS)) + law[1] ** 2)
        self._likely = power > _SPOT_LEAST * power.max()
        self._shows = (power > _NONE * power.max()) & (noise > 0)
        # What shows nothing is above no noise.
        self._shown_noise = np.where(self._shows, noise, np.inf).astype(np.float32)
        self._shown = np.bincount(self.place, self._shows, (_KNOTS - 1) * PLACES + 1)
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
        found = fit(
            measured,
            noise,
            self._power,
            self._noise,
            self.place,
            self._beyond,
            self._shown_noise,
            self._shown,
            self._likely,
            self._spot,
            *self._cells,
            self._law,
            self._price,
        )
        return Found(*found)

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
        table: NDArray[np.float32] = ratio(
            missed, *found[:4], self._entry, self._beyond, self._noise
        )
        return table

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
        total = found.total
        if share is not None:
            shown = np.bincount(self.place, self._shows * share, len(self._shown))
            more = (found.at_spots - found.S[self.place[found.spots]]) * share[found.spots]
            total = float(shown @ found.S + more.sum())
        return 2 * total / size**2


def _price(known: float) -> NDArray[np.float64]:
    """Quadratic form of what it costs to leave the power law, and of log g."""
    first, second = (np.diff(np.eye(_KNOTS), order, axis=0) for order in (1, 2))
    price = np.diag(np.append(np.zeros(_KNOTS), (known, known)))
    price[:-2, :-2] = _SLOPE * first.T @ first + _CURVATURE * second.T @ second
    # Where nothing is known at all, next to nothing decides.
    return price + 1e-6 * np.eye(len(price))


def _cells(
    power: NDArray[Any], noise: NDArray[Any], place: NDArray[np.uint16], beyond: NDArray[np.bool_]
) -> _Cells:
    relative = power / power.max()
    level = np.rint(_LEVELS * np.log2(np.maximum(relative, 2.0**-_RANGE))).astype(int)
    cell = place.astype(int) // (PLACES // 4) * (_LEVELS * _RANGE + 1) - level
    tells = (noise > 0) & ((relative > _LEAST) | (relative < _NONE))
    # A first cell for the others, which there may be none of.
    cell = np.append(-1, np.where(tells, 2 * cell + beyond, -1))
    found, of = np.unique(cell, return_inverse=True)
    cell_of: NDArray[np.uint16] = of[1:].astype(np.uint16)
    counts = np.bincount(cell_of, minlength=len(found)).astype(float)
    power, noise, where = (
        np.bincount(cell_of, values, len(found)) / np.maximum(counts, 1)
        for values in (power, noise, place / PLACES)
    )
    counts[0], noise[0] = 0, 1
    knot = np.minimum(where.astype(int), _KNOTS - 2)
    return _Cells(cell_of, counts, power, noise, knot, where - knot, found % 2)
