"""Scans of weak phase objects, made with the plain transfer: small, and quick."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from libertem_parallax.aberrations import canonical, wavelength
from libertem_parallax.accumulate import Stack
from libertem_parallax.weak_object import aperture, frequencies, transfer

#: What is known of the scans below, as arguments of `calibrate`.
KNOWN: dict[str, Any] = {"energy": 300e3, "scan_sampling": (0.9, 0.9), "semiangle_cutoff": 20.0}
COEFS = {"C10": -420.0, "C12": 60.0, "phi12": 0.4}
SAMPLING, CENTER, ROTATION = 3.0, (8.3, 7.4), 0.7
SHAPE = (36, 36)


def specimen(
    shape: tuple[int, int] = SHAPE, seed: int = 0, step: float = 0.9
) -> NDArray[np.float64]:
    """Phase in rad, (Ny, Nx): blobs that add phase."""
    rng = np.random.default_rng(seed)
    phase = np.zeros(shape)
    y, x = (np.arange(n) * step for n in shape)
    for _ in range(25):
        cy, cx = rng.uniform(0, 1, 2) * shape * np.array(step)
        dy = np.abs(y - cy)
        dx = np.abs(x - cx)
        dy, dx = np.minimum(dy, shape[0] * step - dy), np.minimum(dx, shape[1] * step - dx)
        phase += 0.25 * np.exp(-(dy[:, None] ** 2 + dx**2) / (2 * 0.8**2))
    return phase


def expected(
    phase: NDArray[np.float64],
    coefs: dict[str, float] = COEFS,
    *,
    rotation: float = ROTATION,
    flip: bool = False,
    dose: float = 3000.0,
    detector: int = 16,
    sampling: float = SAMPLING,
    center: tuple[float, float] = CENTER,
    step: tuple[float, float] = (0.9, 0.9),
    oblong: float = 1.0,
    descan: float = 0.0,
) -> NDArray[np.float64]:
    """Mean counts (Ny, Nx, detector, detector) of a weak phase object, at so many e/Å².

    Pixels are so many times as wide as high, and over the scan's rows, the disk moves by so many of
    them along the detector's.
    """
    lam, semiangle = wavelength(KNOWN["energy"]), KNOWN["semiangle_cutoff"] * 1e-3
    # A pixel sees the directions of its whole square: of four parts, and four at the rim.
    part = np.array([-0.25, 0.25])
    rows = np.arange(detector)[:, None, None, None] + part[:, None]
    cols = np.arange(detector)[:, None, None] + part
    y, x = (values.reshape(-1) for values in np.broadcast_arrays(rows, cols))
    y, x = (y - center[0]) * sampling * 1e-3, (x - center[1]) * sampling * oblong * 1e-3
    x = -x if flip else x
    cos, sin = np.cos(rotation), np.sin(rotation)
    angles = np.stack([cos * y - sin * x, sin * y + cos * x], axis=-1)
    edge = sampling * 1e-3 / 8
    direct = aperture(angles, semiangle, edge) ** 2
    q = frequencies(phase.shape, step)
    T = transfer(angles, q.reshape(-1, 2), canonical(coefs), lam, semiangle, edge)
    spectrum = np.fft.rfft2(phase).reshape(-1, 1) * T.reshape(len(T), -1, 4).mean(axis=-1)
    change = np.fft.irfft2(spectrum.reshape(*q.shape[:2], -1), phase.shape, axes=(0, 1))
    direct = direct.reshape(-1, 4).mean(axis=-1)
    pattern_sum = direct.sum()
    if descan:
        pattern = direct.reshape(detector, detector)
        away = descan * (np.arange(phase.shape[0]) / phase.shape[0] - 0.5)
        moved = [scipy.ndimage.shift(pattern, (d, 0), order=1) for d in away]
        direct = np.reshape(moved, (-1, 1, detector**2))
        change = change * (direct > 0)
    mean = (direct + change) * dose * step[0] * step[1] / pattern_sum
    return np.clip(mean, 0, None).reshape(*phase.shape, detector, detector)


def scan(
    phase: NDArray[np.float64], coefs: dict[str, float] = COEFS, *, seed: int = 0, **how: Any
) -> NDArray[np.uint16]:
    """Counts, as they are `expected`."""
    return count(expected(phase, coefs, **how), seed)


def count(mean: NDArray[np.float64], seed: int = 0) -> NDArray[np.uint16]:
    """Count electrons."""
    return np.random.default_rng(seed).poisson(mean).astype(np.uint16)


def bright_field(frames: NDArray[Any], mask: NDArray[np.bool_]) -> Stack:
    """Stack of the pixels of a mask."""
    return Stack.from_array(frames, mask)


@cache
def frames(flip: bool = False, dose: float = 3000.0) -> NDArray[Any]:
    """Of the specimen."""
    return scan(specimen(SHAPE), flip=flip, dose=dose)


def part(coefs: dict[str, float], order: str = "12") -> complex:
    """Coefficient with its azimuth, as a complex number."""
    m = int(order[1])
    return complex(coefs[f"C{order}"] * np.exp(1j * m * coefs[f"phi{order}"]))
