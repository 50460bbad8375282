"""Plain NumPy: the definition that a reader can check against the formula, and the fallback."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine import Engine

__all__ = ["PlainEngine"]


class PlainEngine(Engine):
    """`Engine` in plain NumPy."""

    def _add(self, frames: NDArray[Any], origin: tuple[int, int], first: int) -> None:
        y, x = np.divmod(self.index[first : first + len(frames)], self.plan.scan_shape[1])
        positions = y * self.A.shape[3] + x
        A = self.A.reshape(-1)
        S = self.S[first : first + len(frames)]
        for (row, col), target in zip(
            self.plan.pixels - np.asarray(origin), self.plan.targets, strict=True
        ):
            if 0 <= row < frames.shape[1] and 0 <= col < frames.shape[2]:
                values = frames[:, row, col].astype(A.dtype)
                A[target + positions] += values
                S += values
