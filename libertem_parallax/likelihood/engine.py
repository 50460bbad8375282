"""What every engine promises."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Engine", "Interference", "Sums", "degree", "monomials"]


def monomials(degree: int) -> NDArray[np.int64]:
    """Exponents (i, j) of the terms ``y**i x**j`` of a polynomial.

    Parameters
    ----------
    degree
        Highest ``i + j``.

    Returns
    -------
    (T, 2) int64
        1, y, x, y², yx, x², ...; a lower degree has the first of them.
    """
    return np.array([(n - j, j) for n in range(degree + 1) for j in range(n + 1)])


def degree(terms: int) -> int:
    """Highest degree of a polynomial of at most so many `monomials`."""
    return (math.isqrt(8 * terms + 1) - 3) // 2


class Interference(NamedTuple):
    """Phases of the two beams that interfere with the direct one, for each of Q frequencies.

    Or, returned by `Engine.gradients`, how |N|²/D changes with each of these numbers.
    """

    minus: NDArray[np.float64]  # (Q, T) phase of the first, as a polynomial, in turns
    plus: NDArray[np.float64]  # (Q, T) of the second
    center: NDArray[np.float64]  # (Q, 2) center of the first's disk; the second's is opposite


class Sums(NamedTuple):
    """What is summed over all pixels, for each of Q frequencies."""

    N: NDArray[np.complex128]  # (Q,) Σ γ* G
    D: NDArray[np.float64]  # (Q,) Σ |γ|²

    @property
    def explained(self) -> NDArray[np.float64]:
        """|N|²/D, or 0 where D is: of white noise of power 1, it is 1 on average."""
        power = np.abs(self.N) ** 2
        explained: NDArray[np.float64] = np.divide(
            power, self.D, out=np.zeros_like(power), where=self.D > 0
        )
        return explained


class Engine(ABC):
    """Sums over pixels how well their images agree with the interference of three beams.

    For frequency q and the pixel at p = (y, x)::

        γ = a(p - c) exp(2πi minus(p)) - a(p + c) exp(2πi plus(p))

    with the polynomials and the center c of `Interference`, and a disk of radius 1 whose edge is
    soft, ``a(p) = clip((1 - |p|) / edge + 1/2, 0, 1)``.

    Parameters
    ----------
    images : (Q, M) complex64
        G: Fourier coefficients of the pixels' images. Not copied where that can be avoided.
    positions : (M, 2) float
        Of the pixels, in units of the disk's radius.
    edge
        Width of the disk's edge, in the same units.

    Raises
    ------
    ValueError
        If shapes or dtypes do not fit together.
    """

    def __init__(self, images: NDArray[np.complex64], positions: ArrayLike, edge: float) -> None:
        self.positions = np.asarray(positions, np.float64)
        if len(images.shape) != 2 or images.dtype != np.complex64:
            raise ValueError(
                f"images: expected complex64 of shape (Q, M), got {images.dtype} of shape "
                f"{images.shape}."
            )
        if self.positions.shape != (images.shape[1], 2):
            raise ValueError(
                f"positions: expected shape ({images.shape[1]}, 2) for images of shape "
                f"{images.shape}, got {self.positions.shape}."
            )
        if not edge > 0:
            raise ValueError(f"edge = {edge:g}: expected a positive width.")
        self.images = images
        self.edge = float(edge)

    def sums(self, interference: Interference) -> Sums:
        """Sum over all pixels.

        Parameters
        ----------
        interference
            Of every frequency.

        Returns
        -------
        Sums
            For every frequency.

        Raises
        ------
        ValueError
            If shapes do not fit.
        """
        return self._sums(self._checked(interference))

    def gradients(self, interference: Interference) -> tuple[Sums, Interference]:
        """Sum over all pixels, with derivatives.

        Parameters
        ----------
        interference
            Of every frequency.

        Returns
        -------
        Sums
            As `sums`.
        Interference
            Derivatives of `Sums.explained` by each number; 0 where D is.

        Raises
        ------
        ValueError
            If shapes do not fit.
        """
        return self._gradients(self._checked(interference))

    @abstractmethod
    def _sums(self, interference: Interference) -> Sums: ...

    @abstractmethod
    def _gradients(self, interference: Interference) -> tuple[Sums, Interference]: ...

    def _checked(self, interference: Interference) -> Interference:
        minus, plus, center = (np.asarray(part, np.float64) for part in interference)
        count = len(self.images)
        terms = minus.shape[-1] if minus.ndim else 0
        if (
            minus.shape != (count, terms)
            or plus.shape != minus.shape
            or center.shape != (count, 2)
            or terms != len(monomials(degree(terms)))
        ):
            raise ValueError(
                f"interference of shapes {minus.shape}, {plus.shape} and {center.shape}: expected "
                f"(Q, T), (Q, T) and (Q, 2) with Q = {count}, T the number of a polynomial's terms."
            )
        return Interference(minus, plus, center)

    def _terms(self, count: int) -> NDArray[Any]:
        """Values of the first `count` monomials at every pixel, (count, M)."""
        y, x = self.positions.T
        return np.stack([y**i * x**j for i, j in monomials(degree(count))])
