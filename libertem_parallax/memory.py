"""Whether an image fits the memory, found out before anything is read."""

from __future__ import annotations

import math

import psutil

from .accumulate import Plan

__all__ = ["check_detector", "check_direct", "check_image", "image_memory"]

#: Measured: for directions and aberrations at every pixel of a detector; for what there is of each
#: frame, beside images; for tables of every pixel of the bright field, and frames of small tiles
#: that wait for more.
_BYTES_PER_PIXEL, _BYTES_PER_FRAME, _BYTES_PER_BRIGHT = 96, 16, 220


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


def image_memory(plan: Plan, per_pixel: int) -> int:
    """Estimate the memory that an image takes, to a factor of 1.5.

    Small integers, whose sums have 32 bits while they are made, take up to a third less.

    Parameters
    ----------
    plan
        Of the image.
    per_pixel
        `libertem_parallax.images.Image.memory`; the largest of several.

    Returns
    -------
    int
        Bytes, without the frames that are read.
    """
    pixels, frames = math.prod(plan.image_shape), math.prod(plan.scan_shape)
    # Of 64 bits: a worker's accumulator, what is sent of it, and the sum. All before the image.
    sums = 8 * (math.prod(plan.accumulator_shape) + 2 * pixels)
    more = _BYTES_PER_FRAME * frames + _BYTES_PER_BRIGHT * len(plan.pixels)
    return max(sums, per_pixel * pixels) + more


def check_image(plan: Plan, per_pixel: int) -> None:
    """Refuse an image that could not be made.

    Parameters
    ----------
    plan, per_pixel
        See `image_memory`.

    Raises
    ------
    ValueError
        If it needs more memory than there is.
    """
    rows, cols = plan.image_shape
    _check(
        f"upsampling_factor = {plan.upsampling_factor}: an image of {rows} x {cols} pixels",
        image_memory(plan, per_pixel),
    )


def check_direct(scan_shape: tuple[int, int], pixels: int, itemsize: int = 0) -> None:
    """Refuse direct ptychography whose transforms could not be kept.

    Parameters
    ----------
    scan_shape
        Rows and columns of the scan.
    pixels
        Of the bright field.
    itemsize
        Bytes of a value of the stack, where that is not there yet.

    Raises
    ------
    ValueError
        If it needs more memory than there is.
    """
    rows, cols = scan_shape
    _check(
        f"direct ptychography of {rows} x {cols} frames, {pixels} pixels each,",
        pixels * rows * (8 * (cols // 2 + 1) + itemsize * cols),
        "Use bf_mask to take fewer pixels, or make an image that needs no stack, such as phase.",
    )


def _check(what: str, needed: float, instead: str = "Check shape and upsampling_factor.") -> None:
    available = psutil.virtual_memory().available
    if needed > available:
        raise ValueError(
            f"{what} needs about {needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB "
            f"are available. {instead}"
        )
