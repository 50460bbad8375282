"""Numba: the default on CPUs.

Frames of successive scan positions land side by side, pixel by pixel. So the kernel works on blocks
of up to `BLOCK` successive frames of one scan row in two steps, both of which the compiler turns
into vector instructions:

1. *gather*: the block's bright-field pixels are transposed into a small buffer, one row a pixel.
   Eight 1-byte frames at a time (four of 2 bytes, ...) are packed into 64-bit words, since moving
   single bytes would cost more than all the rest.
2. *scatter*: every row of the buffer is added to the accumulator in one piece.

Adding straight from the frames is slower: each pixel's targets overlap the last one's, and loads
that overlap recent stores stall.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numba import njit, uint64, uintp
from numpy.typing import NDArray

from .engine import Engine, value_range

__all__ = ["CompiledEngine"]

#: Frames in a block, and bytes of the buffer into which a block is transposed, by measurement: the
#: buffer and the accumulator rows that it goes to should stay in the L2 cache.
BLOCK = 64
BUFFER_BYTES = 1 << 18

#: Events that are looked up at once.
EVENTS = 1024

# All indices are unsigned (`uintp`): Numba then leaves out the handling of negative indices, which
# keeps loops from being vectorised.


@njit(nogil=True)
def _gather(
    raw: Any, start: int, n: int, segments: Any, words: Any, row: Any, lanes: tuple[int, ...]
) -> None:
    """Transpose whole words of `n` frames from `start` on into `words`, (slots, BLOCK / lanes)."""
    count = len(lanes)
    for w in range(n // count):
        t = uintp(start + w * count)
        for i in range(len(segments)):
            r, c = uintp(segments[i, 0]), uintp(segments[i, 1])
            slot, length = uintp(segments[i, 2]), segments[i, 3]
            for j in range(length):
                word = uint64(0)
                for lane in range(count):
                    value = uint64(raw[t + uintp(lane), r, c + uintp(j)])
                    word |= value << uint64(lanes[lane])
                row[uintp(j)] = word
            for j in range(length):
                words[slot + uintp(j), uintp(w)] = row[uintp(j)]


@njit(nogil=True)
def _gather_rest(frames: Any, start: int, done: int, n: int, segments: Any, values: Any) -> None:
    """Transpose the frames that do not fill a word."""
    for t in range(done, n):
        for i in range(len(segments)):
            r, c = uintp(segments[i, 0]), uintp(segments[i, 1])
            slot, length = uintp(segments[i, 2]), segments[i, 3]
            for j in range(length):
                values[slot + uintp(j), uintp(t)] = frames[uintp(start + t), r, c + uintp(j)]


@njit(nogil=True)
def _scatter(values: Any, n: int, targets: Any, shift: int, A: Any) -> None:
    """Add the buffer's rows to the accumulator."""
    for m in range(len(targets)):
        target = uintp(targets[m] + shift)
        for t in range(n):
            A[target + uintp(t)] += A.dtype.type(values[uintp(m), uintp(t)])


@njit(nogil=True)
def _sum(values: Any, n: int, pixels: int, start: int, S: Any) -> None:
    """Add up the buffer's rows; four at a time, to load and store `S` less often."""
    of = S.dtype.type
    fours = pixels // 4 * 4
    for m in range(0, fours, 4):
        p = uintp(m)
        for t in range(n):
            k = uintp(t)
            S[uintp(start) + k] += (
                of(values[p, k])
                + of(values[p + uintp(1), k])
                + of(values[p + uintp(2), k])
                + of(values[p + uintp(3), k])
            )
    for m in range(fours, pixels):
        for t in range(n):
            S[uintp(start) + uintp(t)] += of(values[uintp(m), uintp(t)])


def _keep_on_disk(function: Any) -> Any:
    """Compile for all processes, or for this one where Numba finds no folder to write to."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)


@_keep_on_disk
def _accumulate(
    frames: Any,  # (T, h, w) the tile
    raw: Any,  # the same as unsigned integers
    index: Any,  # (T,) int64 scan positions
    nx: int,  # scan columns
    stride: int,  # accumulator columns
    segments: Any,  # (n, 4) int64: row, column in the tile; slot in the buffer; length
    targets: Any,  # (m,) int64 where in A each pixel of the tile goes
    batches: Any,  # (b, 4) int64: segments from, to; pixels from, to
    values: Any,  # (slots, BLOCK) the buffer
    words: Any,  # the same as uint64
    row: Any,  # (slots,) uint64 scratch
    lanes: tuple[int, ...],  # bit at which each frame begins in a word
    A: Any,  # flat
    S: Any,  # (T,)
) -> None:
    count = len(lanes)
    start = np.int64(0)  # typed, or the first turn of the loop is compiled apart
    while start < len(frames):
        y, x = index[start] // nx, index[start] % nx
        n = 1
        while (
            n < values.shape[1]
            and start + n < len(frames)
            and x + n < nx
            and index[start + n] == index[start] + n
        ):
            n += 1
        for b in range(len(batches)):
            part = segments[batches[b, 0] : batches[b, 1]]
            goals = targets[batches[b, 2] : batches[b, 3]]
            _gather(raw, start, n, part, words, row, lanes)
            _gather_rest(frames, start, n // count * count, n, part, values)
            _scatter(values, n, goals, y * stride + x, A)
            _sum(values, n, len(goals), start, S)
        start += n


@njit(nogil=True)
def _select(
    values: Any, columns: Any, start: int, n: int, lookup: Any, targets: Any, summands: Any
) -> int:
    """List the events in use of `n` from `start` on; return how many, or -1 if one is off the tile.

    There is no branch to guess: whether an electron hit the bright field cannot be foreseen.
    """
    farthest = uintp(0)
    for i in range(n):
        farthest = max(farthest, uintp(columns[uintp(start + i)]))  # negative ones become large
    if n and farthest >= uintp(len(lookup)):
        return -1
    used = uintp(0)
    for i in range(n):
        e = uintp(start + i)
        target = lookup[uintp(columns[e])]
        targets[used] = target
        summands[used] = values[e]
        used += uintp(target >= 0)
    return int(used)


@_keep_on_disk
def _accumulate_events(
    values: Any,  # (E,)
    columns: Any,  # (E,) pixels in the tile
    bounds: Any,  # (T + 1,) int64: events of each frame
    index: Any,  # (T,) int64 scan positions
    nx: int,  # scan columns
    stride: int,  # accumulator columns
    lookup: Any,  # (pixels in the tile,) where in A each goes; negative if nowhere
    low: Any,  # lowest and highest value that can be added
    high: Any,
    A: Any,  # flat
    S: Any,  # (T,)
) -> tuple[int, int]:
    """Add events; return the first frame with one off the tile, and the first with a bad value."""
    of = A.dtype.type
    targets = np.empty(EVENTS, lookup.dtype)
    summands = np.empty(EVENTS, values.dtype)
    for t in range(len(index)):
        position = index[t] // nx * stride + index[t] % nx
        total = of(0)
        for start in range(bounds[t], bounds[t + 1], EVENTS):
            n = min(EVENTS, bounds[t + 1] - start)
            used = _select(values, columns, start, n, lookup, targets, summands)
            if used < 0:
                return t, -1
            for i in range(used):
                value = summands[uintp(i)]
                if not low <= value <= high:
                    return -1, t
                A[uintp(targets[uintp(i)] + position)] += of(value)
                total += of(value)
        S[t] += total
    return -1, -1


def _locked(values: NDArray[Any]) -> NDArray[Any]:
    """View that is read-only, as memory maps are: Numba compiles anew for these, so all are."""
    view = values.view()
    view.flags.writeable = False
    return view


class _Tile(NamedTuple):
    """What the kernel needs to know of one part of the detector, and its buffer."""

    segments: NDArray[np.int64]
    targets: NDArray[np.int64]
    batches: NDArray[np.int64]
    values: NDArray[Any]
    words: NDArray[np.uint64]
    row: NDArray[np.uint64]


class CompiledEngine(Engine):
    """`Engine` compiled by Numba, on one thread; releases the GIL."""

    def _add_events(
        self,
        values: NDArray[Any],
        columns: NDArray[Any],
        bounds: NDArray[np.int64],
        shape: tuple[int, int],
        origin: tuple[int, int],
        first: int,
    ) -> None:
        frames = slice(first, first + len(bounds) - 1)
        outside, bad = _accumulate_events(
            _locked(values),
            _locked(columns),
            bounds,
            self.index[frames],
            self.plan.scan_shape[1],
            self.A.shape[3],
            _locked(self._lookup(shape, origin)),
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
        size = frames.dtype.itemsize
        place = (*origin, *frames.shape[1:])
        if place not in self._tiles:
            self._tiles[place] = self._make_tile(origin, frames.shape[1:], frames.dtype)
        frames = _locked(frames)
        _accumulate(
            frames,
            frames.view(f"u{size}"),
            self.index[first : first + len(frames)],
            self.plan.scan_shape[1],
            self.A.shape[3],
            *self._tiles[place],
            tuple(range(0, 64, 8 * size)),
            self.A.reshape(-1),
            self.S[first : first + len(frames)],
        )

    def _make_tile(
        self, origin: tuple[int, int], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> _Tile:
        """Cut the tile's bright-field pixels into runs, and these into batches for the buffer."""
        words = np.empty((BUFFER_BYTES // (BLOCK * dtype.itemsize), BLOCK * dtype.itemsize // 8))
        slots = len(words)
        pixels = self.plan.pixels - np.asarray(origin)
        inside = ((pixels >= 0) & (pixels < shape)).all(axis=1)
        pixels = pixels[inside]
        starts_run = np.ones(len(pixels), dtype=bool)
        starts_run[1:] = (np.diff(pixels[:, 0]) != 0) | (np.diff(pixels[:, 1]) != 1)
        starts_run |= np.arange(len(pixels)) % slots == 0
        begins = np.flatnonzero(starts_run)
        lengths = np.diff(begins, append=len(pixels))
        segments = np.column_stack([pixels[begins], begins % slots, lengths])
        first = np.arange(0, len(pixels), slots)
        last = np.minimum(first + slots, len(pixels))
        cuts = np.searchsorted(begins, np.append(first, len(pixels)))
        batches = np.column_stack([cuts[:-1], cuts[1:], first, last])
        return _Tile(
            segments,
            self.plan.targets[inside],
            batches,
            words.view(dtype),
            words.view(np.uint64),
            np.empty(slots, dtype=np.uint64),
        )
