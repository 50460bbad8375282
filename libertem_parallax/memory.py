"""Whether an image fits the memory, found out before anything is read."""

from __future__ import annotations

import math

import psutil

from .accumulate import Plan

__all__ = ["check_detector", "check_image"]

#: Temporary memory for directions and aberrations at every pixel of a detector or an image.
_BYTES_PER_PIXEL = 96


def check_detector(shape: tuple[int, int, int, int]) -> None:
    """Refuse a detector whose geometry could not be worked out.

    Parameters
    ----------
    shape
        Scan rows and columns, detector rows and columns.

    Raises
    ------
    ValueError
        If it needs more memory than there is.
    """
    rows, cols = shape[2:]
    _check(f"shape = {shape}: a detector of {rows} x {cols} pixels", _BYTES_PER_PIXEL * rows * cols)


def check_image(plan: Plan) -> None:
    """Refuse an image that could not be made.

    Parameters
    ----------
    plan
        Of the image.

    Raises
    ------
    ValueError
        If it needs more memory than there is.
    """
    rows, cols = plan.image_shape
    _check(
        f"upsampling_factor = {plan.upsampling_factor}: an image of {rows} x {cols} pixels",
        # Two 64-bit accumulators: a worker's, and the sum.
        2 * 8 * math.prod(plan.accumulator_shape) + _BYTES_PER_PIXEL * rows * cols,
    )


def _check(what: str, needed: float) -> None:
    available = psutil.virtual_memory().available
    if needed > available:
        raise ValueError(
            f"{what} needs about {needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB "
            "are available. Check shape and upsampling_factor."
        )
