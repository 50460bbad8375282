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
from .rings import ENOUGH, zones

#: What pixels just outside of the disk have at most, and just inside at least, where it is 1 in the
#: middle; and how many of them tell.
_LIT, _DARK, _ENOUGH = 0.7, 0.4, 8

#: Parts of the middle differ by so much at most, in the same unit, where pixels outside tell. A
#: strong specimen makes them differ by more, and pixels outside as bright as those inside.
_EVEN = 0.05

#: As many radii outside of the disk, pixels are looked at, and as many around it none: less does no
#: harm.
BEYOND, _HARMLESS = 0.02, 0.01

__all__ = ["BEYOND", "hot_pixel_of_stack", "stack_problem"]


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
    halves = _halves(geometry.plan, stack)
    shown = halves.sum(axis=0, keepdims=True)
    pattern = np.zeros(pattern_shape(seen))
    add_frames(seen, pattern, shown, [0], (0, 0))
    problem = contradiction(seen, pattern) if seems_to_differ(seen, pattern) else None
    if problem is None:
        problem = hot_pixel(np.minimum(*halves), geometry.plan.lookup >= 0)
    return problem or _edge_problem(geometry, shown[0], mask)


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


def _edge_problem(
    geometry: Geometry, pattern: NDArray[np.float64], usable: NDArray[np.bool_]
) -> str | None:
    """Say that the disk is a little larger, or smaller, than the parameters say.

    For the transfer of single pixels, 3 % matter; for that of all together, they do not.
    """
    cutoff: float = geometry.parameters["semiangle_cutoff"]
    axes = [np.arange(n) for n in pattern.shape]
    pixel = geometry.soft_edge * 1e3 / cutoff
    distance, quadrant, _ = zones(geometry, axes)
    distance -= 1
    least, most = max(0.0, _HARMLESS - pixel / 4), max(pixel / 4, BEYOND)
    middle, outside, inside = (
        _mean(pattern[usable & (low < distance) & (distance <= high)])
        for low, high in ((-1.0, -0.15), (least, most), (-least - 2 * most, -least))
    )
    part = 2 * quadrant + (distance <= -0.5)
    parts = [pattern[usable & (distance <= -0.15) & (part == k)] for k in range(8)]
    means = [float(values.mean()) for values in parts if len(values) >= ENOUGH]
    even = len(means) > 0 and np.std(means) < _EVEN * middle[0]
    if even and outside[0] - 3 * outside[1] > _LIT * middle[0]:
        words = "outside of the bright field are as bright as those inside: the disk is larger"
    elif inside[0] + 3 * inside[1] < _DARK * middle[0]:
        words = "at the rim of the bright field are dark: the disk is smaller"
    else:
        return None
    return (
        f"pixels {words} than semiangle_cutoff = {cutoff:g} mrad and the sampling say. That blurs "
        "direct ptychography. Find the sampling with calibrate, or compare the disk on the page of "
        "tune."
    )


def _mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean without what is brightest and darkest, and its standard error; infinite for a few."""
    if len(values) < _ENOUGH:
        return 0.0, np.inf
    skipped = max(1, len(values) // 10)
    kept = np.sort(values)[skipped:-skipped]
    return float(kept.mean()), float(values.std() / np.sqrt(len(values)))


def _halves(plan: Plan, stack: Stack) -> NDArray[np.float64]:
    """Add a few frames of a stack, every other one: (2, rows, columns)."""
    sums = np.zeros((2, *stack.detector_shape))
    with stack.reading() as there, np.errstate(all="ignore"):
        some = positions_to_compare(there.scan_shape, len(plan.pixels))
        some = some[there.scanned.ravel()[some]]
        for half, part in zip(sums, (some[::2], some[1::2]), strict=True):
            half[tuple(there.pixels.T)] = there.frames[part].sum(axis=0, dtype=np.float64)
    return sums
