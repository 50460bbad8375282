"""UDFs in all ways of running them: executors, tiles, regions, files; always the same bits."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import sparse
from helpers import PARAMETERS, forced_tiles, make_scan, run_udf, sums
from libertem.udf.sum import SumUDF

from libertem_parallax import ParallaxPhaseFlipUDF, ParallaxUDF


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_executors_give_the_same_bits(ctx, inline, dtype):
    frames = make_scan((12, 13, 24, 25), dtype)
    parameters = {**PARAMETERS, "shape": frames.shape}
    results = []
    for context, partitions in ((inline, 1), (ctx, 5)):
        udf = ParallaxPhaseFlipUDF.from_parameters(**parameters)
        images = run_udf(context, frames, udf, num_partitions=partitions)
        results.append((*sums(udf), images["reconstruction"], images["parallax"]))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@forced_tiles
@pytest.mark.parametrize(
    "tileshape", [(1, 24, 25), (5, 24, 25), (7, 3, 25), (4, 5, 6), (200, 1, 25)]
)
def test_tilings_give_the_same_bits(inline, tileshape, engine_name):
    frames = make_scan((8, 9, 24, 25), "uint16")
    results = []
    for load in ({"num_partitions": 1}, {"num_partitions": 3, "tileshape": tileshape}):
        udf = ParallaxUDF.from_parameters(**PARAMETERS, engine=engine_name)
        run_udf(inline, frames, udf, **load)
        results.append(sums(udf))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@forced_tiles
@pytest.mark.parametrize("tileshape", [None, (4, 5, 6)])
def test_a_region_of_interest_is_the_scan_without_the_rest(ctx, inline, tileshape):
    frames = make_scan((8, 9, 24, 25), "uint16")
    roi = np.random.default_rng(2).random((8, 9)) < 0.4
    udf, all_of = (ParallaxUDF.from_parameters(**PARAMETERS) for _ in range(2))
    image = run_udf(ctx, frames, udf, roi=roi, tileshape=tileshape)["reconstruction"]
    expected = run_udf(inline, frames * roi[:, :, None, None], all_of)["reconstruction"]
    (A, S), (A_expected, S_expected) = sums(udf), sums(all_of)
    np.testing.assert_array_equal(A, A_expected)
    np.testing.assert_array_equal(S, S_expected[roi.reshape(-1)])
    np.testing.assert_array_equal(image, expected)


# LiberTEM makes COO of all that are sparse; for SciPy's, it compiles code for seconds.
FORMS = {
    "COO": sparse.COO,
    "GCXS": sparse.GCXS,
    "position": lambda roi: tuple(map(int, np.argwhere(roi)[0])),
    "list": lambda roi: [((int(y), int(x)), True) for y, x in np.argwhere(roi)],
}


@pytest.mark.parametrize("form", FORMS)
def test_regions_of_interest_of_any_form(inline, form):
    check_region(inline, FORMS[form])


@pytest.mark.parametrize("ctx", ["pipelined"], indirect=True)
def test_regions_of_interest_reach_other_processes(ctx):
    """In the form that LiberTEM gives them, whatever they were. One process compiles for it."""
    check_region(ctx, sparse.COO, num_partitions=1)


def check_region(ctx, form, **load):
    """That LiberTEM takes."""
    frames = make_scan((8, 9, 24, 25), "uint16")
    roi = np.zeros((8, 9), bool)
    roi[3, 4] = roi[5, 0] = True
    given = form(roi)
    if isinstance(given, tuple):
        roi[5, 0] = False
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    expected = run_udf(ctx, frames, udf, roi=roi, **load)["reconstruction"]
    image = run_udf(ctx, frames, udf, roi=given, **load)["reconstruction"]
    np.testing.assert_array_equal(image, expected)


@forced_tiles
@pytest.mark.parametrize("offset", [-20, -3, 0, 5, 31])
@pytest.mark.parametrize("tileshape", [None, (4, 5, 25)])
def test_sync_offset_moves_the_frames_along_the_scan(ctx, inline, offset, tileshape):
    frames = make_scan((8, 9, 24, 25), "uint16")
    udf, all_of = (ParallaxUDF.from_parameters(**PARAMETERS) for _ in range(2))
    image = run_udf(ctx, frames, udf, sync_offset=offset, tileshape=tileshape)["reconstruction"]
    flat = frames.reshape(-1, 24, 25)
    moved = np.zeros_like(flat)
    if offset >= 0:
        moved[: len(flat) - offset] = flat[offset:]
    else:
        moved[-offset:] = flat[:offset]
    expected = run_udf(inline, moved.reshape(frames.shape), all_of)["reconstruction"]
    for one, other in zip(sums(udf), sums(all_of), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(image, expected)


def test_files_of_any_kind(ctx, tmp_path):
    """Memory-mapped, and decoded on the way in."""
    frames = make_scan((8, 9, 24, 25), "uint16")
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
    run_udf(ctx, frames, reference)
    for result in results:
        for one, other in zip(result, sums(reference), strict=True):
            np.testing.assert_array_equal(one, other)


def test_both_udfs_and_others_in_one_run(inline):
    frames = make_scan(PARAMETERS["shape"], "uint8")
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    flip = ParallaxPhaseFlipUDF.from_parallax_udf(udf)
    ds = inline.load("memory", data=frames, sig_dims=2, num_partitions=3)
    one, other, total = inline.run_udf(dataset=ds, udf=[udf, flip, SumUDF()])
    np.testing.assert_array_equal(one["reconstruction"].data, other["parallax"].data)
    np.testing.assert_allclose(
        total["intensity"].data, frames.sum(axis=(0, 1), dtype=float), rtol=1e-6
    )
    alone = run_udf(inline, frames, flip)
    np.testing.assert_array_equal(alone["reconstruction"], other["reconstruction"].data)


def test_several_images_in_one_pass(ctx, inline):
    frames = make_scan(PARAMETERS["shape"], "uint8")
    both = ParallaxUDF.from_parameters(**PARAMETERS, image=["phase_flip", "parallax"])
    images = run_udf(ctx, frames, both)
    expected = run_udf(inline, frames, ParallaxPhaseFlipUDF.from_parameters(**PARAMETERS))
    assert list(images) == ["phase_flip", "parallax"]
    np.testing.assert_array_equal(images["parallax"], expected["parallax"])
    np.testing.assert_array_equal(images["phase_flip"], expected["reconstruction"])
    one = ParallaxUDF.from_parameters(**PARAMETERS, image="phase_flip")
    images = run_udf(inline, frames, one)
    assert list(images) == ["phase_flip"]
    np.testing.assert_array_equal(images["phase_flip"], expected["reconstruction"])


def test_from_parallax_udf_takes_every_parameter(inline):
    parameters = {**PARAMETERS, "suppress_Nyquist_noise": False, "engine": "numpy"}
    udf = ParallaxPhaseFlipUDF.from_parallax_udf(ParallaxUDF.from_parameters(**parameters))
    expected = ParallaxPhaseFlipUDF.from_parameters(**parameters)
    assert udf.params.engine == "numpy"
    frames = make_scan(PARAMETERS["shape"], "uint8")
    actual, expected = run_udf(inline, frames, udf), run_udf(inline, frames, expected)
    np.testing.assert_array_equal(actual["reconstruction"], expected["reconstruction"])


def test_the_picture_grows_and_ends_as_the_whole(inline):
    frames = make_scan(PARAMETERS["shape"], "uint8")
    udf = ParallaxPhaseFlipUDF.from_parameters(**PARAMETERS)
    whole = run_udf(inline, frames, udf)
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
    np.testing.assert_array_equal(parts[0]["parallax"], run_udf(inline, first, udf)["parallax"])


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
    ds = ctx.load("memory", data=frames, sig_dims=2, num_partitions=n // 16)
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
