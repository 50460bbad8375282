"""The image and its Fourier transform."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.fft
from bokeh.events import MouseLeave, MouseMove
from bokeh.models import ColumnDataSource, Metric, Range1d, ScaleBar
from contourpy import contour_generator
from numpy.typing import NDArray

from ... import aberrations
from ...geometry import Geometry
from ...images import words_and_unit
from ..maker import Picture
from ..pictures import blur
from .drawing import MARK, WARM, draw, field, gray, limits, plain, ranges

__all__ = ["ImageView", "Spectrum", "rings"]

#: Pixels along an axis of what is transformed, and of the transform as it is shown.
_TRANSFORMED, _SPECTRUM = 512, 256

#: Rings of χ that are drawn: of more, they would hide the transform.
_RINGS = 8


class ImageView:
    """The image: scale bar, zoom, value under the pointer.

    Parameters
    ----------
    tell
        Takes a text for what is under the pointer.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.source = ColumnDataSource(field(1, 1))
        self.plot = plain(
            tools="pan,wheel_zoom,box_zoom,reset",
            active_scroll="wheel_zoom",
            css_classes=["image"],
            name="image",
            **ranges(),
        )
        self.plot.axis.visible = False
        draw(self.plot, self.source)
        self.plot.add_layout(
            ScaleBar(
                range=self.plot.x_range,
                unit="nm",
                dimensional=Metric(base_unit="m"),
                location="bottom_left",
                bar_line_width=4,
                bar_line_color="white",
                label_text_color="white",
                label_text_font_size="13px",
                background_fill_color="#000000",
                background_fill_alpha=0.45,
                border_line_color=None,
                padding=6,
                margin=10,
                bar_length=0.15,
            )
        )
        self._picture: Picture | None = None
        self._tell = tell
        self.limits: tuple[float, float] | None = None
        self.plot.on_event(MouseMove, self._point)
        self.plot.on_event(MouseLeave, lambda _: tell(""))

    def show(
        self,
        picture: Picture,
        percentiles: tuple[float, float],
        sigma: float,
        fixed: tuple[float, float] | None,
    ) -> None:
        """Draw an image.

        Parameters
        ----------
        picture
            With the image.
        percentiles
            Of its values, to be black and white.
        sigma
            Standard deviation in Å of a Gaussian to blur it with.
        fixed
            Values to be black and white, whatever the percentiles say.
        """
        image = blur(picture.image, picture.pixel_size, sigma) if sigma else picture.image
        u, scanned = picture.geometry.plan.upsampling_factor, picture.scanned
        shown = None if scanned.all() else scanned.repeat(u, axis=0).repeat(u, axis=1)
        self.limits = fixed or limits(image if shown is None else image[shown], percentiles)
        rows, cols = np.multiply(image.shape, picture.pixel_size) / 10
        self._picture = picture
        shape = {"--aspect": f"{cols / rows:.4f}"}
        if self.plot.css_variables != shape:
            self.plot.css_variables = shape
        self.source.data = {
            **field(rows, cols),
            "image": [gray(image, self.limits, shown)],
            "number": [picture.number],
        }

    def _point(self, event: Any) -> None:
        picture = self._picture
        if picture is None or event.x is None or event.y is None:
            return
        height, width = picture.pixel_size
        row, col = math.floor(event.y * 10 / height), math.floor(event.x * 10 / width)
        rows, cols = picture.image.shape
        if 0 <= row < rows and 0 <= col < cols:
            u = picture.geometry.plan.upsampling_factor
            value = f"{picture.image[row, col]:.4g} {words_and_unit(picture.name)[1]}"
            if not picture.scanned[row // u, col // u]:
                value = "no frame"
            self._tell(f"{event.x:.2f}, {event.y:.2f} nm: {value}")
        else:
            self._tell("")


class Spectrum:
    """Power of the image's Fourier transform, with rings where the transfer changes its sign."""

    def __init__(self) -> None:
        self.source = ColumnDataSource(field(1, 1))
        self._rings = ColumnDataSource({"xs": [], "ys": [], "alpha": []})
        self._apertures = ColumnDataSource({"radius": []})
        # What lies outside is cut off.
        self.plot = plain(x_range=Range1d(-1, 1), y_range=Range1d(1, -1), name="spectrum")
        self.plot.axis.visible = False
        draw(self.plot, self.source)
        self.plot.multi_line(
            "xs", "ys", source=self._rings, color=MARK, line_width=1, line_alpha="alpha"
        )
        self.plot.circle(
            0, 0, radius="radius", source=self._apertures, fill_color=None, line_color=WARM,
            line_dash=[4, 4], line_alpha=0.8,
        )  # fmt: skip

    def show(self, picture: Picture) -> None:
        """Draw the Fourier transform of an image, or of the middle of a large one."""
        image, geometry = picture.image, picture.geometry
        middle = (
            slice((n - min(n, _TRANSFORMED)) // 2, (n + _TRANSFORMED) // 2) for n in image.shape
        )
        part = image[tuple(middle)]
        power = np.abs(scipy.fft.fftshift(scipy.fft.fft2(part - part.mean())))
        aperture = geometry.parameters["semiangle_cutoff"] * 1e-3 / (geometry.wavelength / 10)
        sizes = [size / 10 for size in picture.pixel_size]
        # The transfer ends at twice the semiangle.
        edge = min(2.2 * aperture, *(1 / (2 * size) for size in sizes))
        power, (y, rows) = _cut(power, 0, sizes[0], edge)
        power, (x, cols) = _cut(power, 1, sizes[1], edge)
        level = np.log(power + 1e-6 * power.max() + 1e-30).astype(np.float32)
        self.source.data = {
            **field(rows, cols),
            "image": [gray(level, limits(level, (5, 99.8)))],
            "x": [x],
            "y": [y],
        }
        self.plot.x_range.update(start=-edge, end=edge)
        self.plot.y_range.update(start=edge, end=-edge)
        self._apertures.data = {"radius": [aperture, 2 * aperture]}
        self._rings.data = rings(geometry, min(edge, 2 * aperture))


def _cut(
    power: NDArray[Any], axis: int, size: float, edge: float
) -> tuple[NDArray[Any], tuple[float, float]]:
    """Keep what lies within an edge, of a shifted transform of pixels of this size.

    Returns
    -------
    numpy.ndarray
        With averages of neighbors, where they are too many.
    tuple of float
        Frequency at which it begins, and how far it reaches.
    """
    n = power.shape[axis]
    frequencies = np.fft.fftshift(np.fft.fftfreq(n, size))
    inside = np.flatnonzero(np.abs(frequencies) <= edge * 1.02)
    factor = math.ceil(len(inside) / _SPECTRUM)
    inside = inside[: len(inside) // factor * factor]
    kept = np.moveaxis(power, axis, 0)[inside]
    kept = kept.reshape(-1, factor, kept.shape[1]).mean(axis=1)
    step = 1 / (n * size)
    begin = float(frequencies[inside[0]]) - step / 2
    return np.moveaxis(kept, 0, axis), (begin, len(inside) * step)


def rings(geometry: Geometry, edge: float) -> dict[str, list[Any]]:
    """Find where the even aberrations' χ is a multiple of π, and so sin χ changes its sign.

    Parameters
    ----------
    geometry
        With aberrations.
    edge
        Of the field in 1/nm.

    Returns
    -------
    dict
        Lines as lists of coordinates in 1/nm, ``xs`` along columns and ``ys`` along rows, and how
        strongly to draw them, ``alpha``.
    """
    q = np.linspace(-edge, edge, 151)
    y, x = np.meshgrid(q, q, indexing="ij")
    angles = np.stack([y, x], axis=-1) * (geometry.wavelength / 10)
    chi = aberrations.surface(
        geometry.aberration_coefs, angles, geometry.wavelength, even_only=True
    )
    chi[np.hypot(y, x) > edge] = np.nan
    lines: dict[str, list[Any]] = {"xs": [], "ys": [], "alpha": []}
    contours = contour_generator(q, q, chi / np.pi)
    for level in range(1, _RINGS + 1):
        for sign in (-1, 1):
            for line in contours.lines(sign * level):
                points = np.asarray(line)
                lines["xs"].append(points[:, 0])
                lines["ys"].append(points[:, 1])
                lines["alpha"].append(0.9 - 0.08 * level)
    return lines
