"""Fills the stack that is tuned from a data set."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from ..accumulate import Stack, place_stack
from ..geometry import Geometry
from ..parameters import Parameters
from ..udf import StackUDF
from ..udf.keeping import Selection

__all__ = ["fill_stack", "live_selection", "part_note", "stack_udf"]

#: Of the memory that is free: what a stack may take if nothing is said.
_SHARE = 1 / 4

#: Of the semiangle: pixels to keep, so that center and semiangle can be tuned.
_MARGIN = 1.25

#: The same while frames come in, where the center is not known. All of a large detector with a
#: small disk would cost as much as its frames: the scan of a Timepix3 took twice as long.
_AROUND = 4.0


def stack_udf(dataset: Any, parameters: Parameters, limit: int | None = None) -> StackUDF:
    """Make the UDF that keeps what can be tuned, of as much of the detector as memory allows.

    Parameters
    ----------
    dataset
        LiberTEM's data set or acquisition.
    parameters
        Of the acquisition.
    limit
        Bytes that the stack may take. Default: a quarter of the memory that is free.

    Returns
    -------
    StackUDF
        Of all pixels, of those within 1.25 semiangles of the center, or of the bright field. If
        that is still too much, of the middle of the scan.

    Raises
    ------
    ValueError
        See `StackUDF.for_dataset` and `Geometry.from_parameters`.

    Warns
    -----
    UserWarning
        See `StackUDF.for_dataset`.
    """
    limit = _limit(limit)
    return StackUDF.for_dataset(dataset, _mask(dataset, parameters, limit), limit=limit)


def live_selection(dataset: Any, parameters: Parameters, limit: int | None = None) -> Selection:
    """Choose what can be tuned of frames that are still to come.

    Parameters
    ----------
    dataset, parameters, limit
        See `stack_udf`.

    Returns
    -------
    Selection
        What is far from the disk is not kept in any case, as that would take time: pixels within
        1.25 semiangles of the center, or where that is not known within 4 of the detector's middle;
        or those of the bright field. If that is still too much, the latest frames.

    Raises
    ------
    ValueError
        See `stack_udf`.
    """
    limit = _limit(limit)
    mask = _mask(dataset, parameters, limit, live=True)
    whole = StackUDF.for_dataset(dataset, mask, limit=1 << 62)
    return whole.selection.within(limit, latest=True)


def _limit(limit: int | None) -> int:
    return int(psutil.virtual_memory().available * _SHARE) if limit is None else limit


def _mask(
    dataset: Any, parameters: Parameters, limit: int, *, live: bool = False
) -> NDArray[np.bool_]:
    """Choose pixels."""
    shape = tuple(int(n) for n in dataset.shape)
    geometry = Geometry.from_parameters(shape, **parameters)
    size = math.prod(shape[:2]) * np.dtype(dataset.dtype).itemsize
    row, col = geometry.center
    y, x = np.ogrid[: shape[2], : shape[3]]
    height, width = geometry.sampling
    radius = np.hypot((y - row) * height, (x - col) * width)
    semiangle = parameters["semiangle_cutoff"]
    bright = np.zeros(shape[2:], bool)
    bright[tuple(geometry.plan.pixels.T)] = True
    near = (radius <= _MARGIN * semiangle) | bright
    first = np.ones(shape[2:], bool)
    if live:
        first = near if not parameters.missing("center") else radius <= _AROUND * semiangle
    for mask in (first, near, bright):
        if size * mask.sum() <= limit:
            break
    return mask


def fill_stack(
    ctx: Any,
    dataset: Any,
    parameters: Parameters,
    limit: int | None = None,
    *,
    device: int | None = None,
    progress: bool = False,
) -> Stack:
    """Read the stack that is tuned.

    Parameters
    ----------
    ctx
        LiberTEM's context.
    dataset, parameters, limit
        See `stack_udf`.
    device
        Number of the GPU to add it on; None for the CPU.
    progress
        Whether to show a progress bar.

    Returns
    -------
    Stack
        Where it is added fastest, or where the parameter ``engine`` says.
    """
    udf = stack_udf(dataset, parameters, limit)
    ctx.run_udf(dataset, udf, roi=udf.roi, progress=progress)
    engine = parameters.get("engine", "auto")
    return place_stack(udf.stack, "numba" if engine == "numpy" else engine, device)


def part_note(stack: Stack, dataset: Any) -> str:
    """Say which frames of a data set are in a stack of `fill_stack`; nothing if all are."""
    (rows, cols), (ny, nx) = stack.scan_shape, tuple(dataset.shape)[:2]
    if (rows, cols) == (ny, nx):
        return ""
    return f"Memory holds the middle {rows} x {cols} of {ny} x {nx} frames: images are of these."
