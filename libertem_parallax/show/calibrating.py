"""Calibration of what is tuned, from the frames that are in memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ..accumulate import Stack
from ..calibration import Beam, Calibration, CalibrationError, calibrate_stack, find_beam
from ..geometry import Geometry
from ..parameters import Parameters
from .maker import mean_pattern

__all__ = ["calibrate_tuned", "changes", "recorded"]

#: Frames that are enough.
_FRAMES = 1 << 17

_SEARCH = ("center", "rotation_angle", "detector_flip_cols", "C10", "C12")


def calibrate_tuned(
    stack: Stack,
    parameters: Parameters,
    progress: Callable[[float, str], None] = lambda *_: None,
) -> Calibration:
    """Find center, rotation, hand, defocus and astigmatism; higher orders are kept.

    Parameters
    ----------
    stack
        Of frames; the rows that are complete are used, or the middle of many.
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
    part = recorded(stack)
    beam = _beam(part, parameters)
    bright = part.select(beam.mask)
    device = getattr(stack, "device", None)
    return calibrate_stack(bright, beam, parameters, _SEARCH, progress=progress, device=device)


def recorded(stack: Stack, most: int = _FRAMES) -> Stack:
    """Take the rows of a scan that are complete, and the middle of them if they are too many.

    Raises
    ------
    CalibrationError
        If there is no complete row.
    """
    complete = np.flatnonzero(stack.scanned.all(axis=1))
    # Of rows next to each other, the longest run.
    runs = np.split(complete, np.flatnonzero(np.diff(complete) > 1) + 1)
    run = max(runs, key=len)
    if not len(run):
        raise CalibrationError("no row of the scan is complete yet.")
    ny, nx = len(run), stack.scan_shape[1]
    share = min(1.0, math.sqrt(most / (ny * nx)))
    rows, cols = max(1, int(ny * share)), max(1, int(nx * share))
    top, left = run[0] + (ny - rows) // 2, (nx - cols) // 2
    frames = stack.frames.reshape(*stack.scan_shape, -1)[top : top + rows, left : left + cols]
    return Stack(
        np.ascontiguousarray(frames).reshape(rows * cols, -1),
        stack.pixels,
        (rows, cols),
        stack.detector_shape,
        np.ones((rows, cols), bool),
    )


def _beam(stack: Stack, parameters: Parameters) -> Beam:
    """Find the beam, or believe the present center where a stack has too little of the detector."""
    pattern = mean_pattern(stack, stack.scanned.size)
    try:
        return find_beam(pattern, parameters.replace(center=None))
    except CalibrationError:
        shape = (*stack.scan_shape, *stack.detector_shape)
        with warnings.catch_warnings(action="ignore"):  # come with the picture
            center = Geometry.from_parameters(shape, **parameters).center
        return find_beam(pattern, parameters.replace(center=center))


def changes(found: Parameters) -> dict[str, Any]:
    """Tell what taking found parameters changes, for `Tuning.change`."""
    names = ("center", "rotation_angle", "detector_flip_cols", "aberration_coefs")
    return {name: found[name] for name in names if name in found}
