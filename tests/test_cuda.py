"""What is particular to the CUDA engine, on a device that stands in; see standin/cupy.py."""

from __future__ import annotations

import gc
import itertools
import sys
import threading
import warnings

import libertem.api
import numpy as np
import pytest
from conftest import needs_compiler
from standin.cupy import CompileException, CUDARuntimeError
from test_accumulate import empty, make_frames, make_plan, to_events
from test_accumulate import run as run_engine
from test_udf import PARAMETERS, forced_tiles, run, sums
from test_udf import make_frames as make_scan

from libertem_parallax import ParallaxPhaseFlipUDF, ParallaxUDF
from libertem_parallax.accumulate import ENGINES, CudaError, Plan, make_engine
from libertem_parallax.accumulate.cuda import device, engine, upload

CUDA, NUMBA = ENGINES["cuda"], ENGINES["numba"]


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


# How the engine uses the device


@needs_compiler
@pytest.mark.parametrize("work", ["early", "late", "random"])
@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float64"])
def test_the_device_may_take_its_time(standin, monkeypatch, work, order, dtype):
    """Far more batches than slots, in tiles that do not fit them."""
    monkeypatch.setattr(upload, "SLOT_BYTES", 7 * 99 * np.dtype(dtype).itemsize)
    monkeypatch.setattr(upload, "SLOT_LIMIT", 0)
    monkeypatch.setattr(upload, "ROW_BYTES", 0)
    cupy = standin(work=work, order=order)
    plan = make_plan((4, 41))
    frames = np.rint(make_frames(plan, dtype)).astype(dtype)
    A, S = empty(plan, dtype)
    worker = CUDA(plan, dtype, np.arange(len(frames)), A, S)
    start = 0
    for n in (1, 20, 6, 7, 8, 90, 2, 30):
        worker.add(frames[start : start + n], first=start)
        start += n
    assert start == len(frames)
    worker.finish()
    assert_same((A, S), run_engine(NUMBA, plan, frames))
    assert cupy.launches >= 23


@needs_compiler
def test_batches_overlap(standin, monkeypatch):
    """The host fills one slot while the device has not even begun with the others."""
    monkeypatch.setattr(upload, "SLOT_BYTES", 99)
    monkeypatch.setattr(upload, "SLOT_LIMIT", 0)
    monkeypatch.setattr(upload, "ROW_BYTES", 0)
    cupy = standin(work="late")
    plan = make_plan()
    worker = CUDA(plan, "uint8", np.arange(35), *empty(plan, "uint8"))
    frames = make_frames(plan, "uint8")
    for n in range(1, upload.SLOTS + 1):
        worker.add(frames[n - 1 : n], first=n - 1)
        assert (len(cupy.busy), cupy.launches) == (n, n)
    worker.add(frames[3:4], first=3)
    assert (len(cupy.busy), cupy.launches) == (3, 4)


@needs_compiler
def test_only_the_box_around_the_bright_field_crosses_the_bus(standin):
    cupy = standin()
    pixels = np.argwhere(np.ones((3, 4), bool)) + np.array([20, 30])
    plan = Plan((8, 9), (64, 64), 1, pixels, np.zeros_like(pixels))
    run_engine(CUDA, plan, np.ones((72, 64, 64), np.uint16))
    constants = len(pixels) * (4 + 8) + 72 * 8
    assert cupy.uploaded == 72 * 3 * 4 * 2 + constants
    run_engine(CUDA, plan, np.ones((72, 64, 64), np.uint16))
    assert cupy.uploaded == 2 * 72 * 3 * 4 * 2 + constants + 72 * 8


@needs_compiler
def test_short_rows_are_not_cut(standin):
    cupy = standin()
    pixels = np.argwhere(np.ones((3, 4), bool)) + np.array([20, 30])
    plan = Plan((8, 9), (64, 64), 1, pixels, np.zeros_like(pixels))
    frames = make_frames(plan, "uint8")
    assert_same(run_engine(CUDA, plan, frames), run_engine(NUMBA, plan, frames))
    assert cupy.uploaded == 72 * 3 * 64 + len(pixels) * (4 + 8) + 72 * 8


@needs_compiler
def test_small_tiles_go_together(standin, monkeypatch):
    """As detectors send them; those of another part of the detector, or with a gap, do not."""
    cupy = standin()
    plan = Plan((8, 9), (8, 8), 1, np.array([[4, 3], [4, 4]]), np.zeros((2, 2), int))
    monkeypatch.setattr(upload, "SLOT_BYTES", 2 * 20)
    monkeypatch.setattr(upload, "SLOT_LIMIT", 0)
    monkeypatch.setattr(upload, "ROW_BYTES", 0)
    frames = make_frames(plan, "uint8")
    expected = run_engine(NUMBA, plan, frames)
    A, S = empty(plan, "uint8")
    worker = CUDA(plan, "uint8", np.arange(72), A, S)
    for t in range(60):
        worker.add(frames[t : t + 1], first=t)
    assert cupy.launches == 3
    worker.add(frames[65:72], first=65)
    worker.add(frames[60:65, :, :4], first=60)
    worker.add(frames[60:65, :, 4:], (0, 4), 60)
    worker.finish()
    assert cupy.launches == 6
    assert_same((A, S), expected)


@needs_compiler
def test_frames_larger_than_a_slot(standin, monkeypatch):
    standin(work="late")
    monkeypatch.setattr(upload, "SLOT_BYTES", 10)
    monkeypatch.setattr(upload, "SLOT_LIMIT", 0)
    monkeypatch.setattr(upload, "ROW_BYTES", 0)
    plan = make_plan((2, 5))
    frames = make_frames(plan, "uint16")
    assert_same(run_engine(CUDA, plan, frames), run_engine(NUMBA, plan, frames))


@needs_compiler
@pytest.mark.parametrize("work", ["early", "late", "random"])
@pytest.mark.parametrize("size", [64, 333, 1000, 20_000])
@pytest.mark.parametrize("seed", range(3))
def test_batches_of_events(standin, monkeypatch, work, size, seed):
    """Frames with none to more than a batch holds, in tiles of any size, in any order."""
    monkeypatch.setattr(upload, "SLOT_BYTES", size)
    cupy = standin(work=work)
    plan = make_plan((4, 41), reach=7)
    frames = make_frames(plan, "uint16")
    rng = np.random.default_rng(seed)
    frames[rng.random(frames.shape) < rng.random((len(frames), 1, 1))] = 0
    A, S = empty(plan, "uint16", events=True)
    worker = CUDA(plan, "uint16", np.arange(len(frames)), A, S, events=True)
    cuts = [0, *np.sort(rng.integers(0, len(frames), 9)), len(frames)]
    tiles = list(itertools.pairwise(cuts))
    for i in rng.permutation(len(tiles)) if seed else range(len(tiles)):
        start, stop = tiles[i]
        worker.add_events(to_events(frames[start:stop], seed), first=int(start))
    worker.finish()
    assert_same((A, S), run_engine(NUMBA, plan, frames))
    if size == 20_000 and not seed:  # tiles go together
        assert cupy.launches < 12


@needs_compiler
def test_only_events_cross_the_bus(standin):
    cupy = standin()
    plan = make_plan((4, 5))
    frames = (make_frames(plan, "uint8") == 3).astype(np.uint8)
    events = to_events(frames)
    A, S = empty(plan, "uint8", events=True)
    for partition in (1, 2):
        worker = CUDA(plan, "uint8", np.arange(20), A, S, events=True)
        worker.add_events(events)
        worker.finish()
        constants = 8 * 9 * 11
        each = len(events.data) * (1 + 4) + 8 * 21 + 8 * 20
        assert cupy.uploaded == constants + partition * each


@needs_compiler
def test_nothing_is_left_behind(standin):
    """After any number of partitions: one set of constants, released with its plan."""
    cupy = standin()
    plan = make_plan((4, 6))
    frames = make_frames(plan, "uint8")
    used = []
    for _ in range(1000):
        run_engine(CUDA, plan, frames)
        used.append((cupy.pools[0].in_use, cupy.pools[0].taken, cupy.pinned.taken))
    assert len(set(used[1:])) == 1
    assert used[0][0] == len(plan.pixels) * (4 + 8)
    assert len(cupy.compiled) == 1
    gc.collect()
    before = len(engine._tables)
    del plan
    gc.collect()
    assert len(engine._tables) == before - 1
    assert (cupy.pools[0].in_use, cupy.pinned.in_use) == (0, 0)


@needs_compiler
def test_what_an_engine_leaves_undone_harms_nobody(standin, monkeypatch):
    """One that is let go in mid-scan leaves work and buffers to the device, which others get."""
    monkeypatch.setattr(upload, "SLOT_BYTES", 99)
    monkeypatch.setattr(upload, "SLOT_LIMIT", 0)
    standin(work="random")
    plan = make_plan()
    frames = make_frames(plan, "uint8")
    expected = run_engine(NUMBA, plan, frames)
    for n in range(1, 30):
        A, S = empty(plan, "uint8")
        worker = CUDA(plan, "uint8", np.arange(35), A, S)
        worker.add(frames[:n])
        del worker
        assert_same(run_engine(CUDA, plan, frames), expected)
        assert not A.any()


@needs_compiler
def test_several_workers_on_several_devices(standin, monkeypatch):
    monkeypatch.setattr(upload, "SLOT_BYTES", 1000)
    monkeypatch.setattr(upload, "SLOT_LIMIT", 0)
    cupy = standin(devices=2)
    plan = make_plan((4, 21))
    frames = make_frames(plan, "uint16")
    expected = run_engine(NUMBA, plan, frames)
    results = {}

    def work(worker):
        for _ in range(5):
            A, S = empty(plan, "uint16")
            engine = CUDA(plan, "uint16", np.arange(len(frames)), A, S, device=worker % 2)
            engine.add(frames)
            engine.finish()
            results.setdefault(worker, []).append((A, S))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(results[i]) for i in range(6)] == [5] * 6
    for made in results.values():
        for one in made:
            assert_same(one, expected)
    assert sorted(device for device, _ in cupy.compiled) == [0, 1]


@needs_compiler
def test_memory_that_others_let_go_is_not_used_too_soon(standin):
    """CuPy gives away what its default stream may still be at work on."""
    cupy = standin(work="late")
    plan = make_plan()
    frames = make_frames(plan, "uint16")
    A, S = empty(plan, "uint16")
    default = cupy.cuda.get_current_stream()
    constants = 4 * len(plan.pixels), 8 * len(plan.pixels)
    for first, sizes in ((True, (A.nbytes, S.nbytes, 8 * 35)), (False, constants)):
        for size in sizes:
            other = cupy.empty(size, np.uint8)
            other.data.memset_async(1, size, default)
            del other
        if first:
            worker = CUDA(plan, "uint16", np.arange(35), A, S)
        else:
            worker.add(frames)
        default.synchronize()
    worker.finish()
    assert_same((A, S), run_engine(NUMBA, plan, frames))


@needs_compiler
def test_an_exception_that_is_kept_harms_nobody(standin):
    """Engine and plan then go together, some time later, with work still to be done."""
    cupy = standin(work="late")

    def scan():
        plan = make_plan()
        worker = CUDA(plan, "uint16", np.arange(35), *empty(plan, "uint16"))
        frames = make_frames(plan, "uint16")
        worker.add(frames[:, :, :6])
        worker.add(frames[:, :, 6:], (0, 6))
        worker.add(frames[:, :, :6])
        raise OSError("the file ends here")

    gc.collect()
    gc.disable()
    try:
        scan()
    except OSError as error:
        kept = [error]
        kept.append(kept)  # a cycle, so that all goes at once
    finally:
        gc.enable()
    assert cupy.busy
    del kept
    gc.collect()
    assert not cupy.busy
    assert cupy.pools[0].in_use == 0


@needs_compiler
def test_large_boxes_still_fill_warps(standin, monkeypatch):
    """Slots grow until the frames of a launch are those of a warp."""
    cupy = standin()
    monkeypatch.setattr(upload, "SLOT_BYTES", 1 << 20)
    pixels = np.argwhere(np.ones((100, 100), bool))
    plan = Plan((8, 16), (100, 256), 1, pixels, np.zeros_like(pixels))
    worker = CUDA(plan, "uint32", np.arange(128), *empty(plan, "uint32"))
    worker.add(np.ones((128, 100, 256), np.uint32))
    worker.finish()
    assert cupy.launches == 128 // device.FRAMES
    assert (worker.S == 10_000).all()


@needs_compiler
def test_one_plan_for_two_dtypes(standin):
    """Of which one's rows are short enough not to be cut."""
    standin()
    pixels = np.argwhere(np.ones((3, 4), bool)) + np.array([2, 30])
    plan = Plan((8, 9), (9, 64), 1, pixels, np.arange(24).reshape(12, 2))
    for dtype in ("uint8", "uint32", "uint16", "float64"):
        frames = np.rint(make_frames(plan, dtype)).astype(dtype)
        assert_same(run_engine(CUDA, plan, frames), run_engine(NUMBA, plan, frames))


# What goes wrong


def error(name):
    return CUDARuntimeError(f"{name}: some words")


@pytest.mark.parametrize(
    ("faults", "driver", "message"),
    [
        ({"device": error("cudaErrorInsufficientDriver")}, 0, r"GPU 0: there is no NVIDIA driver"),
        (
            {"device": error("cudaErrorInsufficientDriver")},
            12020,
            r"the driver is for CUDA 12\.2, CuPy for 13\.2.*\[cuda12\]",
        ),
        ({"device": error("cudaErrorNoDevice")}, 13000, "no such GPU.*CUDA_VISIBLE_DEVICES"),
        (
            {"compile": CompileException("scatter.cu(1): error: no")},
            13000,
            r"scatter\.cu: the kernel does not compile: scatter\.cu\(1\): error: no",
        ),
        (
            {"compile": RuntimeError('Failure finding "libnvrtc.so.13"')},
            13000,
            r"NVRTC.*\[cuda12\]",
        ),
        ({"pinned": error("cudaErrorMemoryAllocation")}, 13000, "out of memory"),
        ({"compile": CUDARuntimeError("CUDA_ERROR_OUT_OF_MEMORY: no")}, 13000, "out of memory"),
        (
            {"compile": CompileException("invalid value for --gpu-architecture (-arch)")},
            13000,
            r"too old for this CUDA: libertem-parallax\[cuda12\]",
        ),
        ({"compile": RuntimeError("Failed to find CUDA headers")}, 13000, r"NVRTC.*\[cuda12\]"),
        ({"compile": OSError("No space left on device")}, 13000, r"OSError: No space left[^R]*$"),
        ({"device": error("cudaErrorUnknown")}, 13000, "cudaErrorUnknown: some words.*restart"),
    ],
)
def test_gpus_that_cannot_be_used_say_why(standin, faults, driver, message):
    cupy = standin()
    cupy.faults = faults
    cupy.driver = driver
    plan = make_plan()
    with pytest.raises(CudaError, match=message):
        CUDA(plan, "uint8", np.arange(35), *empty(plan, "uint8"))


@needs_compiler
def test_a_full_device_says_so(standin):
    standin(memory=100)
    plan = make_plan()
    with pytest.raises(CudaError, match=r"making ready.*out of memory.*fewer workers"):
        CUDA(plan, "uint8", np.arange(35), *empty(plan, "uint8"))


@needs_compiler
def test_unknown_devices_are_refused(standin):
    standin(devices=2)
    plan = make_plan()
    with pytest.raises(CudaError, match="GPU 2: there is no such GPU"):
        CUDA(plan, "uint8", np.arange(35), *empty(plan, "uint8"), device=2)


def test_cupy_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(CudaError, match=r"CuPy is not installed\. Install .*\[cuda12\]"):
        device.describe()


def test_cupy_is_broken(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('libcudart.so.13 is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    with pytest.raises(CudaError, match=r"cannot be imported: ImportError: libcudart.so.13"):
        device.describe()


def test_the_kernel_is_missing(monkeypatch, standin, tmp_path):
    standin()
    file = tmp_path / "package" / "accumulate" / "cuda" / "device.py"
    monkeypatch.setattr(device, "__file__", str(file))
    plan = make_plan()
    with pytest.raises(CudaError, match=r"scatter\.cu is missing: install"):
        CUDA(plan, "uint8", np.arange(35), *empty(plan, "uint8"))


@needs_compiler
def test_a_mistake_in_the_kernel_is_shown(monkeypatch, standin, tmp_path):
    standin()
    source = device.source("scatter").read_text(encoding="utf-8")
    (tmp_path / "scatter.cu").write_text(source.replace("const int lane", "const int line"))
    monkeypatch.setattr(device, "source", lambda _: tmp_path / "scatter.cu")
    plan = make_plan()
    with pytest.raises(CudaError, match=r"(?s)does not compile.*lane. was not declared"):
        CUDA(plan, "uint8", np.arange(35), *empty(plan, "uint8"))


@needs_compiler
@pytest.mark.parametrize("operation", ["launch", "synchronize", "device"])
@pytest.mark.parametrize("after", range(4))
def test_a_failure_in_mid_scan_is_an_error(standin, monkeypatch, operation, after):
    """Whenever it is noticed; what was added so far is not taken for the sum."""
    monkeypatch.setattr(upload, "SLOT_BYTES", 99)
    monkeypatch.setattr(upload, "SLOT_LIMIT", 0)
    cupy = standin(work="late")
    plan = make_plan()
    frames = make_frames(plan, "uint8")
    A, S = empty(plan, "uint8")
    worker = make_engine("auto", plan, "uint8", np.arange(35), A, S, 0)
    for t in range(after):
        worker.add(frames[t : t + 1], first=t)
    cupy.faults[operation] = error("cudaErrorIllegalAddress")

    def go_on():
        for t in range(after, 35):
            worker.add(frames[t : t + 1], first=t)
        worker.finish()

    message = "GPU 0, adding frames .the image is not complete.: cudaErrorIllegalAddress"
    with pytest.raises(CudaError, match=message):
        go_on()
    cupy.faults.clear()
    with pytest.raises(CudaError, match=r"GPU 0 failed before; the image is not complete"):
        worker.finish()
    assert not A.any()
    assert not S.any()


def test_a_sum_that_is_too_large_is_an_error(standin):
    standin()
    plan = make_plan()
    A, S = empty(plan, "float64")
    worker = CUDA(plan, "float64", np.arange(35), A, S)
    frames = np.ones((35, 9, 11))
    worker.add(frames[:20])
    frames[20:] = 9e29  # fits, but not the sum
    worker.add(frames[20:], first=20)
    with pytest.raises(ValueError, match=r"scan position \(2, 6\) is .*: expected at most 1e\+30"):
        worker.finish()


# Falling back to the CPU


@needs_compiler
def test_without_a_gpu_the_cpu_is_used_and_one_warning_says_so(standin):
    cupy = standin()
    cupy.faults = {"device": error("cudaErrorNoDevice")}
    plan = make_plan()
    frames = make_frames(plan, "uint8")
    expected = run_engine(NUMBA, plan, frames)
    parts = [slice(0, 10), slice(10, 30), slice(30, 35)]
    A, S = empty(plan, "uint8")

    def add(part):
        worker = make_engine("auto", plan, "uint8", np.arange(35)[part], A, S[part], 0)
        assert isinstance(worker, NUMBA)
        worker.add(frames[part])
        worker.finish()

    with pytest.warns(RuntimeWarning, match=r"on the CPU.*no such GPU"):
        add(parts[0])
    cupy.faults = {}  # it would work now, but nobody tries again
    for part in parts[1:]:
        add(part)
    assert_same((A, S), expected)
    # The next acquisition does.
    other = make_plan()
    worker = make_engine("auto", other, "uint8", np.arange(35), *empty(other, "uint8"), 0)
    assert isinstance(worker, CUDA)


@needs_compiler
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_the_gpu_of_the_worker_is_used(standin, name):
    cupy = standin(devices=3)
    plan = make_plan()
    frames = make_frames(plan, "uint8")
    A, S = empty(plan, "uint8")
    worker = make_engine(name, plan, "uint8", np.arange(35), A, S, 2)
    worker.add(frames)
    worker.finish()
    assert {device for device, _ in cupy.compiled} == {2}
    assert_same((A, S), run_engine(NUMBA, plan, frames))


def test_who_asks_for_cuda_gets_cuda_or_an_error(standin):
    cupy = standin()
    cupy.faults = {"device": error("cudaErrorNoDevice")}
    plan = make_plan()
    for number in (None, 0):
        with pytest.raises(CudaError, match="no such GPU"):
            make_engine("cuda", plan, "uint8", np.arange(35), *empty(plan, "uint8"), number)


def test_where_there_is_no_gpu_none_is_looked_for(standin):
    cupy = standin()
    cupy.faults = {"device": error("cudaErrorNoDevice")}
    plan = make_plan()
    for name, expected in (("auto", NUMBA), ("numba", NUMBA), ("numpy", ENGINES["numpy"])):
        worker = make_engine(name, plan, "uint8", np.arange(35), *empty(plan, "uint8"))
        assert type(worker) is expected


# Through LiberTEM


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
        return run(ctx, frames, udf), sums(udf)


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
def test_bad_pixels_are_named_in_any_batch(standin, monkeypatch):
    standin()
    monkeypatch.setattr(upload, "SLOT_BYTES", 4 * 99 * 4)
    monkeypatch.setattr(upload, "SLOT_LIMIT", 0)
    plan = make_plan()
    frames = make_frames(plan, "float32")
    row, col = plan.pixels[3]
    frames[30, row, col] = np.nan
    worker = CUDA(plan, "float32", np.arange(35), *empty(plan, "float32"))
    with pytest.raises(ValueError, match=rf"\(4, 2\), detector pixel \({row}, {col}\) is nan"):
        worker.add(frames)


@needs_compiler
def test_a_region_of_interest_on_the_gpu(gpu_ctx, standin):
    cupy = standin()
    frames = make_scan(PARAMETERS["shape"], "uint16")
    roi = np.random.default_rng(0).random((8, 9)) < 0.6
    blank = np.where(roi[..., None, None], frames, 0).astype(np.uint16)
    expected, _ = on_cpu(blank)
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    image = run(gpu_ctx, frames, udf, roi=roi)["reconstruction"]
    assert cupy.launches
    np.testing.assert_array_equal(image, expected["parallax"])


@needs_compiler
def test_a_run_without_a_usable_gpu_warns_and_goes_on(gpu_ctx, standin):
    cupy = standin()
    cupy.faults = {"compile": CompileException("no")}
    frames = make_scan(PARAMETERS["shape"], "uint8")
    expected, _ = on_cpu(frames)
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    with pytest.warns(RuntimeWarning, match=r"on the CPU.*does not compile") as caught:
        image = run(gpu_ctx, frames, udf)["reconstruction"]
    assert len(caught) == 1
    np.testing.assert_array_equal(image, expected["parallax"])


@needs_compiler
def test_a_run_whose_gpu_fails_is_an_error(gpu_ctx, standin):
    cupy = standin()
    cupy.faults = {"launch": error("cudaErrorLaunchFailure")}
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    with pytest.raises(CudaError, match=r"not complete.*cudaErrorLaunchFailure"):
        run(gpu_ctx, make_scan(PARAMETERS["shape"], "uint8"), udf)


@needs_compiler
def test_bad_pixels_are_reported_from_the_gpu(gpu_ctx, standin):
    standin()
    frames = make_scan(PARAMETERS["shape"], "float32")
    frames[3, 4, 12, 12] = np.nan
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    with pytest.raises(ValueError, match=r"\(3, 4\), detector pixel \(12, 12\) is nan"):
        run(gpu_ctx, frames, udf)


# With a GPU


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
        expected = run(ctx, frames, udf), sums(udf)
    with (
        warnings.catch_warnings(action="ignore"),
        libertem.api.Context.make_with(executor, **workers) as ctx,
    ):
        udf = ParallaxUDF.from_parameters(**{**PARAMETERS, **shape})
        image = run(ctx, frames, udf, num_partitions=7)["reconstruction"]
    np.testing.assert_array_equal(image, expected[0]["reconstruction"])
    assert_same(sums(udf), expected[1])
