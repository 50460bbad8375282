"""From acquisition parameters to bright-field pixels, shifts and the phase-flip filter."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from . import aberrations, checks
from .accumulate import Plan
from .parameters import DEFAULTS, PARAMETERS, Parameters

__all__ = ["Geometry"]

#: A relative margin on the edge of the bright field, so that pixels which lie on it are all inside
#: or all outside, whatever the rounding of each.
_EDGE = 1e-9

#: Decimals of a pixel that decide how a shift is rounded. Round numbers as parameters put shifts on
#: exact halves; rounding errors must not decide, for each pixel anew, which way these go.
_DECIMALS = 6

#: Image pixels. Larger shifts are mistakes, and from 2**33 on float64 does not hold the decimals.
_LARGEST_SHIFT = 2**31

#: Turns that may be meant, with room for rounding. Larger angles are degrees.
_LARGEST_ROTATION, _LARGEST_AZIMUTH = 2.005, 1.005

#: Where a larger factor would be needed, units are wrong.
_USUAL_UPSAMPLING = 16


@dataclass(frozen=True, eq=False)
class Geometry:
    """What follows from the parameters of an acquisition; construct by `from_parameters`.

    Parameters
    ----------
    plan
        Bright-field pixels and their shifts.
    parameters
        From which they follow.
    """

    plan: Plan
    parameters: Parameters

    @classmethod
    def from_parameters(cls, shape: Iterable[int], **parameters: Any) -> Self:
        """Check parameters and work out the geometry.

        Parameters
        ----------
        shape
            Scan rows and columns, detector rows and columns.
        **parameters
            Those of `libertem_parallax.ParallaxUDF.from_parameters`. What only the UDF or the
            command line needs is left out.

        Raises
        ------
        ValueError
            For a parameter that is missing or out of its range; the message names it, what was
            given and what is expected.

        Warns
        -----
        UserWarning
            If the detector cuts off the bright field, shifts exceed the scan, an angle looks like
            degrees, or an exact quarter turn moves the default center.
        """
        sizes = checks.shape(shape)
        scan_shape, detector_shape = sizes[:2], sizes[2:]
        elsewhere = {name for name, p in PARAMETERS.items() if p.of != "acquisition"}
        given = Parameters(**{k: v for k, v in parameters.items() if k not in elsewhere})
        for declared in given.missing():
            instead = f", or {declared.instead}" if declared.instead else ""
            raise ValueError(f"{declared.name} is missing: expected the {declared.words}{instead}.")
        _warn_of_units(given)
        values = {**DEFAULTS, **given}
        coefs, cutoff = values["aberration_coefs"] or {}, values["semiangle_cutoff"]
        scan_sampling, u = values["scan_sampling"], values["upsampling_factor"]
        sampling, center = _sampling(given), _center(given, detector_shape)
        with np.errstate(over="ignore", invalid="ignore"):
            angles = _angles(given, detector_shape)
        inside = np.hypot(angles[..., 0], angles[..., 1]) * 1e3 <= cutoff * (1 + _EDGE)
        usable = inside & _mask(values["bf_mask"], detector_shape)
        if not usable.any():
            raise ValueError(
                f"the bright field is empty: no usable detector pixel lies within semiangle_cutoff "
                f"= {cutoff:g} mrad of the center. Detector pixels are {sampling[0]:.4g} x "
                f"{sampling[1]:.4g} mrad; check semiangle_cutoff, the sampling, center and bf_mask."
            )
        _warn_if_moved(given, center, detector_shape)
        _warn_if_cut_off(center, detector_shape, sampling, cutoff)
        with np.errstate(over="ignore", invalid="ignore"):
            displacement = aberrations.gradient(coefs, angles[usable])
            shifts = np.rint(np.round(displacement / np.asarray(scan_sampling) * u, _DECIMALS))
        if not (np.abs(shifts) < _LARGEST_SHIFT).all():
            raise ValueError(
                f"aberration_coefs = {coefs} shift the images by up to "
                f"{np.abs(displacement).max():.3g} Å, which is {np.abs(shifts).max():.3g} pixels: "
                "expected shifts that are smaller than the scan. Check aberration_coefs (Å), "
                "scan_sampling (Å) and the sampling."
            )
        if (np.abs(shifts) >= u * np.asarray(scan_shape)).any():
            largest = np.abs(displacement).max(axis=0) / 10
            field = np.multiply(scan_shape, scan_sampling) / 10
            periodic = values["borders"] == "periodic"
            outcome = (
                "the image wraps around" if periodic else "these pixels land outside the image"
            )
            warnings.warn(
                f"shifts of up to {largest[0]:.4g} x {largest[1]:.4g} nm exceed the scan of "
                f"{field[0]:.4g} x {field[1]:.4g} nm: {outcome}. Check aberration_coefs and "
                "scan_sampling, which are in Å.",
                stacklevel=3,
            )
        pixels, wraps = np.argwhere(usable), values["borders"] == "periodic"
        plan = Plan(scan_shape, detector_shape, u, pixels, shifts.astype(np.int64), wraps)
        return cls(plan, given)

    def replace(self, **changes: Any) -> Self:
        """Work out the geometry of the same data with other parameters.

        Parameters
        ----------
        **changes
            As for `Parameters.replace`. Aberrations are replaced as a whole.

        Raises
        ------
        ValueError
            As for `from_parameters`, which warns as well.
        """
        shape = self.plan.scan_shape + self.plan.detector_shape
        return self.from_parameters(shape, **self.parameters.replace(**changes))

    @property
    def scan_sampling(self) -> tuple[float, float]:
        """Step of the scan along rows and columns in Å."""
        step: tuple[float, float] = self.parameters["scan_sampling"]
        return step

    @property
    def sampling(self) -> tuple[float, float]:
        """Size of a detector pixel along rows and columns in mrad."""
        return _sampling(self.parameters)

    @property
    def soft_edge(self) -> float:
        """Width of the aperture's edge in rad, which detector pixels blur: the size of one."""
        return math.sqrt(math.prod(self.sampling)) * 1e-3

    @property
    def center(self) -> tuple[float, float]:
        """Row and column of the beam in detector pixels as stored."""
        return _center(self.parameters, self.plan.detector_shape)

    @cached_property
    def angles(self) -> NDArray[np.float64]:
        """Directions ``λ k`` of the bright-field pixels in rad, along scan axes; (M, 2)."""
        rows, cols = self.plan.pixels.T
        angles: NDArray[np.float64] = _angles(self.parameters, self.plan.detector_shape)[rows, cols]
        return angles

    @cached_property
    def wavelength(self) -> float:
        """Of the electrons in Å."""
        return aberrations.wavelength(self.parameters["energy"])

    @cached_property
    def aberration_coefs(self) -> dict[str, float]:
        """As `aberrations.canonical` returns them; empty if there are none."""
        coefs: dict[str, float] = self.parameters.get("aberration_coefs", {})
        return coefs

    @property
    def nothing_shifts(self) -> str | None:
        """Why all images are shifted alike, and what would help; None where they are not.

        Where they are, what is left of their sum without the mean is zero.
        """
        shifts = self.plan.shifts
        if (shifts != shifts[0]).any():
            return None
        if len(shifts) == 1:
            return (
                "the bright field is a single detector pixel. Check semiangle_cutoff (mrad), the "
                "sampling, center and bf_mask."
            )
        units = (
            "Check aberration_coefs (Å, azimuths in rad), semiangle_cutoff (mrad), the sampling "
            "and scan_sampling (Å)."
        )
        exact = aberrations.gradient(self.aberration_coefs, self.angles) / self.scan_sampling
        spread = float(np.ptp(exact, axis=0).max())
        if not spread:
            return f"no aberration shifts images against each other. Give a defocus. {units}"
        u = self.plan.upsampling_factor
        reason = (
            f"aberration_coefs = {self.aberration_coefs} shift images against each other by no "
            f"more than {spread * u:.2g} pixels, which are rounded to none."
        )
        enough = math.floor(1 / spread) + 1
        if enough <= _USUAL_UPSAMPLING:
            return f"{reason} An upsampling_factor of {enough} is enough for these. {units}"
        return f"{reason} {units}"

    @property
    def flips(self) -> bool:
        """Whether there is any phase contrast that `phase_flip_filter` could flip."""
        return aberrations.has_even(self.aberration_coefs)

    def phase_flip_filter(self, *, suppress_Nyquist_noise: bool) -> NDArray[np.float32]:
        """Transfer function of the phase flip, on the half-spectrum of `scipy.fft.rfft2`.

        Parameters
        ----------
        suppress_Nyquist_noise
            Zero the Nyquist row and column of axes of even length.

        Returns
        -------
        (u Ny, u Nx // 2 + 1) float32
            ``sign(sin χ(q λ))`` of the even aberrations, q in 1/Å on the image grid. Of the Nyquist
            frequencies the grid holds only one sign: there, q and its opposite are averaged, as
            taking the real part of the kernel does.
        """
        ny, nx = self.plan.image_shape
        u = self.plan.upsampling_factor
        y, x = (
            np.fft.fftfreq(n, step / u) * self.wavelength
            for n, step in zip((ny, nx), self.scan_sampling, strict=True)
        )
        K = np.empty((ny, nx // 2 + 1), np.float32)
        cols = np.arange(nx // 2 + 1)
        # Some rows at a time: the temporaries of all would be the largest arrays of a run.
        for rows in np.array_split(np.arange(ny), max(1, K.size >> 16)):
            there, opposite = (
                np.sign(np.sin(self._even(y[sign * rows], x[sign * cols]))) for sign in (1, -1)
            )
            K[rows] = (there + opposite) / 2
        if suppress_Nyquist_noise:
            for axis, n in enumerate((ny, nx)):
                if n % 2 == 0:
                    np.moveaxis(K, axis, 0)[n // 2] = 0
        return K

    def _even(self, y: NDArray[Any], x: NDArray[Any]) -> NDArray[np.float64]:
        """Even aberrations in rad at directions `y` along rows and `x` along columns, in rad."""
        angles = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)
        return aberrations.surface(self.aberration_coefs, angles, self.wavelength, even_only=True)


def _sampling(parameters: Parameters) -> tuple[float, float]:
    """Size of a detector pixel in mrad."""
    if "angular_sampling" in parameters:
        sampling: tuple[float, float] = parameters["angular_sampling"]
        return sampling
    y, x = parameters["reciprocal_sampling"]
    wavelength = aberrations.wavelength(parameters["energy"])
    return y * wavelength * 1e3, x * wavelength * 1e3


def _center(parameters: Parameters, detector_shape: tuple[int, int]) -> tuple[float, float]:
    """Beam center in pixels as stored."""
    rows, cols = detector_shape
    if "center" in parameters:
        row, col = parameters["center"]
        if not (-0.5 <= row <= rows - 0.5 and -0.5 <= col <= cols - 0.5):
            raise ValueError(
                f"center = {(row, col)!r}: expected row and column of the beam on the detector of "
                f"{rows} x {cols} pixels, counted from 0."
            )
        return row, col
    # As in 0.1.2, exact quarter turns describe an order, too: in that, the center is the pixel
    # Q // 2, which reversing an axis of even length makes Q // 2 - 1.
    turn = _quarter_turns(parameters)
    row = float(rows // 2 - (turn in (2, 3) and rows % 2 == 0))
    col = float(cols // 2 - (turn in (1, 2) and cols % 2 == 0))
    flip_rows, flip_cols, _ = _order(parameters)
    return (rows - 1 - row) if flip_rows else row, (cols - 1 - col) if flip_cols else col


def _order(parameters: Parameters) -> tuple[bool, bool, bool]:
    """In which order the array is stored: rows reversed, columns reversed, rows as columns."""
    flip_rows, flip_cols, transpose = (
        bool(parameters.get(f"detector_{name}")) for name in ("flip_rows", "flip_cols", "transpose")
    )
    return flip_rows, flip_cols, transpose


def _quarter_turns(parameters: Parameters) -> int:
    """Count quarter turns that describe an order, modulo 4; 0 for any other rotation."""
    flip_rows, _, transpose = _order(parameters)
    quarters: float = parameters.get("rotation_angle", 0.0) / (math.pi / 2)
    if flip_rows or transpose or abs(quarters - round(quarters)) > 1e-9:
        return 0
    return round(quarters) % 4


def _angles(parameters: Parameters, detector_shape: tuple[int, int]) -> NDArray[np.float64]:
    """Directions ``λ k`` of all pixels as stored, in rad along scan axes; (rows, cols, 2)."""
    flip_rows, flip_cols, transpose = _order(parameters)
    axes = []
    for n, center, step, flip in zip(
        detector_shape,
        _center(parameters, detector_shape),
        _sampling(parameters),
        (flip_rows, flip_cols),
        strict=True,
    ):
        positions = np.arange(n) - ((n - 1 - center) if flip else center)
        axes.append((positions[::-1] if flip else positions) * step * 1e-3)
    y, x = np.meshgrid(*axes, indexing="ij")
    if transpose:
        y, x = x, y
    rotation = parameters.get("rotation_angle", 0.0)
    cos, sin = math.cos(rotation), math.sin(rotation)
    return np.stack([cos * y - sin * x, sin * y + cos * x], axis=-1)


def _mask(bf_mask: NDArray[np.bool_] | None, detector_shape: tuple[int, int]) -> NDArray[np.bool_]:
    if bf_mask is None:
        return np.ones(detector_shape, dtype=bool)
    if bf_mask.shape != detector_shape:
        raise ValueError(
            f"bf_mask: expected a boolean array of the detector's shape {detector_shape}, True "
            f"where a pixel may be used; got one of shape {bf_mask.shape}."
        )
    return bf_mask


def _warn_if_cut_off(
    center: tuple[float, float],
    detector_shape: tuple[int, int],
    sampling: tuple[float, float],
    cutoff: float,
) -> None:
    for name, c, n, step in zip(("rows", "columns"), center, detector_shape, sampling, strict=True):
        radius = cutoff / step * (1 - _EDGE)
        if c - radius < -0.5 or c + radius > n - 0.5:
            warnings.warn(
                f"the detector cuts off the bright field: semiangle_cutoff = {cutoff:g} mrad is "
                f"{radius:.4g} pixels around {name[:-1]} {c:g} of {n} {name}. Check "
                "semiangle_cutoff, the sampling and center.",
                stacklevel=4,
            )
            return


def _warn_if_moved(
    parameters: Parameters, center: tuple[float, float], detector_shape: tuple[int, int]
) -> None:
    """Say what an exact quarter turn means for the default center."""
    unmoved = _center(parameters.replace(rotation_angle=None), detector_shape)
    if center != unmoved:
        turn, (_, flip_cols, _) = _quarter_turns(parameters), _order(parameters)
        order = {
            "detector_flip_rows": turn in (2, 3),
            "detector_flip_cols": flip_cols != (turn in (1, 2)),
            "detector_transpose": turn in (1, 3),
        }
        flags = ", ".join(f"{name}={flag}" for name, flag in order.items() if flag)
        taken, physical = (f"({row:g}, {col:g})" for row, col in (center, unmoved))
        warnings.warn(
            f"rotation_angle is exactly {90 * turn}° and no center is given: as in 0.1.2, that is "
            f"taken for frames that are stored in another order, with center={taken}. If so, "
            f"say it with rotation_angle=0, {flags}. If the detector is turned, give center="
            f"{physical}.",
            stacklevel=4,
        )


def _warn_of_units(parameters: Parameters) -> None:
    """Warn of angles that are degrees."""
    coefs = parameters.get("aberration_coefs", {})
    angles = [("rotation_angle", parameters.get("rotation_angle", 0.0), _LARGEST_ROTATION)] + [
        (f"aberration_coefs[{symbol!r}]", value, _LARGEST_AZIMUTH)
        for symbol, value in coefs.items()
        if symbol.startswith("phi")
    ]
    for name, angle, turns in angles:
        if abs(angle) > turns * 2 * math.pi:
            many = "two turns" if turns > 2 else "a turn"
            warnings.warn(
                f"{name} = {angle:g} is more than {many}: expected rad, of which a degree is "
                f'0.01745. {angle:g} degrees are {math.radians(angle):.4g}, or "{angle:g}deg".',
                stacklevel=4,
            )
