"""Scans of weak objects, simulated without noise: probe times object, FFT, intensity."""

from __future__ import annotations

import numpy as np
import scipy.optimize

from libertem_parallax import aberrations

N = 60  # Å and pixels of the periodic field, so that samples of the pattern are 1/N apart
WAVELENGTH = 0.025
SEMIANGLE, EDGE = 17.3 * WAVELENGTH / N, 5 * WAVELENGTH / N
COEFS = {"C10": 900.0, "C12": 300.0, "phi12": 0.4, "C21": 4e4, "phi21": -0.9, "C30": 4e6}
#: Samples of the pattern that are one detector row and one column away from the center, of
#: detectors whose lattice fits the samples: turned by 0°, 90°, atan(3/4), and of oblong pixels.
DETECTORS = {
    "0": ((5, 0), (0, 5), 0.0),
    "90": ((0, 5), (-5, 0), np.pi / 2),
    "36.9": ((4, 3), (-3, 4), np.arctan2(3, 4)),
    "143.1": ((-8, 6), (-3, -4), np.arctan2(3, -4)),
}


def chi(angles):
    """The aberrations above, from their definition."""
    y, x = np.moveaxis(angles, -1, 0)
    alpha, phi = np.hypot(y, x), np.arctan2(x, y)
    path = (
        COEFS["C10"] * alpha**2 / 2
        + COEFS["C12"] * alpha**2 / 2 * np.cos(2 * (phi - COEFS["phi12"]))
        + COEFS["C21"] * alpha**3 / 3 * np.cos(phi - COEFS["phi21"])
        + COEFS["C30"] * alpha**4 / 4
    )
    return 2 * np.pi / WAVELENGTH * path


def scan(phase, steps, samples, edge=EDGE):
    """Counts (Ny, Nx, M) at samples (M, 2) of the pattern, for each position of the probe."""
    k = np.stack(np.meshgrid(*2 * [np.fft.fftfreq(N, 1 / N)], indexing="ij"), axis=-1)
    angles = k * WAVELENGTH / N
    rim = (SEMIANGLE - np.hypot(*np.moveaxis(angles, -1, 0))) / edge + 0.5
    pupil = np.clip(rim, 0, 1) * np.exp(-1j * chi(angles))
    counts = np.empty((N // steps[0], N // steps[1], len(samples)))
    for i, y in enumerate(range(0, N, steps[0])):
        for j, x in enumerate(range(0, N, steps[1])):
            probe = np.fft.ifft2(pupil * np.exp(-2j * np.pi * (k @ [y, x]) / N))
            pattern = np.fft.fft2(probe * np.exp(1j * phase))
            counts[i, j] = np.abs(pattern[tuple(samples.T % N)]) ** 2
    return counts


def scan_of_object(detector, steps, *, seed=1, absorbs=False, size=1e-3, whole=False):
    """Scan an object that has nothing that the scan does not tell apart.

    Returns the frames over the mean counts of a whole one, the true phase (or absorption) at the
    scan's positions, and the parameters.
    """
    spectrum = np.fft.fft2(np.random.default_rng(seed).normal(size=(N, N)))
    spectrum[0, 0] = 0
    for axis, step in enumerate(steps):
        np.moveaxis(spectrum, axis, 0)[abs(np.fft.fftfreq(N)) * step >= 0.5] = 0
    return scan_of(np.fft.ifft2(spectrum).real * size, detector, steps, absorbs, whole)


def atoms(seed, width=0.8, peak=0.5):
    """Phase of 60 atoms in two heaps, each a Gaussian; 0 on average."""
    rng, f = np.random.default_rng(seed), np.fft.fftfreq(N)
    there = np.zeros((N, N))
    for y, x in np.floor(rng.normal(0, 9, (60, 2)) + rng.choice([15, 40], (60, 1))).astype(int):
        there[y % N, x % N] += 1
    one = peak * 2 * np.pi * width**2 * np.exp(-2 * (np.pi * width * np.hypot(f[:, None], f)) ** 2)
    spectrum = np.fft.fft2(there) * one
    spectrum[0, 0] = 0
    return np.fft.ifft2(spectrum).real


def scan_of(true, detector, steps, absorbs=False, whole=False):
    """As `scan_of_object`, of a phase (N, N).

    `whole` pixels, of detector "0", see all that arrives on their area, from an aperture with a
    sharp edge. The others see samples, as if the aperture's edge were blurred.
    """
    by_row, by_col, rotation = DETECTORS[detector]
    row, col = (np.argwhere(np.ones((9, 9))) - (4, 3)).T
    samples = row[:, None] * by_row + col[:, None] * by_col
    inside = np.argwhere(np.ones((5, 5))) - 2 if whole else np.zeros((1, 2), int)
    samples = (samples[:, None] + inside).reshape(-1, 2)
    edge = WAVELENGTH / N if whole else EDGE
    counts = scan(1j * true if absorbs else true, steps, samples, edge)
    counts = counts.reshape(*counts.shape[:2], 9, 9, -1).sum(axis=-1)
    counts /= counts.sum(axis=(2, 3)).mean()
    parameters = {
        "shape": counts.shape,
        "scan_sampling": tuple(map(float, steps)),
        "energy": scipy.optimize.brentq(lambda E: aberrations.wavelength(E) - WAVELENGTH, 1e5, 3e5),
        "semiangle_cutoff": SEMIANGLE * 1e3,
        "angular_sampling": [np.hypot(*by) * WAVELENGTH / N * 1e3 for by in (by_row, by_col)],
        "aberration_coefs": COEFS,
        "rotation_angle": rotation,
        "center": (4, 3),
    }
    return counts, true[:: steps[0], :: steps[1]], parameters
