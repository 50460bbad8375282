"""Pictures of images, to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["blur", "gray_limits", "overview", "write_gray"]

# Dots of a panel of the overview: a multiple of the demo's images, so that all of their pixels
# come out at the same size.
_PANEL = 432
_GAP = 16
_HEADER = 76
_DPI = 100


def write_gray(
    file: Any, image: NDArray[Any], limits: tuple[float, float], texts: Mapping[str, str]
) -> None:
    """Write an image as PNG, pixel for pixel in 8-bit gray.

    Parameters
    ----------
    file
        Open for writing bytes.
    image
        Rows and columns of real numbers.
    limits
        Values to be black and white.
    texts
        To be written into the file, by their names.
    """
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    low, high = limits
    gray = np.rint(np.clip((image - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    Image.fromarray(gray).save(file, format="PNG", pnginfo=info)


def overview(
    file: Any,
    panels: Sequence[tuple[str, str, NDArray[Any], tuple[float, float]]],
    texts: Mapping[str, str],
) -> None:
    """Write a PNG with images next to each other, each with a title and a scale bar.

    Parameters
    ----------
    file
        Open for writing bytes.
    panels
        Title, a note for the line below, image, and pixel size (height and width in Å) of each.
        The images are square.
    texts
        See `write_gray`.
    """
    # A figure without pyplot draws with Agg: it needs no display and leaves no global state.
    from matplotlib.figure import Figure

    width = len(panels) * (_PANEL + _GAP) + _GAP
    height = _HEADER + _PANEL + _GAP
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    for i, (title, note, image, pixel_size) in enumerate(panels):
        left = _GAP + i * (_PANEL + _GAP)
        axes = figure.add_axes((left / width, _GAP / height, _PANEL / width, _PANEL / height))
        center = (left + _PANEL / 2) / width
        figure.text(center, 1 - 36 / height, title, size=19, ha="center")
        figure.text(center, 1 - 65 / height, note, size=14, color="0.35", ha="center")
        low, high = gray_limits(image)
        rows, cols = (n * size / 10 for n, size in zip(image.shape, pixel_size, strict=True))
        axes.imshow(
            image,
            cmap="gray",
            vmin=low,
            vmax=high,
            extent=(0, cols, rows, 0),  # nm
            interpolation="nearest",
        )
        axes.set_axis_off()
        _draw_scale_bar(axes, rows, cols)
    figure.savefig(file, dpi=_DPI, format="png", metadata=dict(texts))


def _draw_scale_bar(axes: Any, rows: float, cols: float) -> None:
    """Bar and its length in the lower left corner of a panel of so many nm."""
    length = _round_length(cols / 4)
    # A box behind the bar, since an image has bright and dark places.
    inset, margin, thick = 0.03 * cols, 0.02 * cols, 0.012 * rows
    bottom = rows - inset
    axes.fill_between(
        (inset, inset + length + 2 * margin), bottom - 0.125 * rows, bottom, color="black", lw=0
    )
    start = inset + margin
    axes.fill_between(
        (start, start + length), bottom - margin - thick, bottom - margin, color="white", lw=0
    )
    axes.text(
        start + length / 2,
        bottom - margin - 1.8 * thick,
        f"{length:g} nm",
        color="white",
        size=17,
        ha="center",
        va="bottom",
    )


def _round_length(limit: float) -> float:
    """Largest of 1, 2, 5, 10, 20, 50 ... that does not exceed the limit, which may be small."""
    magnitude = 10.0 ** math.floor(math.log10(limit))
    return max(n * magnitude for n in (1, 2, 5) if n * magnitude <= limit)


def blur(image: NDArray[Any], pixel_size: tuple[float, float], sigma: float) -> NDArray[Any]:
    """Convolve a periodic image with a Gaussian.

    Parameters
    ----------
    image
        Rows and columns of real numbers.
    pixel_size
        Height and width of a pixel in Å.
    sigma
        Standard deviation in Å.

    Returns
    -------
    numpy.ndarray
        Of the image's shape and dtype.
    """
    import scipy.ndimage

    blurred: NDArray[Any] = scipy.ndimage.gaussian_filter(
        image,
        # Beyond the image's size, nothing is left but its mean.
        [min(sigma / size, n) for size, n in zip(pixel_size, image.shape, strict=True)],
        mode="wrap",
    )
    return blurred


def gray_limits(image: NDArray[Any]) -> tuple[float, float]:
    """Choose values to be black and white: a few extreme pixels must not take the contrast.

    Parameters
    ----------
    image
        Real numbers, of any shape.

    Returns
    -------
    low, high : float
        The values.
    """
    low, high = np.percentile(image, (0.5, 99.5))
    return float(low), float(high if high > low else low + 1)
