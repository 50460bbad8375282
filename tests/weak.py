"""Scans of weak objects, simulated without noise."""

from __future__ import annotations

import numpy as np
import scipy.optimize
import test_weak_object
from test_weak_object import WAVELENGTH, N

from libertem_parallax import aberrations

__all__ = ["WAVELENGTH", "scan_of_object"]


def scan_of_object(detector, steps, *, seed=1, absorbs=False, size=1e-3):
    """Scan an object that has nothing that the scan does not tell apart.

    Returns the frames over the mean counts of a whole one, the true phase (or absorption) at the
    scan's positions, and the parameters.
    """
    by_row, by_col, rotation = test_weak_object.DETECTORS[detector]
    spectrum = np.fft.fft2(np.random.default_rng(seed).normal(size=(N, N)))
    spectrum[0, 0] = 0
    for axis, step in enumerate(steps):
        np.moveaxis(spectrum, axis, 0)[abs(np.fft.fftfreq(N)) * step >= 0.5] = 0
    true = np.fft.ifft2(spectrum).real * size
    row, col = (np.argwhere(np.ones((9, 9))) - (4, 3)).T
    samples = row[:, None] * by_row + col[:, None] * by_col
    counts = test_weak_object.scan(1j * true if absorbs else true, steps, samples)
    counts = counts.reshape(*counts.shape[:2], 9, 9) / counts.sum(axis=-1).mean()
    parameters = {
        "shape": counts.shape,
        "scan_sampling": tuple(map(float, steps)),
        "energy": scipy.optimize.brentq(lambda E: aberrations.wavelength(E) - WAVELENGTH, 1e5, 3e5),
        "semiangle_cutoff": test_weak_object.SEMIANGLE * 1e3,
        "angular_sampling": [np.hypot(*by) * WAVELENGTH / N * 1e3 for by in (by_row, by_col)],
        "aberration_coefs": test_weak_object.COEFS,
        "rotation_angle": rotation,
        "center": (4, 3),
    }
    return counts, true[:: steps[0], :: steps[1]], parameters
