"""Images of sums, without LiberTEM; that they equal the definition is in test_udf.py."""

from __future__ import annotations

import libertem.api
import numpy as np
import pytest
from helpers import PARAMETERS, make_scan, run_udf

from libertem_parallax import ParallaxUDF
from libertem_parallax.accumulate import ENGINES
from libertem_parallax.images import IMAGES, Imaging, Sums, check_images
from libertem_parallax.images.parallax import parallax


def add(geometry, frames):
    """Sums of frames by the plain engine."""
    plan = geometry.plan
    A, S = np.zeros(plan.accumulator_shape, np.int64), np.zeros(len(frames), np.int64)
    engine = ENGINES["numpy"](plan, frames.dtype, np.arange(len(frames)), A, S)
    engine.add(frames)
    engine.finish()
    return plan.fold(A), S.reshape(plan.scan_shape)


def test_images_need_sums_alone():
    """A stack in memory has no UDF."""
    frames = make_scan(PARAMETERS["shape"], "uint8")
    udf = ParallaxUDF.from_parameters(**PARAMETERS, image=list(IMAGES))
    with libertem.api.Context.make_with("inline") as ctx:
        expected = run_udf(ctx, frames, udf)
    assert list(expected) == list(IMAGES)
    A, S = add(udf.params.geometry, frames.reshape(-1, 24, 25))
    sums = Sums(Imaging(udf.params.geometry), A, S, np.ones(S.shape, bool))
    for name, image in IMAGES.items():
        np.testing.assert_array_equal(sums.once(image.make), expected[name])


def test_constants_are_computed_once_for_a_geometry_and_images_once_for_sums():
    geometry = ParallaxUDF.from_parameters(**PARAMETERS).params.geometry
    imaging, calls = Imaging(geometry), []

    def constant(of):
        calls.append(of)
        return len(calls)

    def image(of):
        calls.append(of)
        return of.imaging.once(constant)

    blank = np.zeros(geometry.plan.folded_shape), np.zeros((8, 9)), np.ones((8, 9), bool)
    first, second = Sums(imaging, *blank), Sums(imaging, *blank)
    assert [sums.once(image) for sums in (first, first, second)] == [2, 2, 2]
    assert calls == [first, imaging, second]


def test_images_leave_the_sums_and_one_another_alone():
    """They are shared by all that are made of them."""
    geometry = ParallaxUDF.from_parameters(**PARAMETERS).params.geometry
    A, S = add(geometry, make_scan(PARAMETERS["shape"], "uint8").reshape(-1, 24, 25))
    sums = Sums(Imaging(geometry), A, S, np.ones(S.shape, bool))
    for array in (A, S, sums.scanned, sums.once(parallax)):
        array.flags.writeable = False
    for image in IMAGES.values():
        sums.once(image.make)


def test_sums_that_would_overflow_are_refused():
    """Where values cancel out, engines do not see them."""
    geometry = ParallaxUDF.from_parameters(**PARAMETERS).params.geometry
    A, S = np.zeros(geometry.plan.folded_shape), np.zeros((8, 9))
    for bad in (1e39, -1e39, np.nan, np.inf):
        A[0, 1, 2, 3] = bad
        with pytest.raises(ValueError, match=r"sums of frames reach from .* no more than 1e\+30"):
            Sums(Imaging(geometry), A, S, S == 0)


@pytest.mark.parametrize("image", ["phase flip", [], ["parallax", "flip"], 3, [["parallax"]]])
def test_unknown_images_are_refused(image):
    with pytest.raises(ValueError, match=r"image = .*: expected one or several of parallax, phas"):
        check_images(image)
    with pytest.raises(ValueError, match="image = "):
        ParallaxUDF.from_parameters(**PARAMETERS, image=image)


def test_names_count_once_and_keep_their_order():
    assert check_images("phase_flip") == ("phase_flip",)
    assert check_images(iter(["phase_flip", "parallax", "phase_flip"])) == (
        "phase_flip",
        "parallax",
    )
