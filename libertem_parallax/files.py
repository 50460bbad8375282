"""Images to files: for ImageJ, for NumPy, and to look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["WRITERS", "blur", "gray_limits", "overview", "save", "snapshot", "try_to_write"]

# Dots of a panel of the overview: a multiple of the demo's images, so that all of their pixels
# come out at the same size.
_PANEL = 432
_GAP = 16
_HEADER = 76
_DPI = 100


def save(path: Path, image: NDArray[Any], pixel_size: tuple[float, float]) -> None:
    """Write an image in the format that the name's extension tells.

    Parameters
    ----------
    path
        Ends with one of `WRITERS`, in lower or upper case.
    image
        Rows and columns of real numbers.
    pixel_size
        Height and width of a pixel in Å.
    """
    with _replacing(path) as file:
        WRITERS[path.suffix.lower()](file, image, pixel_size)


def snapshot(path: Path, image: NDArray[Any], limits: tuple[float, float]) -> None:
    """Write an image that is not complete yet, to look at; viewers never see half a file.

    Parameters
    ----------
    path
        Of the .png file.
    image
        Rows and columns of real numbers.
    limits
        Values to be black and white.
    """
    with _replacing(path) as file:
        _write_gray(file, image, limits)


def try_to_write(path: Path) -> None:
    """Find out whether an image can be written, as far as that can be known before.

    Parameters
    ----------
    path
        Of the image; nothing is changed there.

    Raises
    ------
    OSError
        If the file cannot be made that `save` makes first.
    """
    part = _part(path)
    part.open("wb").close()
    part.unlink()


def _part(path: Path) -> Path:
    """Where a file is written before it takes the place of an older one."""
    return path.with_name(path.name + ".part")


@contextmanager
def _replacing(path: Path) -> Iterator[Any]:
    """Write a file whole or not at all: what fails leaves an older one as it was."""
    part = _part(path)
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _save_tiff(file: Any, image: NDArray[Any], pixel_size: tuple[float, float]) -> None:
    """float32, with the pixel size as ImageJ reads it: pixels per unit, and the unit's name."""
    import tifffile

    height, width = pixel_size
    tifffile.imwrite(
        file,
        image.astype(np.float32),
        imagej=True,
        resolution=(10 / width, 10 / height),  # pixels per nm, x first
        metadata={"axes": "YX", "unit": "nm"},
    )


def _save_npy(file: Any, image: NDArray[Any], pixel_size: tuple[float, float]) -> None:  # noqa: ARG001
    np.save(file, image)


def _save_png(file: Any, image: NDArray[Any], pixel_size: tuple[float, float]) -> None:  # noqa: ARG001
    """Pixel for pixel in 8-bit gray, for the eye: the scale of the numbers is lost."""
    _write_gray(file, image, gray_limits(image))


def _write_gray(file: Any, image: NDArray[Any], limits: tuple[float, float]) -> None:
    from PIL import Image

    low, high = limits
    gray = np.rint(np.clip((image - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    Image.fromarray(gray).save(file, format="PNG")


#: Who writes the format, by the extension of the name.
WRITERS: Mapping[str, Callable[[Any, NDArray[Any], tuple[float, float]], None]] = MappingProxyType(
    {".tif": _save_tiff, ".tiff": _save_tiff, ".npy": _save_npy, ".png": _save_png}
)


def overview(
    path: Path, panels: Sequence[tuple[str, str, NDArray[Any], tuple[float, float]]]
) -> None:
    """Write a PNG with images next to each other, each with a title and a scale bar.

    Parameters
    ----------
    path
        Of the PNG.
    panels
        Title, a note for the line below, image, and pixel size (height and width in Å) of each.
        The images are square.
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
    figure.savefig(path, dpi=_DPI, format="png")


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
