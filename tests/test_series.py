"""A series of defoci: each image as by itself, sharpest where the specimen is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import weak
from click.testing import CliRunner
from helpers import PARAMETERS, make_scan, run_udf

import libertem_parallax as prlx
from libertem_parallax.accumulate import Stack
from libertem_parallax.cli import main
from libertem_parallax.cli.stacked import MOST
from libertem_parallax.series import Series
from libertem_parallax.show.curves import sharpness_figure


@pytest.mark.parametrize("image", ["parallax", "phase", "direct"])
def test_every_image_is_as_by_itself(inline, image):
    frames = make_scan(PARAMETERS["shape"], "uint8")
    stack = Stack.from_array(frames)
    series = prlx.defocus_series(stack, PARAMETERS, [2500.0, 2600.0], image)
    assert isinstance(series, Series)
    for defocus, made in zip((2500.0, 2600.0), series.images, strict=True):
        coefs = {**PARAMETERS["aberration_coefs"], "C10": -defocus}
        parameters = {**PARAMETERS, "aberration_coefs": coefs}
        if image == "direct":
            expected = prlx.direct_phase(stack, parameters)
        else:
            udf = prlx.ParallaxUDF.from_parameters(**parameters, image=image)
            expected = run_udf(inline, frames, udf)[image]
        np.testing.assert_array_equal(made, expected)


def test_it_is_sharpest_at_the_specimen():
    counts, _, parameters = weak.scan_of_object("36.9", (3, 3), size=0.02)
    stack = Stack.from_array(np.random.default_rng(1).poisson(counts * 1e5).astype("uint16"))
    defocus = np.linspace(-2000, 400, 13)
    series = prlx.defocus_series(stack, parameters, defocus)
    assert series.sharpest == pytest.approx(-900, abs=60)
    assert series.sharpness.max() > 2
    noise = Stack.from_array(np.random.default_rng(1).poisson(5, (20, 20, 9, 9)).astype("uint16"))
    flat = prlx.defocus_series(noise, parameters, defocus).sharpness
    np.testing.assert_allclose(flat, 1, atol=0.5)


def test_sharpest_lies_between_the_images():
    x = np.array([0.0, 1.0, 2.0, 3.0])
    assert Series(x, x, 5 - (x - 1.3) ** 2).sharpest == pytest.approx(1.3)
    assert Series(x, x, x).sharpest == 3
    [axes] = sharpness_figure(Series(10 * x, x, 5 - (x - 1.3) ** 2)).axes
    assert [text.get_text() for text in axes.get_legend().texts] == [
        "images",
        "sharpest, at 1.3 nm",
    ]


def test_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = make_scan(PARAMETERS["shape"], "uint8")
    np.save("scan.npy", frames)
    prlx.Parameters(**{n: v for n, v in PARAMETERS.items() if n != "shape"}).save(
        tmp_path / "p.toml"
    )

    def run(options):
        return CliRunner().invoke(
            main, ["reconstruct", "scan.npy", "--params", "p.toml", *options.split()]
        )

    result = run("--image phase --defocus-series 2300 2700 3 -o series.tif")
    assert result.exit_code == 0, result.output
    assert "3 images from 230 to 270 nm" in result.output
    [sharpest] = [line for line in result.output.splitlines() if "Sharpest" in line]
    with tifffile.TiffFile("series.tif") as file:
        said, images = file.imagej_metadata or {}, file.asarray()
    expected = prlx.defocus_series(Stack.from_array(frames), PARAMETERS, [2300, 2500, 2700])
    np.testing.assert_array_equal(images, expected.images)
    at_end = int(expected.sharpness.argmax()) != 1
    assert ("beyond may be sharper ones" in sharpest) == at_end
    assert (said["slices"], said["spacing"], said["unit"], said["vunit"]) == (3, 20, "nm", "rad")
    assert said["Labels"] == ["230 nm", "250 nm", "270 nm"]
    assert (tmp_path / "series_sharpness.png").read_bytes().startswith(b"\x89PNG")
    for options, words in (
        ("--defocus-series 2 1 3 -o a.tif", "the smaller one first"),
        ("--defocus-series 1 2 1 -o a.tif", "2 to 10,000"),
        ("--defocus-series 1 2 10001 -o a.tif", "2 to 10,000"),
        ("--defocus-series 1 2 3 -o a.png", "a series is written as .tif"),
        ("--image phase --image parallax --defocus-series 1 2 3 -o a.tif", "a single --image"),
        ("--roi 0 0 2 2 --defocus-series 1 2 3 -o a.tif", "--roi: without meaning"),
    ):
        result = run(options)
        assert result.exit_code == 2
        assert words in " ".join(result.output.split())
    # What is refused is said before.
    docs = (Path(__file__).parents[1] / "docs" / "phase.md").read_text(encoding="utf-8")
    for told in (CliRunner().invoke(main, ["reconstruct", "--help"]).output, docs):
        assert f"2 to {MOST:,}" in " ".join(told.split())


def test_refused():
    stack = Stack.from_array(make_scan(PARAMETERS["shape"], "uint8"))
    with pytest.raises(ValueError, match="defocus: expected one value or several"):
        prlx.defocus_series(stack, PARAMETERS, [])
    with pytest.raises(ValueError, match="image = "):
        prlx.defocus_series(stack, PARAMETERS, [1.0], "sharp")
