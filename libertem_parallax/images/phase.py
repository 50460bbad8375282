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

One part of it can be told: the beam that goes straight on loses φ²/2 of its amplitude to what the
specimen diffracts. R shows φ² with the transfer of absorption, ``-cos χ(q)`` for every pixel. Its
slow changes follow those of φ, as both are more where there is more matter. In underfocus they add
to the contrast, and are left. In overfocus they take it away, up to all of it, at frequencies below
the first reversal, 0 < χ < π/2. There they are undone, with φ² from a first image, without these
frequencies: what they diffract arrives next to where it was lost, and hides the loss. What the
filter leaves of φ in that image is ``|P|² / (|P|² + N / S)``; φ² is made so much larger.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import aberrations
from ..accumulate.disk import keep_on_disk
from ..contrast import contrast
from ..geometry import Geometry
from ..pixel_noise import ELECTRONS, SOME
from .fourier import irfft2, rfft2
from .parallax import parallax
from .sums import Image, Imaging, Sums, here
from .wiener import Found, Spectrum

__all__ = ["PHASE", "UNSEEN", "phase"]

#: What the model of a weak object misses, over the largest |P|² S and the variance of φ. Chosen on
#: simulated specimens: strong ones gain 0.02 in correlation with the truth, weak ones lose less
#: than 0.01. Three times as much costs up to 0.03, a third of it gives half of the gain.
_STRONG = 0.03

#: Power of φ over that of frequencies that the scan tells apart. Specimens of single atoms that are
#: as sharp as in nature have twice as much if a step is 1 Å.
UNSEEN = 2.0

#: Counts of all frames; less is none, as single precision would not hold the noise over them. That
#: of a few electrons is more, even as a charge in coulombs.
_LEAST = 1e-18

#: Instead of dividing by zero.
_NONE = np.float32(1e-30)


class _Transfer(NamedTuple):
    """What does not depend on the counts; the first three on the image's half-spectrum."""

    conj: NDArray[np.complex64]  # P*
    power: NDArray[np.float32]  # |P|², and next to nothing where it is 0
    noise: NDArray[np.float32]  # power of the noise, over all counts
    largest: float  # of the powers
    pixels: float  # as many inside the aperture would see all counts of a frame
    spectrum: Spectrum
    opposed: NDArray[np.intp]  # frequencies where loss takes contrast away
    loss: NDArray[np.float32]  # its transfer there, from φ², with the opposite sign


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
    counts, scanned = float(sums.S.sum()), np.count_nonzero(sums.scanned)
    if not counts > _LEAST or (transfer := sums.imaging.once(_transfer)) is None:
        return np.zeros_like(image)
    # I0; of u² pixels of the image, the scan has hit one.
    inside = counts / (transfer.pixels * scanned) / sums.imaging.geometry.plan.upsampling_factor**2
    R = rfft2(image)
    if _without_mean(R, counts):
        return np.zeros_like(image)
    R *= np.float32(1 / inside)  # complex numbers are divided slowly
    noise = counts / inside**2
    snr = sums.imaging.regularization
    if isinstance(snr, str):
        weights, found = _weights(transfer, R, noise, image.size)
        if len(transfer.opposed):
            first = R * transfer.conj
            first *= weights
            weights *= transfer.power
            R.ravel()[transfer.opposed] += _lost(
                transfer, first, weights.ravel(), found, image.shape
            )
            weights, _ = _weights(transfer, R, noise, image.size)
    else:
        weights = np.reciprocal(transfer.power + np.float32(transfer.largest / snr))
    R *= transfer.conj
    R *= weights
    return irfft2(R, image.shape[1])


def _without_mean(R: NDArray[Any], counts: float) -> bool:
    """Tell whether the sum of all values is no more than chance, so that it is no scale."""
    some = R.ravel()[:: math.ceil(R.size / SOME) | 1]
    noise = float(np.median(np.abs(some)))
    return not counts > math.sqrt(ELECTRONS) * noise


def _weights(
    transfer: _Transfer, R: NDArray[Any], noise: float, size: int
) -> tuple[NDArray[np.float32], Found]:
    """Find signal and noise, and the filter over P*."""
    found = transfer.spectrum.fit(_power(R).ravel(), noise)
    variance = transfer.spectrum.variance(found, size)
    missed = _STRONG * variance * transfer.largest
    weights = transfer.spectrum.ratio(found, missed).reshape(R.shape)
    weights += transfer.power
    return np.reciprocal(weights, out=weights), found


def _lost(
    transfer: _Transfer,
    phi: NDArray[Any],
    share: NDArray[np.float32],
    found: Found,
    shape: tuple[int, ...],
) -> NDArray[Any]:
    """Find what R lacks at `opposed`; overwrites the half-spectrum of the phase, and its share."""
    phi.ravel()[transfer.opposed] = 0
    lost = irfft2(phi, shape[1])
    lost *= lost
    # The filter has made less of the specimen than there is. By how much is told by what was found,
    # not by this image: where that is too much, as it may be with `coverage` borders, so is both.
    share[transfer.opposed] = 0
    made = transfer.spectrum.variance(found, lost.size, share)
    share.fill(1)
    share[transfer.opposed] = 0
    more = UNSEEN * transfer.spectrum.variance(found, lost.size, share) / max(made, 1e-30)
    found_lost: NDArray[Any] = rfft2(lost).ravel()[transfer.opposed]
    found_lost *= transfer.loss * np.float32(more)
    return found_lost


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
    spectrum.ratio(spectrum.fit(power.ravel(), 1.0))  # compiled before the first frame
    opposed, chi = _opposed(geometry)
    loss = (pixels * np.cos(chi) * noise.ravel()[opposed]).astype(np.float32)
    power, largest = np.maximum(power, _NONE), float(power.max())
    return _Transfer(P.conj(), power, noise, largest, pixels, spectrum, opposed, loss)


def _opposed(geometry: Geometry) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Frequencies of the scan's where contrast is as in overfocus and not reversed, and χ there."""
    (ny, nx), u = geometry.plan.image_shape, geometry.plan.upsampling_factor
    y, x = np.fft.fftfreq(ny), np.fft.rfftfreq(nx)
    scale_y, scale_x = (u / step * geometry.wavelength for step in geometry.scan_sampling)
    found, values = [], []
    # Some rows at a time: the temporaries of all would be the largest arrays of a run.
    for rows in np.array_split(np.arange(ny), max(1, ny * len(x) >> 16)):
        angles = np.stack(np.meshgrid(y[rows] * scale_y, x * scale_x, indexing="ij"), axis=-1)
        coefs, wavelength = geometry.aberration_coefs, geometry.wavelength
        chi = aberrations.surface(coefs, angles, wavelength, even_only=True)
        opposed = (chi > 0) & (chi < np.pi / 2)
        opposed &= np.maximum(abs(y[rows, None]), x) * u <= 0.5
        found.append(np.flatnonzero(opposed) + rows[0] * len(x))
        values.append(chi[opposed])
    return np.concatenate(found), np.concatenate(values)


def _power(values: NDArray[Any]) -> NDArray[np.float32]:
    power = np.empty(values.shape, np.float32)
    _add_squares(values.ravel(), power.ravel())
    return power


@keep_on_disk
def _add_squares(values: Any, sums: Any) -> None:
    for i in range(len(values)):
        sums[i] = values[i].real * values[i].real + values[i].imag * values[i].imag


def _problem(geometry: Geometry) -> str | None:
    reason = geometry.nothing_shifts
    return None if reason is None else f"the phase image will be zero: {reason}"


PHASE = Image(phase, "phase", "rad", problem=_problem, prepare=lambda i: i.once(_transfer))
