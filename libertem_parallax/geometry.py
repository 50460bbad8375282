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

#: Smaller ones as the largest of all are mistakes as well, such as micrometers for Å.
_LEAST_SHIFT = 0.005

#: Two turns, with room for rounding. Larger ones are degrees.
_LARGEST_ROTATION = 12.6


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
            If the detector cuts off the bright field, shifts exceed the scan or come to nothing, or
            the rotation is more than two turns.
        """
        sizes = checks.shape(shape)
        scan_shape, detector_shape = sizes[:2], sizes[2:]
        elsewhere = {name for name, p in PARAMETERS.items() if p.of != "acquisition"}
        given = Parameters(**{k: v for k, v in parameters.items() if k not in elsewhere})
        for declared in given.missing():
            instead = f", or {declared.instead}" if declared.instead else ""
            raise ValueError(f"{declared.name} is missing: expected the {declared.words}{instead}.")
        values = {**DEFAULTS, **given}
        scan_sampling, cutoff = values["scan_sampling"], values["semiangle_cutoff"]
        sampling = values["angular_sampling"]
        if sampling is None:
            y, x = values["reciprocal_sampling"]
            wavelength = aberrations.wavelength(values["energy"])
            sampling = y * wavelength * 1e3, x * wavelength * 1e3
        coefs = values["aberration_coefs"] or {}
        rotation, flip = values["rotation_angle"], values["detector_flip_cols"]
        u, center = values["upsampling_factor"], values["center"]
        if abs(rotation) > _LARGEST_ROTATION:
            warnings.warn(
                f"rotation_angle = {rotation:g} is more than two turns: expected rad, of which a "
                f"degree is 0.01745. {rotation:g} degrees are {math.radians(rotation):.4g}.",
                stacklevel=3,
            )
        canonical_center = _center(center, detector_shape, rotation, flip)

        with np.errstate(over="ignore", invalid="ignore"):
            angles = _angles(detector_shape, canonical_center, sampling, rotation)
        inside = np.hypot(angles[..., 0], angles[..., 1]) * 1e3 <= cutoff * (1 + _EDGE)
        if flip:
            angles, inside = angles[:, ::-1], inside[:, ::-1]
        usable = inside & _mask(values["bf_mask"], detector_shape)
        if not usable.any():
            raise ValueError(
                f"the bright field is empty: no usable detector pixel lies within semiangle_cutoff "
                f"= {cutoff:g} mrad of the center. Detector pixels are {sampling[0]:.4g} x "
                f"{sampling[1]:.4g} mrad; check semiangle_cutoff, the sampling, center and bf_mask."
            )
        row, col = canonical_center
        stored_center = row, (detector_shape[1] - 1 - col) if flip else col
        _warn_if_cut_off(stored_center, detector_shape, sampling, cutoff)
        with np.errstate(over="ignore", invalid="ignore"):
            displacement = aberrations.gradient(coefs, angles[usable])
            exact = displacement / np.asarray(scan_sampling) * u
            shifts = np.rint(np.round(exact, _DECIMALS))
        if not (np.abs(shifts) < _LARGEST_SHIFT).all():
            raise ValueError(
                f"aberration_coefs = {coefs} shift the images by up to "
                f"{np.abs(displacement).max():.3g} Å, which is {np.abs(shifts).max():.3g} pixels: "
                "expected shifts that are smaller than the scan. Check aberration_coefs (Å), "
                "scan_sampling (Å) and the sampling."
            )
        if (np.abs(shifts) >= u * np.asarray(scan_shape)).any():
            largest = np.abs(displacement).max(axis=0)
            warnings.warn(
                f"shifts of up to {largest[0]:.4g} x {largest[1]:.4g} Å exceed the scan of "
                f"{scan_shape[0] * scan_sampling[0]:.4g} x {scan_shape[1] * scan_sampling[1]:.4g} "
                "Å: the image wraps around. Check aberration_coefs (Å) and scan_sampling (Å).",
                stacklevel=3,
            )
        aberrated = any(value for symbol, value in coefs.items() if symbol.startswith("C"))
        if aberrated and len(shifts) > 1 and np.abs(exact).max() < _LEAST_SHIFT:
            warnings.warn(
                f"aberration_coefs = {coefs} shift images by no more than "
                f"{np.abs(displacement).max():.2g} Å, or {np.abs(exact).max():.2g} pixels: the "
                "parallax image is just the bright-field image. Check aberration_coefs (Å), "
                "semiangle_cutoff (mrad) and the sampling.",
                stacklevel=3,
            )
        plan = Plan(scan_shape, detector_shape, u, np.argwhere(usable), shifts.astype(np.int64))
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
        q = np.stack(
            np.meshgrid(
                np.fft.fftfreq(ny, self.scan_sampling[0] / u),
                np.fft.fftfreq(nx, self.scan_sampling[1] / u),
                indexing="ij",
            ),
            axis=-1,
        )
        chi = aberrations.surface(
            self.aberration_coefs, q * self.wavelength, self.wavelength, even_only=True
        )
        K = np.sign(np.sin(chi)).astype(np.float32)
        if suppress_Nyquist_noise:
            for axis, n in enumerate(K.shape):
                if n % 2 == 0:
                    np.moveaxis(K, axis, 0)[n // 2] = 0
        opposite = np.ix_(-np.arange(ny) % ny, -np.arange(nx) % nx)
        symmetric: NDArray[np.float32] = (K + K[opposite])[:, : nx // 2 + 1] / np.float32(2)
        return symmetric


def _center(
    center: tuple[float, float] | None,
    detector_shape: tuple[int, int],
    rotation: float,
    flip_cols: bool,
) -> tuple[float, float]:
    """Beam center in the canonical layout, in which columns are read as the flip says."""
    rows, cols = detector_shape
    if center is None:
        # Array layouts are described by exact quarter turns. Reversing an axis of even length
        # moves the pixel Q // 2 to Q // 2 - 1.
        quarters = rotation / (math.pi / 2)
        turn = round(quarters) % 4 if abs(quarters - round(quarters)) < 1e-9 else 0
        return (
            float(rows // 2 - (turn in (2, 3) and rows % 2 == 0)),
            float(cols // 2 - (turn in (1, 2) and cols % 2 == 0)),
        )
    row, col = center
    if not (-0.5 <= row <= rows - 0.5 and -0.5 <= col <= cols - 0.5):
        raise ValueError(
            f"center = {center!r}: expected row and column of the beam on the detector of {rows} x "
            f"{cols} pixels, counted from 0."
        )
    return row, (cols - 1 - col) if flip_cols else col


def _angles(
    detector_shape: tuple[int, int],
    center: tuple[float, float],
    sampling: tuple[float, float],
    rotation: float,
) -> NDArray[np.float64]:
    """Directions ``λ k`` of all pixels of the canonical layout in rad, (rows, cols, 2)."""
    y = (np.arange(detector_shape[0]) - center[0]) * sampling[0] * 1e-3
    x = (np.arange(detector_shape[1]) - center[1]) * sampling[1] * 1e-3
    y, x = np.meshgrid(y, x, indexing="ij")
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
