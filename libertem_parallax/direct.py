"""Direct ptychography: the phase of a weak object from all pixels, each by its own transfer.

With γ, the transfer over i a, and images G = I / a of pixels, whose noise is all alike,

    φ = -i Σ_m γ_m* G_m / (I0 (Σ_m |γ_m|² + N / S))

where I0 are the counts of a pixel inside the aperture, N and S the powers of noise and signal. The
sum is over the bright field and, where the stack has them, the pixels around it of which a quarter
or more is lit: low frequencies show at the rim of the aperture only.

That is what parallax would be if images were not added before their transfer is undone: nothing is
lost to the rounding of shifts, where pixels disagree, or beyond the semiangle. It needs the images
of all pixels in memory, so it is for the end of a scan.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from . import checks
from .accumulate import Blocks, Stack, check_stack
from .accumulate.disk import keep_on_disk
from .geometry import Geometry
from .images.fourier import irfft2, pixel_spectra, rfft2
from .images.phase import UNSEEN
from .images.sums import here
from .images.wiener import Spectrum
from .interference import beams, polynomial
from .likelihood import Engine, Interference, make_engine
from .memory import check_direct
from .moving_disk import steady
from .pixel_noise import SOME, every, shared, warn_of_mean
from .stack_problems import stack_problem
from .weak_object import aperture, frequencies, tells, transfer, with_rim

__all__ = ["Direct", "borders_problem", "direct_phase"]

#: Of the specimen's power spectrum, where noise hides it. At low frequencies, where only the rim of
#: the aperture shows them, little is known.
_LAW = (-5.0, 10.0)

#: How sure the noise is that was measured, the price of log g: to 1 %, or to a factor of e where
#: pixels share electrons, and with them noise. That is where next ones are correlated by so much.
_SURE, _UNSURE, _SHARED = 1e4, 1.0, 0.03

#: Instead of dividing by zero; largest log of an amplitude: the square of more may be infinite.
_LEAST, _LARGEST = 1e-30, 40.0


def direct_phase(
    stack: Stack,
    parameters: Mapping[str, Any],
    *,
    regularization: float | str | None = None,
    amplitude: bool = False,
) -> NDArray[Any]:
    """Make the phase image of a stack by direct ptychography.

    Parameters
    ----------
    stack
        With all pixels of the bright field, better also of its rim, as `StackUDF` fills it.
    parameters
        Of the acquisition: `Parameters`, or arguments of ``ParallaxUDF.from_parameters``. The image
        is on the grid of the scan, whatever the upsampling_factor is.
    regularization
        ``"auto"``, which finds signal and noise in the data; or the power of the signal over that
        of the noise where contrast is best. Default: that of `parameters`, or ``"auto"``.
    amplitude
        Whether the object may absorb, and amplitude is wanted as well.

    Returns
    -------
    (Ny, Nx) float32, or complex64 with `amplitude`
        Phase in rad, zero on average; or the wave behind the object over that before it. The phase
        is its angle.

    Raises
    ------
    ValueError
        If a parameter is missing or out of its range, pixels of the bright field are not in the
        stack, or memory does not hold their transforms.
    TypeError
        If `stack` is no stack, or `parameters` no mapping.

    Warns
    -----
    UserWarning
        If the frames show another disk than the parameters say, as far as the stack's pixels tell,
        or a hot pixel; if the disk moves on the detector during the scan, so that slow changes are
        taken off; if the values have no mean; or if borders are asked for that this image does not
        have.
    """
    check_stack(stack)
    checks.mapping("parameters", parameters)
    if regularization is None:
        regularization = parameters.get("regularization", "auto")
    checks.regularization("regularization", regularization)
    names = [name for name in parameters if name != "shape"]
    given = {**{name: parameters[name] for name in names}, "upsampling_factor": 1}
    geometry = Geometry.from_parameters(stack.scan_shape + stack.detector_shape, **given)
    direct = Direct.of(stack, geometry)
    for problem in (stack_problem(geometry, stack), borders_problem(parameters)):
        if problem:
            warnings.warn(problem, stacklevel=2)
    beam = direct.interference(geometry)
    if not amplitude:
        return direct.phase(beam, regularization)
    N, D = direct.sums(beam)
    # Where the object absorbs, G is -γ' times that: both beams with the same sign. γ and γ' are no
    # more orthogonal than pixels are symmetric, so phase and absorption are solved for together.
    N2, D2 = direct.sums(_turned(beam, 0.5))
    cross = direct.cross(beam, D, D2)
    explained = _explained(N, D) + _explained(N2, D2)
    D, D2 = (
        np.maximum(d + direct.ratio(n, d, regularization, explained), _LEAST)
        for n, d in ((N, D), (N2, D2))
    )
    determinant = np.maximum(D * D2 - np.abs(cross) ** 2, _LEAST)
    phase = direct.image((-1j * N * D2 + 1j * cross * N2) / determinant)
    absorption = np.maximum(direct.image((-N2 * D + cross.conj() * N) / determinant), -_LARGEST)
    wave: NDArray[np.complex64] = np.exp(1j * phase - absorption).astype(np.complex64)
    return wave


def borders_problem(parameters: Mapping[str, Any]) -> str | None:
    """Say that the image has other borders than are asked for; None if it has not."""
    if (parameters.get("borders") or "periodic") == "periodic":
        return None
    return (
        f"borders = {parameters['borders']!r} is without meaning for direct ptychography: its "
        "image is periodic, and near each border may show what is at the opposite one."
    )


def _turned(beams: Interference, turns: float) -> Interference:
    """Turn the phase of the second beam."""
    plus = beams.plus.copy()
    plus[:, 0] += turns
    return beams._replace(plus=plus)


class Direct:
    """Transforms of all images, for as many aberrations as are wanted; construct it by `of`.

    Parameters
    ----------
    engine
        With the images G, as half-spectra.
    geometry
        From which directions of pixels and frequencies follow.
    frames
        That were scanned.
    inside
        Counts of a pixel inside the aperture in all frames, over their number: I0.
    noise : (M,) float64
        Power of the noise of each pixel's G, over that of one inside.
    power : (some,) float64
        Sum of |G|² over all pixels, at every `every`-th frequency.
    shared
        Correlation of what next pixels of a row or column see, at most of these frequencies.
    """

    def __init__(
        self,
        engine: Engine,
        geometry: Geometry,
        frames: int,
        inside: float,
        noise: NDArray[np.float64],
        power: NDArray[np.float64],
        shared: float,
    ) -> None:
        self._engine, self._frames, self._inside = engine, frames, inside
        self._noise, self._power = noise, power
        self._known = _SURE if shared < _SHARED else _UNSURE
        self._shape = geometry.plan.scan_shape
        self._q = frequencies(self._shape, geometry.scan_sampling)
        self._tells = tells(self._shape)

    @classmethod
    def of(cls, stack: Stack, geometry: Geometry) -> Self:
        """Transform the images of a geometry's pixels.

        Parameters
        ----------
        stack
            That has them.
        geometry
            With an upsampling factor of 1.

        Raises
        ------
        ValueError
            If the stack does not have them, or memory does not hold the transforms.
        """
        ny, nx = stack.scan_shape
        semiangle = geometry.parameters["semiangle_cutoff"] * 1e-3
        seen = with_rim(geometry)
        try:
            columns = stack.columns(seen.plan.pixels)
        except ValueError:  # of the bright field alone
            seen, columns = geometry, stack.columns(geometry.plan.pixels)
        edge, xi = geometry.soft_edge / semiangle, seen.angles / semiangle
        a = aperture(xi, 1.0, edge)
        check_direct(stack.scan_shape, len(columns))
        scanned, counts = stack.scanned.copy(), np.empty(len(columns))
        some, told = slice(None, None, every((ny, nx))), np.empty((0, 0), np.complex64)
        moves, inside = False, 0.0
        weights = (1 / a).astype(np.float32)[:, None, None]

        def made(blocks: Blocks) -> Any:
            images: Any = None
            for part, means, spectra in pixel_spectra(blocks, scanned):
                if images is None:
                    images = np.empty_like(spectra, shape=(ny * (nx // 2 + 1), len(columns)))
                spectra *= np.asarray(weights[part], like=spectra)
                images[:, part] = spectra.reshape(len(means), -1).T
                counts[part] = means
            nonlocal moves, inside, told
            inside = _inside(counts, a)
            moves = steady(images, a, seen, scanned, inside)
            told = here(images[some])
            return images

        host = stack.on_host
        with np.errstate(over="ignore", invalid="ignore"):
            images = stack.with_images(columns, made)
        if not np.isfinite(counts).all():
            host.add(seen.plan)  # it tells which value is wrong
        on_host = isinstance(images, np.ndarray)
        engine = make_engine(
            "auto" if getattr(stack, "fall_back", True) or on_host else "cuda",
            images,
            xi,
            edge,
            None if on_host else images.device.id,
            again=lambda: host.with_images(columns, made),
        )
        # Where too much of a background was taken off, there would be less than none.
        noise = np.maximum(counts, 0) / a**2 / max(inside, _LEAST)
        G = told[tells((ny, nx))[some] > 0].astype(complex)
        shares = max(shared(G, seen.plan.pixels, along) for along in ((0, 1), (1, 0)))
        power = (np.abs(G) ** 2).sum(axis=1)
        warn_of_mean(inside, power, len(columns), int(scanned.sum()))
        if moves:
            warnings.warn(
                "the disk seems to move on the detector during the scan, as pixels at opposite "
                "sides of its rim become brighter along opposite directions. What is slow was "
                "taken off these pixels, and with it some of the specimen, as of a particle that "
                "fills the scan. Align the descan, or shift the frames back.",
                stacklevel=3,
            )
        return cls(engine, geometry, int(scanned.sum()), inside, noise, power, shares)

    def interference(self, geometry: Geometry) -> Interference:
        """Phases of the beams, for other aberrations of the same pixels as well."""
        semiangle = geometry.parameters["semiangle_cutoff"] * 1e-3
        turns = polynomial(geometry.aberration_coefs, semiangle, geometry.wavelength)
        return beams(turns, self._q.reshape(-1, 2) * (geometry.wavelength / semiangle))

    def agreement(self, geometry: Geometry) -> float:
        """Tell how well the images agree with a weak object.

        Parameters
        ----------
        geometry
            Of the same pixels, with any aberrations.

        Returns
        -------
        float
            Power that it explains over that of the noise that is found, as a mean over frequencies
            within half a semiangle: 1 if there is nothing else, in whatever unit the values are.
        """
        interference = self.interference(geometry)
        within = np.hypot(*interference.center.T) < 0.5
        use = np.flatnonzero(within & (self._tells > 0))
        if not len(use) or not self._inside > 0:
            return 1.0
        explained = self._engine.sums(interference).explained
        at, edge = self._engine.positions, self._engine.edge
        semiangle = geometry.parameters["semiangle_cutoff"] * 1e-3
        q = self._q.reshape(-1, 2)[use[:: math.ceil(len(use) / SOME)]]
        coefs, wavelength = geometry.aberration_coefs, geometry.wavelength
        T = transfer(at * semiangle, q, coefs, wavelength, semiangle, edge * semiangle)
        power = np.abs(T / aperture(at, 1.0, edge)) ** 2
        noise = float((power @ self._noise / np.maximum(power.sum(axis=1), _LEAST)).mean())
        noise *= self._electron(explained) * self._inside * self._frames
        return float(explained[use].mean() / noise)

    def phase(self, interference: Interference, regularization: float | str) -> NDArray[np.float32]:
        """Make the phase image in rad, (Ny, Nx)."""
        N, D = self.sums(interference)
        spectrum = -1j * N / np.maximum(D + self.ratio(N, D, regularization), _LEAST)
        # What the beam loses to those that the specimen diffracts is undone as in `images.phase`:
        # absorption by φ²/2, of which γ' tells.
        chi = np.pi * (interference.plus[:, 0] - interference.minus[:, 0])  # of even aberrations
        opposed = (chi > 0) & (chi < np.pi / 2)
        if isinstance(regularization, str) and opposed.any():
            rest = self.image(np.where(opposed, 0, spectrum))
            lost = rfft2(UNSEEN / 2 * rest**2).ravel()
            cross = self.cross(interference, D, self.sums(_turned(interference, 0.5))[1])
            N = N + np.where(opposed, cross * lost, 0)
            spectrum = -1j * N / np.maximum(D + self.ratio(N, D, regularization), _LEAST)
        return self.image(spectrum)

    def sums(self, interference: Interference) -> tuple[NDArray[Any], NDArray[Any]]:
        """Sum γ* G / I0 and |γ|² over all pixels, for every frequency; 0 where nothing is told."""
        N, D = self._engine.sums(interference)
        if not self._inside > _LEAST:
            return np.zeros_like(N), D * self._tells
        return N * self._tells / self._inside, D * self._tells

    def cross(
        self, interference: Interference, D: NDArray[Any], D2: NDArray[Any]
    ) -> NDArray[np.complex128]:
        """Sum γ* γ' over all pixels, for every frequency, given the sums of |γ|² and |γ'|²."""
        # Σ γ* γ' = Σ (a² - b²) + 2i Im Σ of one beam's conjugate times the other
        between = self.sums(_turned(interference, 0.25))[1] - (D + D2) / 2
        cross: NDArray[np.complex128] = self.asymmetry(interference) + 1j * between
        return cross

    def asymmetry(self, interference: Interference) -> NDArray[Any]:
        """Sum a² - b² of both beams over all pixels, for every frequency."""
        at, center = (
            np.ascontiguousarray(values, np.float64)
            for values in (self._engine.positions, interference.center)
        )
        minus, plus = (_lit(at, side * center, self._engine.edge) for side in (1.0, -1.0))
        difference: NDArray[np.float64] = (minus - plus) * self._tells
        return difference

    def ratio(
        self,
        N: NDArray[Any],
        D: NDArray[Any],
        regularization: float | str,
        explained: NDArray[Any] | None = None,
    ) -> NDArray[np.float32] | float:
        """Find the power of the noise over that of the signal.

        `explained` is the power that is no noise, if that is more than |N|²/D.
        """
        if not self._inside > 0 or not D.any():
            return 1.0
        if not isinstance(regularization, str):
            return float(D.max()) / regularization
        power = _explained(N, D)
        explained = power if explained is None else explained
        noise = self._electron(explained * self._inside**2) * self._frames / self._inside
        D = D.astype(np.float32)
        frequency, none = np.hypot(*self._q.reshape(-1, 2).T), np.zeros(len(D), bool)
        spectrum = Spectrum(D, self._tells, frequency, none, _LAW, self._known)
        return spectrum.ratio(spectrum.fit(power, noise))

    def _electron(self, explained: NDArray[Any]) -> float:
        """Find what an electron adds to the values: power of their noise over their mean.

        All that pixels see at a frequency is noise, but for what the phase explains there. The
        median leaves out frequencies at which the object is too strong for that.
        """
        some = slice(None, None, every(self._shape))
        rest: NDArray[np.float64] = self._power - explained[some][self._tells[some] > 0]
        # One of M degrees of freedom is explained.
        noise = float(self._noise.sum() - self._noise.mean()) * self._frames * self._inside
        if not noise > 0 or not len(rest):
            return 1.0
        return max(float(np.median(rest)) / noise, _LEAST)

    def image(self, spectrum: NDArray[Any]) -> NDArray[np.float32]:
        """Make an image (Ny, Nx) of its half-spectrum."""
        half = spectrum.astype(np.complex64).reshape(self._q.shape[:2])
        return irfft2(half, self._shape[1])


def _inside(counts: NDArray[np.float64], a: NDArray[np.float64]) -> float:
    """Find the counts of a pixel inside the aperture from those of all pixels."""
    # Pixels of the rim get more than a² of that, as a part of them is lit, and not all weakly.
    return float(counts[a == a.max()].mean() / a.max() ** 2)


def _explained(N: NDArray[Any], D: NDArray[Any]) -> NDArray[np.float64]:
    power: NDArray[np.float64] = np.abs(N) ** 2 / np.maximum(D, _LEAST)
    return power


@keep_on_disk
def _lit(at: Any, centers: Any, edge: float) -> Any:
    """Sum a² over pixels, with the aperture at every center: (Q,). All in semiangles."""
    sums = np.zeros(len(centers))
    for q in range(len(centers)):
        for m in range(len(at)):
            y, x = at[m, 0] - centers[q, 0], at[m, 1] - centers[q, 1]
            a = min(max((1 - np.sqrt(y * y + x * x)) / edge + 0.5, 0.0), 1.0)
            sums[q] += a * a
    return sums
