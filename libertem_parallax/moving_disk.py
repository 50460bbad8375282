"""A disk that moves on the detector during a scan: noticed in the pixels' images, and taken off.

Where the disk moves by d, a pixel at its rim becomes brighter by ``-d·∇a²``, a the aperture. If it
moves along with the scan, the images of pixels at opposite rims have opposite ramps, which are far
above all that the specimen shows at these frequencies. The phase of a specimen would do the same:
one that is curved all over the scan, as its gradient deflects the beam by ``λ ∇φ / 2π``. Thin
specimens are not curved by much.

What is slow is taken off then, all that polynomials of second degree are. That costs some of the
specimen, in small scans most, and leaves nothing of the ramps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .geometry import Geometry
from .images.fourier import rfft2, slow
from .images.sums import here
from .pixel_noise import every

__all__ = ["steady"]

#: Phase in rad from the middle of the scan to its border that would move the disk as far, and
#: standard errors of that. Less costs less than what is taken off from specimens: see
#: benchmarks/tried.md. Simulated ones with a disk at rest have up to 0.04 above the noise.
_PHASE, _SURE = 0.1, 6.0

#: Frequencies of ramps that count, by power over the largest.
_LEAST = 1e-6

#: Frequencies that are changed at once.
_BLOCK = 4096


def steady(
    images: Any,
    a: NDArray[np.float64],
    geometry: Geometry,
    scanned: NDArray[np.bool_],
    inside: float,
) -> bool:
    """Take slow changes off all images, in place, if the disk moves.

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
    functions = slow(scanned)[1:]
    spectra = rfft2(functions.reshape(-1, *scanned.shape)).reshape(len(functions), -1)
    if not _moves(images, spectra[:2], np.ptp(functions[:2], axis=1), a, geometry, scanned, inside):
        return False
    weighted = spectra.conj() * _weights(scanned.shape)
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(images), _BLOCK)]
    there, weighted = (np.asarray(values, like=images) for values in (spectra, weighted))
    amounts = sum((weighted[:, part] @ images[part]).real for part in blocks)
    for part in blocks:
        images[part] -= there[:, part].T @ amounts
    return True


def _moves(
    images: Any,
    ramps: NDArray[Any],
    height: NDArray[Any],
    a: NDArray[np.float64],
    geometry: Geometry,
    scanned: NDArray[np.bool_],
    inside: float,
) -> bool:
    """Tell whether the disk moves: by least squares over all pixels that are lit in part."""
    rim = np.flatnonzero((a > 0) & (a < 1))
    angles = geometry.angles[rim]
    # -∇a² / a, as the images are over a.
    slope = angles / np.hypot(*angles.T)[:, None] * (2 / geometry.soft_edge)
    normal = slope.T @ slope
    if not inside > 0 or np.linalg.matrix_rank(normal) < 2:
        return False
    solve = np.linalg.inv(normal)
    power = (np.abs(ramps) ** 2).sum(axis=0)
    use = np.flatnonzero(power > _LEAST * power.max())
    weighted = (ramps.conj() * _weights(scanned.shape))[:, use]
    shown = np.take(images, np.asarray(use, like=images), axis=0)
    amounts = (weighted @ here(np.take(shown, np.asarray(rim, like=images), axis=1))).real
    distance = (amounts * (height[:, None] / inside)) @ slope @ solve  # rad along the scan
    there = scanned.any(axis=1).sum(), scanned.any(axis=0).sum()
    extent = np.multiply(there, geometry.scan_sampling)[:, None]
    curved = 2 * np.pi / geometry.wavelength * np.abs(distance) * extent / 8 > _PHASE
    if not curved.any():
        return False
    # Most frequencies show noise.
    some = here(images[:: every(scanned.shape)])
    noise = float(np.median((np.abs(some) ** 2).mean(axis=1)) / scanned.sum())
    error = np.sqrt(noise * np.diag(solve)) * height[:, None] / inside
    return bool((curved & (np.abs(distance) > _SURE * error)).any())


def _weights(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Make weights of a half-spectrum by which products sum up to those of the values, (Q,)."""
    weights = np.full((shape[0], shape[1] // 2 + 1), 2 / (shape[0] * shape[1]), np.float32)
    weights[:, 0] /= 2
    if shape[1] % 2 == 0:
        weights[:, -1] /= 2
    return weights.ravel()
