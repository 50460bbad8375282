"""What is made of all frames at once, when they are there: a stack of the bright field."""

from __future__ import annotations

import math
import time
import warnings
from typing import TYPE_CHECKING, Any

import click

from .run import by, speed_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..accumulate import Stack
    from ..geometry import Geometry
    from ..parameters import Parameters


def fill_stack(ctx: Any, dataset: Any, geometry: Geometry) -> tuple[Stack, str]:
    """Read the bright field of all frames, with a progress bar; and tell how fast.

    Raises
    ------
    click.ClickException
        If memory does not hold it.
    """
    import numpy as np

    from ..udf import StackUDF

    plan = geometry.plan
    mask = np.zeros(plan.detector_shape, bool)
    mask[tuple(plan.pixels.T)] = True
    with warnings.catch_warnings(action="ignore"):  # of a part, which is refused
        udf = StackUDF.for_dataset(dataset, mask)
    if udf.roi is not None:
        needed = math.prod(plan.scan_shape) * len(plan.pixels) * udf.params.dtype.itemsize
        raise click.ClickException(
            f"the bright field of {by(plan.scan_shape)} frames, {len(plan.pixels)} pixels each, "
            f"takes {needed / 2**30:.3g} GiB, more than a quarter of the memory that is free. Use "
            "--bf-mask to take fewer pixels, or make an image that needs no stack, such as phase."
        )
    start = time.perf_counter()
    ctx.run_udf(dataset, udf, progress=True)
    return udf.stack, speed_text(math.prod(plan.scan_shape), time.perf_counter() - start)


def make_images(
    stack: Stack, geometry: Geometry, parameters: Parameters
) -> dict[str, NDArray[Any]]:
    """Make all images of a stack that the parameters name."""
    from ..direct import direct_phase
    from ..images import IMAGES, Imaging, Sums

    regularization = parameters.get("regularization", "auto")
    A, S = stack.add(geometry.plan)
    suppress = parameters.get("suppress_Nyquist_noise", True)
    sums = Sums(Imaging(geometry, suppress, regularization), A, S, stack.scanned)
    return {
        name: direct_phase(stack, parameters, regularization=regularization)
        if name == "direct"
        else sums.once(IMAGES[name].make)
        for name in parameters["image"]
    }
