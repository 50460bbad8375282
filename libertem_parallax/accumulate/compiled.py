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
from .loops import CHUNK, CHUNKS, GROUPS, LINE, accumulate, hold, lanes_of, locked
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
    fours: NDArray[np.int64] | None


class _Held:
    """Frames of small tiles that wait for more of their scan row: the lines that hold pixels.

    Parameters
    ----------
    table
        Where their pixels are, and where they go.
    frames : (F, width)
        Buffer for the lines of successive frames.
    """

    def __init__(self, table: _Table, frames: NDArray[Any]) -> None:
        self.lines = table.lines
        # In the buffer, there are no lines to be copied, and chunks begin where they were put.
        self.table = table._replace(lines=table.lines[:0], in_frame=table.places)
        self.frames = frames
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
        size = self.dtype.itemsize
        return np.empty((GROUPS, CHUNKS * CHUNK // size, lanes_of(size)), self.dtype)

    @cached_property
    def _held(self) -> dict[tuple[int, ...], _Held]:
        """Frames that wait to be added, by the part of the detector that came."""
        return {}

    def _add(self, frames: NDArray[Any], origin: tuple[int, int], first: int) -> None:
        if not frames.flags.c_contiguous:
            frames = _side_by_side(frames)
        if len(frames) <= self._few:
            self._hold(frames, origin, first)
        else:
            self._add_at_once(frames, origin, first)

    @cached_property
    def _few(self) -> int:
        """How many frames a tile may have to wait for more.

        To add a few takes as long as a whole group of frames, and the call as long as tens. Floats
        do not wait, since their sums are checked at once.
        """
        return 0 if self.dtype.kind == "f" else 2 * lanes_of(self.dtype.itemsize)

    def _hold(self, frames: NDArray[Any], origin: tuple[int, int], first: int) -> None:
        """Copy the lines that hold pixels; add a block of them once it is full."""
        part = (*origin, *frames.shape[1:])
        held = self._held.get(part)
        if held is None:
            place = (*part, _offset(frames))
            self._held[part] = held = _Held(*self._make_tile(place, self.dtype, together=True))
        if not len(held.table.targets):
            return
        frames, nx = locked(frames), self.plan.scan_shape[1]
        while True:
            if first != held.first + held.count:
                self._add_held(held)
                held.first = first
            n = hold(frames, self.index, held.first, held.count, nx, held.lines, held.frames)
            held.count += n
            if n == len(frames):
                return
            self._add_held(held)
            frames, first = frames[n:], first + n
            held.first = first

    def _add_held(self, held: _Held) -> None:
        count, held.count = held.count, 0
        if count:
            lanes = lanes_of(self.dtype.itemsize)
            held.frames[count : -(-count // lanes) * lanes] = 0  # of the last group
            frames = held.frames[:, None]
            self._accumulate(frames, held.first, count, held.table, held.frames)

    def finish(self) -> None:
        """Add what waits for more."""
        for held in self._held.values():
            self._add_held(held)

    def _add_at_once(self, frames: NDArray[Any], origin: tuple[int, int], first: int) -> None:
        place = (*origin, *frames.shape[1:], _offset(frames))
        if place not in self._tiles:
            self._tiles[place] = self._make_tile(place, frames.dtype)
        table, buffer = self._tiles[place]
        if len(table.targets):
            self._accumulate(frames, first, len(frames), table, buffer)

    def _accumulate(
        self, frames: NDArray[Any], first: int, count: int, table: _Table, buffer: NDArray[Any]
    ) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # in plain Python; sums are checked
            accumulate(
                locked(frames),
                not frames.flags.writeable,
                self.index[first : first + count],
                self.plan.scan_shape[1],
                self.A.shape[3],
                *table,
                buffer,
                self._values,
                self.A.reshape(-1),
                self.S[first:],
            )

    def _make_tile(
        self, place: tuple[int, ...], dtype: np.dtype[Any], *, together: bool = False
    ) -> tuple[_Table, NDArray[Any]]:
        """Take what was worked out for the plan before, and a new buffer."""
        key = (dtype.itemsize, together, *place)
        with _making:
            shared = _tables.setdefault(self.plan, {})
            if key not in shared:
                shared[key] = _make_table(self.plan, place, dtype.itemsize, together)
        table, size = shared[key], dtype.itemsize
        # Chunks may reach over the ends, by less than a line.
        width = int(table.lines[:, 1].max(initial=LINE)) + 2 * LINE
        # Those that are held are of a block, others of a group.
        frames = lanes_of(size) * (GROUPS if together else 1)
        return table, np.empty((frames, width // size), dtype)


def _side_by_side(frames: NDArray[Any]) -> NDArray[Any]:
    """Copy frames if their own pixels are not side by side; the frames need not be."""
    row = frames.shape[2] * frames.itemsize
    apart, *within = frames.strides
    if within != [row, frames.itemsize] or apart < frames.shape[1] * row:
        return np.ascontiguousarray(frames)
    return frames


def _offset(frames: NDArray[Any]) -> int:
    """First byte of a frame with which a line of memory begins, if all frames begin alike."""
    offset: int = -frames.__array_interface__["data"][0] % LINE
    return offset - offset % frames.itemsize


# What partitions share, by part of the detector: with many pixels, it takes milliseconds.
_tables: WeakKeyDictionary[Plan, dict[tuple[int, ...], _Table]] = WeakKeyDictionary()

# Threads that begin together wait for one to make it: if all do, they hold each other up.
_making = Lock()


def _make_table(plan: Plan, place: tuple[int, ...], size: int, together: bool) -> _Table:
    """Cover the tile's bright-field pixels with chunks and lines, and cut these into batches.

    Lines of a batch come side by side, or those of all if they are kept `together`.
    """
    origin, shape, offset = place[:2], place[2:4], place[4]
    width, frame = CHUNK // size, shape[0] * shape[1] * size
    pixels = plan.pixels - origin
    inside = ((pixels >= 0) & (pixels < shape)).all(axis=1)
    rows, columns = pixels[inside].T
    at = (rows * shape[1] + columns) * size
    chunk, within = _make_chunks(rows, columns, width)
    starts = _changes(chunk)
    count = int(np.count_nonzero(starts))
    # Of the same size, so that each has time to ask memory for the lines of the next.
    pieces = -(-count // CHUNKS)
    cuts = np.arange(pieces + 1) * count // max(pieces, 1)
    pixel_cuts = np.searchsorted(chunk, cuts)
    if frame < LINE:  # all of it is copied
        begin, lines, line_cuts = LINE + at, np.empty((0, 2), np.int64), np.zeros_like(cuts)
    else:
        parts = pixel_cuts[[0, -1]] if together else pixel_cuts
        batch = np.repeat(np.arange(len(parts) - 1), np.diff(parts))
        begin, lines, line_cuts = _make_lines(at, batch, parts, frame, offset)
    places, in_frame = ((of // size - within)[starts] for of in (begin, at))
    # Where pixels lie side by side, as in a stack, there is nothing to bring together.
    if frame < LINE or 4 * len(at) * size <= 3 * (at.max(initial=0) - at.min(initial=frame)):
        in_frame = in_frame[:0]
    slots = (chunk - np.repeat(cuts[:-1], np.diff(pixel_cuts))) * width + within
    if together:
        line_cuts = np.zeros_like(cuts)
    batches, targets = np.column_stack([line_cuts, cuts, pixel_cuts]), plan.targets[inside]
    # With ten thousand pixels, most have a target in common: adding them takes half as long then.
    # Where few have, the other loop would cost two hundredths.
    again = np.count_nonzero(np.diff(np.sort(plan.targets)) == 0)
    if 2 * again < len(plan.targets):
        return _Table(lines, in_frame, places, slots, targets, batches, None)
    order, fours = _share(targets, pixel_cuts)
    return _Table(lines, in_frame, places, slots[order], targets[order], batches, fours)


def _share(
    targets: NDArray[np.int64], cuts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bring fours of pixels together that have the same target, in each batch by themselves.

    Returned are the pixels in their new order, fours first, and how many these are in each batch.
    """
    batch = np.repeat(np.arange(len(cuts) - 1), np.diff(cuts))
    order = np.lexsort((targets, batch))
    starts = _changes(batch, targets[order])
    first, run = np.flatnonzero(starts), np.cumsum(starts) - 1
    length = np.diff(np.append(first, len(order)))[run]
    alone = np.arange(len(order)) - first[run] >= length // 4 * 4
    fours = np.bincount(batch[~alone], minlength=len(cuts) - 1)
    # Runs as their first pixels: by target, sums would be loaded that were stored just before.
    return order[np.lexsort((order[first[run]], alone, batch))], fours


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
