"""What the bright field's lines of memory take to be read, and runs in which nothing else is done.

A module of its own, since `worker` is run by other environments, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import numba
import numpy as np

from libertem_parallax.accumulate.compiled import CompiledEngine
from libertem_parallax.accumulate.loops import _prefetch

__all__ = ["at_the_floor", "make_floor", "touch", "touch_asked"]


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def touch(frames: Any, pixels: Any) -> Any:
    """Read some pixels of every frame, (T, pixels), one frame after the other; their sum."""
    total = frames.dtype.type(0)
    for t in range(frames.shape[0]):
        for i in range(pixels.size):
            total += frames[t, pixels[i]]
    return total


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def touch_asked(frames: Any, pixels: Any) -> Any:
    """Do as `touch` with frames (T, 1, pixels), while memory is asked for the next frame's.

    A frame begins a page or more, and what comes first of a page waits until it is found. Several
    pages can be looked for at once, but `touch` comes to the next one only later.
    """
    total = frames.dtype.type(0)
    for t in range(frames.shape[0]):
        after = numba.uintp(min(t + 1, frames.shape[0] - 1))
        for i in range(pixels.size):
            _prefetch(frames, after, numba.uintp(pixels[i] * frames.itemsize))
            total += frames[t, 0, pixels[i]]
    return total


def make_floor(
    load: Callable[[], Any], plan: Any, *, mapped: bool = False, asked: bool = False
) -> Callable[[], Any]:
    """Make a pass over the data that reads every bright-field cache line once, and no more.

    Parameters
    ----------
    load
        Returns the frames, (T, pixels).
    plan
        Which pixels are of the bright field.
    mapped
        Whether to load them each time.
    asked
        Whether memory is asked for the next frame's lines meanwhile.
    """

    def read(frames: Any, pixels: Any) -> Any:
        return touch_asked(frames[:, None], pixels) if asked else touch(frames, pixels)

    frames = load()
    flat = plan.pixels[:, 0] * plan.detector_shape[1] + plan.pixels[:, 1]
    lines = (frames.ctypes.data % 64 + flat * frames.itemsize) // 64
    first = flat[np.unique(lines, return_index=True)[1]]
    if mapped:
        return lambda: read(load(), first)
    return lambda: read(frames, first)


def at_the_floor(run: Callable[[], Any]) -> Callable[[], Any]:
    """Make a run in which engines only read every cache line of the bright field once.

    They ask for the next frame's meanwhile. All else is done as ever. So it says what there would
    be if adding took no time. Frames must come in large tiles.
    """

    def read(_: Any, frames: Any, first: int, count: int, table: Any, buffer: Any) -> None:  # noqa: ARG001
        # Lines come once for each batch of pixels that has some there.
        pixels = np.unique(table.lines[:, 0]) // frames.itemsize
        touch_asked(frames[:count].reshape(count, 1, -1), pixels)

    def run_at_the_floor() -> Any:
        with mock.patch.object(CompiledEngine, "_accumulate", read):
            return run()

    return run_at_the_floor
