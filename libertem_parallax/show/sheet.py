"""A sheet about a calibration, to look at."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import aberrations
from ..calibration.model import Model, turn
from ..geometry import Geometry
from .pictures import blur, gray_limits

if TYPE_CHECKING:
    from ..calibration import Calibration

__all__ = ["sheet"]

#: Points of the map of the likelihood along each axis, and frequencies and pixels that it takes.
_MAP, _FREQUENCIES, _PIXELS = 61, 400, 400

#: Arrows of the shifts along each axis.
_ARROWS = 13


def sheet(calibration: Calibration) -> Any:
    """Draw what was found and what it does.

    Returns
    -------
    matplotlib.figure.Figure
        Six panels.
    """
    # A figure without pyplot draws with Agg: it needs no display and leaves no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.5, 9), dpi=100, facecolor="white", layout="constrained")
    axes = figure.subplots(2, 3)
    _pattern(axes[0, 0], calibration)
    _likelihood(axes[0, 1], calibration)
    _shifts(axes[0, 2], calibration)
    before, after = _images(calibration)
    _spectrum(axes[1, 2], calibration, after)
    step = calibration.parameters["scan_sampling"]
    # Noise of few electrons would hide the specimen.
    sigma = max(step)
    before, after = (blur(image, step, sigma) for image in (before, after))
    limits = gray_limits(np.stack([before, after]))
    for at, title, image in (
        (axes[1, 0], "Bright field: before", before),
        (axes[1, 1], "Parallax: after", after),
    ):
        rows, cols = (n * s / 10 for n, s in zip(image.shape, step, strict=True))
        at.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1], extent=(0, cols, rows, 0))
        at.set(title=f"{title}, same gray scale", xlabel="nm", ylabel="nm")
    return figure


def _pattern(axes: Any, calibration: Calibration) -> None:
    """Mean pattern with the circle of the semiangle."""
    beam = calibration.beam
    pattern = np.where(np.isfinite(beam.pattern), beam.pattern, 0)
    high = float(np.percentile(pattern[beam.mask], 99)) * 1.2
    axes.imshow(pattern, cmap="gray", vmin=0, vmax=high or 1)
    angle = np.linspace(0, 2 * np.pi, 361)
    radii = beam.optics.semiangle / np.asarray(beam.optics.sampling)
    row, col = beam.optics.center
    axes.plot(col + radii[1] * np.sin(angle), row + radii[0] * np.cos(angle), "C1", lw=1)
    axes.plot(col, row, "C1+")
    axes.set(
        title=f"Mean pattern, {beam.optics.semiangle * 1e3:.3g} mrad", xlabel="column", ylabel="row"
    )


def _likelihood(axes: Any, calibration: Calibration) -> None:
    """Likelihood over defocus and rotation, through what was found."""
    best = calibration.estimate.best
    spectra = best.model.spectra
    highest = 0.5 * best.model.optics.semiangle / best.model.optics.wavelength
    # A crystal's few frequencies, or low ones.
    crystal = spectra.strong.sum() > 2
    inside = np.flatnonzero(spectra.strong if crystal else np.hypot(*spectra.q.T) <= highest)
    if len(inside) > _FREQUENCIES:
        inside = inside[:: math.ceil(len(inside) / _FREQUENCIES)]
    pixels = np.arange(0, len(spectra.pixels), math.ceil(len(spectra.pixels) / _PIXELS))
    model = Model(
        spectra.take(inside, pixels), best.model.optics, best.model.layout, best.model.orders,
        weights=best.model.weights[inside],
    )  # fmt: skip
    unit = model.units()[1]
    C10 = best.x[1] * unit
    reach = max(abs(C10), 2 * unit) * 1.5
    defoci = np.linspace(-reach, reach, _MAP)
    rotations = best.x[0] + np.linspace(-np.pi, np.pi, _MAP)
    values = np.empty((_MAP, _MAP))
    for i, rotation in enumerate(rotations):
        for j, defocus in enumerate(defoci):
            x = best.x.copy()
            x[0], x[1] = rotation, -defocus / unit
            values[i, j] = model.value(x)
    shown = axes.imshow(
        values,
        cmap="viridis",
        aspect="auto",
        origin="lower",
        extent=(-reach / 10, reach / 10, *np.degrees(rotations[[0, -1]])),
    )
    axes.plot(-C10 / 10, math.degrees(best.x[0]), "C1o", mfc="none", ms=10)
    axes.figure.colorbar(shown, ax=axes, label="explained power over noise", shrink=0.8)
    axes.set(title="Likelihood", xlabel="defocus / nm", ylabel="rotation / °")


def _shifts(axes: Any, calibration: Calibration) -> None:
    """Shifts of the images that detector pixels see."""
    model, x = calibration.estimate.best.model, calibration.estimate.best.x
    grid = np.linspace(-1, 1, _ARROWS)
    xi = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    xi = xi[np.hypot(*xi.T) <= 1]
    angles = xi @ model.layout.T @ turn(x[0]).T * model.optics.semiangle
    shifts = aberrations.gradient(model.coefs(x), angles) / 10
    radii = model.optics.semiangle / np.asarray(model.optics.sampling)
    row, col = (np.asarray(model.optics.center) + xi * radii).T
    axes.quiver(col, row, shifts[:, 1], shifts[:, 0], angles="xy", width=0.005)
    largest = np.hypot(*shifts.T).max()
    axes.set(
        title=f"Shifts by detector pixel, up to {largest:.3g} nm",
        xlabel="column", ylabel="row", aspect="equal",
    )  # fmt: skip
    axes.invert_yaxis()


def _images(calibration: Calibration) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of the bright-field pixels, without shifts and with; less its own mean."""
    stack = calibration.stack
    parameters = calibration.parameters.replace(upsampling_factor=None)
    mask = np.zeros(stack.detector_shape, bool)
    mask[tuple(stack.pixels.T)] = True
    parameters = parameters.replace(bf_mask=mask)
    with warnings.catch_warnings():
        # Whoever reconstructs is told.
        warnings.simplefilter("ignore", UserWarning)
        geometry = Geometry.from_parameters(stack.scan_shape + stack.detector_shape, **parameters)
    A, S = stack.add(geometry.plan)
    images = []
    for counts in (S, A.reshape(S.shape)):
        image = counts / len(geometry.plan.pixels)
        images.append(image - image.mean())
    return images[0], images[1]


def _spectrum(axes: Any, calibration: Calibration, image: NDArray[np.float64]) -> None:
    """Fourier transform of the parallax image, and where the fit has no contrast."""
    step = calibration.parameters["scan_sampling"]
    power = np.fft.fftshift(np.abs(np.fft.fft2(image)))
    power = blur(power, (1.0, 1.0), 0.7)
    reach = [5 / s for s in step]  # 1/nm
    low, high = np.percentile(power, (5, 99.5))
    axes.imshow(
        power, cmap="gray", vmin=low, vmax=high, extent=(-reach[1], reach[1], reach[0], -reach[0])
    )
    y, x = (np.linspace(-r, r, 301) for r in reach)
    q = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1) / 10
    optics = calibration.estimate.best.model.optics
    chi = aberrations.surface(
        calibration.parameters["aberration_coefs"], q * optics.wavelength, optics.wavelength,
        even_only=True,
    )  # fmt: skip
    inside = np.hypot(q[..., 0], q[..., 1]) <= optics.semiangle / optics.wavelength
    # Only so far as rings can be told apart.
    turns = np.where(inside & (np.abs(chi) < 8 * np.pi), np.sin(chi), np.nan)
    axes.contour(x, y, turns, levels=[0.0], colors="C1", linewidths=0.7)
    axes.set(title="Fourier transform, zeros of the fit", xlabel="1/nm", ylabel="1/nm")
