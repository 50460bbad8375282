"""Numba: the default on CPUs. What it compiles, and why, is in `loops.py`."""

from __future__ import annotations

from functools import cached_property
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from .dtypes import value_range
from .engine import Engine, Events
from .event_loop import accumulate_events
from .loops import BLOCK, CHUNK, CHUNKS, LINE, accumulate, lanes_of, locked
from .plan import Plan

__all__ = ["CompiledEngine"]


class _Table(NamedTuple):
    """Where the pixels of one part of the detector are, and where they go: see `accumulate`."""

    lines: NDArray[np.int64]
    in_frame: NDArray[np.int64]
    places: NDArray[np.int64]
    slots: NDArray[np.int64]
    targets: NDArray[np.int64]
    batches: NDArray[np.int64]


class _Waiting:
    """Frames of small tiles that wait for more: the box around the bright field of each.

    Parameters
    ----------
    frames : (F, h, w)
        Buffer for the boxes of successive frames.
    at
        Row and column at which the box begins in a tile.
    """

    def __init__(self, frames: NDArray[Any], at: tuple[int, int]) -> None:
        self.frames = frames
        self.at = at
        self.first = self.count = 0  # position of the first frame that is there, and how many are


class CompiledEngine(Engine):
    """`Engine` compiled by Numba, on one thread; releases the GIL."""

    def _add_events(
        self, events: Events, shape: tuple[int, int], origin: tuple[int, int], first: int
    ) -> None:
        values, columns, bounds = events
        frames = slice(first, first + len(bounds) - 1)
        lookup, limits = self._lookup(shape, origin), value_range(self.dtype)
        if self.dtype.kind == "f" or self.dtype.itemsize == 8:
            low, high = map(self.A.dtype.type, limits)
        else:
            low = high = None  # is every value
        with np.errstate(over="ignore", invalid="ignore"):  # as below
            refused = accumulate_events(
                locked(values),
                locked(columns),
                bounds,
                self.index[frames],
                self.plan.scan_shape[1],
                self.A.shape[3],
                locked(lookup),
                low,
                high,
                self.A.reshape(-1),
                self.S[frames],
            )
        if refused >= 0:
            there = columns[bounds[refused] : bounds[refused + 1]]
            if ((there < 0) | (there >= len(lookup))).any():
                self._refuse_outside(first + refused)
            self._refuse_value(first + refused)

    @cached_property
    def _tiles(self) -> dict[tuple[int, ...], tuple[_Table, NDArray[Any]]]:
        """What depends on a tile's place only: detectors may send a few frames a tile."""
        return {}

    @cached_property
    def _values(self) -> NDArray[Any]:
        """Buffer for the pixels of a block."""
        size, lanes = self.dtype.itemsize, lanes_of(self.dtype.itemsize)
        shape = BLOCK // size // lanes, CHUNKS * CHUNK // size, lanes
        return np.empty(shape, self.dtype)

    @cached_property
    def _waiting(self) -> dict[tuple[int, ...], _Waiting | None]:
        """Frames that wait to be added, by the part of the detector that came."""
        return {}

    def _add(self, frames: NDArray[Any], origin: tuple[int, int], first: int) -> None:
        # A few frames take as long as a group of them, and the call as long as tens. So they wait
        # for more; not floats, whose sums are checked at once, nor the last ones by themselves.
        few = len(frames) <= lanes_of(self.dtype.itemsize) and self.dtype.kind != "f"
        last = first + len(frames) == len(self.index) and not self._waiting
        if last or not (few and self._keep_back(frames, origin, first)):
            self._add_at_once(frames, origin, first)

    def _keep_back(self, frames: NDArray[Any], origin: tuple[int, int], first: int) -> bool:
        """Copy the box around a tile's bright field; add a block of them once it is full.

        Returns False, and does nothing, where too little of the box is bright field.
        """
        part = (*origin, *frames.shape[1:])
        if part not in self._waiting:
            self._waiting[part] = self._make_waiting(frames, origin)
        waiting = self._waiting[part]
        if waiting is None:
            return False
        (top, left), (most, height, width) = waiting.at, waiting.frames.shape
        boxes = frames[:, top : top + height, left : left + width]
        while len(boxes):
            if first != waiting.first + waiting.count or waiting.count == most:
                self._add_waiting(part)
                waiting.first = first
            some = boxes[: most - waiting.count]
            waiting.frames[waiting.count : waiting.count + len(some)] = some
            waiting.count += len(some)
            boxes, first = boxes[len(some) :], first + len(some)
        return True

    def _make_waiting(self, frames: NDArray[Any], origin: tuple[int, int]) -> _Waiting | None:
        rows, cols = self._pixels_within(frames, origin)
        if not len(rows):
            return None
        top, left = int(rows.min()), int(cols.min())
        height, width = int(rows.max()) + 1 - top, int(cols.max()) + 1 - left
        if height * width > 4 * len(rows):  # a disk fills three quarters
            return None
        shape = BLOCK // self.dtype.itemsize, height, width
        return _Waiting(np.empty(shape, self.dtype), (top, left))

    def _add_waiting(self, part: tuple[int, ...]) -> None:
        waiting = self._waiting[part]
        if waiting is not None and waiting.count:
            origin = part[0] + waiting.at[0], part[1] + waiting.at[1]
            self._add_at_once(waiting.frames[: waiting.count], origin, waiting.first)
            waiting.count = 0

    def finish(self) -> None:
        """Add what waits for more."""
        for part in self._waiting:
            self._add_waiting(part)

    def _add_at_once(self, frames: NDArray[Any], origin: tuple[int, int], first: int) -> None:
        row = frames.shape[2] * frames.itemsize
        apart, *within = frames.strides
        if within != [row, frames.itemsize] or apart < frames.shape[1] * row:
            frames = np.ascontiguousarray(frames)
        # Lines are those of memory, if all frames begin at the same place of one.
        offset = -frames.__array_interface__["data"][0] % LINE
        offset -= offset % frames.itemsize
        place = (*origin, *frames.shape[1:], offset)
        if place not in self._tiles:
            self._tiles[place] = self._make_tile(place, frames.dtype)
        table, buffer = self._tiles[place]
        if not len(table.targets):
            return
        with np.errstate(over="ignore", invalid="ignore"):  # in plain Python; sums are checked
            accumulate(
                locked(frames),
                self.index[first : first + len(frames)],
                self.plan.scan_shape[1],
                self.A.shape[3],
                *table,
                buffer,
                self._values,
                self.A.reshape(-1),
                self.S[first : first + len(frames)],
            )

    def _make_tile(
        self, place: tuple[int, ...], dtype: np.dtype[Any]
    ) -> tuple[_Table, NDArray[Any]]:
        """Take what was worked out for the plan before, and a new buffer."""
        key = (dtype.itemsize, *place)
        with _making:
            shared = _tables.setdefault(self.plan, {})
            if key not in shared:
                shared[key] = _make_table(self.plan, place, dtype.itemsize)
        table, size = shared[key], dtype.itemsize
        # Chunks may reach over the ends, by less than a line.
        width = int(table.lines[:, 1].max(initial=LINE)) + 2 * LINE
        # Lines of more than 64 frames take too much of the L2 cache.
        frames = BLOCK // size if len(table.in_frame) else min(BLOCK // size, 64)
        return table, np.empty((frames, width // size), dtype)


# What partitions share, by part of the detector: with many pixels, it takes milliseconds.
_tables: WeakKeyDictionary[Plan, dict[tuple[int, ...], _Table]] = WeakKeyDictionary()

# Threads that begin together wait for one to make it: if all do, they hold each other up.
_making = Lock()


def _make_table(plan: Plan, place: tuple[int, ...], size: int) -> _Table:
    """Cover the tile's bright-field pixels with chunks and lines, and cut these into batches."""
    origin, shape, offset = place[:2], place[2:4], place[4]
    width, frame = CHUNK // size, shape[0] * shape[1] * size
    pixels = plan.pixels - origin
    inside = ((pixels >= 0) & (pixels < shape)).all(axis=1)
    rows, columns = pixels[inside].T
    at = (rows * shape[1] + columns) * size
    chunk, within = _make_chunks(rows, columns, width)
    starts = _changes(chunk)
    count = np.count_nonzero(starts)
    cuts = np.append(np.arange(0, count, CHUNKS), count)
    pixel_cuts = np.searchsorted(chunk, cuts)
    if frame < LINE:  # all of it is copied
        begin, lines, line_cuts = LINE + at, np.empty((0, 2), np.int64), np.zeros_like(cuts)
    else:
        begin, lines, line_cuts = _make_lines(at, chunk // CHUNKS, pixel_cuts, frame, offset)
    places, in_frame = ((of // size - within)[starts] for of in (begin, at))
    # Where pixels lie side by side, as in a stack, there is nothing to bring together.
    if frame < LINE or 4 * len(at) * size <= 3 * (at.max(initial=0) - at.min(initial=frame)):
        in_frame = in_frame[:0]
    slots = chunk % CHUNKS * width + within
    batches = np.column_stack([line_cuts, cuts, pixel_cuts])
    return _Table(lines, in_frame, places, slots, plan.targets[inside], batches)


def _make_chunks(
    rows: NDArray[np.int64], columns: NDArray[np.int64], width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tell each pixel's chunk, and its place there. A row's first pixel begins a chunk."""
    # Pixels come in row-major order.
    _, first, row = np.unique(rows, return_index=True, return_inverse=True)
    number, within = np.divmod(columns - columns[first][row], width)
    return np.cumsum(_changes(rows, number)) - 1, within


def _make_lines(
    at: NDArray[np.int64],
    batch: NDArray[np.int64],
    pixel_cuts: NDArray[np.int64],
    frame: int,
    offset: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Bring lines side by side that hold pixels, each batch's by themselves.

    Given are the bytes of a frame `at` which pixels begin, each one's batch, and the first pixel of
    each; lines count from `offset`. Returned are where pixels begin in the buffer, the lines, and
    the first one of each batch.
    """
    number = (at - offset) // LINE
    starts = _changes(batch, number)
    line = np.cumsum(starts) - 1
    cuts = np.append(line, np.count_nonzero(starts))[pixel_cuts]
    source = (offset + number * LINE)[starts]
    to = LINE * (1 + np.arange(len(source)) - np.repeat(cuts[:-1], np.diff(cuts)))
    # The first and the last stay within the frame. The last then begins earlier, which must not
    # overwrite another part of it.
    moved = np.clip(source, 0, frame - LINE) - source
    to[(moved < 0) & (np.diff(source, prepend=0) != LINE)] += LINE
    lines = np.column_stack([source, to]) + moved[:, None]
    return to[line] + at - source[line], lines, cuts


def _changes(*of: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell where one of these is another than before; at the first, it is."""
    changes = np.ones(len(of[0]), bool)
    changes[1:] = np.any([each[1:] != each[:-1] for each in of], axis=0)
    return changes
