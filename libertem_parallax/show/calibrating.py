"""Calibration of what is tuned, from the frames that are in memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from ..accumulate import Stack
from ..calibration import Calibration, calibrate_stack
from ..geometry import Geometry
from ..parameters import Parameters

__all__ = ["calibrate_tuned", "changes"]

_SEARCH: tuple[str, ...] = ("center", "rotation_angle", "detector_flip_cols", "C10", "C12")


def calibrate_tuned(
    stack: Stack,
    parameters: Parameters,
    progress: Callable[[float, str], None] = lambda *_: None,
) -> Calibration:
    """Find center, rotation, hand, defocus and astigmatism; higher orders are kept.

    Parameters
    ----------
    stack
        Of frames. Without any pixel around the bright field, the center is kept.
    parameters
        As they are now. None of what is sought is believed.
    progress
        Called with the fraction that is done, and what is being done.

    Returns
    -------
    Calibration
        What was found.

    Raises
    ------
    CalibrationError
        If the data do not tell.
    """
    progress(0.0, "looking for the disk")
    shape = (*stack.scan_shape, *stack.detector_shape)
    with warnings.catch_warnings(action="ignore"):  # come with the picture
        geometry = Geometry.from_parameters(shape, **parameters)
    search = _SEARCH
    if len(stack.pixels) <= len(geometry.plan.pixels):
        search, parameters = _SEARCH[1:], parameters.replace(center=geometry.center)
    return calibrate_stack(
        stack,
        parameters,
        search=search,
        progress=progress,
        device=getattr(stack, "device", None),
    )


def changes(found: Parameters) -> dict[str, Any]:
    """Tell what taking found parameters changes, for `Tuning.change`."""
    names = ("center", "rotation_angle", "detector_flip_cols", "aberration_coefs")
    return {name: found[name] for name in names if name in found}
