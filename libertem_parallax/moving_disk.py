"""A disk that moves on the detector during a scan: noticed in the pixels' images, and taken off.

Where the disk moves by d, a pixel at its rim becomes brighter by ``-d·∇a²``, a the aperture. If it
moves along with the scan, the images of pixels at opposite rims have opposite ramps. The phase of a
specimen does the same where it is curved all over the scan, as its gradient deflects the beam by
``λ ∇φ / 2π``. But an edge, a hole or a particle is not a ramp alone: cubes and higher powers of the
position would be there, too. A disk that moves has ramps that are far above these.

What is slow is taken off the rim then, all that polynomials of second degree are. That costs some
of the specimen, in small scans most, and leaves nothing of the ramps.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .geometry import Geometry
from .images.fourier import rfft2, slow
from .images.sums import here

__all__ = ["steady"]

#: Phase in rad from the middle of the scan to its border that would move the disk as far. Less
#: costs less than what is taken off from specimens: see benchmarks/tried.md.
_PHASE = 0.1

#: How far ramps must be above higher powers of the position, up to this one, as the rms of all.
#: Those show the noise as well as the specimen.
_ABOVE, _POWER = 10.0, 6

#: Frequencies of ramps that count, by power over the largest.
_LEAST = 1e-6

#: Polynomials up to the second degree, without the constant.
_SLOW = 5

#: Frequencies that are changed at once.
_BLOCK = 4096


def steady(
    images: Any,
    a: NDArray[np.float64],
    geometry: Geometry,
    scanned: NDArray[np.bool_],
    inside: float,
) -> bool:
    """Take slow changes off the rim's images, in place, if the disk moves.

    Parameters
    ----------
    images : (Q, M) complex64
        Half-spectra of the pixels' images over `a`. They may be CuPy's.
    a : (M,) float64
        Amplitude of the aperture at the pixels.
    geometry
        With these pixels.
    scanned : (Ny, Nx) bool
        Scan positions that are there; the images are zero at the others.
    inside
        Mean of a pixel inside the aperture: I0.

    Returns
    -------
    bool
        Whether it moves.
    """
    functions = slow(scanned, _POWER)[1:]
    spectra = rfft2(functions.reshape(-1, *scanned.shape)).reshape(len(functions), -1)
    distance = _distance(images, functions, spectra, a, geometry, scanned, inside)
    if not distance:
        return False
    # What is slow in pixels that stay inside is of the specimen. Motions of more than a pixel seem
    # less, as pixels can be no brighter than inside.
    semiangle = geometry.parameters["semiangle_cutoff"] * 1e-3
    from_rim = np.abs(np.hypot(*geometry.angles.T) - semiangle)
    reached = (from_rim < geometry.soft_edge + distance).astype(np.float32)
    weighted = spectra[:_SLOW].conj() * _weights(scanned.shape)
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(images), _BLOCK)]
    there, weighted, reached = (
        np.asarray(values, like=images) for values in (spectra[:_SLOW], weighted, reached)
    )
    amounts = sum((weighted[:, part] @ images[part]).real for part in blocks) * reached
    for part in blocks:
        images[part] -= there[:, part].T @ amounts
    return True


def _distance(
    images: Any,
    functions: NDArray[Any],
    spectra: NDArray[Any],
    a: NDArray[np.float64],
    geometry: Geometry,
    scanned: NDArray[np.bool_],
    inside: float,
) -> float:
    """Find how far the disk moves in rad: by least squares over all pixels that are lit in part.

    0 if it does not.
    """
    rim = np.flatnonzero((a > 0) & (a < 1))
    angles = geometry.angles[rim]
    # -∇a² / a, as the images are over a.
    slope = angles / np.hypot(*angles.T)[:, None] * (2 / geometry.soft_edge)
    normal = slope.T @ slope
    if not inside > 0 or np.linalg.matrix_rank(normal) < 2:
        return 0.0
    # Along rows or columns alone: of a whole scan, these have few frequencies.
    straight = np.r_[:2, _SLOW : len(functions)]
    functions, spectra = functions[straight], spectra[straight]
    power = (np.abs(spectra) ** 2).sum(axis=0)
    use = np.flatnonzero(power > _LEAST * power.max())
    weighted = (spectra.conj() * _weights(scanned.shape))[:, use]
    shown = np.take(images, np.asarray(use, like=images), axis=0)
    amounts = (weighted @ here(np.take(shown, np.asarray(rim, like=images), axis=1))).real
    motion = amounts @ slope @ np.linalg.inv(normal) / inside
    ramps = np.ptp(functions[:2], axis=1)[:, None] * motion[:2]  # rad along the scan
    higher = np.ptp(functions[:2], axis=1).max() * motion[2:][functions[2:].any(axis=1)]
    if not len(higher) or not np.abs(ramps).max() > _ABOVE * math.sqrt((higher**2).mean()):
        return 0.0
    there = scanned.any(axis=1).sum(), scanned.any(axis=0).sum()
    extent = np.multiply(there, geometry.scan_sampling)[:, None]
    curved = 2 * np.pi / geometry.wavelength * np.abs(ramps) * extent / 8
    return float(np.hypot(*np.abs(ramps).sum(axis=0))) if curved.max() > _PHASE else 0.0


def _weights(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Make weights of a half-spectrum by which products sum up to those of the values, (Q,)."""
    weights = np.full((shape[0], shape[1] // 2 + 1), 2 / (shape[0] * shape[1]), np.float32)
    weights[:, 0] /= 2
    if shape[1] % 2 == 0:
        weights[:, -1] /= 2
    return weights.ravel()
