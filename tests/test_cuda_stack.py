"""What is particular to stacks on a GPU, on a device that stands in; see standin/cupy.py."""

from __future__ import annotations

import gc
import threading
import warnings

import numpy as np
import pytest
from helpers import make_frames, make_plan, needs_compiler
from standin.cupy import CUDARuntimeError, OutOfMemoryError

from libertem_parallax.accumulate import CudaError, Stack, place_stack
from libertem_parallax.accumulate.cuda import CudaStack, upload

pytestmark = needs_compiler


def make_stack(plan, dtype="uint8", seed=1):
    frames = make_frames(plan, dtype, seed)
    return Stack.from_array(frames.reshape(*plan.scan_shape, *plan.detector_shape))


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def error(name="cudaErrorIllegalAddress"):
    return CUDARuntimeError(f"{name}: some words")


@pytest.mark.parametrize(
    ("work", "order"), [("early", "forward"), ("late", "reverse"), ("random", "shuffled")]
)
def test_the_device_may_take_its_time(standin, monkeypatch, work, order):
    """Many pieces through two buffers, sums larger than these."""
    monkeypatch.setattr(upload, "SLOT_BYTES", 300)
    standin(work=work, order=order)
    for seed in range(3):
        plan = make_plan((7, 41), u=1 + seed, reach=50, seed=seed)
        stack = make_stack(plan, "uint16", seed)
        assert_same(CudaStack.of(stack).add(plan), stack.add(plan))


def test_frames_cross_the_bus_once_and_plans_are_small(standin):
    cupy = standin()
    plan = make_plan((6, 41))
    stack = CudaStack.of(make_stack(plan))
    assert cupy.uploaded == stack.frames.nbytes
    launches = cupy.launches
    for seed in range(4):
        other = make_plan((6, 41), seed=0, reach=3 + seed)
        before = cupy.uploaded
        stack.add(other)
        count = len(other.pixels)
        tables = 4 * (2 * 2 + 1 + 3 * count) + (4 * (1 + 1 + 3 * count) if seed == 0 else 0)
        assert cupy.uploaded - before == tables
    # One for A, and one for S as long as the pixels are the same.
    assert cupy.launches - launches == 4 + 1
    pixels = other.pixels[1:]
    narrow = type(other)((6, 41), (9, 11), 2, pixels, other.shifts[1:])
    assert_same(stack.add(narrow), make_stack(plan).add(narrow))


def test_only_new_frames_are_uploaded(standin):
    cupy = standin(work="late")
    plan = make_plan((6, 41))
    whole = make_stack(plan)
    frames = np.zeros_like(whole.frames)
    nothing = np.zeros((6, 41), bool)
    stack = CudaStack(frames, whole.pixels, (6, 41), (9, 11), nothing)
    assert cupy.uploaded == 0
    rng = np.random.default_rng(0)
    scanned = nothing.reshape(-1).copy()
    for part in np.array_split(rng.permutation(246), 5):
        scanned[part] = True
        frames[part] = whole.frames[part]
        before = cupy.uploaded
        stack.refresh(scanned.reshape(6, 41))
        assert cupy.uploaded - before == frames[part].nbytes
        there = Stack(frames, whole.pixels, (6, 41), (9, 11), scanned.reshape(6, 41))
        assert_same(stack.add(plan), there.add(plan))
    assert not nothing.any()  # what was given is not written to


def test_sums_may_stay_on_the_device(standin):
    standin(work="late")
    plan = make_plan((6, 41))
    stack = CudaStack.of(make_stack(plan))
    A, S = stack.add_on_device(plan)
    assert (A.size, S.size) == (np.prod(plan.folded_shape), 246)
    assert not stack._resident.slots[0].stream.queue  # they are complete
    bad = np.full((6, 41, 9, 11), np.nan)
    with pytest.raises(ValueError, match="is nan"):
        CudaStack.of(Stack.from_array(bad)).add_on_device(plan)


def test_floats_are_added_in_the_same_order_every_time(standin):
    standin(order="shuffled")
    plan = make_plan((3, 21))
    stack = CudaStack.of(make_stack(plan, "float64"))
    first = stack.add(plan)
    for _ in range(3):
        assert_same(stack.add(plan), first)
        assert_same(CudaStack.of(stack).add(plan), first)


def test_a_sum_that_is_too_large_is_an_error(standin):
    standin()
    plan = make_plan((3, 4))
    frames = np.ones((3, 4, 9, 11))
    frames[2, 1] = 1e30
    with pytest.raises(ValueError, match=r"sum of the frame at scan position \(2, 1\) is"):
        CudaStack.of(Stack.from_array(frames)).add(plan)


def test_nothing_is_left_behind(standin):
    cupy = standin()
    plan = make_plan((3, 21))
    stack = make_stack(plan)
    used = []
    for _ in range(5):
        resident = CudaStack.of(stack)
        resident.add(plan)
        resident.add(plan)
        del resident
        gc.collect()
        used.append((cupy.pools[0].in_use, cupy.pools[0].taken, cupy.pinned.taken))
    assert len(set(used)) == 1
    assert used[0][0] == 0


def test_several_threads_and_devices(standin):
    cupy = standin(devices=2)
    plans = [make_plan((3, 21), reach=r) for r in range(1, 5)]
    host = make_stack(plans[0])
    stacks = [CudaStack.of(host, device=d) for d in (0, 1)]
    wrong = []

    def work(number):
        for plan in plans:
            for one, other in zip(stacks[number % 2].add(plan), host.add(plan), strict=True):
                if not np.array_equal(one, other):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert {device for device, _ in cupy.compiled} == {0, 1}


# What goes wrong


def test_too_little_memory_says_so_and_the_cpu_does_it(standin):
    standin(memory=1000)
    plan = make_plan((3, 21))
    stack = make_stack(plan)
    with pytest.raises(CudaError, match=r"keeping a stack of .* GiB: out of memory"):
        place_stack(stack, "cuda", 0)
    with pytest.warns(RuntimeWarning, match="stack is added on the CPU.*out of memory"):
        placed = place_stack(stack, "auto", 0)
    assert placed is stack


@pytest.mark.parametrize("operation", ["launch", "synchronize", "device"])
def test_a_device_that_is_lost_is_an_error_or_the_cpu_goes_on(standin, operation):
    cupy = standin(work="late")
    plan = make_plan((3, 21))
    host = make_stack(plan)
    strict, lenient = place_stack(host, "cuda", 0), place_stack(host, "auto", 0)
    assert_same(strict.add(plan), host.add(plan))
    cupy.faults[operation] = error()
    with pytest.raises(CudaError, match=r"GPU 0, .*cudaErrorIllegalAddress"):
        strict.add(plan)
    with pytest.warns(RuntimeWarning, match=r"on the CPU from now on. GPU 0.*IllegalAddress"):
        assert_same(lenient.add(plan), host.add(plan))
    cupy.faults.clear()  # but what the device has is not trusted any more
    with pytest.raises(CudaError, match="GPU 0 failed before"):
        strict.add(plan)
    with warnings.catch_warnings(action="error"):  # one warning will do
        assert_same(lenient.add(plan), host.add(plan))
        lenient.refresh(np.ones((3, 21), bool))


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        ("launch", CUDARuntimeError("cudaErrorIllegalAddress: some words")),
        ("synchronize", OutOfMemoryError("Out of memory allocating 3 bytes")),
    ],
)
def test_an_upload_that_fails_is_not_taken_for_complete(standin, operation, fault):
    cupy = standin()
    plan = make_plan((3, 21))
    host = make_stack(plan)
    nothing = np.zeros((3, 21), bool)
    stack = CudaStack(host.frames, host.pixels, (3, 21), (9, 11), nothing, fall_back=True)
    cupy.faults[operation] = fault
    with pytest.warns(RuntimeWarning, match="from now on. GPU 0, uploading a stack"):
        stack.refresh(np.ones((3, 21), bool))
    cupy.faults.clear()
    assert_same(stack.add(plan), host.add(plan))


def test_stacks_are_placed_where_they_are_wanted(standin):
    standin(devices=2)
    plan = make_plan((3, 21))
    host = make_stack(plan)
    for engine, device, expected in [
        ("auto", None, None),
        ("numba", 1, None),
        ("auto", 1, 1),
        ("cuda", None, 0),
        ("cuda", 1, 1),
    ]:
        placed = place_stack(host, engine, device)
        assert getattr(placed, "device", None) == expected
        narrow = placed.select(np.arange(99).reshape(9, 11) % 3 > 0)
        assert getattr(narrow, "device", None) == expected
    with pytest.raises(ValueError, match="engine = 'numpy': expected one of auto, cuda, numba"):
        place_stack(host, "numpy")
