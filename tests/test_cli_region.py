"""A part of the scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_commands import ACQUISITION, SHAPE, Run, check_error, frames, mask, succeeded
from libertem.api import Context

from libertem_parallax import ParallaxUDF

COMMAND = "reconstruct data/scan.npy --params data/scan.toml"


@pytest.mark.parametrize(
    ("top", "left", "bottom", "right"), [(1, 2, 5, 7), (0, 0, 6, 8), (5, 3, 6, 4)]
)
def test_it_is_as_if_all_other_frames_were_empty(
    run: Run, folder: Path, top: int, left: int, bottom: int, right: int
) -> None:
    """And the image is cut to it; pixels are half a scan step."""
    result = succeeded(run(f"{COMMAND} --roi {top} {left} {bottom} {right} -o image.npy"))
    scan = np.zeros_like(frames())
    part = np.s_[top:bottom, left:right]
    scan[part] = frames()[part]
    udf = ParallaxUDF.from_parameters(SHAPE, bf_mask=mask(), **ACQUISITION)
    with Context.make_with("inline") as ctx:
        whole = ctx.run_udf(ctx.load("memory", data=scan, sig_dims=2), udf)["reconstruction"].data
    expected = whole[2 * top : 2 * bottom, 2 * left : 2 * right]
    np.testing.assert_allclose(np.load("image.npy"), expected, atol=1e-4)
    shape = f"{2 * (bottom - top)} x {2 * (right - left)}"
    assert f"of these, rows {top} to {bottom - 1}, columns {left} to {right - 1}" in result.stdout
    assert f"{shape} pixels" in result.stdout
    assert f"{(bottom - top) * (right - left)} frames in" in result.stdout


@pytest.mark.parametrize("roi", ["0 0 7 8", "0 0 6 9", "-1 0 6 8", "3 0 3 8", "0 5 6 2"])
def test_others_are_refused(run: Run, folder: Path, roi: str) -> None:
    check_error(
        run(f"{COMMAND} --roi {roi}"),
        [f"--roi {roi}: expected 0 <= TOP < BOTTOM <= 6 and 0 <= LEFT < RIGHT <= 8"],
    )


def test_it_is_told_in_the_image(run: Run, folder: Path) -> None:
    from PIL import Image

    succeeded(run(f"{COMMAND} --roi 1 2 5 7 -o image.png"))
    with Image.open("image.png") as picture:
        about: Any = picture.info["libertem-parallax"]
        assert '"roi": [1, 2, 5, 7]' in about
        # 10 columns of 2.5 Å on 8 rows of 2 Å.
        assert (picture.width - 32) / (picture.height - 76 - 44) == pytest.approx(25 / 16, rel=0.01)
