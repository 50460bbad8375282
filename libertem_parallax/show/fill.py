"""Fills the stack that is tuned from a data set."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import psutil

from ..accumulate import Stack, place_stack
from ..geometry import Geometry
from ..parameters import Parameters
from ..udf import StackUDF

__all__ = ["fill_stack", "stack_udf"]

#: Of the memory that is free: what a stack may take if nothing is said.
_SHARE = 1 / 4

#: Of the semiangle: pixels to keep, so that center and semiangle can be tuned.
_MARGIN = 1.25

#: The same while frames come in, where the center is not known. All of a large detector with a
#: small disk would cost as much as its frames: the scan of a Timepix3 took twice as long.
_AROUND = 4.0


def stack_udf(
    dataset: Any, parameters: Parameters, limit: int | None = None, *, live: bool = False
) -> StackUDF:
    """Make the UDF that keeps what can be tuned, of as much of the detector as memory allows.

    Parameters
    ----------
    dataset
        LiberTEM's data set or acquisition.
    parameters
        Of the acquisition.
    limit
        Bytes that the stack may take. Default: a quarter of the memory that is free.
    live
        Whether frames are still to come: then what is far from the disk is not kept in any case,
        as that would take time; and the first rows of the scan, not its middle.

    Returns
    -------
    StackUDF
        Of all pixels; live, of those within 4 semiangles of the detector's middle. Or of those
        within 1.25 semiangles of the center, as always live where that is known, or of the bright
        field. If that is still too much, of a part of the scan.

    Raises
    ------
    ValueError
        See `StackUDF.for_dataset` and `Geometry.from_parameters`.

    Warns
    -----
    UserWarning
        See `StackUDF.for_dataset`.
    """
    shape = tuple(int(n) for n in dataset.shape)
    geometry = Geometry.from_parameters(shape, **parameters)
    limit = int(psutil.virtual_memory().available * _SHARE) if limit is None else limit
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
    return StackUDF.for_dataset(dataset, mask, limit=limit, first=live)


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
