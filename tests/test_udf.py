"""Both UDFs through LiberTEM, against the definition and against upstream."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import definition
import libertem.api
import numpy as np
import pytest
import scipy.sparse
import sparse
from libertem.io.corrections import CorrectionSet
from libertem.udf.sum import SumUDF

from libertem_parallax import ParallaxPhaseFlipUDF, ParallaxUDF

EVERYTHING = {
    "C10": -2500.0, "C12": 300.0, "phi12": 0.4, "C21": 2e4, "phi21": 1.0, "C23": 3e4, "phi23": -0.7,
    "C30": 4e6, "C32": 2e6, "phi32": 0.2, "C34": 3e6, "phi34": 1.2, "C41": 3e8, "phi41": 0.1,
    "C43": 2e8, "phi43": 2.0, "C45": 4e8, "phi45": 0.3, "C50": 3e10, "C52": 2e10, "phi52": 1.3,
    "C54": 4e10, "phi54": 0.9, "C56": 3e10, "phi56": -1.1,
}  # fmt: skip
PARAMETERS = {
    "shape": (8, 9, 24, 25),
    "scan_sampling": (4.1, 3.9),
    "energy": 300e3,
    "semiangle_cutoff": 4.0,
    "angular_sampling": (0.41, 0.37),
    "aberration_coefs": EVERYTHING,
    "rotation_angle": -0.26,
    "upsampling_factor": 2,
}
# LiberTEM says this whenever a tile shape is forced that it did not propose.
forced_tiles = pytest.mark.filterwarnings("ignore:dataset.adjust_tileshape:UserWarning")


@pytest.fixture(scope="module")
def inline():
    with libertem.api.Context.make_with("inline") as ctx:
        yield ctx


@pytest.fixture(scope="module", params=["inline", "threads", "pipelined", "dask"])
def ctx(request):
    cpus = {} if request.param == "inline" else {"cpus": 2}
    with libertem.api.Context.make_with(request.param, **cpus) as ctx:
        yield ctx


def make_frames(shape, dtype, seed=0):
    """Counts over the full range of 8 and 16 bits, with a bright field that fluctuates."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return (rng.random(shape) * rng.random((*shape[:2], 1, 1))).astype(dtype)
    top = min(np.iinfo(dtype).max, 2**31 - 1)
    bottom = max(np.iinfo(dtype).min, -(2**31))
    native = dtype.newbyteorder("=")
    return rng.integers(bottom, top, shape, dtype=native, endpoint=True).astype(dtype)


def run(ctx, frames, udf, *, roi=None, **load):
    ds = ctx.load("memory", data=frames, sig_dims=2, **{"num_partitions": 3, **load})
    result = ctx.run_udf(dataset=ds, udf=udf, roi=roi)
    return {name: buffer.data for name, buffer in result.items()}


def sums(udf):
    """Accumulator and bright-field sums of the last run."""
    return tuple(udf.results.get_buffer(name).raw_data.copy() for name in "AS")


def defined(frames, parameters):
    """Both images by the definition."""
    p = {"rotation_angle": 0.0, "upsampling_factor": 1, **parameters}
    u, coefs = p["upsampling_factor"], p["aberration_coefs"]
    suppress = p.get("suppress_Nyquist_noise", True)
    pixels, angles = definition.bright_field(
        frames.shape[2:],
        p["angular_sampling"],
        p["semiangle_cutoff"],
        rotation=p["rotation_angle"],
        center=p.get("center"),
        flip=p.get("detector_flip_cols", False),
        mask=p.get("bf_mask"),
    )
    shifts = definition.shifts(coefs, angles, p["scan_sampling"], u)
    image = definition.parallax(frames, pixels, shifts, u, suppress=suppress)
    return image, definition.phase_flip(
        image, coefs, definition.WAVELENGTH_300KEV, p["scan_sampling"], u, suppress=suppress
    )


def assert_equals_definition(ctx, frames, parameters, engine="numba", **load):
    udf = ParallaxUDF.from_parameters(**parameters, engine=engine)
    flip = ParallaxPhaseFlipUDF.from_parameters(**parameters, engine=engine)
    parallax, flipped = defined(frames, parameters)
    results = run(ctx, frames, udf, **load), run(ctx, frames, flip, **load)
    for actual, expected in [
        (results[0]["reconstruction"], parallax),
        (results[1]["parallax"], parallax),
        (results[1]["reconstruction"], flipped),
    ]:
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


CASES = {
    "plain": {},
    "u1": {"upsampling_factor": 1},
    "u3": {"upsampling_factor": 3},
    "u4": {"upsampling_factor": 4},
    "noisy": {"suppress_Nyquist_noise": False},
    "noisy-u1": {"suppress_Nyquist_noise": False, "upsampling_factor": 1},
    "rotated": {"rotation_angle": 2.2},
    "centered": {"center": (11.3, 12.8), "semiangle_cutoff": 3.7},
    "flipped": {"detector_flip_cols": True},
    "flipped-centered": {"detector_flip_cols": True, "center": (11.3, 12.8)},
    "masked": {"bf_mask": np.random.default_rng(1).random((24, 25)) < 0.6},
    "odd-scan": {"shape": (7, 9, 24, 25)},
    "even-scan": {"shape": (6, 10, 24, 25)},
    "even-detector": {"shape": (8, 9, 24, 26)},
    "odd-detector": {"shape": (8, 9, 23, 25)},
    "one-row": {"shape": (1, 30, 24, 25), "aberration_coefs": {"C10": -300.0}},
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_definition(inline, case, engine_name):
    parameters = {**PARAMETERS, **CASES[case]}
    frames = make_frames(parameters["shape"], "uint16")
    assert_equals_definition(inline, frames, parameters, engine_name)


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "uint16", "uint32", "int16", "int32", "float32", "float64", ">u2"]
)
def test_equals_the_definition_for_all_dtypes(inline, dtype, engine_name):
    frames = make_frames(PARAMETERS["shape"], "uint8" if dtype == "bool" else dtype)
    if dtype == "bool":
        frames = frames > 127
    assert_equals_definition(inline, frames, PARAMETERS, engine_name)


@pytest.mark.parametrize(
    ("dtype", "accumulator"),
    [("uint8", "int64"), ("uint16", "int64"), ("uint32", "int64"), ("int64", "int64"),
     ("float32", "float64")],
)  # fmt: skip
def test_frames_come_in_their_own_dtype_and_are_summed_exactly(inline, dtype, accumulator):
    frames = np.full(PARAMETERS["shape"], 1, dtype)
    odd = 2**53 + 1 if dtype == "int64" else 1
    if dtype == "int64":
        frames[3, 4, 12, 12] = odd  # the first integer that float64 does not hold
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    run(inline, frames, udf)
    A, S = sums(udf)
    pixels = len(udf.params.geometry.plan.pixels)
    assert (A.dtype, S.dtype) == (accumulator, accumulator)
    assert int(S[3 * 9 + 4]) == pixels - 1 + odd


def test_the_background_is_taken_off_in_double_precision(inline):
    """A pedestal of 65000 counts changes nothing, half-way through a scan."""
    frames = make_frames((8, 9, 24, 25), "uint16") % 536
    roi = np.zeros((8, 9), bool)
    roi[:4] = True
    images = [
        run(inline, f, ParallaxUDF.from_parameters(**PARAMETERS), roi=roi)["reconstruction"]
        for f in (frames, frames + np.uint16(65000))
    ]
    np.testing.assert_allclose(*images, rtol=0, atol=1e-6 * np.abs(images[0]).max())


#: How they come from that of the scan, and the quarter turn and column flip of 0.1.2 for them.
LAYOUTS = {
    "rows, cols": (lambda f: f, 0, False),
    "rows, reversed cols": (lambda f: f[..., ::-1], 0, True),
    "reversed rows, cols": (lambda f: f[..., ::-1, :], 2, True),
    "reversed rows, reversed cols": (lambda f: f[..., ::-1, ::-1], 2, False),
    "cols, rows": (lambda f: f.swapaxes(2, 3), 1, True),
    "cols, reversed rows": (lambda f: f.swapaxes(2, 3)[..., ::-1], 1, False),
    "reversed cols, rows": (lambda f: f.swapaxes(2, 3)[..., ::-1, :], -1, False),
    "reversed cols, reversed rows": (lambda f: f.swapaxes(2, 3)[..., ::-1, ::-1], -1, True),
}


@pytest.mark.parametrize("detector", [(24, 24), (24, 25), (25, 24), (25, 25)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("centered", [False, True])
def test_the_eight_layouts_give_one_image(inline, detector, layout, centered):
    """However the frames are stored, the parameters of that layout give the same image.

    So do, with a given center, the quarter turns of 0.1.2.
    """
    relayout, turn, flip = LAYOUTS[layout]
    parameters = {**PARAMETERS, "shape": (8, 9, *detector), "rotation_angle": 0.3}
    frames = make_frames(parameters["shape"], "uint8")
    stored = np.ascontiguousarray(relayout(frames))
    there = dict(parameters, shape=stored.shape)
    first, second = layout.split(", ")
    transposed = first.endswith("cols")
    if centered:
        parameters["center"] = (11.3, 12.6)
        there |= {"rotation_angle": 0.3 + turn * np.pi / 2, "detector_flip_cols": flip}
    else:
        there |= {
            "detector_flip_rows": first.startswith("reversed"),
            "detector_flip_cols": second.startswith("reversed"),
            "detector_transpose": transposed,
        }
    if transposed:
        there["angular_sampling"] = parameters["angular_sampling"][::-1]
    if centered:
        # Where the center went: follow it through the same rearrangement of the indices.
        rows, cols = np.indices(detector, dtype=float)
        row, col = (relayout(i[None, None])[0, 0] for i in (rows, cols))
        y, x = np.indices(row.shape)
        to_y, to_x = (
            np.linalg.lstsq(
                np.stack([row.ravel(), col.ravel(), np.ones(row.size)], -1),
                axis.ravel(),
                rcond=None,
            )[0]
            for axis in (y, x)
        )
        where = np.array([*parameters["center"], 1.0])
        there["center"] = (to_y @ where, to_x @ where)
    udf, expected = (ParallaxPhaseFlipUDF.from_parameters(**p) for p in (there, parameters))
    actual, expected = run(inline, stored, udf), run(inline, frames, expected)
    for channel in expected:
        np.testing.assert_allclose(
            actual[channel], expected[channel], atol=1e-5 * np.abs(expected[channel]).max()
        )


def test_upstream_is_reproduced(inline):
    """Images by upstream 0.1.2; see make_upstream.py."""
    with np.load(Path(__file__).with_name("upstream_0.1.2.npz")) as file:
        for name, parameters in json.loads(str(file["parameters"])).items():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "rotation_angle is exactly")
                udf = ParallaxUDF.from_parameters(**parameters)
            actual = run(inline, file["frames"], udf)["reconstruction"]
            scale = np.abs(file[name]).max()
            np.testing.assert_allclose(actual, file[name], rtol=0, atol=1e-6 * scale, err_msg=name)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_executors_give_the_same_bits(ctx, inline, dtype):
    frames = make_frames((12, 13, 24, 25), dtype)
    parameters = {**PARAMETERS, "shape": frames.shape}
    results = []
    for context, partitions in ((inline, 1), (ctx, 5)):
        udf = ParallaxPhaseFlipUDF.from_parameters(**parameters)
        images = run(context, frames, udf, num_partitions=partitions)
        results.append((*sums(udf), images["reconstruction"], images["parallax"]))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@forced_tiles
@pytest.mark.parametrize(
    "tileshape", [(1, 24, 25), (5, 24, 25), (7, 3, 25), (4, 5, 6), (200, 1, 25)]
)
def test_tilings_give_the_same_bits(inline, tileshape, engine_name):
    frames = make_frames((8, 9, 24, 25), "uint16")
    results = []
    for load in ({"num_partitions": 1}, {"num_partitions": 3, "tileshape": tileshape}):
        udf = ParallaxUDF.from_parameters(**PARAMETERS, engine=engine_name)
        run(inline, frames, udf, **load)
        results.append(sums(udf))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@forced_tiles
@pytest.mark.parametrize("tileshape", [None, (4, 5, 6)])
def test_a_region_of_interest_is_the_scan_without_the_rest(ctx, inline, tileshape):
    frames = make_frames((8, 9, 24, 25), "uint16")
    roi = np.random.default_rng(2).random((8, 9)) < 0.4
    udf, all_of = (ParallaxUDF.from_parameters(**PARAMETERS) for _ in range(2))
    image = run(ctx, frames, udf, roi=roi, tileshape=tileshape)["reconstruction"]
    expected = run(inline, frames * roi[:, :, None, None], all_of)["reconstruction"]
    (A, S), (A_expected, S_expected) = sums(udf), sums(all_of)
    np.testing.assert_array_equal(A, A_expected)
    np.testing.assert_array_equal(S, S_expected[roi.reshape(-1)])
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(
    "form",
    [
        sparse.COO,
        sparse.GCXS,
        scipy.sparse.csr_matrix,
        scipy.sparse.csr_array,
        lambda roi: tuple(map(int, np.argwhere(roi)[0])),
        lambda roi: [((int(y), int(x)), True) for y, x in np.argwhere(roi)],
    ],
    ids=["COO", "GCXS", "csr_matrix", "csr_array", "position", "list"],
)
def test_regions_of_interest_of_any_form(ctx, form):
    """That LiberTEM takes."""
    frames = make_frames((8, 9, 24, 25), "uint16")
    roi = np.zeros((8, 9), bool)
    roi[3, 4] = roi[5, 0] = True
    given = form(roi)
    if isinstance(given, tuple):
        roi[5, 0] = False
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    expected = run(ctx, frames, udf, roi=roi)["reconstruction"]
    image = run(ctx, frames, udf, roi=given)["reconstruction"]
    np.testing.assert_array_equal(image, expected)


@forced_tiles
@pytest.mark.parametrize("offset", [-20, -3, 0, 5, 31])
@pytest.mark.parametrize("tileshape", [None, (4, 5, 25)])
def test_sync_offset_moves_the_frames_along_the_scan(ctx, inline, offset, tileshape):
    frames = make_frames((8, 9, 24, 25), "uint16")
    udf, all_of = (ParallaxUDF.from_parameters(**PARAMETERS) for _ in range(2))
    image = run(ctx, frames, udf, sync_offset=offset, tileshape=tileshape)["reconstruction"]
    flat = frames.reshape(-1, 24, 25)
    moved = np.zeros_like(flat)
    if offset >= 0:
        moved[: len(flat) - offset] = flat[offset:]
    else:
        moved[-offset:] = flat[:offset]
    expected = run(inline, moved.reshape(frames.shape), all_of)["reconstruction"]
    for one, other in zip(sums(udf), sums(all_of), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(image, expected)


def test_files_of_any_kind(ctx, tmp_path):
    """Memory-mapped, and decoded on the way in."""
    frames = make_frames((8, 9, 24, 25), "uint16")
    np.save(tmp_path / "frames.npy", frames)
    frames.astype(">u2").tofile(tmp_path / "frames.raw")
    results = []
    for load in (
        {"path": str(tmp_path / "frames.npy")},
        {"filetype": "raw", "path": str(tmp_path / "frames.raw"), "dtype": ">u2",
         "nav_shape": (8, 9), "sig_shape": (24, 25)},
    ):  # fmt: skip
        ds = ctx.load(**{"filetype": "auto", **load})
        udf = ParallaxUDF.from_parameters(**{**PARAMETERS, "shape": ds.shape})
        ctx.run_udf(dataset=ds, udf=udf)
        results.append(sums(udf))
    reference = ParallaxUDF.from_parameters(**PARAMETERS)
    run(ctx, frames, reference)
    for result in results:
        for one, other in zip(result, sums(reference), strict=True):
            np.testing.assert_array_equal(one, other)


def test_corrections_are_applied_first(inline):
    frames = make_frames(PARAMETERS["shape"], "uint8")
    rng = np.random.default_rng(3)
    dark, gain = rng.random((2, 24, 25)).astype(np.float32)
    ds = inline.load("memory", data=frames, sig_dims=2)
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    image = inline.run_udf(dataset=ds, udf=udf, corrections=CorrectionSet(dark=dark, gain=gain))
    expected, _ = defined((frames - dark) * gain, PARAMETERS)
    actual = image["reconstruction"].data
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_both_udfs_and_others_in_one_run(inline):
    frames = make_frames(PARAMETERS["shape"], "uint8")
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    flip = ParallaxPhaseFlipUDF.from_parallax_udf(udf)
    ds = inline.load("memory", data=frames, sig_dims=2, num_partitions=3)
    one, other, total = inline.run_udf(dataset=ds, udf=[udf, flip, SumUDF()])
    np.testing.assert_array_equal(one["reconstruction"].data, other["parallax"].data)
    np.testing.assert_allclose(
        total["intensity"].data, frames.sum(axis=(0, 1), dtype=float), rtol=1e-6
    )
    alone = run(inline, frames, flip)
    np.testing.assert_array_equal(alone["reconstruction"], other["reconstruction"].data)


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


def test_several_images_in_one_pass(ctx, inline):
    frames = make_frames(PARAMETERS["shape"], "uint8")
    both = ParallaxUDF.from_parameters(**PARAMETERS, image=["phase_flip", "parallax"])
    images = run(ctx, frames, both)
    expected = run(inline, frames, ParallaxPhaseFlipUDF.from_parameters(**PARAMETERS))
    assert list(images) == ["phase_flip", "parallax"]
    np.testing.assert_array_equal(images["parallax"], expected["parallax"])
    np.testing.assert_array_equal(images["phase_flip"], expected["reconstruction"])
    one = ParallaxUDF.from_parameters(**PARAMETERS, image="phase_flip")
    images = run(inline, frames, one)
    assert list(images) == ["phase_flip"]
    np.testing.assert_array_equal(images["phase_flip"], expected["reconstruction"])


def test_from_parallax_udf_takes_every_parameter(inline):
    parameters = {**PARAMETERS, "suppress_Nyquist_noise": False, "engine": "numpy"}
    udf = ParallaxPhaseFlipUDF.from_parallax_udf(ParallaxUDF.from_parameters(**parameters))
    expected = ParallaxPhaseFlipUDF.from_parameters(**parameters)
    assert udf.params.engine == "numpy"
    frames = make_frames(PARAMETERS["shape"], "uint8")
    actual, expected = run(inline, frames, udf), run(inline, frames, expected)
    np.testing.assert_array_equal(actual["reconstruction"], expected["reconstruction"])


def test_the_picture_grows_and_ends_as_the_whole(inline):
    frames = make_frames(PARAMETERS["shape"], "uint8")
    udf = ParallaxPhaseFlipUDF.from_parameters(**PARAMETERS)
    whole = run(inline, frames, udf)
    ds = inline.load("memory", data=frames, sig_dims=2, num_partitions=4)
    parts = [
        {name: buffer.data.copy() for name, buffer in part.buffers[0].items()}
        for part in inline.run_udf_iter(dataset=ds, udf=udf)
    ]
    assert len(parts) == 4
    for name, image in whole.items():
        np.testing.assert_array_equal(parts[-1][name], image)
        assert not np.array_equal(parts[0][name], image)
    # Two of the eight scan rows are in the first quarter; the rest counts as not there.
    first = np.zeros_like(frames)
    first[:2] = frames[:2]
    np.testing.assert_array_equal(parts[0]["parallax"], run(inline, first, udf)["parallax"])


@pytest.mark.parametrize("value", [1e39, 3e38])
def test_large_values_are_refused_and_large_images_are_finite(inline, value):
    """Images are float32, which ends at 3.4e38."""
    frames = make_frames(PARAMETERS["shape"], "float64")
    udf = ParallaxPhaseFlipUDF.from_parameters(**PARAMETERS)
    expected = run(inline, frames, udf)
    frames[5, 3, 11, 12] = value
    named = re.escape(f"position (5, 3), detector pixel (11, 12) is {value:g}")
    with pytest.raises(ValueError, match=named):
        run(inline, frames, udf)
    frames[5, 3, 11, 12] = 1e29
    images = run(inline, frames, udf)
    assert all(np.isfinite(image).all() for image in images.values())
    assert not np.array_equal(images["parallax"], expected["parallax"])


def test_a_blank_scan_gives_a_blank_image(inline):
    for value in (0, 7):
        frames = np.full(PARAMETERS["shape"], value, np.uint8)
        for image in run(
            inline, frames, ParallaxPhaseFlipUDF.from_parameters(**PARAMETERS)
        ).values():
            assert np.abs(image).max() < 1e-9


@pytest.mark.parametrize("shape", [(9, 8, 24, 25), (8, 9, 25, 24), (8, 10, 24, 25), (8, 9, 24, 24)])
def test_data_of_another_shape_is_refused_before_anything_is_read(ctx, shape):
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    with pytest.raises(ValueError, match=r"shape \(.*\), the UDF was made for \(8, 9, 24, 25\)"):
        run(ctx, np.zeros(shape, np.uint8), udf)


def test_complex_data_is_refused(inline):
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    with pytest.raises(TypeError, match="frames of dtype complex64: expected integers or floating"):
        run(inline, np.zeros(PARAMETERS["shape"], np.complex64), udf)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_pixels_stop_the_run_and_are_named(ctx, bad):
    frames = make_frames(PARAMETERS["shape"], "float32")
    frames[5, 3, 11, 12] = bad
    frames[0, 0, 0, 0] = bad  # outside the bright field: not read
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    with pytest.raises(Exception, match=rf"position \(5, 3\), detector pixel \(11, 12\) is {bad}"):
        run(ctx, frames, udf)
    mask = np.ones((24, 25), bool)
    mask[11, 12] = False
    udf = ParallaxUDF.from_parameters(**PARAMETERS, bf_mask=mask)
    assert np.isfinite(run(ctx, frames, udf)["reconstruction"]).all()


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
    frames = make_frames(PARAMETERS["shape"], "uint8")
    udf = ParallaxPhaseFlipUDF.from_parameters(
        **{**PARAMETERS, "aberration_coefs": coefs, "upsampling_factor": 1}
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = run(inline, frames, udf)
    assert {name for name, image in images.items() if not np.abs(image).max() > 1e-3} == set(zero)
    assert len(caught) == len(zero)
    for message, warning in zip(zero.values(), caught, strict=True):
        assert re.search(message, str(warning.message))


def test_finishing_follows_changed_parameters(inline):
    frames = make_frames(PARAMETERS["shape"], "uint8")
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    noisy = ParallaxUDF.from_parameters(**PARAMETERS, suppress_Nyquist_noise=False)
    ds = inline.load("memory", data=frames, sig_dims=2, num_partitions=2)
    parts = inline.run_udf_iter(dataset=ds, udf=udf)
    for number, part in enumerate(parts):
        image = part.buffers[0]["reconstruction"].data
        if number == 0:
            parts.update_parameters_experimental([{"suppress_Nyquist_noise": False}])
    np.testing.assert_array_equal(image, run(inline, frames, noisy)["reconstruction"])


def test_what_tab_completion_shows():
    import libertem_parallax

    assert dir(libertem_parallax) == [
        "ParallaxPhaseFlipUDF", "ParallaxUDF", "Parameters", "StackUDF", "load_parameters"
    ]  # fmt: skip
    for name in dir(libertem_parallax):
        assert getattr(libertem_parallax, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'ParalaxUDF'"):
        _ = libertem_parallax.ParalaxUDF


def test_warnings_point_to_the_caller():
    with pytest.warns(UserWarning, match="wraps around") as caught:
        ParallaxUDF.from_parameters(**{**PARAMETERS, "aberration_coefs": {"C10": -1e5}})
    with pytest.warns(UserWarning, match="cuts off") as also:
        ParallaxPhaseFlipUDF.from_parameters(**{**PARAMETERS, "semiangle_cutoff": 5.0})
    assert [w.filename for w in (caught[0], also[0])] == [__file__] * 2


MEMORY = """
import resource
import numpy as np
import libertem.api
from libertem_parallax import ParallaxPhaseFlipUDF

ctx = libertem.api.Context.make_with("inline")

def run(n):
    frames = np.ones((n, n, 8, 8), np.float32)
    udf = ParallaxPhaseFlipUDF.from_parameters(
        shape=frames.shape, scan_sampling=(3.5, 3.5), angular_sampling=(1.2, 1.2), energy=300e3,
        semiangle_cutoff=4.0, aberration_coefs={"C10": -1.5e4}, upsampling_factor=2)
    ds = ctx.load("memory", data=frames, sig_dims=2, num_partitions=n // 4)
    for part in ctx.run_udf_iter(dataset=ds, udf=udf):
        assert part.buffers[0]["reconstruction"].data.shape == (2 * n, 2 * n)
    return frames.nbytes

run(16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = run(512)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 - data)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_memory_beyond_the_data_is_modest():
    """Under 200 MB for an image of 1024 x 1024 pixels, updated while it grows."""
    output = subprocess.run(
        [sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True
    ).stdout
    assert int(output) < 200e6


# Parameters that change while a run goes on


def retune(ctx, frames, udf, after, **changes):
    """Run in 8 partitions; change parameters after some; yields the image after every one."""
    ds = ctx.load("memory", data=frames, sig_dims=2, num_partitions=8)
    results = ctx.run_udf_iter(dataset=ds, udf=udf)
    for number, part in enumerate(results, 1):
        yield part.buffers[0]["reconstruction"].data.copy()
        if number == after:
            other = type(udf).from_parameters(**{**PARAMETERS, "shape": frames.shape, **changes})
            results.update_parameters_experimental([{"geometry": other.params.geometry}])
            yield udf.get_results()["reconstruction"]


@pytest.mark.parametrize("udf_class", [ParallaxUDF, ParallaxPhaseFlipUDF])
def test_another_geometry_restarts_the_image(inline, udf_class):
    """What was added before is left out, and never mixed with what comes after."""
    frames = make_frames((8, 9, 24, 25), "uint16")
    udf = udf_class.from_parameters(**PARAMETERS)
    changes = {"aberration_coefs": {"C10": -1500.0}, "rotation_angle": 0.4}
    images = list(retune(inline, frames, udf, 3, **changes))
    late = np.where(np.arange(8)[:, None, None, None] >= 3, frames, 0).astype(np.uint16)
    expected = udf_class.from_parameters(**{**PARAMETERS, **changes})
    image = run(inline, late, expected)["reconstruction"]
    assert not images[3].any()
    np.testing.assert_array_equal(images[-1], image)
    for one, other in zip(sums(udf), sums(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    first = np.where(np.arange(8)[:, None, None, None] < 3, frames, 0).astype(np.uint16)
    before = run(inline, first, udf_class.from_parameters(**PARAMETERS))["reconstruction"]
    np.testing.assert_array_equal(images[2], before)


def test_a_geometry_with_the_same_shifts_goes_on(inline):
    frames = make_frames((8, 9, 24, 25), "uint16")
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    *_, image = retune(inline, frames, udf, 3)
    expected = run(inline, frames, ParallaxUDF.from_parameters(**PARAMETERS))
    np.testing.assert_array_equal(image, expected["reconstruction"])


def test_partitions_with_the_old_geometry_are_left_out(inline):
    """As queued executors deliver them after the change."""
    frames = make_frames((8, 9, 24, 25), "uint16")
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    ds = inline.load("memory", data=frames, sig_dims=2, num_partitions=8)
    other = ParallaxUDF.from_parameters(**{**PARAMETERS, "aberration_coefs": {"C10": -1500.0}})
    for part in inline.run_udf_iter(dataset=ds, udf=udf):
        # On the main node only: workers go on with the old one.
        udf._update_parameters_patch({"geometry": other.params.geometry})
        image = part.buffers[0]["reconstruction"].data
    assert not image.any()


def test_another_upsampling_is_refused_while_running(inline):
    frames = make_frames((8, 9, 24, 25), "uint16")
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    with pytest.raises(ValueError, match="the upsampling factor must stay"):
        list(retune(inline, frames, udf, 3, upsampling_factor=3))


# LiberTEM's plots make NumPy say this.
@pytest.mark.filterwarnings("ignore:Warning. 'partition' will ignore the 'mask':UserWarning")
def test_plots_do_not_make_an_image_for_every_partition(inline, monkeypatch):
    """Only as many as there is time for; without plots, all; the last one is always made."""
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda *_, **__: None)
    monkeypatch.setattr("libertem_parallax.udf.parallax._PLOT_SHARE", 1e-9)
    frames = make_frames((8, 9, 24, 25), "uint16")
    ds = inline.load("memory", data=frames, sig_dims=2, num_partitions=8)
    udf = ParallaxPhaseFlipUDF.from_parameters(**PARAMETERS)
    made = []
    make = udf._make_images
    monkeypatch.setattr(udf, "_make_images", lambda: made.append(1) or make())

    expected = inline.run_udf(dataset=ds, udf=udf)["reconstruction"].data
    assert len(made) == 1
    made.clear()
    image = inline.run_udf(dataset=ds, udf=udf, plots=True)["reconstruction"].data
    plt.close("all")
    np.testing.assert_array_equal(image, expected)
    assert len(made) <= 5  # before the first frame, after it, and complete
    # A later run does not show images of an earlier one, and plots are forgotten.
    before = len(made)
    made.clear()
    inline.run_udf(dataset=ds, udf=udf, plots=True)
    plt.close("all")
    assert len(made) == before
    inline.run_udf(dataset=ds, udf=udf, roi=np.zeros((8, 9), bool))
    made.clear()
    images = [part.buffers[0]["reconstruction"].data for part in inline.run_udf_iter(ds, udf)]
    assert len(made) == len(images) == 8
    np.testing.assert_array_equal(images[-1], expected)
