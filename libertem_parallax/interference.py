"""Aberrations as polynomials, for the engines of `libertem_parallax.likelihood`.

Directions are counted in semiangles: ξ = λk/α, η = λq/α. The aberration surface in turns, χ/2π, is
a polynomial of ξ, and so are the phases of the two beams that interfere with the direct one, whose
degree is lower by one::

    minus(ξ) = (χ(ξ) - χ(ξ - η)) / 2π        plus(ξ) = (χ(ξ + η) - χ(ξ)) / 2π

With these, an engine's γ is `transfer` over i a(k): of images over the square root of their mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .likelihood import Interference, monomials
from .likelihood.engine import degree as degree_of

__all__ = ["basis", "beams", "beams_gradient", "polynomial", "slopes"]


@cache
def basis(n: int, m: int) -> NDArray[np.float64]:
    """Polynomials of the aberrations of order n and symmetry m.

    Returns
    -------
    (1 or 2, T) float64
        Coefficients of `monomials` of degree n + 1 for ``|ξ|^(n+1) cos(mφ) / (n+1)`` and, unless m
        is 0, with sin in place of cos; the azimuth φ of (y, x) is ``arctan2(x, y)``.
    """
    powers = [tuple(power) for power in monomials(n + 1)]
    total = np.zeros(len(powers), complex)
    # (y + ix)^m (y² + x²)^((n + 1 - m) / 2)
    for j in range(m + 1):
        for k in range((n + 1 - m) // 2 + 1):
            power = (m - j + n + 1 - m - 2 * k, j + 2 * k)
            total[powers.index(power)] += math.comb(m, j) * 1j**j * math.comb((n + 1 - m) // 2, k)
    total /= n + 1
    return np.stack([total.real, total.imag] if m else [total.real])


def polynomial(
    coefs: Mapping[str, float], semiangle: float, wavelength: float
) -> NDArray[np.float64]:
    """Aberration surface in turns as a polynomial of the direction in semiangles.

    Parameters
    ----------
    coefs
        As `aberrations.canonical` returns them.
    semiangle
        In rad.
    wavelength
        In Å.

    Returns
    -------
    (T,) float64
        Coefficients of `monomials`, of degree 2 at least.
    """
    terms = [(int(name[1]), int(name[2]), value) for name, value in coefs.items() if name[0] == "C"]
    degree = max([2, *(n + 1 for n, _, value in terms if value)])
    total = np.zeros(len(monomials(degree)))
    for n, m, value in terms:
        if value:
            turns = value * semiangle ** (n + 1) / wavelength
            azimuth = m * coefs.get(f"phi{n}{m}", 0.0)
            parts = zip(basis(n, m), (math.cos(azimuth), math.sin(azimuth)), strict=False)
            for part, weight in parts:
                total[: len(part)] += turns * weight * part
    return total


def beams(turns: ArrayLike, eta: ArrayLike) -> Interference:
    """Phases of the two beams that interfere with the direct one.

    Parameters
    ----------
    turns : (T,) float
        Aberration surface: see `polynomial`.
    eta : (Q, 2) float
        Spatial frequencies in semiangles, λq/α, along the axes of the pixels' positions.

    Returns
    -------
    Interference
        For pixels at ξ, in semiangles.
    """
    turns, eta = np.asarray(turns, np.float64), np.asarray(eta, np.float64)
    return Interference(-_change(turns, -eta), _change(turns, eta), eta)


def beams_gradient(
    turns: ArrayLike, eta: ArrayLike, by: Interference
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Turn derivatives by what `beams` returns into those by aberrations and frequencies.

    Parameters
    ----------
    turns, eta
        See `beams`.
    by
        Derivatives of something, for each frequency, by what `beams` returned.

    Returns
    -------
    (Q, T) float64
        Derivatives of the same by `turns`.
    (Q, 2) float64
        By `eta`.
    """
    turns, eta = np.asarray(turns, np.float64), np.asarray(eta, np.float64)
    degree = degree_of(len(turns))
    by_turns = np.zeros((len(eta), len(turns)))
    for sign, part in ((-1, by.minus), (1, by.plus)):
        for to, of, factor in _change_terms(degree, sign * eta):
            by_turns[:, of] += sign * factor * part[:, to]
    by_eta = by.center.copy()
    for axis, slope in enumerate(slopes(turns)):
        for sign, part in ((-1, by.minus), (1, by.plus)):
            # Slopes at ξ ± η, of the degree that `part` has.
            there = slope + _change(slope, sign * eta, len(slope))
            by_eta[:, axis] += (there * part).sum(axis=1)
    return by_turns, by_eta


def _change(
    turns: NDArray[np.float64], eta: NDArray[np.float64], count: int = 0
) -> NDArray[np.float64]:
    """p(ξ + η) - p(ξ) of a polynomial p, (Q, T) of one degree less, or the first `count` terms."""
    degree = degree_of(len(turns))
    change = np.zeros((len(eta), count or len(monomials(degree - 1))))
    for to, of, factor in _change_terms(degree, eta):
        change[:, to] += factor * turns[of]
    return change


def _change_terms(
    degree: int, eta: NDArray[np.float64]
) -> Iterator[tuple[int, int, NDArray[np.float64]]]:
    """Terms of `_change`: index of the new term, of the old one, and a factor for each η."""
    powers = [np.ones((len(eta), 2))]
    for _ in range(degree):
        powers.append(powers[-1] * eta)
    for to, of, binomials, i, j in _binomials(degree):
        yield to, of, binomials * powers[i][:, 0] * powers[j][:, 1]


@cache
def _binomials(degree: int) -> list[tuple[int, int, int, int, int]]:
    index = {(int(i), int(j)): t for t, (i, j) in enumerate(monomials(degree))}
    return [
        (index[k, m], of, math.comb(i, k) * math.comb(j, m), i - k, j - m)
        for (i, j), of in index.items()
        for k in range(i + 1)
        for m in range(j + 1)
        if (k, m) != (i, j)
    ]


def slopes(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Polynomials of the derivatives by y and x, of one degree less.

    Parameters
    ----------
    turns : (T,) float64
        Any polynomial: see `polynomial`.

    Returns
    -------
    (2, T') float64
        Coefficients of `monomials`.
    """
    degree = degree_of(len(turns))
    index = {(int(i), int(j)): t for t, (i, j) in enumerate(monomials(degree))}
    slopes = np.zeros((2, len(monomials(degree - 1))))
    for (i, j), t in index.items():
        if i:
            slopes[0, index[i - 1, j]] += i * turns[t]
        if j:
            slopes[1, index[i, j - 1]] += j * turns[t]
    return slopes
