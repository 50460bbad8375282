"""The kernels themselves: run on the CPU, and compiled for GPUs. Nothing here needs one."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import needs_compiler
from standin import compiler

from kernels import (
    ARCHITECTURES,
    INSTANCES,
    ORDERS,
    SANITIZE,
    SANITIZED,
    SOURCES,
    check_ptx,
    compile_for_gpu,
    launch,
    sanitized,
)
from libertem_parallax.accumulate import accumulator_dtype
from libertem_parallax.accumulate.cuda import device
from libertem_parallax.accumulate.dtypes import value_range


def run(dtype, accumulator, n, count, order, source=None, seed=0):
    """Launch the kernel for frames; returns what it gave and what plain NumPy gives.

    Every array is just as large as the kernel may believe; the lowest and the highest target of the
    first and the last frame are the first and the last element of A.
    """
    rng = np.random.default_rng(seed)
    size = count + int(rng.integers(0, 20))
    if np.dtype(dtype).kind == "f":
        frames = rng.integers(-1000, 1000, (n, size)).astype(dtype)
    else:
        info = np.iinfo(dtype)
        bound = (2**31 if accumulator == "int32" else 2**62) // count
        frames = rng.integers(
            max(info.min, -bound), min(info.max, bound - 1), (n, size), dtype, endpoint=True
        )
    frames[rng.random(frames.shape) < 0.3] = 0
    pixels = np.sort(rng.choice(size, count, replace=False)).astype(np.int32)
    pixels[-1] = size - 1
    positions = np.sort(rng.choice(3 * n, n, replace=False)).astype(np.int64)
    positions -= positions[0]
    targets = rng.integers(0, 40, count).astype(np.int64)  # many of them twice
    targets[[0, -1]] = 40, 0
    if count > 2:
        targets[1] = 40
    A = rng.integers(-5, 5, int(targets.max() + positions.max()) + 1).astype(accumulator)
    S = rng.integers(-5, 5, n).astype(accumulator)
    expected_A, expected_S = A.copy(), S.copy()
    for target, pixel in zip(targets, pixels, strict=True):
        np.add.at(expected_A, target + positions, frames[:, pixel].astype(accumulator))
    expected_S += frames[:, pixels].sum(axis=1, dtype=accumulator)

    arguments = [frames, positions, pixels, targets, A, S, *np.array([n, size, count], np.int32)]
    shape = device.launch_shape(n, count)
    launch("scatter", (dtype, accumulator), shape, arguments, order, seed, source)
    return (A, S), (expected_A, expected_S)


def run_events(dtype, accumulator, counts, order, source=None, seed=0, first=3, bad=()):
    """Launch the kernel for events; returns what it gave, and its trouble, and what it should.

    Frame t has ``counts[t]`` events; those of `bad` are of frames and their columns or values.
    Arrays are just as large as the kernel may believe, as for frames.
    """
    rng = np.random.default_rng(seed)
    n, size = len(counts), 50
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    low, high = value_range(dtype)
    if np.dtype(dtype).kind == "f":
        values = rng.integers(-1000, 1000, bounds[-1]).astype(dtype)
    else:
        values = rng.integers(low, high, bounds[-1], dtype, endpoint=True)
    columns = rng.integers(0, size, bounds[-1]).astype(np.int32)  # of any order, many twice
    lookup = np.where(rng.random(size) < 0.7, rng.integers(0, 41, size), -1)
    lookup[[0, 1, 2]] = 40, 0, -1
    positions = np.sort(rng.choice(3 * n, n, replace=False)).astype(np.int64)
    positions -= positions[0]
    A = rng.integers(-5, 5, int(40 + positions.max()) + 1).astype(accumulator)
    S = rng.integers(-5, 5, n).astype(accumulator)
    trouble = np.full(2, device.NO_TROUBLE, np.int32)
    keep = np.ones(len(values), bool)
    for frame, what, value in bad:
        event = bounds[frame] + counts[frame] // 2
        columns[event] = 0
        {"column": columns, "value": values}[what][event] = value
        keep[event] = False
    frames = np.repeat(np.arange(n), counts)
    targets = lookup[np.where(keep, columns, 2)]
    keep = targets >= 0
    expected_A, expected_S = A.copy(), S.copy()
    summands = values[keep].astype(accumulator)
    np.add.at(expected_A, targets[keep] + positions[frames[keep]], summands)
    np.add.at(expected_S, frames[keep], summands)

    sizes = np.array([n, size, first], np.int32)
    arguments = [values, columns, bounds, positions, lookup, A, S, trouble, *sizes, low, high]
    shape = device.events_launch_shape(n)
    launch("events", (dtype, accumulator), shape, arguments, order, seed, source)
    return (A, S, trouble), (expected_A, expected_S)


def pairwise(instances, shapes):
    """Cases in which every two of instance, shape and order of the threads meet."""
    return [
        (*instance, shape, ORDERS[(i + j) % len(ORDERS)])
        for i, instance in enumerate(instances)
        for j, shape in enumerate(shapes)
    ]


#: Frames and pixels: one, as many as a block takes, some more and some less, many.
SHAPES = [(1, 1), (32, 64), (31, 65), (33, 63), (70, 200), (1, 130), (129, 1)]


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "accumulator", "shape", "order"), pairwise(INSTANCES["scatter"], SHAPES)
)
def test_on_the_cpu(dtype, accumulator, shape, order):
    actual, expected = run(dtype, accumulator, *shape, order)
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])


#: Events of the frames: one, none, about as many as a warp has lanes, more frames than a block.
COUNTS = [[1], [0], [31, 0, 32, 33, 200, 1, 0, 5], [7, 64] * 9]


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "accumulator", "counts", "order"), pairwise(INSTANCES["events"], COUNTS)
)
def test_events_on_the_cpu(dtype, accumulator, counts, order):
    actual, expected = run_events(dtype, accumulator, counts, order)
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])
    assert actual[2].tolist() == [device.NO_TROUBLE] * 2


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "what", "value"),
    [
        ("uint8", "column", -1),
        ("uint8", "column", 50),
        ("uint8", "column", -(2**31)),
        ("uint8", "column", 2**31 - 1),
        ("int64", "value", 2**31),
        ("int64", "value", -(2**31) - 1),
        ("uint64", "value", 2**32),
        ("float32", "value", np.nan),
        ("float64", "value", np.inf),
        ("float64", "value", -np.inf),
    ],
)
def test_bad_events_on_the_cpu(dtype, what, value):
    """They are left out, and the first of them is reported."""
    accumulator = "float64" if dtype.startswith("f") else "int64"
    bad = [(4, what, value), (9, what, value)]
    actual, expected = run_events(dtype, accumulator, [40] * 20, "shuffled", bad=bad, first=3)
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])
    none = device.NO_TROUBLE
    assert actual[2].tolist() == ([7, none] if what == "column" else [none, 7])


def run_gather(dtype, accumulator, scan, count, grids, order, source=None, seed=0):
    """Launch the kernel that gathers; returns what it gave and what plain NumPy gives.

    Some sub-grids may have no image; what was in A before does not matter.
    """
    rng = np.random.default_rng(seed)
    shape = (count + 2, *scan)  # some images are not used, some twice
    if np.dtype(dtype).kind == "f":
        images = rng.integers(-1000, 1000, shape).astype(dtype)
    else:
        info = np.iinfo(dtype)
        bound = (2**31 if accumulator == "int32" else 2**62) // count
        images = rng.integers(
            max(info.min, -bound), min(info.max, bound - 1), shape, dtype, endpoint=True
        )
    pixels = rng.integers(0, count + 2, count).astype(np.int32)
    pixels[[0, -1]] = 0, count + 1
    steps = rng.integers(0, scan, (count, 2)).astype(np.int32)
    steps[0], steps[-1] = (0, 0), np.array(scan) - 1
    bounds = np.sort(rng.integers(0, count + 1, grids + 1)).astype(np.int32)
    bounds[[0, -1]] = 0, count
    A = rng.integers(-5, 5, (grids, *scan)).astype(accumulator)
    expected = np.zeros_like(A)
    for g, (start, stop) in enumerate(itertools.pairwise(bounds)):
        for m in range(start, stop):
            expected[g] += np.roll(images[pixels[m]].astype(accumulator), steps[m], (0, 1))

    *shape, tiles = device.gather_launch_shape(grids, scan[0] * scan[1])
    arguments = [images, bounds, pixels, steps, A, *np.array([*scan, tiles], np.int32)]
    launch("gather", (dtype, accumulator), shape, arguments, order, seed, source)
    return A, expected


def run_turn(dtype, n, count, order, source=None, seed=0):
    """Launch the kernel that turns frames; returns what it gave and what plain NumPy gives."""
    rng = np.random.default_rng(seed)
    size, first = n + 5, 3
    frames, images = (rng.integers(0, 2**8, s).astype(dtype) for s in ((n, count), (count, size)))
    expected = images.copy()
    expected[:, first : first + n] = frames.T
    *shape, tiles = device.turn_launch_shape(n, count)
    arguments = [frames, images, *np.array([n, count, size, first, tiles], np.int32)]
    launch("turn", (dtype,), shape, arguments, order, seed, source)
    return images, expected


#: Scan, images and sub-grids: one block and several, full and not; one image a warp and several.
SCANS = [((1, 1), 1, 1), ((4, 32), 8, 1), ((7, 19), 9, 4), ((16, 17), 70, 9)]


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "accumulator", "scan", "order"), pairwise(INSTANCES["gather"], SCANS)
)
def test_gathering_on_the_cpu(dtype, accumulator, scan, order):
    actual, expected = run_gather(dtype, accumulator, *scan, order)
    np.testing.assert_array_equal(actual, expected)


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "shape", "order"),
    pairwise(INSTANCES["turn"], [(1, 1), (32, 32), (33, 31), (5, 100), (130, 7)]),
)
def test_turning_on_the_cpu(dtype, shape, order):
    actual, expected = run_turn(dtype, *shape, order)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.skipif(SANITIZE, reason="this is the run that is asked for")
@needs_compiler
def test_on_the_cpu_within_bounds():
    """Once more under AddressSanitizer, in a process of its own as it must be loaded first."""
    folder = Path(__file__).parent
    done = sanitized("on_the_cpu", __file__, folder / "test_cuda_likelihood.py")
    assert done.returncode == 0, done.stdout + done.stderr
    shapes = {"scatter": len(SHAPES), "events": len(COUNTS), "gather": len(SCANS), "turn": 5}
    passed = 10 + 3 + sum(len(SANITIZED[name]) * shapes[name] for name in shapes)
    assert f"{passed} passed" in done.stdout


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", sorted(INSTANCES))
def test_for_gpus(name, architecture):
    log, ptx, names = compile_for_gpu(name, architecture)
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", log)
    assert spills == [("0", "0", "0")] * len(INSTANCES[name]), log
    check_ptx(name, ptx, names)


#: Mistakes that these tests must find.
BARRIER = "__syncthreads();"
ATOMICS = {
    "scatter": (
        "add(begin + targets[first_pixel + p], value);",
        "begin[targets[first_pixel + p]] += value;",
    ),
    "events": ("add(S + t, sum);", "S[t] += sum;"),
}


@needs_compiler
@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_barrier_is_found(which):
    parts = SOURCES["scatter"].split(BARRIER)
    assert len(parts) == 3
    parts[which] += parts.pop(which + 1)
    source = BARRIER.join(parts)
    wrong = []
    for order in compiler.ORDERS:
        actual, expected = run("uint8", "int32", 33, 130, order, source)
        wrong.append(not all(map(np.array_equal, actual, expected)))
    assert any(wrong)


@needs_compiler
def test_a_missing_barrier_is_found_for_events():
    source = SOURCES["events"].replace(BARRIER, "")
    wrong = []
    for order in compiler.ORDERS:
        actual, expected = run_events("uint8", "int64", [40] * 20, order, source)
        wrong.append(not np.array_equal(actual[1], expected[1]))
    assert any(wrong)


@needs_compiler
@pytest.mark.parametrize("name", ["gather", "turn"])
def test_a_missing_barrier_is_found_for_stacks(name):
    before, between, after = SOURCES[name].split(BARRIER)
    source = (
        before + between + BARRIER + after
        if name == "gather"
        else before + BARRIER + between + after
    )
    wrong = []
    for order in compiler.ORDERS:
        if name == "gather":
            actual, expected = run_gather("uint8", "int32", (16, 17), 70, 9, order, source)
        else:
            actual, expected = run_turn("uint8", 33, 31, order, source)
        wrong.append(not np.array_equal(actual, expected))
    assert any(wrong)


@pytest.mark.parametrize("name", sorted(ATOMICS))
def test_a_missing_atomic_is_found(name):
    atomic, plain = ATOMICS[name]
    assert SOURCES[name].count(atomic) == 1
    source = SOURCES[name].replace(atomic, plain)
    _, ptx, names = compile_for_gpu(name, 90, source)
    with pytest.raises(AssertionError):
        check_ptx(name, ptx, names)


def test_instances_are_those_that_accumulators_ask_for():
    kinds = sorted({dtype for dtype, _ in INSTANCES["scatter"]})
    assert sorted(device.C_TYPES) == kinds
    for dtype in kinds:
        for pixels in (1, 2**30):
            assert (dtype, accumulator_dtype(dtype, pixels).name) in INSTANCES["scatter"]
            assert (dtype, accumulator_dtype(dtype, pixels).name) in INSTANCES["gather"]
        assert (dtype, accumulator_dtype(dtype, 1, events=True).name) in INSTANCES["events"]
