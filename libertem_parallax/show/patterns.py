"""Pixels of a detector that are odd."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["odd_pixels"]


def odd_pixels(pattern: NDArray[np.float64]) -> NDArray[np.int64]:
    """Find pixels that may be dead or hot: unlike all their neighbors but one.

    Parameters
    ----------
    pattern : (rows, cols) float
        Mean of frames; NaN where it is not known.

    Returns
    -------
    (n, 2) int64
        Rows and columns of those that are less than half of the second lowest neighbor, or more
        than twice the second highest one and the pattern's mean.
    """
    rows, cols = pattern.shape
    padded = np.pad(pattern, 1, constant_values=np.nan)
    steps = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    around = np.stack([padded[y : y + rows, x : x + cols] for y, x in steps])
    low = np.sort(np.nan_to_num(around, nan=np.inf), axis=0)[1]
    high = np.sort(np.nan_to_num(around, nan=-np.inf), axis=0)[-2]
    # Next to nothing, one electron more is not much.
    least = np.nanmean(pattern) if np.isfinite(pattern).any() else 0.0
    odd = (2 * pattern < np.where(low < np.inf, low, -np.inf)) & (low > least)
    odd |= pattern > 2 * np.maximum(high, least)
    return np.argwhere(odd)
