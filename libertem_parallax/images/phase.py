"""Phase image: the phase shift that the specimen causes, from what the parallax image shows of it.

The parallax image of a weak phase object φ is, for spatial frequencies q ≠ 0, ``I0 R``, where
``R = P φ + noise``, with the transfer P of `libertem_parallax.contrast` and the counts I0 of a
pixel inside the aperture. Of all estimates that are linear in R, this one comes nearest to φ
(Wiener 1949)::

    φ = R P* / (|P|² + N / S)

N is the power of the noise of R, S that of φ. Both are found from the image: see `wiener`. What the
model misses is of second order in φ. It is counted as more noise, of ``c var(φ) max|P|² S``, less
what is taken off with the frames' means. Where |P|² S is less than that, the image would show that
and not φ. c is from simulations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..contrast import contrast
from ..geometry import Geometry
from .fourier import irfft2, rfft2
from .parallax import parallax
from .sums import Image, Imaging, Sums, here
from .wiener import Spectrum

__all__ = ["PHASE", "phase"]

#: What the model of a weak object misses, over the largest |P|² S and the variance of φ. Chosen on
#: simulated specimens: strong ones gain 0.02 in correlation with the truth, weak ones lose less
#: than 0.01. Three times as much costs up to 0.03, a third of it gives half of the gain.
_STRONG = 0.03


#: Counts of all frames; less is none, as single precision would not hold the noise over them. That
#: of a few electrons is more, even as a charge in coulombs.
_LEAST = 1e-18


class _Transfer(NamedTuple):
    """What does not depend on the counts; the first three on the image's half-spectrum."""

    conj: NDArray[np.complex64]  # P*
    power: NDArray[np.float32]  # |P|²
    noise: NDArray[np.float32]  # power of the noise, over all counts
    pixels: float  # as many inside the aperture would see all counts of a frame
    spectrum: Spectrum


def phase(sums: Sums) -> NDArray[np.float32]:
    """Make the phase image.

    Parameters
    ----------
    sums
        Of the frames.

    Returns
    -------
    (u Ny, u Nx) float32
        Phase in rad; zero on average, since no detector sees a constant phase.
    """
    image = here(sums.once(parallax))
    counts, scanned = float(sums.S.sum()), int(sums.scanned.sum())
    if not counts > _LEAST or (transfer := sums.imaging.once(_transfer)) is None:
        return np.zeros_like(image)
    # I0; of u² pixels of the image, the scan has hit one.
    inside = counts / (transfer.pixels * scanned) / sums.imaging.geometry.plan.upsampling_factor**2
    R = rfft2(image)
    R *= np.float32(1 / inside)  # complex numbers are divided slowly
    noise = counts / inside**2
    snr = sums.imaging.regularization
    if isinstance(snr, str):
        found = transfer.spectrum.fit(_power(R).ravel(), noise)
        # Of all frequencies, the half-spectrum has half.
        variance = 2 * transfer.spectrum.total(found) / image.size**2
        missed = _STRONG * variance * float(transfer.power.max())
        ratio = transfer.spectrum.ratio(found, missed).reshape(R.shape)
    else:
        ratio = transfer.power.max() / np.float32(snr)
    R *= transfer.conj
    R *= 1 / np.maximum(transfer.power + ratio, np.float32(1e-30))
    return irfft2(R, image.shape[1])


def _transfer(imaging: Imaging) -> _Transfer | None:
    geometry = imaging.geometry
    P, noise, pixels = contrast(geometry)
    if not P.any():
        return None
    ny, nx = geometry.plan.image_shape
    u = geometry.plan.upsampling_factor
    dy, dx = (step / u for step in geometry.scan_sampling)
    y, x = np.fft.fftfreq(ny)[:, None], np.fft.rfftfreq(nx)  # cycles a pixel
    frequency, beyond = np.hypot(y / dy, x / dx).ravel(), (np.maximum(abs(y), x) * u > 0.5).ravel()
    power = _power(P)
    spectrum = Spectrum(power.ravel(), noise.ravel(), frequency, beyond)
    return _Transfer(P.conj(), power, noise, pixels, spectrum)


def _power(values: NDArray[Any]) -> NDArray[np.float32]:
    power: NDArray[np.float32] = values.real**2
    power += values.imag**2
    return power


def _problem(geometry: Geometry) -> str | None:
    reason = geometry.nothing_shifts
    return None if reason is None else f"the phase image will be zero: {reason}"


PHASE = Image(phase, "phase", "rad", problem=_problem, prepare=lambda i: i.once(_transfer))
