"""What is wrong with a stack's frames: another disk than the parameters say, or a hot pixel."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from .accumulate import Plan, Stack
from .contradictions import (
    add_frames,
    contradiction,
    pattern_shape,
    positions_to_compare,
    seems_to_differ,
)
from .disk import hot_pixel
from .geometry import Geometry

__all__ = ["hot_pixel_of_stack", "stack_problem"]


def stack_problem(geometry: Geometry, stack: Stack) -> str | None:
    """Say how a stack's frames differ from the parameters, or that a pixel is hot.

    Parameters
    ----------
    geometry
        Of the acquisition, with pixels that the stack has.
    stack
        Of which a few frames are looked at, as far as its pixels tell.

    Returns
    -------
    str or None
        See `contradiction` and `hot_pixel`.
    """
    mask = np.zeros(stack.detector_shape, bool)
    mask[tuple(stack.pixels.T)] = True
    mask &= geometry.parameters.get("bf_mask", True)
    with warnings.catch_warnings(action="ignore"):  # that has been told
        seen = geometry.replace(bf_mask=mask)
    shown = _halves(geometry.plan, stack).sum(axis=0, keepdims=True)
    pattern = np.zeros(pattern_shape(seen))
    add_frames(seen, pattern, shown, [0], (0, 0))
    problem = contradiction(seen, pattern) if seems_to_differ(seen, pattern) else None
    return problem or hot_pixel_of_stack(geometry.plan, stack)


def hot_pixel_of_stack(plan: Plan, stack: Stack) -> str | None:
    """Tell of a pixel that is hot in both halves of the frames that are looked at.

    A cosmic ray is in one of them. That takes a millisecond.

    Parameters
    ----------
    plan
        With the pixels in use.
    stack
        That has these.

    Returns
    -------
    str or None
        See `hot_pixel`; None for scans of which too few frames are looked at.
    """
    return hot_pixel(np.minimum(*_halves(plan, stack)), plan.lookup >= 0)


def _halves(plan: Plan, stack: Stack) -> NDArray[np.float64]:
    """Add a few frames of a stack, every other one: (2, rows, columns)."""
    sums = np.zeros((2, *stack.detector_shape))
    with stack.reading() as there, np.errstate(all="ignore"):
        some = positions_to_compare(there.scan_shape, len(plan.pixels))
        some = some[there.scanned.ravel()[some]]
        for half, part in zip(sums, (some[::2], some[1::2]), strict=True):
            half[tuple(there.pixels.T)] = there.frames[part].sum(axis=0, dtype=np.float64)
    return sums
