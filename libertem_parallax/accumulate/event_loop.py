"""What Numba compiles to add events. Indices are unsigned for the reason told in `loops.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, uintp

from .disk import keep_on_disk

__all__ = ["accumulate_events"]

#: Events that are looked up at once.
EVENTS = 1024


@njit(nogil=True)
def _select(
    values: Any, columns: Any, start: int, n: int, lookup: Any, targets: Any, summands: Any
) -> int:
    """List the events in use of `n` from `start` on; return how many, or -1 if one is off the tile.

    There is no branch to guess: whether an electron hit the bright field cannot be foreseen.
    """
    farthest = uintp(0)
    for i in range(n):
        farthest = max(farthest, uintp(columns[uintp(start + i)]))  # negative ones become large
    if n and farthest >= uintp(len(lookup)):
        return -1
    used = uintp(0)
    for i in range(n):
        e = uintp(start + i)
        target = lookup[uintp(columns[e])]
        targets[used] = target
        summands[used] = values[e]
        used += uintp(target >= 0)
    return int(used)


@keep_on_disk
def accumulate_events(
    values: Any,  # (E,)
    columns: Any,  # (E,) pixels in the tile
    bounds: Any,  # (T + 1,) int64: events of each frame
    index: Any,  # (T,) int64 scan positions
    nx: int,  # scan columns
    stride: int,  # accumulator columns
    lookup: Any,  # (pixels in the tile,) where in A each goes; negative if nowhere
    low: Any,  # lowest and highest value that can be added
    high: Any,
    A: Any,  # flat
    S: Any,  # (T,)
) -> tuple[int, int]:
    """Add events; return the first frame with one off the tile, and the first with a bad value."""
    of = A.dtype.type
    targets = np.empty(EVENTS, lookup.dtype)
    summands = np.empty(EVENTS, values.dtype)
    for t in range(len(index)):
        position = index[t] // nx * stride + index[t] % nx
        total = of(0)
        for start in range(bounds[t], bounds[t + 1], EVENTS):
            n = min(EVENTS, bounds[t + 1] - start)
            used = _select(values, columns, start, n, lookup, targets, summands)
            if used < 0:
                return t, -1
            for i in range(used):
                value = summands[uintp(i)]
                if not low <= value <= high:
                    return -1, t
                A[uintp(targets[uintp(i)] + position)] += of(value)
                total += of(value)
        S[t] += total
    return -1, -1
