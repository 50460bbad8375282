"""Phase-flipped image: contrast reversals of the parallax image undone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..geometry import Geometry
from .fourier import irfft2, rfft2
from .parallax import parallax
from .sums import Image, Imaging, Sums

__all__ = ["PHASE_FLIP", "phase_flip"]


def phase_flip(sums: Sums) -> NDArray[np.float32]:
    """Make the phase-flipped image.

    Parameters
    ----------
    sums
        Of the frames.

    Returns
    -------
    (u Ny, u Nx) float32
        The parallax image, convolved with the kernel of `Geometry.phase_flip_filter`; in counts.
    """
    image = sums.once(parallax)
    spectrum = rfft2(image)
    spectrum *= sums.constant(_filter)
    return irfft2(spectrum, image.shape[1])


def _filter(imaging: Imaging) -> NDArray[np.float32]:
    return imaging.geometry.phase_flip_filter(suppress_Nyquist_noise=imaging.suppress_Nyquist_noise)


def _problem(geometry: Geometry) -> str | None:
    reason = geometry.nothing_shifts
    if reason is None and not geometry.flips:
        reason = (
            "aberration_coefs has no even aberration (defocus, astigmatism, Cs, ...), without "
            "which there is no phase contrast."
        )
    return None if reason is None else f"the phase-flipped image will be zero: {reason}"


PHASE_FLIP = Image(phase_flip, "phase-flipped parallax", problem=_problem, memory=32)
