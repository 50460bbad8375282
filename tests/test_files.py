"""Image files; their contents in the formats for data are checked with the command line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from libertem_parallax.files import About, save, try_to_write
from libertem_parallax.show.pictures import _round_length, overview


def test_a_failed_write_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    image = np.zeros((3, 4))
    (tmp_path / "image.tif").write_bytes(b"an older image")
    with pytest.raises(ValueError, match="pixels of 1e-09 Å are too small"):
        save(tmp_path / "image.tif", image, About((1e-9, 1e-9)))  # more than the format can hold
    assert [path.name for path in tmp_path.iterdir()] == ["image.tif"]
    assert (tmp_path / "image.tif").read_bytes() == b"an older image"


def test_trying_to_write_changes_nothing(tmp_path: Path) -> None:
    try_to_write(tmp_path / "image.tif")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "image.tif").write_bytes(b"an older image")
    try_to_write(tmp_path / "image.tif")
    assert [path.name for path in tmp_path.iterdir()] == ["image.tif"]
    assert (tmp_path / "image.tif").read_bytes() == b"an older image"


def test_overview_shows_every_pixel_where_it_belongs(tmp_path: Path) -> None:
    checkerboard = np.indices((4, 4)).sum(axis=0) % 2
    panels = [("Coarse", "", checkerboard[:2, :2], (2.0, 2.0)), ("Fine", "", checkerboard, (1, 1))]
    with (tmp_path / "overview.png").open("wb") as file:
        overview(file, panels, {})
    with Image.open(tmp_path / "overview.png") as picture:
        gray = np.asarray(picture.convert("L"))
    for i, (_, _, image, _) in enumerate(panels):
        left, top, size = 16 + i * (432 + 16), 76, 432
        panel = gray[top : top + size, left : left + size]
        step = size // len(image)
        centers = panel[step // 2 :: step, step // 2 :: step]
        # The upper half: the scale bar is in the lower left corner.
        half = len(image) // 2
        np.testing.assert_array_equal(centers[:half], 255 * image[:half])


@pytest.mark.parametrize(("limit", "length"), [(6.4, 5), (1.9, 1), (250, 200), (0.03, 0.02)])
def test_scale_bar_has_a_round_length(limit: float, length: float) -> None:
    assert _round_length(limit) == pytest.approx(length)
