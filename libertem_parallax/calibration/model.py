"""Likelihood of parameters, given spectra: of rotation and aberrations, with derivatives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..interference import basis, beams, beams_gradient
from ..likelihood import ENGINES, Engine, Sums, monomials
from .spectra import Spectra

__all__ = ["Model", "Optics", "curvature", "turn"]


@dataclass(frozen=True)
class Optics:
    """What is known of the microscope and the detector.

    Parameters
    ----------
    wavelength
        In Å.
    semiangle
        In rad.
    center
        Row and column of the beam in detector pixels as stored.
    sampling
        Size of a detector pixel along rows and columns in rad.
    """

    wavelength: float
    semiangle: float
    center: tuple[float, float]
    sampling: tuple[float, float]

    @property
    def edge(self) -> float:
        """Width of the disk's edge in semiangles: that of a pixel."""
        return math.sqrt(self.sampling[0] * self.sampling[1]) / self.semiangle

    def positions(self, pixels: NDArray[np.int64]) -> NDArray[np.float64]:
        """Directions of pixels in semiangles, along the detector's axes as stored, (M, 2)."""
        xi: NDArray[np.float64] = (
            (pixels - np.asarray(self.center)) * self.sampling / self.semiangle
        )
        return xi


def turn(angle: float) -> NDArray[np.float64]:
    """Matrix of a rotation, of vectors (y, x), as `libertem_parallax.geometry` defines it."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


class Model:
    """Explained power as a function of rotation and aberrations.

    The parameters are a vector: the rotation in rad, then aberrations along the scan's axes in
    turns at the semiangle, ``C α^(n+1) / λ``, as cosine and sine part where they have an azimuth.

    Parameters
    ----------
    spectra
        Of the data.
    optics
        Of the microscope.
    layout : (2, 2) float
        From directions along the detector's axes as stored to those along rows and columns as they
        are read: flips and transposition.
    orders
        (n, m) of the aberrations.
    weights : (Q,) float
        Of the frequencies. Default: all the same.
    engine
        Of `libertem_parallax.likelihood`, with these spectra. Default: a new one.
    """

    def __init__(
        self,
        spectra: Spectra,
        optics: Optics,
        layout: NDArray[np.float64],
        orders: Sequence[tuple[int, int]],
        *,
        weights: NDArray[np.float64] | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.spectra, self.optics, self.layout = spectra, optics, layout
        self.orders = tuple(orders)
        self.engine = engine or ENGINES["numba"](
            spectra.images, optics.positions(spectra.pixels), optics.edge
        )
        self.weights = np.ones(len(spectra.q)) if weights is None else weights
        self._eta = spectra.q * optics.wavelength / optics.semiangle
        degree = 1 + max([1, *(n for n, _ in self.orders)])
        parts = [part for n, m in self.orders for part in basis(n, m)]
        self._basis = np.zeros((len(parts), len(monomials(degree))))
        for row, part in zip(self._basis, parts, strict=True):
            row[: len(part)] = part

    def replace(self, **changes: Any) -> Model:
        """Make the same model with other arguments; other spectra need an engine, or get one."""
        own = ("spectra", "optics", "layout", "orders", "weights", "engine")
        arguments: dict[str, Any] = {name: getattr(self, name) for name in own} | changes
        if "spectra" in changes:
            arguments["engine"] = changes.get("engine")
        return Model(**arguments)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return 1 + len(self._basis)

    @property
    def names(self) -> list[str]:
        """Of the parameters; those with an azimuth have two that are called alike."""
        return ["rotation_angle"] + [
            f"C{n}{m}" for n, m in self.orders for _ in range(2 if m else 1)
        ]

    def explained(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Explained power of every frequency, (Q,): 1 on average where there is noise."""
        return self.sums(x).explained

    def sums(self, x: NDArray[np.float64]) -> Sums:
        """Sum over all pixels under some parameters."""
        return self.engine.sums(beams(*self._seen(x)))

    def value(self, x: NDArray[np.float64]) -> float:
        """Mean of the explained power, weighted."""
        return float(self.weights @ self.explained(x) / self.weights.sum())

    def gradients(self, x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Explained power of every frequency, (Q,), and its derivatives, (Q, parameters)."""
        turns, eta = self._seen(x)
        sums, by = self.engine.gradients(beams(turns, eta))
        by_turns, by_eta = beams_gradient(turns, eta, by)
        by_parts = by_turns @ self._basis.T
        T, dT = self._turned(x[0])
        d_eta = self._eta @ turn(x[0] + math.pi / 2) @ self.layout
        rotation = (by_eta * d_eta).sum(axis=1) + by_parts @ (dT @ x[1:])
        return sums.explained, np.column_stack([rotation, by_parts @ T])

    def value_and_gradient(self, x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Mean of the explained power, weighted, and its derivatives."""
        explained, gradients = self.gradients(x)
        weights = self.weights / self.weights.sum()
        return float(weights @ explained), weights @ gradients

    def vector(self, coefs: Mapping[str, float], rotation: float) -> NDArray[np.float64]:
        """Parameters from aberrations and rotation.

        Parameters
        ----------
        coefs
            As `aberrations.canonical` returns them; others than the model's are left out.
        rotation
            In rad.
        """
        x = [rotation]
        for n, m in self.orders:
            z = coefs.get(f"C{n}{m}", 0.0) * np.exp(1j * m * coefs.get(f"phi{n}{m}", 0.0))
            z /= self._unit(n)
            x += [z.real, z.imag] if m else [z.real]
        return np.array(x)

    def coefs(self, x: NDArray[np.float64]) -> dict[str, float]:
        """Aberrations in Å and rad from parameters."""
        coefs: dict[str, float] = {}
        rest = list(x[1:])
        for n, m in self.orders:
            z = complex(rest.pop(0), rest.pop(0) if m else 0.0) * self._unit(n)
            coefs[f"C{n}{m}"] = abs(z) if m else z.real
            if m:
                coefs[f"phi{n}{m}"] = math.atan2(z.imag, z.real) / m
        return coefs

    def units(self) -> NDArray[np.float64]:
        """Å, or rad, for each of the parameters' units."""
        return np.array([1.0] + [self._unit(int(name[1])) for name in self.names[1:]])

    def _unit(self, n: int) -> float:
        return float(self.optics.wavelength / self.optics.semiangle ** (n + 1))

    def _seen(self, x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Polynomial of aberrations and frequencies along the detector's axes as stored."""
        return (
            self._turned(x[0])[0] @ x[1:] @ self._basis,
            self._eta @ turn(x[0]) @ self.layout,
        )

    def _turned(self, rotation: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Matrix that turns aberrations to the detector's axes as stored; its derivative."""
        mirrored = -1.0 if np.linalg.det(self.layout) < 0 else 1.0
        # Azimuth of the detector's first axis.
        angle = math.atan2(self.layout[1, 0], self.layout[0, 0]) + rotation
        T, dT = np.zeros((2, len(self._basis), len(self._basis)))
        at = 0
        for _, m in self.orders:
            if not m:
                T[at, at] = 1
                at += 1
                continue
            cos, sin = math.cos(m * angle), math.sin(m * angle)
            part = slice(at, at + 2)
            T[part, part] = [[cos, sin], [-sin * mirrored, cos * mirrored]]
            dT[part, part] = np.array([[-sin, cos], [-cos * mirrored, -sin * mirrored]]) * m
            at += 2
        return T, dT


def curvature(model: Model, x: NDArray[np.float64], steps: Any) -> NDArray[np.float64]:
    """Second derivatives of the weighted sum, by differences of gradients."""
    H = np.empty((model.size, model.size))
    for j, step in enumerate(steps):
        move = np.zeros(model.size)
        move[j] = step
        two = [model.weights @ model.gradients(x + s * move)[1] for s in (1, -1)]
        H[j] = (two[0] - two[1]) / (2 * step)
    return (H + H.T) / 2
