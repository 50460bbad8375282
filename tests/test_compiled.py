"""What is particular to the Numba engine."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest
from helpers import run_engine

from libertem_parallax.accumulate import ENGINES, Plan, accumulator_dtype, compiled

SCRIPT = """
import numpy as np
from libertem_parallax.accumulate import ENGINES, Plan, loops

plan = Plan((2, 3), (8, 8), 1, np.array([[4, 4]]), np.array([[0, 0]]))
A, S = np.zeros(plan.accumulator_shape, np.int32), np.zeros(6, np.int32)
frames = np.ones((6, 8, 8), np.uint8)
worker = ENGINES["numba"](plan, np.uint8, np.arange(6), A, S)
worker.add(frames)
frames.flags.writeable = False  # as memory maps are
worker.add(frames)
worker.finish()
assert A.sum() == 12
stats = loops.accumulate.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


def test_the_second_process_does_not_compile(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_DISABLE_JIT": "0"}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        for _ in range(2)
    ]
    # One specialisation, compiled by the first process and read from disk by the second.
    assert outputs == [["0", "1"], ["1", "0"]]


def test_engines_leave_with_their_last_reference():
    """Without waiting for the garbage collector: accumulators are large, partitions many."""
    plan = Plan((2, 3), (8, 8), 1, np.array([[4, 4]]), np.array([[0, 0]]))
    worker = compiled.CompiledEngine(
        plan,
        np.uint8,
        np.arange(6),
        np.zeros(plan.accumulator_shape, np.int32),
        np.zeros(6, np.int32),
    )
    worker.add(np.ones((6, 8, 8), np.uint8))
    gc.disable()
    try:
        gone = weakref.ref(worker)
        del worker
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float32", "int64"])
@pytest.mark.parametrize("width", [3, 32, 77])
def test_blocks_groups_and_chunks_of_any_size(dtype, width):
    """Against the plain engine: blocks end with a group or not, chunks with a row or not."""
    rng = np.random.default_rng(width)
    nx, height = 317, 40
    pixels = np.argwhere(rng.random((height, width)) < 0.7)
    plan = Plan((2, nx), (height, width), 2, pixels, rng.integers(-9, 9, pixels.shape))
    index = np.flatnonzero(rng.random(2 * nx) < 0.99)
    info = np.iinfo("int16" if np.dtype(dtype).itemsize > 2 else dtype)
    frames = rng.integers(info.min, info.max, (len(index), height, width)).astype(dtype)
    results = []
    for name in ("numba", "numpy"):
        A = np.zeros(plan.accumulator_shape, accumulator_dtype(dtype, len(pixels)))
        S = np.zeros(len(index), A.dtype)
        worker = ENGINES[name](plan, dtype, index, A, S)
        for first in range(0, len(index), 201):
            worker.add(frames[first : first + 201], (0, 0), first)
        worker.finish()
        results.append((A, S))
    for ours, plain in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float32", "int64"])
@pytest.mark.parametrize("count", [1, 3, 16])
def test_small_tiles_that_wait_for_more(dtype, count):
    """Against the plain engine; from a buffer that is filled anew, as LiberTEM does it.

    Tiles are of three parts of the detector in turns: with a box of bright field, with some at
    its corners, and with none. Rows of the scan are longer than a block and have gaps. A few frames
    never come, some come late, and the last ones do not fill a block.
    """
    rng = np.random.default_rng(count)
    pixels = np.array([[1, 2], [2, 3], [2, 4], [3, 3], [4, 0], [4, 1], [6, 7]])
    nx = 158
    plan = Plan((2, nx), (9, 8), 2, pixels, rng.integers(-9, 9, pixels.shape))
    index = np.delete(np.arange(2 * nx - 7), [3, 4, 180, 182])
    frames = rng.integers(0, 100, (len(index), 9, 8)).astype(dtype)
    starts = [*range(0, 30, count), *range(77, len(index), count), 50]
    results = []
    for name in ("numba", "numpy"):
        A = np.zeros(plan.accumulator_shape, accumulator_dtype(dtype, len(pixels)))
        S = np.zeros(len(index), A.dtype)
        worker = ENGINES[name](plan, dtype, index, A, S)
        for first in starts:
            for row, stop in ((0, 4), (4, 7), (7, 9)):
                tile = frames[first : first + count, row:stop].copy()
                worker.add(tile, (row, 0), first)
                tile[:] = 99
        worker.finish()
        results.append((A, S))
    for ours, plain in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float64"])
@pytest.mark.parametrize("shape", [(3, 5), (5, 13), (40, 7)])
@pytest.mark.parametrize("shift", [0, 5])
def test_lines_stay_within_frames_wherever_these_begin(dtype, shape, shift):
    """Also those of the first and the last pixel; frames lie apart, or are less than a line."""
    rng = np.random.default_rng(shift)
    for share in (0.05, 0.9):
        inside = rng.random(shape) < share
        inside[0, 0] = inside[-1, -1] = True
        pixels = np.argwhere(inside)
        # So far that few have a target in common: what is compiled for those is the same here.
        plan = Plan((2, 41), shape, 2, pixels, rng.integers(-40, 40, pixels.shape))
        size = np.dtype(dtype).itemsize
        memory = np.empty(82 * (np.prod(shape) + 3) * size + 128, np.uint8)
        begin = -memory.__array_interface__["data"][0] % 64 + shift // size * size
        frames = memory[begin:].view(np.uint8)[: 82 * (np.prod(shape) + 3) * size].view(dtype)
        frames = frames.reshape(82, -1)[:, : np.prod(shape)].reshape(82, *shape)
        frames[:] = rng.integers(0, 256, frames.shape)
        ours, plain = (
            run_engine(ENGINES[name], plan, frames, np.arange(82)) for name in ("numba", "numpy")
        )
        for one, other in zip(ours, plain, strict=True):
            np.testing.assert_array_equal(one, other)
