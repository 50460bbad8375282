"""The definition, written down as slowly and plainly as possible; independent of the package.

With pixel m at spatial frequency k_m = R(θ) (pixel - center) Δk, χ the aberration surface, and
s_m = round(∂χ/∂k / 2π / (scan sampling / u)):

    R[p] = Σ_r Σ_m (I_r,m - mean_m I_r) δ[p - (u r + s_m)]   modulo the image
    F    = R convolved with the kernel whose transform is sign(sin χ_even)
"""

from __future__ import annotations

import numpy as np

WAVELENGTH_300KEV = 0.0196875  # Å, to all digits given


def chi(coefs, y, x, wavelength, *, even_only=False):
    """Aberration surface in rad at angles (y, x) in rad, in complex notation."""
    omega = np.asarray(y) + 1j * np.asarray(x)
    path = np.zeros(omega.shape)
    for name, value in coefs.items():
        if name.startswith("phi"):
            continue
        n, m = int(name[1]), int(name[2])
        if even_only and n % 2 == 0:
            continue
        turned = omega * np.exp(-1j * coefs.get(f"phi{n}{m}", 0.0))
        path += value / (n + 1) * (turned**m).real * np.abs(omega) ** (n + 1 - m)
    return 2 * np.pi / wavelength * path


def bright_field(
    detector_shape, sampling_mrad, cutoff, *, rotation=0.0, center=None, flip=False,
    flip_rows=False, transpose=False, mask=None,
):  # fmt: skip
    """Pixels as stored, (M, 2), and their angles in rad, (M, 2)."""
    rows, cols = detector_shape
    if center is None:
        center = [
            n - 1 - n // 2 if flipped else n // 2
            for n, flipped in ((rows, flip_rows), (cols, flip))
        ]
    pixels, angles = [], []
    for row in range(rows):
        for col in range(cols):
            y = (row - center[0]) * sampling_mrad[0] * 1e-3 * (-1 if flip_rows else 1)
            x = (col - center[1]) * sampling_mrad[1] * 1e-3 * (-1 if flip else 1)
            if np.hypot(y, x) * 1e3 > cutoff or (mask is not None and not mask[row, col]):
                continue
            if transpose:
                y, x = x, y
            cos, sin = np.cos(rotation), np.sin(rotation)
            pixels.append((row, col))
            angles.append((cos * y - sin * x, sin * y + cos * x))
    return np.array(pixels), np.array(angles)


def shifts(coefs, angles, scan_sampling, u):
    """Integer shifts (M, 2) by central differences; refuses angles too close to a tie."""
    step = 1e-6
    y, x = angles.T
    path = lambda y, x: chi(coefs, y, x, 2 * np.pi)  # noqa: E731 - the wavelength cancels
    exact = np.stack(
        [
            (path(y + step, x) - path(y - step, x)) / (2 * step) / (scan_sampling[0] / u),
            (path(y, x + step) - path(y, x - step)) / (2 * step) / (scan_sampling[1] / u),
        ],
        axis=-1,
    )
    assert np.abs(exact - np.floor(exact) - 0.5).min() > 1e-5, "choose other parameters: a tie"
    return np.rint(exact).astype(int)


def parallax(frames, pixels, shift, u, *, suppress=True):
    ny, nx = frames.shape[:2]
    image = np.zeros((u * ny, u * nx))
    for y in range(ny):
        for x in range(nx):
            counts = frames[y, x][tuple(pixels.T)].astype(np.float64)
            where = (u * np.array([y, x]) + shift) % image.shape
            np.add.at(image, tuple(where.T), counts - counts.mean())
    if suppress and u > 1:
        spectrum = np.fft.fft2(image)
        zero_nyquist(spectrum)
        image = np.fft.ifft2(spectrum).real
    return image


def phase_flip(image, coefs, wavelength, scan_sampling, u, *, suppress=True):
    ny, nx = image.shape
    qy = np.fft.fftfreq(ny, scan_sampling[0] / u)[:, None] * wavelength
    qx = np.fft.fftfreq(nx, scan_sampling[1] / u)[None, :] * wavelength
    qy, qx = np.broadcast_arrays(qy, qx)
    transfer = np.sign(np.sin(chi(coefs, qy, qx, wavelength, even_only=True)))
    if suppress:
        zero_nyquist(transfer)
    kernel = np.fft.ifft2(transfer).real
    return np.fft.ifft2(np.fft.fft2(image) * np.fft.fft2(kernel)).real


def zero_nyquist(spectrum):
    ny, nx = spectrum.shape
    if ny % 2 == 0:
        spectrum[ny // 2] = 0
    if nx % 2 == 0:
        spectrum[:, nx // 2] = 0
