"""UDFs on workers with a GPU, one that stands in or, with ``-m gpu``, a real one."""

from __future__ import annotations

import warnings

import libertem.api
import numpy as np
import pytest
from helpers import (
    PARAMETERS,
    assert_same,
    error,
    forced_tiles,
    make_scan,
    needs_compiler,
    run_udf,
    sums,
)
from standin.cupy import CompileException

from libertem_parallax import ParallaxPhaseFlipUDF, ParallaxUDF, StackUDF
from libertem_parallax.accumulate import ENGINES, CudaError
from libertem_parallax.accumulate.cuda import upload

CUDA, NUMBA = ENGINES["cuda"], ENGINES["numba"]


@pytest.fixture(params=["inline", "threads"])
def gpu_ctx(request, monkeypatch):
    """Workers that have, as far as LiberTEM knows, GPU 0."""
    monkeypatch.setenv("LIBERTEM_USE_CUDA", "0")
    monkeypatch.delenv("LIBERTEM_USE_CPU", raising=False)
    cpus = {} if request.param == "inline" else {"cpus": 2}
    with libertem.api.Context.make_with(request.param, **cpus) as ctx:
        yield ctx


def on_cpu(frames, **options):
    with libertem.api.Context.make_with("inline") as ctx:
        udf = ParallaxPhaseFlipUDF.from_parameters(**{**PARAMETERS, "engine": "numba", **options})
        return run_udf(ctx, frames, udf), sums(udf)


@forced_tiles
@needs_compiler
@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "float32"])
@pytest.mark.parametrize("tileshape", [None, (5, 24, 25), (4, 5, 6)])
def test_udfs_use_the_gpu_of_their_worker(gpu_ctx, standin, monkeypatch, dtype, tileshape):
    monkeypatch.setattr(upload, "SLOT_BYTES", 5000)
    monkeypatch.setattr(upload, "SLOT_LIMIT", 0)
    cupy = standin(work="random")
    frames = make_scan(PARAMETERS["shape"], dtype)
    if dtype == "float32":
        frames = np.rint(frames * 1000)
    expected, expected_sums = on_cpu(frames)
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    flip = ParallaxPhaseFlipUDF.from_parallax_udf(udf)
    ds = gpu_ctx.load("memory", data=frames, sig_dims=2, num_partitions=3, tileshape=tileshape)
    one, both = gpu_ctx.run_udf(ds, [udf, flip])
    assert cupy.launches
    np.testing.assert_array_equal(one["reconstruction"].data, expected["parallax"])
    for channel, image in expected.items():
        np.testing.assert_array_equal(both[channel].data, image)
    assert_same(sums(udf), expected_sums)


@needs_compiler
def test_a_region_of_interest_on_the_gpu(gpu_ctx, standin):
    cupy = standin()
    frames = make_scan(PARAMETERS["shape"], "uint16")
    roi = np.random.default_rng(0).random((8, 9)) < 0.6
    blank = np.where(roi[..., None, None], frames, 0).astype(np.uint16)
    expected, _ = on_cpu(blank)
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    image = run_udf(gpu_ctx, frames, udf, roi=roi)["reconstruction"]
    launches = cupy.launches
    assert launches
    np.testing.assert_array_equal(image, expected["parallax"])
    # Frames may be kept beside.
    shape, pixels = PARAMETERS["shape"], udf.params.geometry.plan.pixels
    region = slice(0, 8), slice(0, 9)
    udf = udf.keeping(StackUDF(shape, frames.dtype, pixels, region).selection)
    image = run_udf(gpu_ctx, frames, udf, roi=roi)["reconstruction"]
    assert cupy.launches > launches
    np.testing.assert_array_equal(image, expected["parallax"])
    np.testing.assert_array_equal(udf.stack.frames, blank[:, :, *pixels.T].reshape(72, -1))


@needs_compiler
def test_a_run_without_a_usable_gpu_warns_and_goes_on(gpu_ctx, standin):
    cupy = standin()
    cupy.faults = {"compile": CompileException("no")}
    frames = make_scan(PARAMETERS["shape"], "uint8")
    expected, _ = on_cpu(frames)
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    with pytest.warns(RuntimeWarning, match=r"on the CPU.*does not compile") as caught:
        image = run_udf(gpu_ctx, frames, udf)["reconstruction"]
    assert len(caught) == 1
    np.testing.assert_array_equal(image, expected["parallax"])


@needs_compiler
def test_a_run_whose_gpu_fails_is_an_error(gpu_ctx, standin):
    cupy = standin()
    cupy.faults = {"launch": error("cudaErrorLaunchFailure")}
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    with pytest.raises(CudaError, match=r"not complete.*cudaErrorLaunchFailure"):
        run_udf(gpu_ctx, make_scan(PARAMETERS["shape"], "uint8"), udf)


@needs_compiler
def test_bad_pixels_are_reported_from_the_gpu(gpu_ctx, standin):
    standin()
    frames = make_scan(PARAMETERS["shape"], "float32")
    frames[3, 4, 12, 12] = np.nan
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    with pytest.raises(ValueError, match=r"\(3, 4\), detector pixel \(12, 12\) is nan"):
        run_udf(gpu_ctx, frames, udf)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    ("executor", "workers"),
    [
        ("inline", {}),
        ("threads", {"cpus": 4}),
        ("dask", {"gpus": 1, "cpus": 0}),
        ("pipelined", {"gpus": 2, "cpus": 0}),
        ("dask", {"gpus": 1, "cpus": 2}),
    ],
)
def test_executors_with_a_gpu(executor, workers, dtype, monkeypatch):
    if executor in ("inline", "threads"):
        monkeypatch.setenv("LIBERTEM_USE_CUDA", "0")
    frames = make_scan((64, 65, 24, 25), dtype)
    if dtype == "float32":
        frames = np.rint(frames * 1000)
    shape = {"shape": frames.shape}
    with libertem.api.Context.make_with("inline") as ctx:
        udf = ParallaxUDF.from_parameters(**{**PARAMETERS, **shape, "engine": "numba"})
        expected = run_udf(ctx, frames, udf), sums(udf)
    with (
        warnings.catch_warnings(action="ignore"),
        libertem.api.Context.make_with(executor, **workers) as ctx,
    ):
        udf = ParallaxUDF.from_parameters(**{**PARAMETERS, **shape})
        image = run_udf(ctx, frames, udf, num_partitions=7)["reconstruction"]
    np.testing.assert_array_equal(image, expected[0]["reconstruction"])
    assert_same(sums(udf), expected[1])
