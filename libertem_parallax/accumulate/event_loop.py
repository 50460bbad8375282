"""What Numba compiles to add events. Indices are unsigned for the reason told in `loops.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import uintp

from .disk import keep_on_disk

__all__ = ["accumulate_events"]


@keep_on_disk
def accumulate_events(
    values: Any,  # (E,)
    columns: Any,  # (E,) pixels in the tile
    bounds: Any,  # (T + 1,) int64: events of each frame
    index: Any,  # (T,) int64 scan positions
    nx: int,  # scan columns
    stride: int,  # accumulator columns
    lookup: Any,  # (pixels in the tile,) where in A each goes; ~ of any such place if nowhere
    low: Any,  # lowest and highest value that can be added; None if all can
    high: Any,
    A: Any,  # flat
    S: Any,  # (T,)
) -> int:
    """Add events up to the first off the tile, or with a bad value; return its frame, or -1.

    Whether an electron hit the bright field cannot be foreseen. So there is no branch for it: zero
    is added for those that did not, somewhere in the bright field.
    """
    of = A.dtype.type
    # From memory, since of `value if target >= 0 else 0` the compiler may make a branch.
    factors = np.array([0, 1], A.dtype)
    for t in range(len(index)):
        position = index[t] // nx * stride + index[t] % nx
        total = of(0)
        for i in range(bounds[t], bounds[t + 1]):
            event = uintp(i)
            column = uintp(columns[event])  # negative ones become large
            if column >= uintp(len(lookup)):
                return t
            target, value = lookup[column], of(values[event])
            if low is not None and not low <= value <= high:
                if target >= 0:
                    return t
                value = of(0)
            sign = target >> 63  # 0 or -1
            value *= factors[uintp(1 + sign)]
            A[uintp((target ^ sign) + position)] += value  # at ~target if that is negative
            total += value
        S[t] += total
    return -1
