"""UDFs on frames that are lists of events, through LiberTEM; the engines' part is elsewhere."""

from __future__ import annotations

import tracemalloc
from typing import ClassVar

import libertem.api
import numpy as np
import pytest
import scipy.sparse
import sparse
from helpers import PARAMETERS, make_events, needs_compiler, run_udf, save, sums, write
from libertem.udf.base import NoOpUDF
from libertem.udf.sum import SumUDF

from libertem_parallax import ParallaxPhaseFlipUDF, ParallaxUDF

SHAPE = PARAMETERS["shape"]


class Watching(ParallaxUDF):
    """Tells what it is given."""

    given: ClassVar = set()

    def process_tile(self, tile):
        self.given.add((type(tile).__name__, str(tile.dtype)))
        super().process_tile(tile)


def results(ctx, ds, roi=None, udf=ParallaxUDF, **parameters):
    udf = udf.from_parameters(**{**PARAMETERS, "shape": ds.shape, **parameters})
    image = ctx.run_udf(ds, udf, roi=roi)["reconstruction"].data
    return (*sums(udf), image)


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def dense(inline, frames, roi=None, **parameters):
    ds = inline.load("memory", data=frames, sig_dims=2, num_partitions=3)
    return results(inline, ds, roi, **parameters)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_files_of_events_give_what_frames_give(ctx, inline, tmp_path, dtype):
    """Bit for bit, with every executor."""
    frames = make_events(dtype)
    ds = ctx.load("raw_csr", path=write(tmp_path, frames, seed=3), num_partitions=3)
    assert_same(results(ctx, ds), dense(inline, frames))


@pytest.mark.parametrize("engine", ["numba", "numpy"])
@pytest.mark.parametrize(
    ("dtype", "indices"),
    [
        ("uint8", "int32"), (">u2", "int64"), ("int64", "uint32"), ("uint64", ">i4"),
        ("float32", "int32"), ("float64", "int64"),
    ],
)  # fmt: skip
def test_events_reach_engines_as_they_are(inline, tmp_path, dtype, indices, engine):
    frames = make_events(dtype)
    if np.dtype(dtype).kind == "f":
        frames = np.rint(1000 * frames)
    ds = inline.load("raw_csr", path=write(tmp_path, frames, None, indices), num_partitions=3)
    Watching.given.clear()
    assert_same(results(inline, ds, udf=Watching, engine=engine), dense(inline, frames))
    assert Watching.given == {("csr_matrix", np.dtype(dtype).name)}


@pytest.mark.parametrize(
    ("make", "given"), [(sparse.COO.from_numpy, "csr_matrix"), (sparse.DOK, "csr_array")]
)
def test_other_sparse_formats_become_events(inline, make, given):
    frames = make_events()
    ds = inline.load("memory", data=make(frames), sig_dims=2, num_partitions=3)
    Watching.given.clear()
    assert_same(results(inline, ds, udf=Watching), dense(inline, frames))
    assert Watching.given == {(given, "uint8")}


def test_regions_of_interest(inline, tmp_path):
    frames = make_events()
    roi = np.random.default_rng(4).random(SHAPE[:2]) < 0.6
    ds = inline.load("raw_csr", path=write(tmp_path, frames), num_partitions=3)
    assert_same(results(inline, ds, roi), dense(inline, frames, roi))


@pytest.mark.parametrize("offset", [-7, 5])
def test_sync_offsets(inline, tmp_path, offset):
    frames = make_events()
    path = write(tmp_path, frames)
    ds = inline.load("raw_csr", path=path, num_partitions=3, sync_offset=offset)
    flat = np.zeros_like(frames).reshape(-1, *SHAPE[2:])
    source = frames.reshape(flat.shape)
    if offset > 0:
        flat[:-offset] = source[offset:]
    else:
        flat[-offset:] = source[:offset]
    assert_same(results(inline, ds), dense(inline, flat.reshape(SHAPE)))


def test_phase_flip_and_others_in_one_run(inline, tmp_path):
    frames = make_events()
    ds = inline.load("raw_csr", path=write(tmp_path, frames), num_partitions=3)
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    flip = ParallaxPhaseFlipUDF.from_parallax_udf(udf)
    one, both, total = inline.run_udf(ds, [udf, flip, SumUDF()])
    expected = run_udf(inline, frames, flip)
    np.testing.assert_array_equal(one["reconstruction"].data, expected["parallax"])
    np.testing.assert_array_equal(both["reconstruction"].data, expected["reconstruction"])
    np.testing.assert_array_equal(total["intensity"].data, frames.sum(axis=(0, 1)))


class FloatsOnWorkers(NoOpUDF):
    """Asks workers for floats, as LiberTEM does for UDFs that take events on a GPU."""

    asks = bool

    @classmethod
    def new_for_partition(cls, kwargs, partition, roi):
        udf = super().new_for_partition(kwargs, partition, roi)
        udf.asks = np.float32
        return udf

    def get_preferred_input_dtype(self):
        return self.asks


def test_workers_may_get_floats_of_integers(ctx, inline, tmp_path):
    """CuPy's sparse arrays hold no integers, so other UDFs in the run may cause that."""
    frames = make_events()
    expected = dense(inline, frames)
    ds = ctx.load("raw_csr", path=write(tmp_path, frames), num_partitions=3)
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    image = ctx.run_udf(ds, [udf, FloatsOnWorkers()])[0]["reconstruction"].data
    assert_same((*sums(udf), image), expected)


def test_floats_that_hold_integers_are_taken(inline):
    frames = np.full(SHAPE, 2**32 - 1, np.uint32)
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    expected = dense(inline, frames)
    ds = inline.load("memory", data=frames, sig_dims=2, num_partitions=3)
    image = inline.run_udf(ds, [udf, FloatsOnWorkers()])[0]["reconstruction"].data
    assert_same((*sums(udf), image), expected)


def test_floats_that_do_not_hold_integers_are_refused(inline):
    frames = np.full(SHAPE, 2**53 + 1, np.int64)
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    ds = inline.load("memory", data=frames, sig_dims=2, num_partitions=3)
    with pytest.raises(ValueError, match="run this one by itself"):
        inline.run_udf(ds, [udf, FloatsOnWorkers()])


@pytest.mark.filterwarnings("ignore:the frames show no disk")
def test_no_frame_is_ever_made_of_events(inline, tmp_path):
    """Not even one tile of them would go into this memory."""
    shape = (32, 32, 512, 512)
    rng = np.random.default_rng(0)
    events = scipy.sparse.random_array(
        (32 * 32, 512 * 512), density=0.001, format="csr", dtype=np.uint8, rng=rng
    )
    ds = inline.load("raw_csr", path=save(tmp_path, events, shape), num_partitions=2)
    parameters = {
        **PARAMETERS,
        "shape": shape,
        "angular_sampling": (0.05, 0.05),
        "aberration_coefs": {"C10": -2500.0},
    }
    udf = ParallaxUDF.from_parameters(**parameters)
    inline.run_udf(ds, udf)  # compiles
    tracemalloc.start()
    try:
        inline.run_udf(ds, udf)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    tile = ds.get_max_io_size()
    assert tile > 64 * 512 * 512
    assert peak < tile / 4
    assert udf.results.get_buffer("S").raw_data.sum() > 0


@pytest.mark.parametrize("bad", [-1, 24 * 25])
def test_files_with_events_off_the_detector_are_refused(ctx, tmp_path, bad):
    path = write(tmp_path, make_events())
    indices = np.fromfile(tmp_path / "indices.raw", "int32")
    indptr = np.fromfile(tmp_path / "indptr.raw", "int64")
    frame = 40 + np.argmax(np.diff(indptr)[40:] > 3)
    indices[indptr[frame] + 2] = bad
    indices.tofile(tmp_path / "indices.raw")
    ds = ctx.load("raw_csr", path=path, num_partitions=3)
    position = rf"\({frame // 9}, {frame % 9}\)"
    with pytest.raises(Exception, match=rf"{position} has an event off the detector, \(24, 25\)"):
        results(ctx, ds)


@needs_compiler
@pytest.mark.parametrize("executor", ["inline", "threads"])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_workers_with_a_gpu_get_events(executor, dtype, inline, tmp_path, standin, monkeypatch):
    cupy = standin(work="random")
    frames = make_events(dtype)
    if dtype == "float32":
        frames = np.rint(1000 * frames)
    expected = dense(inline, frames)
    path = write(tmp_path, frames, seed=3)
    monkeypatch.setenv("LIBERTEM_USE_CUDA", "0")
    with libertem.api.Context.make_with(executor) as ctx:
        ds = ctx.load("raw_csr", path=path, num_partitions=3)
        Watching.given.clear()
        assert_same(results(ctx, ds, udf=Watching), expected)
    assert Watching.given == {("csr_matrix", dtype)}
    assert cupy.launches == 3
    assert all(name.startswith("events<") for _, name in cupy.compiled)


@pytest.mark.gpu
@pytest.mark.parametrize("executor", ["inline", "threads"])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_events_on_a_gpu(executor, dtype, inline, tmp_path, monkeypatch):
    frames = make_events(dtype)
    if dtype == "float32":
        frames = np.rint(1000 * frames)
    expected = dense(inline, frames, engine="numba")
    path = write(tmp_path, frames, seed=3)
    monkeypatch.setenv("LIBERTEM_USE_CUDA", "0")
    with libertem.api.Context.make_with(executor) as ctx:
        ds = ctx.load("raw_csr", path=path, num_partitions=3)
        assert_same(results(ctx, ds, engine="cuda"), expected)
