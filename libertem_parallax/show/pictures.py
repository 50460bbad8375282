"""Pictures of images, to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["blur", "gray_limits", "overview", "picture", "write_gray"]

# Dots of a panel of the overview: a multiple of the demo's images, so that all of their pixels
# come out at the same size.
_PANEL = 432
_GAP = 16
_HEADER = 76
_DPI = 100
# Dots that the longer side of a picture has at least, for pixels to be seen, and at most.
_SEEN, _LARGEST = 600, 4096


def write_gray(
    file: Any,
    image: NDArray[Any],
    limits: tuple[float, float],
    pixel_size: tuple[float, float],
    texts: Mapping[str, str],
) -> None:
    """Write an image as PNG in 8-bit gray, with a scale bar: like `picture`, in less time.

    Parameters
    ----------
    file
        Open for writing bytes.
    image
        Rows and columns of real numbers.
    limits
        Values to be black and white.
    pixel_size
        Height and width of a pixel in Å.
    texts
        To be written into the file, by their names.
    """
    from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    low, high = limits
    gray = np.rint(np.clip((image - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    width, height = _dots(gray.shape, pixel_size)
    scale = max(1.0, max(width, height) / 900)  # of letters
    footer, across = round(44 * scale), max(width, round(180 * scale))  # the words have to fit
    page = Image.new("L", (across, height + footer), 255)
    left = (across - width) // 2
    page.paste(Image.fromarray(gray).resize((width, height), Image.Resampling.NEAREST), (left, 0))
    cols = gray.shape[1] * pixel_size[1] / 10  # nm
    length = _round_length(cols / 4)
    middle, thick = height + footer // 2, round(6 * scale)
    end = left + round(width * length / cols)
    draw = ImageDraw.Draw(page)
    top = middle - thick // 2
    draw.rectangle((left, top, max(left, end - 1), top + thick - 1), fill=0)  # both ends count
    font = ImageFont.load_default(20 * scale)
    draw.text((end + 8 * scale, middle), f"{length:g} nm", fill=0, font=font, anchor="lm")
    page.save(file, format="PNG", pnginfo=info)


def picture(
    file: Any,
    image: NDArray[Any],
    pixel_size: tuple[float, float],
    title: str,
    unit: str,
    texts: Mapping[str, str],
) -> None:
    """Write a PNG of an image that can be seen: large, in true proportions, with a scale bar.

    Parameters
    ----------
    file
        Open for writing bytes.
    image
        Rows and columns of real numbers. A pixel is a block of dots, as large as is needed.
    pixel_size
        Height and width of a pixel in Å.
    title
        Above the image.
    unit
        Of its values; the line below the title tells what is black and white.
    texts
        See `write_gray`.
    """
    width, height = _dots(image.shape, pixel_size)
    scale = max(1.0, max(width, height) / 900)  # of letters
    gap, header, footer = (round(scale * dots) for dots in (_GAP, _HEADER, 44))
    across = max(width, round(scale * 420))  # the title has to fit
    figure = _figure(across + 2 * gap, header + height + footer)
    left = gap + (across - width) // 2
    low, high = gray_limits(image)
    note = f"black {low:.3g}, white {high:.3g}" + f" {unit}" * bool(unit)
    axes = _draw(figure, (left, footer, width, height), image, pixel_size, (title, note), scale)
    cols = axes.get_xlim()[1]  # nm
    length = _round_length(cols / 4)
    start, end = left, left + round(width * length / cols)
    total = figure.get_size_inches() * _DPI
    bar = figure.add_axes(
        (
            start / total[0],
            0.45 * footer / total[1],
            (end - start) / total[0],
            6 * scale / total[1],
        ),
        facecolor="black",
    )
    bar.set(xticks=(), yticks=())
    figure.text(
        (end + 8 * scale) / total[0],
        (0.45 * footer + 3 * scale) / total[1],
        f"{length:g} nm",
        size=14 * scale,
        va="center",
    )
    figure.savefig(file, dpi=_DPI, format="png", metadata=dict(texts))


def _dots(shape: tuple[int, ...], pixel_size: tuple[float, float]) -> tuple[int, int]:
    """Width and height of a picture in true proportions; square pixels get whole dots."""
    height, width = (n * s / min(pixel_size) for n, s in zip(shape, pixel_size, strict=True))
    scale = max(1.0, math.ceil(_SEEN / max(width, height)))
    scale = min(scale, _LARGEST / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


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
    width = len(panels) * (_PANEL + _GAP) + _GAP
    figure = _figure(width, _HEADER + _PANEL + _GAP)
    for i, (title, note, image, pixel_size) in enumerate(panels):
        box = (_GAP + i * (_PANEL + _GAP), _GAP, _PANEL, _PANEL)
        axes = _draw(figure, box, image, pixel_size, (title, note))
        _draw_scale_bar(axes, axes.get_ylim()[0], axes.get_xlim()[1])
    figure.savefig(file, dpi=_DPI, format="png", metadata=dict(texts))


def _figure(width: int, height: int) -> Any:
    """Make a white figure of so many dots."""
    # A figure without pyplot draws with Agg: it needs no display and leaves no global state.
    from matplotlib.figure import Figure

    return Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")


def _draw(
    figure: Any,
    box: tuple[int, int, int, int],
    image: NDArray[Any],
    pixel_size: tuple[float, float],
    words: tuple[str, str],
    scale: float = 1.0,
) -> Any:
    """Draw an image into a box (left, bottom, width and height in dots); title and note above."""
    left, bottom, width, height = box
    across, up = figure.get_size_inches() * _DPI
    axes = figure.add_axes((left / across, bottom / up, width / across, height / up))
    center, top = (left + width / 2) / across, bottom + height
    title, note = words
    figure.text(center, (top + 40 * scale) / up, title, size=19 * scale, ha="center")
    figure.text(center, (top + 11 * scale) / up, note, size=14 * scale, color="0.35", ha="center")
    low, high = gray_limits(image)
    rows, cols = (n * size / 10 for n, size in zip(image.shape, pixel_size, strict=True))
    axes.imshow(
        image,
        cmap="gray",
        vmin=low,
        vmax=high,
        extent=(0, cols, rows, 0),  # nm
        interpolation="nearest",
        aspect="auto",  # that of the box
    )
    axes.set_axis_off()
    return axes


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
