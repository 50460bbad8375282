"""Which spatial frequencies an acquisition will show, before anything is recorded."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import aberrations, checks
from .contrast import contrast
from .geometry import Geometry
from .parameters import Parameters

__all__ = ["Transfer", "transfer"]

#: Scan positions along both axes, and signal over noise, where nothing is said of them.
_SCAN, SNR = 256, 100.0


class Transfer(NamedTuple):
    """Contrast transfer against spatial frequency, averaged over directions.

    1 is what a pixel on the axis would show of a frequency whose beam is out of phase by a quarter
    turn: twice the phase, in amplitude.
    """

    frequency: NDArray[np.float64]  #: (N,) in 1/Å, ascending, from that of the field of view on
    parallax: NDArray[np.float64]  #: (N,) of the parallax image; negative where it is inverted
    phase_flip: NDArray[np.float64]  #: (N,) of the phase-flipped one
    phase: NDArray[np.float64]  #: (N,) of the phase image: 1 is all of the phase
    sin_chi: NDArray[np.float64]  #: (N,) sin χ of the even aberrations, that of the axis
    semiangle: float  #: frequency in 1/Å up to which parallax carries most
    nyquist: float  #: highest frequency in 1/Å that the scan tells apart


def transfer(
    parameters: Mapping[str, Any],
    *,
    shape: tuple[int, int, int, int] | None = None,
    regularization: float | None = None,
) -> Transfer:
    """Tell which spatial frequencies an acquisition shows of a weak phase object.

    Parameters
    ----------
    parameters
        Of the acquisition: `Parameters`, or arguments of ``ParallaxUDF.from_parameters``.
    shape
        Scan rows and columns, detector rows and columns. Default: 256 x 256 scan positions, and a
        detector that holds the bright field, with the beam in its middle and all pixels in use.
    regularization
        Power of the signal over that of the noise where contrast is best, which decides what the
        phase image shows. Default: that of the parameters if it is a number, else 100.

    Returns
    -------
    Transfer
        As arrays.

    Raises
    ------
    ValueError
        For a parameter that is missing or out of its range.
    TypeError
        If `parameters` is no mapping.
    """
    checks.mapping("parameters", parameters)
    known = Parameters(**{name: parameters[name] for name in parameters if name != "shape"})
    snr = known.get("regularization", "auto") if regularization is None else regularization
    snr = SNR if snr == "auto" else float(checks.regularization("regularization", snr))
    if shape is None:
        known = known.replace(center=None, bf_mask=None)
    with warnings.catch_warnings():
        # Shifts exceed this scan, maybe not the real one.
        warnings.simplefilter("default" if shape else "ignore")
        geometry = Geometry.from_parameters(shape or _shape(known), **known)
    P, _, pixels = contrast(geometry)
    (ny, nx), u = geometry.plan.image_shape, geometry.plan.upsampling_factor
    step = np.asarray(geometry.scan_sampling) / u
    qy, qx = np.fft.fftfreq(ny, step[0])[:, None], np.fft.rfftfreq(nx, step[1])
    frequency = np.hypot(qy, qx)
    q = np.stack(np.broadcast_arrays(qy, qx), axis=-1)
    chi = aberrations.surface(
        geometry.aberration_coefs, q * geometry.wavelength, geometry.wavelength, even_only=True
    )
    sin_chi = np.sin(chi)
    contrasts = P.real / (2 * pixels)
    power = np.abs(P) ** 2
    W = power / np.maximum(power + power.max() / snr, 1e-30)
    width = max(1 / (ny * step[0]), 1 / (nx * step[1]))
    ring = np.rint(frequency / width).astype(int)
    # The Nyquist frequencies carry nothing, whatever the aberrations are.
    inside = (abs(qy) < 0.5 / step[0]) & (qx < 0.5 / step[1]) & (frequency < 0.5 / max(step))
    used = inside & (ring > 0)
    counts = np.bincount(ring[used])
    found = np.flatnonzero(counts)

    def mean(values: NDArray[Any]) -> NDArray[np.float64]:
        means: NDArray[np.float64] = np.bincount(ring[used], values[used])[found] / counts[found]
        return means

    semiangle = geometry.parameters["semiangle_cutoff"] * 1e-3 / geometry.wavelength
    return Transfer(
        mean(frequency),
        mean(contrasts),
        mean(contrasts * np.sign(sin_chi)),
        mean(W),
        mean(sin_chi),
        semiangle,
        0.5 / max(geometry.scan_sampling),
    )


def _shape(known: Parameters) -> tuple[int, int, int, int]:
    """Shape of a scan with a detector that holds the bright field."""
    if known.missing():
        return _SCAN, _SCAN, 1, 1  # the geometry says what is missing
    sampling = known.get("angular_sampling")
    if sampling is None:
        wavelength = aberrations.wavelength(known["energy"])
        sampling = [step * wavelength * 1e3 for step in known["reciprocal_sampling"]]
    rows, cols = (2 * math.ceil(known["semiangle_cutoff"] / step) + 3 for step in sampling)
    return _SCAN, _SCAN, rows, cols
