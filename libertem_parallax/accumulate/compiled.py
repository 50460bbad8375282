"""Numba: the default on CPUs. What it compiles, and why, is in `loops.py`."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from .dtypes import value_range
from .engine import Engine, Events
from .loops import BLOCK, CHUNK, GROUP_BYTES, VECTOR, accumulate, accumulate_events, locked
from .plan import Plan

__all__ = ["CompiledEngine"]

#: Bytes of frames with rows of less than a chunk that are padded at once.
PADDED_BYTES = 1 << 20


class _Tile(NamedTuple):
    """What the kernel needs to know of one part of the detector, and its buffer."""

    chunks: NDArray[np.int64]
    slots: NDArray[np.int64]
    targets: NDArray[np.int64]
    batches: NDArray[np.int64]
    values: NDArray[Any]


class CompiledEngine(Engine):
    """`Engine` compiled by Numba, on one thread; releases the GIL."""

    def _add_events(
        self, events: Events, shape: tuple[int, int], origin: tuple[int, int], first: int
    ) -> None:
        values, columns, bounds = events
        frames = slice(first, first + len(bounds) - 1)
        with np.errstate(over="ignore", invalid="ignore"):  # as below
            outside, bad = accumulate_events(
                locked(values),
                locked(columns),
                bounds,
                self.index[frames],
                self.plan.scan_shape[1],
                self.A.shape[3],
                locked(self._lookup(shape, origin)),
                *value_range(self.dtype),
                self.A.reshape(-1),
                self.S[frames],
            )
        if outside >= 0:
            self._refuse_outside(first + outside)
        if bad >= 0:
            self._refuse_value(first + bad)

    @cached_property
    def _tiles(self) -> dict[tuple[int, ...], _Tile]:
        """What depends on a tile's place only: detectors may send a few frames a tile."""
        return {}

    def _add(self, frames: NDArray[Any], origin: tuple[int, int], first: int) -> None:
        place = (*origin, *frames.shape[1:])
        if place not in self._tiles:
            self._tiles[place] = self._make_tile(place, frames.dtype)
        tile = self._tiles[place]
        if not len(tile.targets):
            return
        missing = CHUNK // frames.itemsize - frames.shape[2]
        if missing > 0:
            step = max(1, PADDED_BYTES // (frames.shape[1] * CHUNK))
            if len(frames) > step:  # in pieces that stay in the cache
                for start in range(0, len(frames), step):
                    self._add(frames[start : start + step], origin, first + start)
                return
            frames = np.pad(frames, ((0, 0), (0, 0), (0, missing)))
        if frames.strides[2] != frames.itemsize:
            frames = np.ascontiguousarray(frames)
        with np.errstate(over="ignore", invalid="ignore"):  # in plain Python; sums are checked
            accumulate(
                locked(frames),
                self.index[first : first + len(frames)],
                self.plan.scan_shape[1],
                self.A.shape[3],
                *tile,
                self.A.reshape(-1),
                self.S[first : first + len(frames)],
            )

    def _make_tile(self, place: tuple[int, ...], dtype: np.dtype[Any]) -> _Tile:
        """Take what was worked out for the plan before, and a new buffer."""
        shared = _tables.setdefault(self.plan, {})
        key = (dtype.itemsize, *place)
        if key not in shared:
            shared[key] = _make_table(self.plan, place[:2], place[2:], dtype.itemsize)
        lanes, width = VECTOR // dtype.itemsize, CHUNK // dtype.itemsize
        size = GROUP_BYTES // (width * VECTOR)
        return _Tile(*shared[key], np.empty((BLOCK // VECTOR, size * width, lanes), dtype))


# What partitions share, by part of the detector: with many pixels, it takes milliseconds.
_Table = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
_tables: WeakKeyDictionary[Plan, dict[tuple[int, ...], _Table]] = WeakKeyDictionary()


def _make_table(
    plan: Plan, origin: tuple[int, ...], shape: tuple[int, ...], itemsize: int
) -> _Table:
    """Cover the tile's bright-field pixels with chunks, and cut these into batches."""
    width = CHUNK // itemsize
    pixels = plan.pixels - np.asarray(origin)
    inside = ((pixels >= 0) & (pixels < shape)).all(axis=1)
    rows, columns = pixels[inside].T
    # Chunks follow each other from the first pixel of a row on, but stay within the tile.
    _, first, row = np.unique(rows, return_index=True, return_inverse=True)
    begin = columns[first][row]
    place = np.column_stack([rows, (columns - begin) // width])
    # Pixels come in row-major order, so chunks do.
    starts = np.ones(len(place), dtype=bool)
    starts[1:] = (place[1:] != place[:-1]).any(axis=1)
    chunk = np.cumsum(starts) - 1
    left = np.minimum(begin + place[:, 1] * width, max(shape[1] - width, 0))
    # As many chunks at a time as the buffer takes.
    size = GROUP_BYTES // (width * VECTOR)
    slots = chunk % size * width + columns - left
    chunks = np.column_stack([rows, left, slots - (columns - left)])[starts]
    cuts = np.append(np.arange(0, len(chunks), size), len(chunks))
    pixel_cuts = np.searchsorted(chunk, cuts)
    batches = np.column_stack([cuts[:-1], cuts[1:], pixel_cuts[:-1], pixel_cuts[1:]])
    return chunks, slots, plan.targets[inside], batches
