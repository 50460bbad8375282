"""Small pictures of acquisitions that are complete, as HTML that holds them."""

from __future__ import annotations

import base64
import html
import io
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..screen import Growing, to_gray
from .drawing import GRAYS, gray

__all__ = ["Thumbnail", "thumbnail", "written"]

#: Pixels along the longer side, as which it is shown when it is clicked.
_SIZE = 320

#: Red, green and blue, as on the page: what was not scanned is blue-gray.
_COLORS = np.array([[*bytes.fromhex(color[1:])] for color in GRAYS], np.uint8)


class Thumbnail(NamedTuple):
    """A small picture of an image that was written."""

    name: str  #: of the file
    when: str  #: hours, minutes and seconds
    jpeg: bytes


def thumbnail(
    path: Path, made: Growing, pixel_size: tuple[float, float], sigma: float
) -> Thumbnail:
    """Make a small picture.

    Parameters
    ----------
    path
        Where the image is.
    made
        The image; what was not scanned is marked.
    pixel_size
        Height and width of its pixels in Å.
    sigma
        Standard deviation in Å of a Gaussian to blur it with.
    """
    from PIL import Image

    values, between = to_gray(made, pixel_size, sigma)
    u = values.shape[0] // made.scanned.shape[0]
    index = gray(values, between, made.scanned.repeat(u, axis=0).repeat(u, axis=1))
    rows, cols = (n * size for n, size in zip(index.shape, pixel_size, strict=True))
    scale = _SIZE / max(rows, cols)
    size = max(1, round(cols * scale)), max(1, round(rows * scale))
    file = io.BytesIO()
    small = Image.fromarray(_COLORS[index]).resize(size, Image.Resampling.LANCZOS)
    small.save(file, format="JPEG", quality=88)
    return Thumbnail(path.name, time.strftime("%H:%M:%S"), file.getvalue())


def written(thumbnails: Iterable[Thumbnail]) -> str:
    """Write them down, the last one first."""
    figures = (
        f'<figure tabindex="0" title="{html.escape(each.name)}">'
        f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(each.jpeg).decode()}">'
        f"<figcaption>{each.when}<br>{html.escape(each.name)}</figcaption></figure>"
        for each in reversed([*thumbnails])
    )
    return f'<div class="row">{"".join(figures)}</div>'
