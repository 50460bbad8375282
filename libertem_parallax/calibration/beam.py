"""Where the beam is, and how large detector pixels are: from the mean pattern."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from .. import aberrations
from ..disk import Disk, find_disk, hot_pixel
from ..parameters import Parameters
from .failure import CalibrationError
from .model import Optics

__all__ = ["Beam", "find_beam"]

#: Difference between the axes of a disk, relative, from which on pixels are no squares.
_OBLONG = 0.04

#: Relative difference of a given sampling from the disk's that is told.
_DISAGREE = 0.03

#: Distance of a given center from the disk's that is told, over the radius; and by how many
#: standard errors more.
_OFF, _SURE = 0.05, 4.0


@dataclass(frozen=True, eq=False)
class Beam:
    """Beam on the detector.

    Parameters
    ----------
    optics
        What is known of it.
    mask : (rows, columns) bool
        Pixels of the bright field.
    pattern : (rows, columns)
        The mean pattern from which it was found.
    disk
        As it was found; None if center and sampling were given and none was.
    errors
        Standard errors of what was found: ``center`` in pixels, ``sampling`` relative.
    notes
        What people should be told.
    """

    optics: Optics
    mask: NDArray[np.bool_]
    pattern: NDArray[np.float64]
    disk: Disk | None
    errors: dict[str, Any]
    notes: tuple[str, ...]


def find_beam(pattern: NDArray[Any], parameters: Parameters) -> Beam:
    """Find center and sampling, those of them that are not given.

    Parameters
    ----------
    pattern : (rows, columns)
        Mean of frames, as stored.
    parameters
        ``energy`` and ``semiangle_cutoff``; of ``center``, ``angular_sampling``,
        ``reciprocal_sampling`` and ``bf_mask`` what is known. Without a sampling, pixels are taken
        to be square, unless the disk is clearly longer along one axis.

    Returns
    -------
    Beam
        The beam.

    Raises
    ------
    CalibrationError
        If the pattern shows no disk and one is needed.
    ValueError
        If a given mask has another shape, or no pixel is left.
    """
    pattern = np.asarray(pattern, np.float64)
    usable = np.isfinite(pattern)
    if "bf_mask" in parameters:
        if parameters["bf_mask"].shape != pattern.shape:
            raise ValueError(
                f"bf_mask has shape {parameters['bf_mask'].shape}: expected that of the detector, "
                f"{pattern.shape}."
            )
        usable &= parameters["bf_mask"]
    wavelength = aberrations.wavelength(parameters["energy"])
    semiangle = parameters["semiangle_cutoff"] * 1e-3
    sampling = _given_sampling(parameters, wavelength)
    disk = find_disk(pattern, usable, (1.0, 1.0) if sampling is None else sampling)
    errors: dict[str, Any] = {}
    notes = []
    if disk is None and (sampling is None or "center" not in parameters):
        raise CalibrationError(
            "the mean pattern shows no bright-field disk. Check that the detector saw the beam; "
            "exclude beam stops and bad pixels with bf_mask; or give center and angular_sampling."
        )
    center = parameters.get("center")
    if center is None and disk is not None:
        center, errors["center"] = disk.center, disk.center_error
    elif center is not None and disk is not None:
        pixel = (1.0, 1.0) if sampling is None else sampling
        off = math.hypot(*(np.subtract(disk.center, center) * pixel))
        error = math.hypot(*(np.asarray(disk.center_error) * pixel))
        if off > _OFF * disk.radius + _SURE * error:
            notes.append(
                f"the disk's center is row {disk.center[0]:.1f}, column {disk.center[1]:.1f}; "
                f"{center[0]:g}, {center[1]:g} was given: leave it out if it is not known well."
            )
    if sampling is None and disk is not None:
        sampling = (semiangle / disk.radius,) * 2
        errors["sampling"] = disk.radius_error / disk.radius
        ratio = _ratio(pattern, usable, disk)
        if ratio is not None:
            sampling = sampling[0], sampling[1] * ratio
            again = find_disk(pattern, usable, sampling)
            if again is not None:
                scale = semiangle / again.radius
                sampling = sampling[0] * scale, sampling[1] * scale
                errors["sampling"] = again.radius_error / again.radius
                if "center" in errors:
                    center, errors["center"] = again.center, again.center_error
            notes.append(
                f"the disk is {max(ratio, 1 / ratio):.3g} times as long along one axis as along "
                "the other: pixels are taken to be oblong. If they are not, give angular_sampling. "
                "If something covers a part of the disk, such as a beam stop, exclude it with "
                "bf_mask."
            )
    elif disk is not None and abs(disk.radius / semiangle - 1) > _DISAGREE:
        notes.append(
            f"the disk's radius is {disk.radius * 1e3:.4g} mrad by the sampling that was given, "
            f"semiangle_cutoff is {semiangle * 1e3:.4g} mrad: one of them may be wrong."
        )
    assert center is not None
    assert sampling is not None
    optics = Optics(wavelength, semiangle, center, sampling)
    xi = optics.positions(np.argwhere(np.ones(pattern.shape, bool)))
    mask = usable & (np.hypot(*xi.T) <= 1).reshape(pattern.shape)
    if not mask.any():
        raise ValueError(
            f"the bright field is empty: no usable detector pixel lies within semiangle_cutoff = "
            f"{semiangle * 1e3:g} mrad of the center {center}. Check center, the sampling and "
            "bf_mask."
        )
    if hot := hot_pixel(pattern, mask):
        notes.append(hot)
    return Beam(optics, mask, pattern, disk, errors, tuple(notes))


def _ratio(pattern: NDArray[np.float64], usable: NDArray[np.bool_], disk: Disk) -> float | None:
    """Width of a pixel over its height, if the disk, all of it to be seen, is no circle."""
    y, x = np.meshgrid(*map(np.arange, pattern.shape), indexing="ij")
    near = np.hypot(y - disk.center[0], x - disk.center[1]) <= 1.5 * disk.radius
    if not usable[near].all():
        return None
    inside = near & (scipy.ndimage.median_filter(pattern, 3) > (disk.inside + disk.outside) / 2)
    if inside[[0, -1]].any() or inside[:, [0, -1]].any():
        return None
    ratio = float(y[inside].std() / x[inside].std())
    return ratio if abs(math.log(ratio)) > _OBLONG else None


def _given_sampling(parameters: Parameters, wavelength: float) -> tuple[float, float] | None:
    """Size of a detector pixel in rad, if it is known."""
    for name, unit in (("angular_sampling", 1e-3), ("reciprocal_sampling", wavelength)):
        if name in parameters:
            y, x = parameters[name]
            return y * unit, x * unit
    return None
