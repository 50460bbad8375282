"""Plain NumPy: the definition that a reader can check against the formula, and the fallback."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dtypes import value_range
from .engine import Engine, Events

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
                with np.errstate(over="ignore", invalid="ignore"):  # is reported with the frame
                    A[target + positions] += values
                    S += values

    def _add_events(
        self, events: Events, shape: tuple[int, int], origin: tuple[int, int], first: int
    ) -> None:
        values, columns, bounds = events
        lookup = self._lookup(shape, origin)
        frames = first + np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        values, columns = (part[bounds[0] : bounds[-1]] for part in (values, columns))
        outside = (columns < 0) | (columns >= len(lookup))
        targets = np.where(outside, -1, lookup[np.where(outside, 0, columns)])
        used = targets >= 0
        low, high = value_range(self.dtype)
        bad = outside | used & ~((low <= values) & (values <= high))
        if bad.any():
            frame = frames[np.argmax(bad)]
            if outside[frames == frame].any():
                self._refuse_outside(frame)
            self._refuse_value(frame)
        frames, values, targets = frames[used], values[used], targets[used]
        y, x = np.divmod(self.index[frames], self.plan.scan_shape[1])
        with np.errstate(over="ignore", invalid="ignore"):
            np.add.at(self.A.reshape(-1), targets + y * self.A.shape[3] + x, values)
            np.add.at(self.S, frames, values)
