"""A series of images of one scan, focused on one depth after the other."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import psutil
from numpy.typing import NDArray

from . import checks
from .accumulate import Stack, check_stack
from .direct import Direct, borders_problem
from .geometry import Geometry
from .images import IMAGES, Imaging, Sums, check_images
from .parameters import Parameters
from .stack_problems import stack_problem

__all__ = ["Series", "defocus_series"]


class Series(NamedTuple):
    """Images of one scan by defocus."""

    defocus: NDArray[np.float64]  #: (N,) in Å; C10 is its opposite
    images: NDArray[np.float32]  #: (N, rows, columns)
    #: (N,) how well all pixels agree on a weak object, over what noise of counted electrons does
    sharpness: NDArray[np.float64]

    @property
    def sharpest(self) -> float:
        """Defocus in Å at which `sharpness` is greatest, between those of the images."""
        x, y = self.defocus, self.sharpness
        i = int(np.argmax(y))
        if not 0 < i < len(x) - 1:
            return float(x[i])
        # The vertex of the parabola through three points
        a, b, _ = np.polyfit(x[i - 1 : i + 2] - x[i], y[i - 1 : i + 2], 2)
        return float(x[i] - b / (2 * a)) if a < 0 else float(x[i])


def defocus_series(
    stack: Stack,
    parameters: Mapping[str, Any],
    defocus: Iterable[float],
    image: str = "phase",
) -> Series:
    """Make images of a stack at several defoci.

    Parameters
    ----------
    stack
        With all pixels of the bright field, as `StackUDF` fills it.
    parameters
        Of the acquisition: `Parameters`, or arguments of ``ParallaxUDF.from_parameters``; their C10
        is left out.
    defocus
        In Å: the opposite of C10.
    image
        Which image to make: a name, as for ``--image``.

    Returns
    -------
    Series
        In the order given.

    Raises
    ------
    ValueError
        If a parameter is missing or out of its range, pixels of the bright field are not in the
        stack, or the images exceed half of the memory that is free.
    TypeError
        If `stack` is no stack, or `parameters` no mapping.

    Warns
    -----
    UserWarning
        If the frames show another disk than the parameters say, as far as the stack's pixels tell,
        or a hot pixel; and see `direct_phase`.
    """
    check_stack(stack)
    checks.mapping("parameters", parameters)
    [image] = check_images(image, stacks=True)
    known = Parameters(**{name: parameters[name] for name in parameters if name != "shape"})
    values = np.asarray([float(value) for value in defocus])
    if not len(values):
        raise ValueError("defocus: expected one value or several, in Å; got none.")
    shape = stack.scan_shape + stack.detector_shape
    u = known.get("upsampling_factor", 1) if image in IMAGES else 1
    rows, cols = (u * n for n in stack.scan_shape)
    needed, free = 4 * len(values) * rows * cols, psutil.virtual_memory().available
    if needed > free / 2:
        raise ValueError(
            f"{len(values)} images of {rows} x {cols} pixels take {needed / 2**30:.3g} GiB, more "
            f"than half of the memory that is free, {free / 2**30:.3g} GiB. Make fewer of them, or "
            "use a smaller upsampling_factor."
        )
    coefs = {k: v for k, v in known.get("aberration_coefs", {}).items() if k != "C10"}
    options = (
        known.get("suppress_Nyquist_noise", True),
        known.get("regularization", "auto"),
    )
    if image == "direct" and (problem := borders_problem(known)):
        warnings.warn(problem, stacklevel=2)
    images = np.empty((len(values), rows, cols), np.float32)
    sharpness = np.empty(len(values))
    direct: Direct | None = None
    for i, value in enumerate(values):
        at = known.replace(aberration_coefs={**coefs, "C10": -value})
        with warnings.catch_warnings():
            # Once is enough.
            warnings.simplefilter("ignore" if i else "default")
            geometry = Geometry.from_parameters(shape, **at)
            coarse = geometry if u == 1 else geometry.replace(upsampling_factor=1)
        if direct is None:
            if problem := stack_problem(coarse, stack):
                warnings.warn(problem, stacklevel=2)
            direct = Direct.of(stack, coarse)
        sharpness[i] = direct.agreement(coarse)
        if image == "direct":
            images[i] = direct.phase(direct.interference(coarse), options[1])
        else:
            images[i] = _image(stack, Imaging(geometry, *options), image)
    return Series(values, images, sharpness)


def _image(stack: Stack, imaging: Imaging, name: str) -> NDArray[np.float32]:
    """Make an image where the stack is: it may be on a GPU."""

    def made(A: Any, S: Any) -> Any:
        return Sums(imaging, A, S, stack.scanned).once(IMAGES[name].make)

    return stack.make(imaging.geometry.plan, made)
