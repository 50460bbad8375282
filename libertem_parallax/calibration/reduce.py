"""Stacks that hold more than calibration needs: only what is scanned, larger pixels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..accumulate import Stack
from .model import Optics

__all__ = ["binned", "mean_pattern", "scanned_part"]

#: Bright-field pixels that tell enough.
_PIXELS = 6000


def scanned_part(stack: Stack) -> Stack:
    """Take the rectangle of the scan that has been scanned; a view of it where that is possible."""
    ny, nx = stack.scan_shape
    if stack.scanned.all() or not stack.scanned.any():
        return stack
    rows, cols = (np.flatnonzero(stack.scanned.any(axis=axis)) for axis in (1, 0))
    # A row that has only begun would leave a hole.
    whole = np.flatnonzero(stack.scanned.all(axis=1))
    if len(cols) == nx and len(whole):
        rows = whole
    part = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)
    frames = stack.frames.reshape(ny, nx, -1)[part]
    scanned = np.ascontiguousarray(stack.scanned[part])
    frames = np.ascontiguousarray(frames).reshape(scanned.size, -1)
    return replace(
        stack, frames=frames, scanned=scanned, scan_shape=(scanned.shape[0], scanned.shape[1])
    )


def mean_pattern(stack: Stack, most: int | None = None) -> NDArray[np.float64]:
    """Average the frames of a stack that are scanned.

    Parameters
    ----------
    stack
        Of frames.
    most
        Take about so many of them, evenly spread. Default: all.

    Returns
    -------
    (rows, columns) float64
        NaN at pixels that the stack does not have, and everywhere if nothing is scanned.
    """
    pattern = np.full(stack.detector_shape, np.nan)
    there = np.flatnonzero(stack.scanned)
    if len(there):
        frames = stack.frames
        if most is not None or len(there) < len(frames):
            there = there[:: math.ceil(len(there) / (most or len(there)))]
            frames = frames[there]
        pattern[tuple(stack.pixels.T)] = frames.sum(axis=0, dtype=np.float64) / len(frames)
    return pattern


def binned(stack: Stack, optics: Optics) -> tuple[Stack, Optics]:
    """Add neighboring pixels where there are more than tell more.

    Parameters
    ----------
    stack
        Of the bright field.
    optics
        Of its pixels.

    Returns
    -------
    Stack
        Of larger pixels, those that are complete; or the same.
    Optics
        Of these.
    """
    factor = max(1, math.ceil(math.sqrt(len(stack.pixels) / _PIXELS)))
    if factor == 1:
        return stack, optics
    rows, cols = (n // factor for n in stack.detector_shape)
    coarse = stack.pixels // factor
    index = coarse[:, 0] * (cols + 1) + coarse[:, 1]
    found, group, counts = np.unique(index, return_inverse=True, return_counts=True)
    complete = counts == factor**2
    pixels = np.stack(np.divmod(found[complete], cols + 1), axis=-1)
    dtype = np.dtype(np.float64 if stack.frames.dtype.kind == "f" else np.int32)
    frames = np.zeros((len(stack.frames), int(complete.sum())), dtype)
    place = np.where(complete, np.cumsum(complete) - 1, -1)[group]
    # Each pixel of a larger one in turn.
    order = np.argsort(place, kind="stable")
    order = order[place[order] >= 0].reshape(-1, factor**2)
    for part in order.T:
        frames += stack.frames[:, part]
    (row, col), (height, width) = optics.center, optics.sampling
    center = (row + 0.5) / factor - 0.5, (col + 0.5) / factor - 0.5
    sampling = height * factor, width * factor
    return (
        replace(stack, frames=frames, pixels=pixels, detector_shape=(rows, cols)),
        replace(optics, center=center, sampling=sampling),
    )
