"""Both UDFs through LiberTEM, against the definition and against upstream."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import definition
import numpy as np
import pytest
from helpers import CASES, PARAMETERS, make_scan, run_udf, sums
from libertem.io.corrections import CorrectionSet

from libertem_parallax import ParallaxPhaseFlipUDF, ParallaxUDF


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
    results = run_udf(ctx, frames, udf, **load), run_udf(ctx, frames, flip, **load)
    for actual, expected in [
        (results[0]["reconstruction"], parallax),
        (results[1]["parallax"], parallax),
        (results[1]["reconstruction"], flipped),
    ]:
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("case", CASES)
def test_equals_the_definition(inline, case, engine_name):
    parameters = {**PARAMETERS, **CASES[case]}
    frames = make_scan(parameters["shape"], "uint16")
    assert_equals_definition(inline, frames, parameters, engine_name)


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "uint16", "uint32", "int16", "int32", "float32", "float64", ">u2"]
)
def test_equals_the_definition_for_all_dtypes(inline, dtype, engine_name):
    frames = make_scan(PARAMETERS["shape"], "uint8" if dtype == "bool" else dtype)
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
    run_udf(inline, frames, udf)
    A, S = sums(udf)
    pixels = len(udf.params.geometry.plan.pixels)
    assert (A.dtype, S.dtype) == (accumulator, accumulator)
    assert int(S[3 * 9 + 4]) == pixels - 1 + odd


@pytest.mark.parametrize(("dtype", "pedestal"), [("uint16", 65_000), ("uint32", 4_294_966_000)])
def test_the_background_is_taken_off_in_double_precision(inline, dtype, pedestal):
    """A pedestal changes nothing, half-way through a scan; sums of the larger need 38 bits."""
    frames = make_scan((8, 9, 24, 25), dtype) % 536
    roi = np.zeros((8, 9), bool)
    roi[:4] = True
    images = [
        run_udf(inline, f, ParallaxUDF.from_parameters(**PARAMETERS), roi=roi)["reconstruction"]
        for f in (frames, frames + np.dtype(dtype).type(pedestal))
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
    frames = make_scan(parameters["shape"], "uint8")
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
    actual, expected = run_udf(inline, stored, udf), run_udf(inline, frames, expected)
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
            actual = run_udf(inline, file["frames"], udf)["reconstruction"]
            scale = np.abs(file[name]).max()
            np.testing.assert_allclose(actual, file[name], rtol=0, atol=1e-6 * scale, err_msg=name)


def test_corrections_are_applied_first(inline):
    frames = make_scan(PARAMETERS["shape"], "uint8")
    rng = np.random.default_rng(3)
    dark, gain = rng.random((2, 24, 25)).astype(np.float32)
    ds = inline.load("memory", data=frames, sig_dims=2)
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    image = inline.run_udf(dataset=ds, udf=udf, corrections=CorrectionSet(dark=dark, gain=gain))
    expected, _ = defined((frames - dark) * gain, PARAMETERS)
    actual = image["reconstruction"].data
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_what_tab_completion_shows():
    import libertem_parallax

    names = dir(libertem_parallax)
    assert names == sorted(names)
    assert {"ParallaxUDF", "StackUDF", "load_parameters"} <= {*names}
    for name in dir(libertem_parallax):
        assert getattr(libertem_parallax, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'ParalaxUDF'"):
        _ = libertem_parallax.ParalaxUDF


# Parameters that change while a run goes on
