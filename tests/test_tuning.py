"""Tuning without a page: what is shown is what the UDF makes, and the last change is shown."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from libertem.api import Context
from tuned import FRAMES, PARAMETERS, assert_shown, eventually

from libertem_parallax import ParallaxUDF, Parameters
from libertem_parallax.accumulate import Stack
from libertem_parallax.calibration import mean_pattern
from libertem_parallax.geometry import Geometry
from libertem_parallax.images import IMAGES
from libertem_parallax.show import maker
from libertem_parallax.show.maker import reconstruct, sharpness, thinned
from libertem_parallax.show.patterns import odd_pixels
from libertem_parallax.show.tuning import Tuning
from libertem_parallax.simulate import simulate


@pytest.fixture
def stack():
    return Stack.from_array(FRAMES)


@pytest.fixture
def tuning(stack):
    tuning = Tuning(stack, PARAMETERS)
    yield tuning
    tuning.close()


def by_the_udf(parameters, frames=FRAMES, roi=None):
    with Context.make_with("inline") as ctx:
        dataset = ctx.load("memory", data=frames, sig_dims=2)
        udf = ParallaxUDF.from_parameters(dataset.shape, **parameters)
        results = ctx.run_udf(dataset, udf, roi=roi)
    return {name: results[name].data for name in parameters["image"]}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"upsampling_factor": 3, "suppress_Nyquist_noise": False},
        {"detector_transpose": True, "detector_flip_rows": True, "center": None},
        {"bf_mask": np.indices((14, 15)).sum(axis=0) % 5 > 0},
    ],
    ids=["plain", "nyquist", "order", "mask"],
)
def test_images_are_those_of_the_udf(stack, changes):
    parameters = PARAMETERS.replace(**changes, image=tuple(IMAGES))
    expected = by_the_udf(parameters)
    for name in IMAGES:
        image = reconstruct(stack, parameters, name)
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image, expected[name])


def test_the_picture_follows_every_kind_of_change(tuning):
    assert_shown(tuning)
    np.testing.assert_array_equal(tuning.picture.image, by_the_udf(PARAMETERS)["phase_flip"])
    seen = [tuning.picture.image]
    for change in (
        {"image": "parallax"},
        {"rotation_angle": "30deg"},
        {"semiangle_cutoff": 3.0},
        {"center": (7.0, 7.0)},
        {"upsampling_factor": 1},
        {"detector_flip_cols": True},
        {"suppress_Nyquist_noise": False, "upsampling_factor": 2},
    ):
        tuning.change(**change)
        assert_shown(tuning)
        image = tuning.picture.image
        assert not any(np.array_equal(image, other) for other in seen), change
        seen.append(image)
    tuning.aberrate(defocus=1e4, Cs=2e7)
    coefs = tuning.parameters["aberration_coefs"]
    assert coefs == {"C10": -1e4, "C12": 900.0, "phi12": 0.3, "C30": 2e7}
    tuning.aberrate(C12=None, astigmatism_angle=None)
    assert tuning.parameters["aberration_coefs"] == {"C10": -1e4, "C30": 2e7}
    assert_shown(tuning)


def test_fast_moves_are_merged_and_the_last_one_is_shown(tuning):
    tuning.wait()
    numbers = []
    tuning.listen(lambda: numbers.append(tuning.picture.number))
    threads = threading.active_count()
    for defocus in np.linspace(1e4, 2e4, 1000):
        tuning.aberrate(defocus=defocus)
    assert_shown(tuning)
    assert tuning.picture.parameters["aberration_coefs"]["C10"] == -2e4
    assert numbers == sorted(numbers)
    assert tuning.picture.number == 1000
    assert len(set(numbers)) < 1000
    assert threading.active_count() <= threads
    # They are one step.
    tuning.undo()
    assert tuning.parameters is PARAMETERS
    assert not tuning.can_undo


def test_undo_goes_back_step_by_step(tuning):
    steps = [tuning.parameters]
    for change in ({"rotation_angle": 0.5}, {"semiangle_cutoff": 3.5}, {"rotation_angle": 0.1}):
        tuning.change(**change)
        steps.append(tuning.parameters)
    for expected in steps[-2::-1]:
        assert tuning.can_undo
        tuning.undo()
        assert tuning.parameters is expected
    tuning.undo()
    assert tuning.parameters is steps[0]
    assert_shown(tuning)


def test_what_is_out_of_range_changes_nothing(tuning):
    before = tuning.parameters
    for change in ({"energy": -1}, {"defocus": 3}, {"rotation_angle": "north"}):
        with pytest.raises(ValueError, match=next(iter(change))):
            tuning.change(**change)
    with pytest.raises(ValueError, match="C99"):
        tuning.aberrate(C99=1.0)
    assert tuning.parameters is before
    assert not tuning.can_undo
    assert_shown(tuning)


def test_what_gives_no_image_is_told_and_the_last_one_remains():
    full = Stack.from_array(FRAMES)
    tuning = Tuning(full.select(np.hypot(*np.indices((14, 15)) - 7) < 5), PARAMETERS)
    assert_shown(tuning)
    image = tuning.picture.image
    tuning.change(semiangle_cutoff=8.0)
    assert tuning.wait(120)
    assert "pixels that are needed" in tuning.problem
    assert "keep more of the detector" in tuning.problem
    assert tuning.picture.image is image
    tuning.change(semiangle_cutoff=3.0)
    assert_shown(tuning)
    tuning.close()


def test_warnings_come_with_the_picture(tuning):
    tuning.aberrate(C10=-9e5)
    assert tuning.wait(120)
    assert any("exceed the scan" in note for note in tuning.picture.notes)
    tuning.aberrate(C10=0, C12=0)
    assert tuning.wait(120)
    assert any("will be zero" in note for note in tuning.picture.notes)
    tuning.aberrate(C10=-1e4)
    assert_shown(tuning)
    assert tuning.picture.notes == ()


def test_a_coarse_image_comes_first_where_the_image_takes_long(stack, monkeypatch):
    pixels = len(Geometry.from_parameters(FRAMES.shape, **PARAMETERS).plan.pixels)
    monkeypatch.setattr(maker, "_AT_ONCE", 9 * 12 * pixels // 4)
    tuning = Tuning(stack, PARAMETERS)
    assert tuning.wait(120)
    pictures = []
    tuning.listen(lambda: pictures.append(tuning.picture))
    tuning.change(rotation_angle=0.4)
    assert_shown(tuning)
    number = tuning.picture.number
    eventually(lambda: tuning.picture in pictures)
    coarse, fine = (p for p in dict.fromkeys(pictures) if p.number == number)
    assert (coarse.coarse, fine.coarse) == (2, 1)
    every_second = Stack.from_array(FRAMES[::2, ::2])
    expected = reconstruct(
        every_second, tuning.parameters.replace(scan_sampling=(40.0, 50.0)), "phase_flip"
    )
    np.testing.assert_array_equal(coarse.image, expected)
    assert coarse.pixel_size == (20.0, 25.0)
    assert fine.pixel_size == (10.0, 12.5)
    # Another image of the same sums is there at once.
    pictures.clear()
    tuning.change(image="parallax")
    assert_shown(tuning)
    eventually(lambda: tuning.picture in pictures)
    assert {p.coarse for p in pictures if p.number > number} == {1}
    tuning.close()


def test_a_stack_that_fills(stack):
    scanned = np.zeros((9, 12), bool)
    growing = Stack(np.zeros_like(stack.frames), stack.pixels, (9, 12), (14, 15), scanned)
    tuning = Tuning(growing, PARAMETERS)
    assert tuning.wait(120)
    assert not tuning.picture.image.any()
    for rows in ((0, 4), (4, 6), (6, 9)):
        part = slice(12 * rows[0], 12 * rows[1])
        growing.frames[part] = stack.frames[part]
        scanned[slice(*rows)] = True
        tuning.grow(growing, at_once=rows[1] == 9)
        if rows[1] == 6:  # a knob is turned while frames arrive
            tuning.change(rotation_angle=0.3)
            assert_shown(tuning)
            roi = np.arange(9)[:, None].repeat(12, axis=1) < 6
            np.testing.assert_array_equal(tuning.picture.scanned, roi)
            expected = by_the_udf(tuning.parameters, roi=roi)
            np.testing.assert_array_equal(tuning.picture.image, expected["phase_flip"])
    assert_shown(tuning)
    assert tuning.picture.scanned.all()
    expected = by_the_udf(tuning.parameters)["phase_flip"]
    np.testing.assert_array_equal(tuning.picture.image, expected)
    tuning.close()


def test_the_next_acquisition_may_have_another_shape(tuning):
    tuning.wait()
    other = np.random.default_rng(2).poisson(3, (7, 8, 14, 16)).astype(np.uint8)
    tuning.grow(Stack.from_array(other))
    assert_shown(tuning)
    np.testing.assert_array_equal(
        tuning.picture.image, by_the_udf(tuning.parameters, other)["phase_flip"]
    )


def test_listeners_do_not_harm_each_other(tuning, caplog):
    tuning.wait()
    heard = []

    def fails():
        raise OSError("a connection was lost")

    tuning.listen(fails)
    stop = tuning.listen(lambda: heard.append(tuning.picture.number))
    tuning.change(rotation_angle=0.3)
    assert_shown(tuning)
    assert "a connection was lost" in caplog.text
    stop()
    stop()
    count = len(heard)
    tuning.change(rotation_angle=0.5)
    assert_shown(tuning)
    assert heard
    assert len(heard) <= count + 1  # what was under way


def test_idle_work_waits_for_pictures_and_is_replaced(tuning):
    tuning.wait()
    begun, replaced = threading.Event(), threading.Event()

    def forever():
        for _ in itertools.count():
            begun.set()
            yield

    def once():
        yield
        replaced.set()

    tuning.when_idle(forever())
    assert begun.wait(120)
    tuning.change(rotation_angle=0.3)
    assert_shown(tuning)  # although that work has no end
    tuning.when_idle(once())
    assert replaced.wait(120)


def test_sharpness_finds_the_defocus():
    simulation = simulate(scan_shape=(36, 36), dose=300, seed=2)
    given = {k: v for k, v in simulation.parameters.items() if k != "shape"}
    parameters = Parameters(**given).replace(aberration_coefs={"C10": 4e3, "C30": 1e5})
    stack = Stack.from_array(simulation.frames)
    defoci = np.arange(-25e3, 26e3, 2.5e3)
    values = [sharpness(stack, parameters, c10) for c10 in defoci]
    assert defoci[np.argmax(values)] == simulation.parameters["aberration_coefs"]["C10"]
    assert max(values) > 1.3 * np.median(values)


def test_sharpness_may_be_too_large_for_single_precision():
    """It has the square of the frames' unit, which may be any."""
    frames = FRAMES[:2].astype(np.float32)
    one, other = (
        sharpness(Stack.from_array(frames * np.float32(unit)), PARAMETERS, -1e4)
        for unit in (1, 1e21)
    )
    assert one > 0
    assert other == pytest.approx(1e42 * one, rel=1e-3)


def test_thinning_takes_every_so_many_positions():
    stack = Stack.from_array(FRAMES)
    stack.scanned[3] = False
    thin = thinned(stack, 3)
    assert thin.scan_shape == (3, 4)
    np.testing.assert_array_equal(thin.frames.reshape(3, 4, 14, 15), FRAMES[::3, ::3])
    np.testing.assert_array_equal(thin.scanned, stack.scanned[::3, ::3])


def test_the_mean_pattern_is_that_of_scanned_frames(stack):
    np.testing.assert_allclose(mean_pattern(stack), FRAMES.mean(axis=(0, 1)))
    third = FRAMES.reshape(-1, *FRAMES.shape[2:])[::3].mean(axis=0)
    np.testing.assert_allclose(mean_pattern(stack, len(stack.frames) // 3), third)
    stack.scanned[4:] = False
    disk = np.hypot(*np.indices((14, 15)) - 7) < 5
    pattern = mean_pattern(stack.select(disk))
    np.testing.assert_allclose(pattern[disk], FRAMES[:4].mean(axis=(0, 1))[disk])
    assert np.isnan(pattern[~disk]).all()
    stack.scanned[:] = False
    assert np.isnan(mean_pattern(stack)).all()


def test_dead_and_hot_pixels_are_found_also_next_to_the_disk():
    rng = np.random.default_rng(5)
    disk = np.hypot(*np.indices((32, 32)) - 15.3) < 9
    pattern = rng.poisson(np.where(disk, 200, 2)).astype(float)
    assert not len(odd_pixels(pattern))
    wrong = [(3, 4), (15, 14), (15, 15), (0, 31), (16, 22)]
    for row, col in wrong:
        pattern[row, col] = 0 if disk[row, col] else 900
    found = {tuple(pixel) for pixel in odd_pixels(pattern)}
    assert found == set(wrong)
    pattern[:, 20:] = np.nan
    assert {tuple(pixel) for pixel in odd_pixels(pattern)} == {(3, 4), (15, 14), (15, 15)}
