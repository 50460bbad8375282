"""Plain NumPy: the definition, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .engine import Engine, Interference, Sums

__all__ = ["PlainEngine"]

#: Elements that are worked on at once.
_BLOCK = 1 << 16


class PlainEngine(Engine):
    """`Engine` as it is written down."""

    def _sums(self, interference: Interference) -> Sums:
        return self._gradients(interference)[0]

    def _gradients(self, interference: Interference) -> tuple[Sums, Interference]:
        count, terms = interference.minus.shape
        N, D = np.zeros(count, np.complex128), np.zeros(count)
        gradients = Interference(*(np.zeros_like(part) for part in interference))
        T = self._terms(terms)
        step = max(1, _BLOCK // max(1, T.shape[1]))
        for start in range(0, count, step):
            part = slice(start, start + step)
            minus, plus, c = (values[part] for values in interference)
            G = self.images[part].astype(np.complex128)
            first, second = np.exp(2j * np.pi * (minus @ T)), np.exp(2j * np.pi * (plus @ T))
            a, da = self._disk(self.positions - c[:, None])
            b, db = self._disk(self.positions + c[:, None])
            gamma = a * first - b * second
            N[part] = (gamma.conj() * G).sum(axis=1)
            D[part] = (np.abs(gamma) ** 2).sum(axis=1)
            # Of |N|²/D: Re Σ dγ* H.
            H = 2 * np.divide(
                N[part, None].conj() * G - Sums(N, D).explained[part, None] * gamma,
                D[part, None],
                out=np.zeros_like(G),
                where=D[part, None] > 0,
            )
            u, v = first.conj() * H, second.conj() * H
            gradients.minus[part] = 2 * np.pi * (a * u.imag) @ T.T
            gradients.plus[part] = -2 * np.pi * (b * v.imag) @ T.T
            gradients.center[part] = -(u.real[..., None] * da + v.real[..., None] * db).sum(axis=1)
        return Sums(N, D), gradients

    def _disk(
        self, positions: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Work out the disk, and its gradient."""
        radius = np.hypot(positions[..., 0], positions[..., 1])
        a = (1 - radius) / self.edge + 0.5
        slope = np.where((a > 0) & (a < 1), -1 / (self.edge * np.maximum(radius, 1e-300)), 0)
        return np.clip(a, 0, 1), slope[..., None] * positions
