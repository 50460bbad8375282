"""What is particular to the CUDA engine, on a device that stands in; see standin/cupy.py."""

from __future__ import annotations

import gc
import itertools
import threading

import numpy as np
import pytest
from helpers import (
    assert_same,
    empty,
    make_frames,
    make_plan,
    needs_compiler,
    run_engine,
    to_events,
)

from libertem_parallax.accumulate import ENGINES, Plan
from libertem_parallax.accumulate.cuda import device, engine, upload

CUDA, NUMBA = ENGINES["cuda"], ENGINES["numba"]


# How the engine uses the device


@needs_compiler
@pytest.mark.parametrize(
    ("work", "order", "dtype"),
    [
        (work, order, ["uint8", "int32", "float64"][(i + j) % 3])
        for i, work in enumerate(["early", "late", "random"])
        for j, order in enumerate(["forward", "reverse", "shuffled"])
    ],
)
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
    plan = Plan((8, 9), (64, 128), 1, pixels, np.zeros_like(pixels))
    run_engine(CUDA, plan, np.ones((72, 64, 128), np.uint16))
    constants = len(pixels) * (4 + 8) + 72 * 8
    assert cupy.uploaded == 72 * 3 * 4 * 2 + constants
    run_engine(CUDA, plan, np.ones((72, 64, 128), np.uint16))
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
@pytest.mark.parametrize(
    ("work", "size", "seed"),
    [
        (work, size, (i + j) % 3)
        for i, work in enumerate(["early", "late", "random"])
        for j, size in enumerate([64, 333, 1000, 20_000])
    ],
)
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
    for _ in range(200):
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


# Falling back to the CPU


# Through LiberTEM


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


# With a GPU
