"""The transfer against a scan that is simulated: probe times object, FFT, intensity."""

from __future__ import annotations

import numpy as np
import pytest
from weak import COEFS, DETECTORS, EDGE, SEMIANGLE, WAVELENGTH, N, scan

from libertem_parallax import aberrations
from libertem_parallax.weak_object import aperture, blocks, frequencies, transfer


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
