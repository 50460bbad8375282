"""The transfer against a scan that is simulated: probe times object, FFT, intensity."""

from __future__ import annotations

import numpy as np
import pytest

from libertem_parallax import aberrations
from libertem_parallax.weak_object import aperture, blocks, frequencies, transfer

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


def scan(phase, steps, samples):
    """Counts (Ny, Nx, M) at samples (M, 2) of the pattern, for each position of the probe."""
    k = np.stack(np.meshgrid(*2 * [np.fft.fftfreq(N, 1 / N)], indexing="ij"), axis=-1)
    angles = k * WAVELENGTH / N
    rim = (SEMIANGLE - np.hypot(*np.moveaxis(angles, -1, 0))) / EDGE + 0.5
    pupil = np.clip(rim, 0, 1) * np.exp(-1j * chi(angles))
    counts = np.empty((N // steps[0], N // steps[1], len(samples)))
    for i, y in enumerate(range(0, N, steps[0])):
        for j, x in enumerate(range(0, N, steps[1])):
            probe = np.fft.ifft2(pupil * np.exp(-2j * np.pi * (k @ [y, x]) / N))
            pattern = np.fft.fft2(probe * np.exp(1j * phase))
            counts[i, j] = np.abs(pattern[tuple(samples.T % N)]) ** 2
    return counts


@pytest.mark.parametrize("steps", [(3, 3), (2, 5)], ids=["square", "oblong"])
@pytest.mark.parametrize("flip", [False, True], ids=["straight", "flipped"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_image_of_a_weak_object(detector, flip, steps):
    rng = np.random.default_rng(1)
    by_row, by_col, rotation = DETECTORS[detector]
    sampling = np.hypot(*by_row) * WAVELENGTH / N, np.hypot(*by_col) * WAVELENGTH / N
    pixels = np.argwhere(np.ones((9, 9)))  # as stored; the beam is on (4, 3)
    row, col = (pixels - (4, 3)).T
    if flip:
        col = -col
    samples = row[:, None] * by_row + col[:, None] * by_col
    # The convention: k = R(θ) (pixel - center), after columns are reversed.
    y, x = row * sampling[0], col * sampling[1]
    cos, sin = np.cos(rotation), np.sin(rotation)
    angles = np.stack([cos * y - sin * x, sin * y + cos * x], axis=-1)
    np.testing.assert_allclose(angles, samples * WAVELENGTH / N, atol=1e-12)

    # Nothing beyond the Nyquist frequency of the scan.
    spectrum = np.fft.fft2(rng.normal(size=(N, N)))
    for axis, step in enumerate(steps):
        beyond = np.abs(np.fft.fftfreq(N)) * step >= 0.5
        np.moveaxis(spectrum, axis, 0)[beyond] = 0
    phase = np.fft.ifft2(spectrum).real * 1e-4
    used = np.hypot(*angles.T) <= SEMIANGLE
    assert used.sum() > 15
    angles, samples = angles[used], samples[used]
    # The difference to the opposite phase has no part of second order.
    counts = (scan(phase, steps, samples) - scan(-phase, steps, samples)) / 2
    expected = np.fft.rfft2(counts, axes=(0, 1))
    shape = counts.shape[:2]
    q = frequencies(shape, tuple(map(float, steps)))
    T = transfer(angles, q.reshape(-1, 2), COEFS, WAVELENGTH, SEMIANGLE, EDGE)
    phi = np.fft.rfft2(phase[:: steps[0], :: steps[1]]).reshape(-1, 1)
    actual = (T * phi).reshape(expected.shape)
    np.testing.assert_allclose(actual, expected, atol=1e-6 * np.abs(expected).max())


def test_on_the_axis_it_is_the_contrast_transfer_function():
    coefs = aberrations.canonical({"C10": -1e4, "Cs": 1e7})
    q = np.array([[0.02, 0.0], [-0.03, 0.06], [0.0, 0.0]])
    T = transfer(np.zeros((1, 2)), q, coefs, 0.02, 5e-3, 3e-4)
    expected = 2 * np.sin(aberrations.surface(coefs, q * 0.02, 0.02))
    np.testing.assert_allclose(T[:, 0], expected, atol=1e-12)


def test_aperture():
    angles = [[0, 0], [0, 0.9], [0.8, 0.6], [0, 1.05], [-1.1, 0], [3, 4]]
    np.testing.assert_allclose(aperture(angles, 1.0, 0.2), [1, 1, 0.5, 0.25, 0, 0], atol=1e-12)


@pytest.mark.parametrize(("q", "m"), [(0, 5), (7, 1), (1000, 1000), (3, 10**7)])
def test_blocks(q, m):
    parts = list(blocks(q, m))
    assert [i for part in parts for i in range(q)[part]] == list(range(q))
    assert all(part.stop > part.start for part in parts)
