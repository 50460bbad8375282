"""Frames of a stack that images would suffer from are told with all that are made of it."""

import warnings

import numpy as np
import pytest
from file_commands import Run, succeeded
from helpers import draw_disk

from libertem_parallax import Parameters, defocus_series, direct_phase
from libertem_parallax.accumulate import Stack
from libertem_parallax.contradictions import positions_to_compare
from libertem_parallax.geometry import Geometry
from libertem_parallax.show.tuning import Tuning
from libertem_parallax.stack_problems import hot_pixel_of_stack, stack_problem
from libertem_parallax.weak_object import with_rim

SHAPE = (32, 32, 48, 48)
RADIUS = 12.0
PARAMETERS = {
    "scan_sampling": (4.0, 4.0),
    "energy": 300e3,
    "semiangle_cutoff": 6.0,
    "angular_sampling": (0.5, 0.5),
    "aberration_coefs": {"C10": -2000.0},
}


@pytest.mark.parametrize("counts", [0.1, 1.0, 100.0])
def test_a_hot_pixel_of_a_stack_is_told(counts):
    """It alone would be what images show; what is a few times as bright is a specimen's."""
    geometry = Geometry.from_parameters(SHAPE, **PARAMETERS)
    frames = np.random.default_rng(2).poisson(counts, (32 * 32, len(geometry.plan.pixels)))
    pixels, scanned = geometry.plan.pixels, np.ones(SHAPE[:2], bool)
    stack = Stack(frames, pixels, SHAPE[:2], SHAPE[2:], scanned)
    at = np.flatnonzero((pixels == [20, 30]).all(axis=1))
    frames[:, at] *= 3
    frames[526, :5] = 10000  # a cosmic ray, in a frame that is looked at
    assert 526 in positions_to_compare(SHAPE[:2], len(pixels))
    assert stack_problem(geometry, stack) is None
    frames[:, at] = 100 * max(counts, 1)
    told = stack_problem(geometry, stack)
    assert told is not None
    assert told.startswith("the pixel at row 20, column 30 is ")
    assert hot_pixel_of_stack(geometry.plan, stack) == told
    without = np.ones(SHAPE[2:], bool)
    without[20, 30] = False
    assert stack_problem(geometry.replace(bf_mask=without), stack) is None


@pytest.mark.parametrize("far", [0, 25])
@pytest.mark.parametrize(("center", "tells"), [((24.0, 24.0), False), ((28.0, 22.0), True)])
def test_stacks_are_compared_as_far_as_their_pixels_tell(far, center, tells):
    """Of the whole detector, or of the bright field and its rim."""
    rng = np.random.default_rng(0)
    mean = draw_disk((24.0, 24.0), RADIUS, shape=SHAPE[2:], counts=1000.0) / 1000
    parameters = {**PARAMETERS, "center": center}
    lit = with_rim(Geometry.from_parameters(SHAPE, **parameters)).plan.lookup >= 0
    stack = Stack.from_array(rng.poisson(mean, SHAPE).astype(np.uint8), lit if far else None)
    with warnings.catch_warnings(record=True, action="always") as told:
        direct_phase(stack, parameters)
    assert [w.filename for w in told] == [__file__] * tells
    assert not tells or "the disk is at row 24.0, column 24.0" in str(told[0].message)


def test_a_hot_pixel_is_told_with_all_that_a_stack_is_for():
    mean = draw_disk((24.0, 24.0), RADIUS, shape=SHAPE[2:], counts=300.0) / 1000
    frames = np.random.default_rng(2).poisson(mean, SHAPE).astype(np.uint16)
    frames[..., 20, 30] = 50
    stack = Stack.from_array(frames)
    expected = stack_problem(Geometry.from_parameters(SHAPE, **PARAMETERS), stack)
    assert "row 20, column 30" in str(expected)
    for make in (
        lambda: direct_phase(stack, PARAMETERS),
        lambda: defocus_series(stack, PARAMETERS, [1900.0, 2000.0, 2100.0], "phase"),
    ):
        with warnings.catch_warnings(record=True, action="always") as told:
            make()
        assert [(str(w.message), w.filename) for w in told] == [(expected, __file__)]
    tuning = Tuning(stack, Parameters(**PARAMETERS, image="phase"))
    assert tuning.wait(120)
    assert tuning.picture.notes == (expected,)
    mask = np.ones(SHAPE[2:], bool)
    mask[20, 30] = False
    tuning.change(bf_mask=mask)
    assert tuning.wait(120)
    assert tuning.picture.notes == ()
    tuning.close()


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        (0.93, "the disk is larger than semiangle_cutoff = 5.58 mrad"),
        (1.0, None),
        (1.07, "the disk is smaller"),
    ],
)
@pytest.mark.parametrize("bad", [None, (24, 36), (24, 13)], ids=["", "hot outside", "hot inside"])
def test_a_disk_that_is_a_little_larger_or_smaller_is_told_by_its_rim(stated, told, bad):
    """As the command reads it: a single bright pixel does not make a disk larger."""
    mean = draw_disk((24.0, 24.0), RADIUS, shape=SHAPE[2:], counts=1000.0) / 1000
    frames = np.random.default_rng(0).poisson(mean, SHAPE).astype(np.uint16)
    if bad is not None:
        frames[..., *bad] = 7
    geometry = Geometry.from_parameters(SHAPE, **{**PARAMETERS, "semiangle_cutoff": 6.0 * stated})
    stack = Stack.from_array(frames, with_rim(geometry).plan.lookup >= 0)
    problem = stack_problem(geometry, stack)
    assert (problem is None) if told is None else (told in str(problem))


def test_a_crystal_whose_reflections_reach_beyond_the_rim_is_no_larger_disk():
    """Their disks overlap with that of the beam, and are brighter than that in thick crystals."""
    at = (24, 24), (10, 24), (38, 24), (24, 10), (24, 38)
    beam, *disks = (draw_disk(each, RADIUS, shape=SHAPE[2:], counts=1000.0) / 1000 for each in at)
    frames = np.random.default_rng(0).poisson(beam / 2 + sum(disks), SHAPE).astype(np.uint16)
    geometry = Geometry.from_parameters(SHAPE, **PARAMETERS)
    stack = Stack.from_array(frames, with_rim(geometry).plan.lookup >= 0)
    assert stack_problem(geometry, stack) is None


def test_the_command_tells_of_a_larger_disk_with_direct(run: Run, tmp_path, monkeypatch):
    """Also where a pixel is a small part of the radius: 1 % does no harm."""
    monkeypatch.chdir(tmp_path)
    mean = draw_disk((70.0, 70.0), 55.0, shape=(140, 140), counts=100.0) / 100
    frames = np.random.default_rng(0).poisson(mean, (24, 24, 140, 140)).astype(np.uint8)
    np.save("scan.npy", frames)
    command = (
        "reconstruct scan.npy --scan-sampling 4 4 --energy 300e3 --angular-sampling 0.1 0.1 "
        "--aberration C10=-2000 --center 70 70 --image direct --overwrite -o x.tif"
    )
    for semiangle, told in ((5.5, False), (5.45, False), (5.3, True), (4.0, True)):
        result = succeeded(run(f"{command} --semiangle-cutoff {semiangle}"))
        assert ("Warning: pixels outside of the bright field" in result.stderr) == told, semiangle
