"""What UDFs refuse, and what they warn of."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
from helpers import PARAMETERS, make_scan, run_udf
from libertem.io.corrections import CorrectionSet
from libertem.udf.sum import SumUDF

from libertem_parallax import ParallaxPhaseFlipUDF, ParallaxUDF


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_64_bit_integers_that_others_make_floats_are_refused(inline, dtype):
    """SumUDF wants floats; beside it, 2⁵³ + 1 came as 2⁵³."""
    frames = np.ones(PARAMETERS["shape"], dtype)
    frames[3, 4, 12, 12] = 2**53 + 1
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    ds = inline.load("memory", data=frames, sig_dims=2)
    with pytest.raises(
        ValueError, match=f"{dtype}.* converted to float64.* run this one by itself"
    ):
        inline.run_udf(ds, [udf, SumUDF()])
    # Where floats are what was asked for, they are taken.
    inline.run_udf(ds, udf, corrections=CorrectionSet(dark=np.zeros((24, 25))))


@pytest.mark.parametrize("value", [1e39, 3e38])
def test_large_values_are_refused_and_large_images_are_finite(inline, value):
    """Images are float32, which ends at 3.4e38."""
    frames = make_scan(PARAMETERS["shape"], "float64")
    udf = ParallaxPhaseFlipUDF.from_parameters(**PARAMETERS)
    expected = run_udf(inline, frames, udf)
    frames[5, 3, 11, 12] = value
    named = re.escape(f"position (5, 3), detector pixel (11, 12) is {value:g}")
    with pytest.raises(ValueError, match=named):
        run_udf(inline, frames, udf)
    frames[5, 3, 11, 12] = 1e29
    images = run_udf(inline, frames, udf)
    assert all(np.isfinite(image).all() for image in images.values())
    assert not np.array_equal(images["parallax"], expected["parallax"])


def test_a_blank_scan_gives_a_blank_image(inline):
    for value in (0, 7):
        frames = np.full(PARAMETERS["shape"], value, np.uint8)
        for image in run_udf(
            inline, frames, ParallaxPhaseFlipUDF.from_parameters(**PARAMETERS)
        ).values():
            assert np.abs(image).max() < 1e-9


def test_data_of_another_shape_is_refused_before_anything_is_read(ctx):
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    for shape in ((9, 8, 24, 25), (8, 9, 25, 24), (8, 10, 24, 25), (8, 9, 24, 24)):
        with pytest.raises(
            ValueError, match=r"shape \(.*\), the UDF was made for \(8, 9, 24, 25\)"
        ):
            run_udf(ctx, np.zeros(shape, np.uint8), udf)


def test_complex_data_is_refused(inline):
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    with pytest.raises(TypeError, match="frames of dtype complex64: expected integers or floating"):
        run_udf(inline, np.zeros(PARAMETERS["shape"], np.complex64), udf)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_pixels_stop_the_run_and_are_named(ctx, bad):
    frames = make_scan(PARAMETERS["shape"], "float32")
    frames[5, 3, 11, 12] = bad
    frames[0, 0, 0, 0] = bad  # outside the bright field: not read
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    with pytest.raises(Exception, match=rf"position \(5, 3\), detector pixel \(11, 12\) is {bad}"):
        run_udf(ctx, frames, udf)
    mask = np.ones((24, 25), bool)
    mask[11, 12] = False
    udf = ParallaxUDF.from_parameters(**PARAMETERS, bf_mask=mask)
    assert np.isfinite(run_udf(ctx, frames, udf)["reconstruction"]).all()


@pytest.mark.parametrize("engine", ["cupid", ["numba"]])
def test_unknown_engines_are_refused(engine):
    with pytest.raises(ValueError, match=r"engine = .*: expected one of auto, cuda, numba, numpy"):
        ParallaxUDF.from_parameters(**PARAMETERS, engine=engine)


def test_other_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="suppress_Nyquist_noise = 'no': expected True or False"):
        ParallaxUDF.from_parameters(**PARAMETERS, suppress_Nyquist_noise="no")
    with pytest.raises(TypeError, match="udf: expected a ParallaxUDF, got SumUDF"):
        ParallaxPhaseFlipUDF.from_parallax_udf(SumUDF())


@pytest.mark.parametrize(
    ("coefs", "zero"),
    [
        ({"C21": 3e5}, {"reconstruction": "phase-flipped image .* has no even aberration"}),
        (
            {"C10": -300.0},
            {
                "reconstruction": "phase-flipped image will be zero: .* upsampling_factor of",
                "parallax": "parallax image will be zero: .* upsampling_factor of",
            },
        ),
        (
            {},
            {
                "reconstruction": "phase-flipped image will be zero: no aberration",
                "parallax": "parallax image will be zero: no aberration",
            },
        ),
    ],
)
def test_images_that_are_zero_warn(inline, coefs, zero):
    frames = make_scan(PARAMETERS["shape"], "uint8")
    udf = ParallaxPhaseFlipUDF.from_parameters(
        **{**PARAMETERS, "aberration_coefs": coefs, "upsampling_factor": 1}
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = run_udf(inline, frames, udf)
    assert {name for name, image in images.items() if not np.abs(image).max() > 1e-3} == set(zero)
    assert len(caught) == len(zero)
    for message, warning in zip(zero.values(), caught, strict=True):
        assert re.search(message, str(warning.message))


def test_warnings_point_to_the_caller():
    with pytest.warns(UserWarning, match="wraps around") as caught:
        ParallaxUDF.from_parameters(**{**PARAMETERS, "aberration_coefs": {"C10": -1e5}})
    with pytest.warns(UserWarning, match="pixels land outside") as outside:
        ParallaxUDF.from_parameters(
            **{**PARAMETERS, "aberration_coefs": {"C10": -1e5}, "borders": "coverage"}
        )
    assert "wraps" not in str(outside[0].message)
    with pytest.warns(UserWarning, match="cuts off") as also:
        ParallaxPhaseFlipUDF.from_parameters(**{**PARAMETERS, "semiangle_cutoff": 5.0})
    assert [w.filename for w in (caught[0], outside[0], also[0])] == [__file__] * 3
