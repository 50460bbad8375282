"""How strong signal and noise are in an image, found from the image itself.

What is measured, M(q) = P(q) φ(q) + noise, has powers that are distributed exponentially, with mean

    μ(q) = |P(q)|² S(|q|) + g N(q)

S is the power of φ, N that of the noise as expected, and g a factor: detectors have one that do not
count electrons one by one. Beyond the frequencies that the scan tells apart it is another one, as
what the scan aliases there is no signal. All are found by maximum likelihood (Whittle 1953). S is
as smooth as the data let it be, since curvature of log S over log |q| has a price. A power law, as
most specimens have, costs nothing, and is what goes on where noise hides the signal: no frequency
is cut off.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Spectrum"]

#: Where log S is given on the axis of log |q|; it is linear between. Places for frequencies there.
_KNOTS, _PLACES = 24, 64

#: Powers of P that are told apart: so many for each factor of 2, over a factor of 2**_RANGE.
_LEVELS, _RANGE = 2, 20

#: Price of the curvature of log S, and of log g.
_CURVATURE, _GAIN = 4.0, 0.05

#: Steps to the maximum, and the largest of one, in log S.
_STEPS, _STEP = 12, 2.0


class _Cells(NamedTuple):
    """Groups of frequencies with nearly the same μ: a mean tells as much as all of them."""

    of: NDArray[np.intp]  # (Q,) cell of each
    counts: NDArray[Any]  # (cells,)
    power: NDArray[Any]  # (cells,) means
    noise: NDArray[Any]
    basis: NDArray[Any]  # (cells, knots) of log S
    beyond: NDArray[Any]  # (cells, 2) 1 for the factor that belongs to it


class Spectrum:
    """Finds S and g; made once for many images.

    Parameters
    ----------
    power : (Q,) float
        |P|², not 0 everywhere.
    noise : (Q,) float
        N up to a factor.
    frequency : (Q,) float
        |q| in any unit.
    beyond : (Q,) bool
        Whether it is beyond those that the scan tells apart.
    """

    def __init__(
        self,
        power: NDArray[Any],
        noise: NDArray[Any],
        frequency: NDArray[np.float64],
        beyond: NDArray[np.bool_],
    ) -> None:
        lowest = frequency[frequency > 0].min(initial=1.0)
        place = np.log(np.maximum(frequency / lowest, 1))
        place *= (_KNOTS - 1) * _PLACES / max(place.max(), 1e-9)
        #: (Q,) Where frequencies are looked up.
        self.place: NDArray[np.intp] = np.rint(place).astype(np.intp)
        self._cells = _cells(power, noise, self.place, beyond)

    def fit(
        self, measured: NDArray[Any], noise: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Find S and both factors g.

        Parameters
        ----------
        measured : (Q,) float
            |M|².
        noise
            Factor of N.

        Returns
        -------
        (places,) float64
            S, to be looked up at `place`.
        (2,) float64
            g times the factor; the second is for frequencies beyond the scan's.
        """
        cells = self._cells
        counts, p, n = cells.counts, cells.power, cells.noise * noise
        y = np.bincount(cells.of, measured, len(counts)) / np.maximum(counts, 1)
        # Less than a thousandth of the noise is no signal, and has no logarithm.
        least = 1e-3 * (counts * n).sum() / (counts * p).sum()
        start = max((counts * p * (y - n)).sum() / (counts * p**2).sum(), least)
        theta = np.append(np.full(_KNOTS, np.log(start)), (0.0, 0.0))
        for _ in range(_STEPS):
            signal = np.exp(cells.basis @ theta[:-2]) * p
            expected = np.exp(cells.beyond @ theta[-2:]) * n
            mean = signal + expected
            parts = (cells.basis, signal), (cells.beyond, expected)
            slopes = np.hstack([basis * (part / mean)[:, None] for basis, part in parts])
            gradient = slopes.T @ (counts * (y / mean - 1)) - _PRICE @ theta
            information = (slopes.T * counts) @ slopes + _PRICE
            theta += np.clip(np.linalg.solve(information, gradient), -_STEP, _STEP)
        places = np.arange((_KNOTS - 1) * _PLACES + 1) / _PLACES
        S: NDArray[np.float64] = np.exp(np.interp(places, np.arange(_KNOTS), theta[:-2]))
        return S, np.exp(theta[-2:]) * noise


def _price() -> NDArray[np.float64]:
    """Quadratic form of what log S and both log g cost."""
    second = np.diff(np.eye(_KNOTS), 2, axis=0)
    price = np.diag(np.append(np.zeros(_KNOTS), (_GAIN, _GAIN)))
    price[:-2, :-2] = _CURVATURE * second.T @ second
    # Where nothing is known at all, next to nothing decides.
    return price + 1e-6 * np.eye(len(price))


_PRICE = _price()


def _cells(
    power: NDArray[Any], noise: NDArray[Any], place: NDArray[np.intp], beyond: NDArray[np.bool_]
) -> _Cells:
    level = np.log2(np.maximum(power / power.max(), 2.0**-_RANGE))
    cell = place // (_PLACES // 4) * (_LEVELS * _RANGE + 1) - np.rint(level * _LEVELS).astype(int)
    cell = 2 * cell + beyond
    # Frequencies without noise, which something else suppresses, tell nothing.
    found, index = np.unique(np.where(noise > 0, cell, -1), return_inverse=True)
    counts = np.bincount(index).astype(float)
    power, noise, where = (np.bincount(index, v) / counts for v in (power, noise, place / _PLACES))
    counts[found < 0] = 0
    left = np.minimum(where.astype(int), _KNOTS - 2)
    basis, rows = np.zeros((len(found), _KNOTS)), np.arange(len(found))
    basis[rows, left], basis[rows, left + 1] = left + 1 - where, where - left
    noise = np.where(counts > 0, noise, 1)
    return _Cells(index, counts, power, noise, basis, np.eye(2)[found % 2])
