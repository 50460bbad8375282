"""Direct ptychography while it is tuned: what `reconstruct --image direct` makes."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from tuned import FRAMES, PARAMETERS, assert_shown

from libertem_parallax import direct_phase
from libertem_parallax.accumulate import Stack
from libertem_parallax.cli import main
from libertem_parallax.show import maker
from libertem_parallax.show.page.saving import save, script
from libertem_parallax.show.tuning import Tuning

DIRECT = PARAMETERS.replace(image="direct")


@pytest.fixture
def tuning():
    tuning = Tuning(Stack.from_array(FRAMES), DIRECT)
    yield tuning
    tuning.close()


def shown(tuning):
    """Get the picture of the present parameters."""
    assert tuning.wait(120)
    assert tuning.problem is None
    assert tuning.picture.parameters is tuning.parameters
    assert tuning.picture.coarse == 1
    return tuning.picture


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with h5py.File("scan.h5", "w") as file:
        file["frames"] = FRAMES
    return tmp_path


def test_it_is_what_the_command_makes_of_the_parameters_that_are_saved(tuning, data):
    tuning.aberrate(C30=2e6)
    picture = shown(tuning)
    tif, png, toml = save(data / "saved", "scan [1]", picture)
    assert len({tif, *save(data / "saved", "scan [1]", picture)}) == 4  # nothing is replaced
    command = ["reconstruct", "scan.h5", "--params", str(toml), "-o", "image.tif"]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    expected = tifffile.imread("image.tif")
    assert expected.shape == FRAMES.shape[:2]
    np.testing.assert_array_equal(picture.image, expected)
    np.testing.assert_array_equal(tifffile.imread(tif), expected)
    with tifffile.TiffFile(tif) as ours, tifffile.TiffFile("image.tif") as theirs:
        for tag in ("XResolution", "YResolution"):
            assert ours.pages[0].tags[tag].value == theirs.pages[0].tags[tag].value
    assert png.exists()


def test_the_script_makes_it(tuning, data):
    tuning.change(regularization=30.0)
    picture = shown(tuning)
    text = script(tuning.parameters, "direct", {"filetype": "hdf5", "path": "scan.h5"})
    names = {"__name__": "__main__"}
    exec(text.replace("Context()", 'Context.make_with("inline")'), names)
    names["ctx"].close()
    np.testing.assert_array_equal(names["image"], picture.image)


def test_it_follows_every_knob(tuning):
    """Whatever is kept of the images before."""
    for changes in (
        {"aberration_coefs": {"C10": -9e3}},
        {"rotation_angle": 0.4},
        {"center": (6.9, 7.0)},
        {"semiangle_cutoff": 4.5},
        {"bf_mask": np.indices((14, 15)).sum(axis=0) % 5 > 0},
        {"scan_sampling": (21.0, 25.0)},
        {"energy": 200e3},
        {"regularization": 50.0},
    ):
        before = shown(tuning).image
        tuning.change(**changes)
        image = shown(tuning).image
        assert not np.array_equal(image, before), changes
        regularization = tuning.parameters.get("regularization", "auto")
        expected = direct_phase(tuning.stack, tuning.parameters, regularization=regularization)
        np.testing.assert_array_equal(image, expected)
    assert shown(tuning).notes == ()
    tuning.change(borders="coverage")
    assert "borders = 'coverage' is without meaning" in str(shown(tuning).notes)
    tuning.change(image="parallax")
    assert_shown(tuning)


def test_it_waits_for_the_whole_scan():
    stack = Stack.from_array(FRAMES)
    stack.scanned[5:] = False
    tuning = Tuning(stack, PARAMETERS)
    tuning.growing = True
    assert_shown(tuning)
    tuning.change(image="direct")
    assert tuning.wait(120)
    assert "needs all frames, 56% of them are there" in tuning.problem
    # It was broken off.
    stack.frames[5 * stack.scan_shape[1] :] = 0
    tuning.growing = False
    tuning.grow(stack, at_once=True)
    np.testing.assert_array_equal(shown(tuning).image, direct_phase(stack, DIRECT))
    tuning.grow(Stack.from_array(FRAMES), at_once=True)
    np.testing.assert_array_equal(shown(tuning).image, direct_phase(tuning.stack, DIRECT))
    tuning.close()


def test_a_coarser_one_comes_first(monkeypatch):
    monkeypatch.setattr(maker, "_AT_ONCE", 1 << 12)
    pictures = []
    tuning = Tuning(Stack.from_array(FRAMES), PARAMETERS)
    tuning.wait(120)
    tuning.listen(lambda: pictures.append(tuning.picture))
    tuning.change(image="direct")
    image = shown(tuning).image
    tuning.close()
    coarse = [picture for picture in pictures if picture.coarse > 1 and picture.name == "direct"]
    assert coarse
    np.testing.assert_array_equal(image, direct_phase(tuning.stack, DIRECT))
