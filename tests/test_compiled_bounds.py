"""Whatever is not a frame's is not read, nor what is around sums: pages there are protected.

`NUMBA_BOUNDSCHECK` sees nothing of what is written in LLVM's language.
"""

from __future__ import annotations

import ctypes
import math
import mmap

import numpy as np
import pytest
from helpers import assert_same, empty, run_engine

from libertem_parallax.accumulate import ENGINES, Plan

PAGE = mmap.PAGESIZE


def between_protected_pages(array, at_end):
    """Copy an array to the end of readable memory, or to a byte after its beginning.

    With that byte, the line of memory that the array begins in may begin before the page.
    """
    pages = math.ceil((array.nbytes + 1) / PAGE)
    memory = np.frombuffer(mmap.mmap(-1, (pages + 2) * PAGE), np.uint8)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for page in (0, pages + 1):
        address = ctypes.c_void_p(memory.ctypes.data + page * PAGE)
        assert protect(address, ctypes.c_size_t(PAGE), 0) == 0
    start = (pages + 1) * PAGE - array.nbytes if at_end else PAGE + 1
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


SHAPES = [(1, 1), (3, 5), (9, 7), (1, 83), (11, 13), (45, 3), (30, 31)]


def make_plan(shape, share, seed):
    rng = np.random.default_rng(seed)
    inside = rng.random(shape) < share
    inside[0, 0] = inside[-1, -1] = True
    pixels = np.argwhere(inside)
    return Plan((2, 32), shape, 1, pixels, rng.integers(-4, 5, pixels.shape))


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("share", [0.05, 1.0])
def test_nothing_around_the_frames_is_read(dtype, at_end, share):
    """Frames of less than a line, of few, and of many; whole groups, with chunks that end after."""
    for seed, shape in enumerate(SHAPES):
        plan = make_plan(shape, share, seed)
        frames = np.random.default_rng(seed).integers(0, 256, (64, *shape)).astype(dtype)
        guarded = between_protected_pages(frames, at_end)
        guarded.flags.writeable = False  # as those of a file, which are looked at ahead
        assert_same(
            run_engine(ENGINES["numba"], plan, guarded, np.arange(64)),
            run_engine(ENGINES["numpy"], plan, frames, np.arange(64)),
        )


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("share", [0.05, 1.0])
def test_nothing_around_small_tiles_is_read(dtype, at_end, share):
    """Their lines are copied, and wait for more."""
    for seed, shape in enumerate(SHAPES):
        plan = make_plan(shape, share, seed)
        frames = np.random.default_rng(seed).integers(0, 256, (64, *shape)).astype(dtype)
        A, S = empty(plan, dtype, 64)
        worker = ENGINES["numba"](plan, dtype, np.arange(64), A, S)
        for first in range(0, 64, 7):
            tile = frames[first : first + 7]
            worker.add(between_protected_pages(tile, at_end), (0, 0), first)
        worker.finish()
        assert_same((A, S), run_engine(ENGINES["numpy"], plan, frames, np.arange(64)))


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
@pytest.mark.parametrize("columns", [3, 21, 64])
def test_nothing_around_the_sums_is_touched(dtype, columns):
    """Not even to add zeros: the last group of a scan row is not full.

    A partition may end where the accumulator goes on.
    """
    pixels = np.argwhere(np.ones((5, 7), bool))
    shifts = np.random.default_rng(columns).integers(-4, 5, pixels.shape)
    plan = Plan((2, columns), (5, 7), 1, pixels, shifts)
    for count in (columns + 1, 2 * columns):
        index = np.arange(count)
        frames = np.random.default_rng(0).integers(0, 256, (count, 5, 7)).astype(dtype)
        A, S = (between_protected_pages(sums, True) for sums in empty(plan, dtype, count))
        worker = ENGINES["numba"](plan, dtype, index, A, S)
        worker.add(frames)
        worker.finish()
        assert_same((A, S), run_engine(ENGINES["numpy"], plan, frames, index))
