"""Scans of weak phase objects, made with the plain transfer: small, and quick."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from libertem_parallax.aberrations import canonical, wavelength
from libertem_parallax.accumulate import Stack
from libertem_parallax.transfer import aperture, frequencies, transfer

#: What is known of the scans below, as arguments of `calibrate`.
KNOWN: dict[str, Any] = {"energy": 300e3, "scan_sampling": (0.9, 0.9), "semiangle_cutoff": 20.0}
COEFS = {"C10": -420.0, "C12": 60.0, "phi12": 0.4}
SAMPLING, CENTER, ROTATION = 3.0, (8.3, 7.4), 0.7


def specimen(
    shape: tuple[int, int] = (36, 36), seed: int = 0, step: float = 0.9
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


def scan(
    phase: NDArray[np.float64],
    coefs: dict[str, float] = COEFS,
    *,
    rotation: float = ROTATION,
    flip: bool = False,
    dose: float = 3000.0,
    seed: int = 0,
    detector: int = 16,
    sampling: float = SAMPLING,
    center: tuple[float, float] = CENTER,
    step: tuple[float, float] = (0.9, 0.9),
) -> NDArray[np.uint16]:
    """Counts (Ny, Nx, detector, detector) of a weak phase object, at so many electrons per Å²."""
    lam, semiangle = wavelength(KNOWN["energy"]), KNOWN["semiangle_cutoff"] * 1e-3
    # A pixel sees the directions of its whole square: of four parts, and four at the rim.
    part = np.array([-0.25, 0.25])
    rows = np.arange(detector)[:, None, None, None] + part[:, None]
    cols = np.arange(detector)[:, None, None] + part
    y, x = (values.reshape(-1) for values in np.broadcast_arrays(rows, cols))
    y, x = (y - center[0]) * sampling * 1e-3, (x - center[1]) * sampling * 1e-3
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
    mean = (direct + change) * dose * step[0] * step[1] / direct.sum()
    counts: NDArray[np.uint16] = (
        np.random.default_rng(seed).poisson(np.clip(mean, 0, None)).astype(np.uint16)
    )
    return counts.reshape(*phase.shape, detector, detector)


def bright_field(frames: NDArray[Any], mask: NDArray[np.bool_]) -> Stack:
    """Stack of the pixels of a mask."""
    return Stack.from_array(frames, mask)
