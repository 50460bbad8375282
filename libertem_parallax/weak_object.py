"""What a weak phase object does to the image of every bright-field pixel.

An object that shifts the phase of the electrons by φ(r), little, changes the counts of the pixel
that sees the direction k, while the probe is at r. With the Fourier transform of NumPy over r,

    I(q) / I0 = T(q) φ(q) for q ≠ 0
    T(q) = i (A*(k) A(k - q) - A(k) A*(k + q)),    A(k) = a(k) exp(-iχ(k))

where a is the aperture, and I0 the mean counts of a pixel inside it; at the rim they are a²(k) I0.
This is the interference of the direct beam with the beams that the object diffracts by q and -q. On
the axis it is the known 2 sin χ(q). Where a(k - q) = a(k + q) = 1 and χ is of second order, it is
2 sin χ(q) times the factor of a shift by -∇χ(k) / 2π, which parallax undoes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import aberrations
from .geometry import Geometry

__all__ = ["aperture", "blocks", "frequencies", "tells", "transfer", "with_rim"]

#: Elements of a block: a few arrays of these fit the cache of a core.
_BLOCK = 1 << 16

#: Of a pixel: how much of it must be lit.
_LIT = 0.25


def aperture(angles: ArrayLike, semiangle: float, edge: float) -> NDArray[np.float64]:
    """Amplitude that the aperture lets through.

    Parameters
    ----------
    angles : (..., 2) float
        Directions in rad.
    semiangle
        In rad.
    edge
        Width of the edge in rad: detector pixels on it are half inside.

    Returns
    -------
    (...) float64
        1 inside, 0 outside, falling linearly over the edge.
    """
    first, second = np.moveaxis(np.asarray(angles, dtype=np.float64), -1, 0)
    amplitude: NDArray[np.float64] = np.clip(
        (semiangle - np.hypot(first, second)) / edge + 0.5, 0, 1
    )
    return amplitude


def with_rim(geometry: Geometry) -> Geometry:
    """Add the pixels around the bright field that are lit in part.

    Parameters
    ----------
    geometry
        With the bright field.

    Returns
    -------
    Geometry
        Whose `plan.pixels` and `angles` have them; a larger semiangle says which.
    """
    more = (0.5 - _LIT) * geometry.soft_edge * 1e3
    with warnings.catch_warnings(action="ignore"):  # that has been told
        return geometry.replace(semiangle_cutoff=geometry.parameters["semiangle_cutoff"] + more)


def frequencies(
    scan_shape: tuple[int, int], scan_sampling: tuple[float, float]
) -> NDArray[np.float64]:
    """Spatial frequencies of a scan, in the order of `scipy.fft.rfft2`.

    Parameters
    ----------
    scan_shape
        Scan positions ``(Ny, Nx)``.
    scan_sampling
        Step along rows and columns in Å.

    Returns
    -------
    (Ny, Nx // 2 + 1, 2) float64
        In 1/Å. Of a Nyquist frequency and its opposite, which the scan cannot tell apart, one is
        there.
    """
    y = np.fft.fftfreq(scan_shape[0], scan_sampling[0])
    x = np.fft.rfftfreq(scan_shape[1], scan_sampling[1])
    return np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)


def tells(scan_shape: tuple[int, int]) -> NDArray[np.float32]:
    """Tell which of the `frequencies` say something of an object.

    Parameters
    ----------
    scan_shape
        Scan positions ``(Ny, Nx)``.

    Returns
    -------
    (Ny (Nx // 2 + 1),) float32
        0 for the mean and frequencies that are their own opposites, 1 for the others.
    """
    some = np.ones((scan_shape[0], scan_shape[1] // 2 + 1), np.float32)
    some[0, 0] = 0
    if scan_shape[0] % 2 == 0:
        some[scan_shape[0] // 2] = 0
    if scan_shape[1] % 2 == 0:
        some[:, -1] = 0
    return some.ravel()


def blocks(frequencies: int, pixels: int) -> Iterator[slice]:
    """Cut frequencies into blocks for which `transfer` stays small.

    Parameters
    ----------
    frequencies, pixels
        Number of each.

    Yields
    ------
    slice
        Of the frequencies.
    """
    step = max(1, _BLOCK // max(1, pixels))
    for start in range(0, frequencies, step):
        yield slice(start, min(start + step, frequencies))


def transfer(
    angles: ArrayLike,
    frequencies: ArrayLike,
    coefs: Mapping[str, float],
    wavelength: float,
    semiangle: float,
    edge: float,
) -> NDArray[np.complex128]:
    """Contrast transfer T from the phase of an object to the images of bright-field pixels.

    Parameters
    ----------
    angles : (M, 2) float
        Directions λk of the pixels in rad, along the rows and columns of the scan.
    frequencies : (Q, 2) float
        Spatial frequencies q along rows and columns of the scan in 1/Å; for many, see `blocks`.
    coefs
        Aberrations as `aberrations.canonical` returns them.
    wavelength
        In Å.
    semiangle, edge
        Aperture and width of its edge in rad: see `aperture`.

    Returns
    -------
    (Q, M) complex128
        See the head of this module.
    """
    angles = np.asarray(angles, dtype=np.float64)
    q = np.asarray(frequencies, dtype=np.float64)[:, None, :] * wavelength

    def wave(angles: NDArray[np.float64]) -> NDArray[np.complex128]:
        chi = aberrations.surface(coefs, angles, wavelength)
        amplitude: NDArray[np.complex128] = aperture(angles, semiangle, edge) * np.exp(-1j * chi)
        return amplitude

    direct = wave(angles)
    T: NDArray[np.complex128] = 1j * (
        direct.conj() * wave(angles - q) - direct * wave(angles + q).conj()
    )
    return T
