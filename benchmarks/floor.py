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

__all__ = ["at_the_floor", "make_floor", "touch"]


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def touch(frames: Any, pixels: Any) -> Any:
    """Read some pixels of every frame, (T, pixels), one frame after the other; their sum."""
    total = frames.dtype.type(0)
    for t in range(frames.shape[0]):
        for i in range(pixels.size):
            total += frames[t, pixels[i]]
    return total


def make_floor(load: Callable[[], Any], plan: Any, *, mapped: bool) -> Callable[[], Any]:
    """Make a pass over the data that reads every bright-field cache line once, and no more.

    Parameters
    ----------
    load
        Returns the frames, (T, pixels).
    plan
        Which pixels are of the bright field.
    mapped
        Whether to load them each time.
    """
    frames = load()
    flat = plan.pixels[:, 0] * plan.detector_shape[1] + plan.pixels[:, 1]
    lines = (frames.ctypes.data % 64 + flat * frames.itemsize) // 64
    first = flat[np.unique(lines, return_index=True)[1]]
    if mapped:
        return lambda: touch(load(), first)
    return lambda: touch(frames, first)


def at_the_floor(run: Callable[[], Any]) -> Callable[[], Any]:
    """Make a run in which engines only read every cache line of the bright field once.

    All else is done as ever. So it says what there would be if adding took no time: less could only
    take an engine that asks for lines before it needs them. Frames must come in large tiles.
    """

    def read(_: Any, frames: Any, first: int, count: int, table: Any, buffer: Any) -> None:  # noqa: ARG001
        # Lines come once for each batch of pixels that has some there.
        pixels = np.unique(table.lines[:, 0]) // frames.itemsize
        touch(frames[:count].reshape(count, -1), pixels)

    def run_at_the_floor() -> Any:
        with mock.patch.object(CompiledEngine, "_accumulate", read):
            return run()

    return run_at_the_floor
