"""Pictures of images that are written to be looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from libertem_parallax.files import About, save

WHITE, HEADER, GAP, FOOTER = 255, 76, 16, 44


def written(folder: Path, image: NDArray[Any], about: About) -> NDArray[np.uint8]:
    save(folder / "image.png", image, about)
    with Image.open(folder / "image.png") as picture:
        return np.asarray(picture.convert("L"))


def inside(gray: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image without what is around it: title, scale bar, margins."""
    return gray[HEADER:-FOOTER, GAP:-GAP]


def blocks(gray: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Centers of blocks that are pixels."""
    rows, cols = (
        ((np.arange(n) + 0.5) * size / n).astype(int)
        for n, size in zip(shape, inside(gray).shape, strict=True)
    )
    return inside(gray)[np.ix_(rows, cols)]


def test_pixels_are_blocks_as_bright_as_they_are_large(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(16, 24))
    gray = written(tmp_path, image, About((2.0, 2.0)))
    assert inside(gray).shape == (400, 600)
    pixels = blocks(gray, image.shape)
    np.testing.assert_array_equal(inside(gray), pixels.repeat(25, axis=0).repeat(25, axis=1))
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert (np.diff(pixels.ravel()[np.argsort(image.ravel())].astype(int)) >= 0).all()


@pytest.mark.parametrize(
    ("shape", "pixel_size"),
    [((32, 40), (4.0, 2.0)), ((32, 40), (2.0, 5.0)), ((700, 800), (0.5, 0.75)), ((3, 900), (1, 1))],
)
def test_proportions_are_true(
    tmp_path: Path, shape: tuple[int, int], pixel_size: tuple[float, float]
) -> None:
    """And the scale bar, the only black line below the image, has the length that it tells."""
    image = np.zeros(shape)
    image[0, 0] = 1
    gray = written(tmp_path, image, About(pixel_size))
    rows = np.flatnonzero((gray < 128).mean(axis=1) > 0.3)
    rows = rows[
        : np.argmax(np.diff(rows, append=10**9) > 1) + 1
    ]  # the image, black but for a pixel
    dark = np.flatnonzero(gray[rows[-1] - 1] < 128)
    height, width = len(rows), dark[-1] - dark[0] + 1
    assert max(height, width) >= 600
    true = shape[0] * pixel_size[0] / (shape[1] * pixel_size[1])
    assert height / width == pytest.approx(true, abs=2 / width)
    below = gray[rows[-1] + 4 :]
    line = below[np.argmax((below < 128).sum(axis=1))]
    first = np.flatnonzero(line < 128)
    length = np.argmax(np.diff(first, append=10**9) > 1) + 1  # up to the letters
    nm = length / width * shape[1] * pixel_size[1] / 10
    exponent = np.floor(np.log10(nm))
    assert min(abs(nm / 10**exponent - n) for n in (1, 2, 5, 10)) < 0.15


def test_the_name_of_the_image_is_above(tmp_path: Path) -> None:
    image = np.zeros((10, 10))
    named = written(tmp_path, image, About((1, 1), "rad", "phase"))
    other = written(tmp_path, image, About((1, 1), "rad", "parallax"))
    assert (named[:HEADER] < 128).any()
    assert (named[:HEADER] != other[:HEADER]).any()
    np.testing.assert_array_equal(inside(named), inside(other))


def test_constant_images_are_black(tmp_path: Path) -> None:
    gray = written(tmp_path, np.full((3, 4), 7.0), About((1.0, 1.0)))
    assert set(blocks(gray, (3, 4)).ravel()) == {0}


def test_an_outlier_does_not_take_the_contrast(tmp_path: Path) -> None:
    image = np.tile(np.linspace(0, 1, 100), (100, 1))
    image[5, 5] = 1e6
    gray = written(tmp_path, image, About((1.0, 1.0)))
    assert len(np.unique(blocks(gray, image.shape))) > 90
