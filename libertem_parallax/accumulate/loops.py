"""What Numba compiles to add frames.

Frames of successive scan positions land side by side, pixel by pixel. So the kernel works on blocks
of successive frames of one scan row, `BLOCK` bytes of every pixel, and on as many pixels as fit the
caches, in three steps:

1. *copy*: the lines of memory that hold the pixels come side by side into a small buffer, frame by
   frame, which is the order in which memory is fastest.
2. *gather*: these are transposed into another one, in groups of as many frames as a vector has
   values.
3. *scatter*: every pixel's values are added to the accumulator, a group at a time, while the lines
   that are copied next are on their way from memory.

Adding straight from the frames is slower: each pixel's targets overlap the last one's, and loads
that overlap recent stores stall. Transposing straight from the frames is, too: it visits many of
them in turn, which memory does not like.

Numba has no vectors, and LLVM does not find the transposition by itself. So the innermost part of
all steps is written in LLVM's language, where vectors have any length on any CPU. It follows the
same in plain Python, which runs where Numba is switched off. All is in one file, because Numba's
cache on disk looks at no other to see whether it is out of date.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, njit, types, uintp
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from .disk import keep_on_disk

__all__ = ["BLOCK", "CHUNK", "CHUNKS", "LINE", "accumulate", "hold", "lanes_of", "locked"]

#: Bytes of a frame that are transposed in one go, and those that are copied.
CHUNK, LINE = 32, 64

#: Bytes of every pixel in a block, and chunks at a time, by measurement: what is written for a
#: group of frames should stay in the L1 cache, and the whole buffer in L2.
BLOCK, CHUNKS = 128, 32

#: Groups that are added at once: nearly all blocks have as many.
GROUPS = 4


def lanes_of(size: int) -> int:
    """Count the frames of a group, with pixels of so many bytes: what a vector holds, or a sum's.

    These are 32 bytes, and 64.
    """
    return min(32 // size, 16)


def _copy_line(frames: Any, t: int, source: int, buffer: Any, k: int, to: int) -> None:
    """Copy a line of frame `t`, from byte `source` on, to byte `to` of the buffer's row `k`."""
    line = frames[t].reshape(-1).view(np.uint8)[source : source + LINE]
    buffer[k].view(np.uint8)[to : to + LINE] = line


def _copy_line_at_once(
    _: Any, F: Any, t: Any, source: Any, B: Any, k: Any, to: Any
) -> tuple[Any, Callable[..., Any]]:
    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        frames, t, source, buffer, k, to = arguments
        line = ir.VectorType(ir.IntType(8), LINE).as_pointer()
        zero = t.type(0)
        given = _pointer(context, builder, F, frames, [t, zero, zero], ir.IntType(8))
        taken = _pointer(context, builder, B, buffer, [k, zero], ir.IntType(8))
        given, taken = (
            builder.bitcast(builder.gep(of, [at]), line)
            for of, at in ((given, source), (taken, to))
        )
        builder.store(builder.load(given, align=1), taken, align=1)
        return context.get_dummy_value()

    return types.void(F, t, source, B, k, to), generate


def _prefetch(frames: Any, t: int, source: int) -> None:
    """Ask memory for a line of frame `t`."""


def _prefetch_line(_: Any, F: Any, t: Any, source: Any) -> tuple[Any, Callable[..., Any]]:
    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        frames, t, source = arguments
        byte, int32 = ir.IntType(8), ir.IntType(32)
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [byte.as_pointer()],
            ir.FunctionType(ir.VoidType(), [byte.as_pointer(), int32, int32, int32]),
        )
        zero = t.type(0)
        frame = _pointer(context, builder, F, frames, [t, zero, zero], byte)
        # Data, to be read, into all caches.
        where = builder.gep(frame, [source])
        builder.call(prefetch, [where, int32(0), int32(3), int32(1)])
        return context.get_dummy_value()

    return types.void(F, t, source), generate


def _transpose(buffer: Any, k: int, place: int, values: Any, group: int, slot: int) -> None:
    """Transpose a chunk of the buffer's rows from `k` on, beginning at value `place` of each.

    They may be frames, too, of which the chunk may reach into the next one.
    """
    count, lanes = CHUNK // buffer.itemsize, values.shape[2]
    for row in range(lanes):
        rest = buffer[k + row : k + row + 2].reshape(-1)
        values[group, slot : slot + count, row] = rest[place : place + count]


def _transpose_vectors(
    _: Any, B: Any, k: Any, place: Any, V: Any, group: Any, slot: Any
) -> tuple[Any, Callable[..., Any]]:
    size = B.dtype.bitwidth // 8
    lanes, count = lanes_of(size), CHUNK // size
    # A row of the chunk is a vector of several parts of `lanes` pixels. Each step interleaves these
    # with those of another row, until all of a part is one pixel.
    parts = [range(p, p + lanes) for p in range(0, count, lanes)]
    low = [i for part in parts for j in part[: lanes // 2] for i in (j, count + j)]
    high = [i + lanes // 2 for i in low]

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        buffer, k, place, values, group, slot = arguments
        vector = ir.VectorType(context.get_data_type(B.dtype), count)

        def load(row: int) -> Any:
            index = [builder.add(k, k.type(row)), place]
            index[1:1] = [place.type(0)] * (B.ndim - 2)
            where = _pointer(context, builder, B, buffer, index, vector)
            return builder.load(where, align=size)

        def take(a: Any, b: Any, order: Any) -> Any:
            mask = ir.VectorType(ir.IntType(32), len(order))(list(order))
            return builder.shuffle_vector(a, b, mask)

        rows = [load(row) for row in range(lanes)]
        for _step in range(lanes.bit_length() - 1):
            pairs = zip(rows[: lanes // 2], rows[lanes // 2 :], strict=True)
            rows = [take(a, b, order) for a, b in pairs for order in (low, high)]
        pixels = [take(row, row, part) for part in parts for row in rows]
        for j, pixel in enumerate(pixels):
            index = [group, builder.add(slot, slot.type(j)), slot.type(0)]
            to = _pointer(context, builder, V, values, index, pixel.type)
            builder.store(pixel, to, align=size)
        return context.get_dummy_value()

    return types.void(B, k, place, V, group, slot), generate


def _make_add(groups: int, step: int) -> Callable[..., Any]:
    """Make what adds pixels to `A`, and to the sums `S` of frames: so many groups from one on.

    Every `step` pixels have one target.
    """

    def add(
        values: Any, group: int, slots: Any, targets: Any, first: int, stop: int, A: Any, S: Any
    ) -> None:
        begin, n = int(group) * values.shape[2], groups * values.shape[2]
        for m in range(first, stop, step):
            some = values[group : group + groups, slots[m : m + step]]
            total = some.sum(axis=1, dtype=A.dtype).reshape(-1)
            for sums, start in ((A, targets[m] + begin), (S, begin)):
                sums[start : start + n] += total

    return add


def _make_add_vectors(groups: int, step: int) -> Callable[..., Any]:
    def add(
        _: Any, V: Any, group: Any, slots: Any, T: Any, first: Any, stop: Any, A: Any, S: Any
    ) -> tuple[Any, Callable[..., Any]]:
        size, A_size = V.dtype.bitwidth // 8, A.dtype.bitwidth // 8
        lanes = lanes_of(size)

        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            values, group_0, of_slots, targets, begin, end, a, s = arguments
            narrow, wide = (ir.VectorType(context.get_data_type(i.dtype), lanes) for i in (V, A))
            if isinstance(A.dtype, types.Float):
                widen, plus = builder.fpext, builder.fadd
            else:
                widen, plus = builder.sext if V.dtype.signed else builder.zext, builder.add

            def entry(kind: Any, array: Any, m: Any) -> Any:
                return builder.load(_pointer(context, builder, kind, array, [m], m.type))

            def value(slot: Any, g: int) -> Any:
                at = [builder.add(group_0, slot.type(g)), slot, slot.type(0)]
                loaded = builder.load(_pointer(context, builder, V, values, at, narrow), align=size)
                return loaded if size == A_size else widen(loaded, wide)

            def add_to(kind: Any, array: Any, first: Any, g: int, more: Any) -> None:
                frame = builder.mul(builder.add(group_0, first.type(g)), first.type(lanes))
                to = _pointer(context, builder, kind, array, [builder.add(first, frame)], wide)
                builder.store(plus(builder.load(to, align=A_size), more), to, align=A_size)

            # Frames' sums stay in registers.
            sums = [cgutils.alloca_once(builder, wide) for g in range(groups)]
            for own in sums:
                builder.store(wide(None), own)
            with cgutils.for_range_slice(builder, begin, end, begin.type(step)) as (m, _):
                same = [entry(slots, of_slots, builder.add(m, m.type(i))) for i in range(step)]
                target = entry(T, targets, m)
                for g, own in enumerate(sums):
                    more = reduce(plus, [value(slot, g) for slot in same])
                    add_to(A, a, target, g, more)
                    builder.store(plus(builder.load(own), more), own)
            for g, own in enumerate(sums):
                add_to(S, s, begin.type(0), g, builder.load(own))
            return context.get_dummy_value()

        return types.void(V, group, slots, T, first, stop, A, S), generate

    return intrinsic(add)  # type: ignore[no-any-return]


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any, to: Any) -> Any:
    """Pointer to an item of an array, as one `to` another type."""
    array = context.make_array(kind)(context, builder, array)
    item = cgutils.get_item_pointer(context, builder, kind, array, index, wraparound=False)
    return builder.bitcast(item, to.as_pointer())


if not config.DISABLE_JIT:
    _copy_line, _prefetch = intrinsic(_copy_line_at_once), intrinsic(_prefetch_line)
    _transpose, _make_add = intrinsic(_transpose_vectors), _make_add_vectors

# A block's groups at once, or one by one where there are fewer.
_add_many, _add_one = _make_add(GROUPS, 1), _make_add(1, 1)
_add_many_fours, _add_one_fours = _make_add(GROUPS, 4), _make_add(1, 4)

# All indices are unsigned (`uintp`): Numba then leaves out the handling of negative indices, which
# keeps loops from being vectorised.


@njit(nogil=True)
def _block(index: Any, start: int, nx: int, most: int) -> int:
    """Count the frames from `start` on that follow each other in a scan row, up to `most`."""
    if start == len(index):
        return 0
    n, x = 1, index[start] % nx
    while (
        n < most and start + n < len(index) and x + n < nx and index[start + n] == index[start] + n
    ):
        n += 1
    return n


@njit(nogil=True)
def _copy(
    frames: Any, start: int, n: int, straight: int, lines: Any, buffer: Any, lanes: int
) -> None:
    """Copy lines of `n` frames, but for the first, `straight`; zeros fill the last group."""
    for k in range(straight, n):
        t, ahead = uintp(start + k), uintp(min(start + k + 2, len(frames) - 1))
        for i in range(len(lines)):
            source, to = uintp(lines[uintp(i), 0]), uintp(lines[uintp(i), 1])
            _prefetch(frames, ahead, source)
            _copy_line(frames, t, source, buffer, uintp(k), to)
        if not len(lines):  # the frame is less than one
            place = uintp(LINE // frames.itemsize)
            for row in range(frames.shape[1]):
                for column in range(frames.shape[2]):
                    buffer[uintp(k), place] = frames[t, uintp(row), uintp(column)]
                    place += uintp(1)
    for k in range(n, (n + lanes - 1) // lanes * lanes):
        buffer[k] = 0


@njit(nogil=True)
def _gather(buffer: Any, start: int, k: int, n: int, places: Any, values: Any) -> None:
    """Transpose rows `k` to `n` of the buffer, or of frames `start` further on."""
    lanes, count = values.shape[2], CHUNK // buffer.itemsize
    for group in range(k // lanes, (n + lanes - 1) // lanes):
        row = uintp(start + group * lanes)
        for i in range(len(places)):
            _transpose(buffer, row, uintp(places[i]), values, uintp(group), uintp(i * count))


@njit(nogil=True)
def _scatter(
    values: Any,
    n: int,
    slots: Any,
    targets: Any,
    step: int,
    A: Any,
    S: Any,
    frames: Any,
    lines: Any,
) -> None:
    """Add pixels to `A` and `S` from the first frame on; meanwhile ask for lines of next `frames`.

    With a `step` of 4, every four pixels have the same target; else it is 1. Lines are asked for
    frame by frame: to spread them more evenly makes all slower.
    """
    lanes, furthest, m = values.shape[2], 0, uintp(0)
    for i in range(len(targets)):
        furthest = max(furthest, targets[uintp(i)])
    # The last group as such, too, if its zeros have a place.
    groups = (n + lanes - 1) // lanes
    if groups * lanes > min(len(A) - furthest, len(S)):
        groups = n // lanes
    for ahead in range(len(frames) + 1):
        if ahead < len(frames):
            for i in range(len(lines)):
                _prefetch(frames, uintp(ahead), uintp(lines[uintp(i), 0]))
        stop = uintp(len(targets) // step * (ahead + 1) // (len(frames) + 1) * step)
        g = 0
        while g < groups:
            many, group = g + GROUPS <= groups, uintp(g)
            if many and step == 1:
                _add_many(values, group, slots, targets, m, stop, A, S)
            elif many:
                _add_many_fours(values, group, slots, targets, m, stop, A, S)
            elif step == 1:
                _add_one(values, group, slots, targets, m, stop, A, S)
            else:
                _add_one_fours(values, group, slots, targets, m, stop, A, S)
            g += GROUPS if many else 1
        m = stop
    for k in range(groups * lanes, n):
        for i in range(len(targets)):
            value = values[uintp(groups), uintp(slots[i]), uintp(k - groups * lanes)]
            A[uintp(targets[i] + k)] += A.dtype.type(value)
            S[uintp(k)] += A.dtype.type(value)


@keep_on_disk
def accumulate(
    frames: Any,  # (T, h, w) the tile; pixels of a frame side by side
    index: Any,  # (T,) int64 scan positions
    nx: int,  # scan columns
    stride: int,  # accumulator columns
    lines: Any,  # (l, 2) int64: first byte in a frame, and in a row of the buffer; (0, 2) if held
    in_frame: Any,  # (c,) int64: first value of each chunk in a frame; (0,) if pixels lie apart
    places: Any,  # (c,) int64: the same in a row of the buffer
    slots: Any,  # (m,) int64 where in the transposed buffer each pixel of the tile goes
    targets: Any,  # (m,) int64 where in A
    batches: Any,  # (b + 1, 3) int64: first line, chunk and pixel of each batch
    fours: Any,  # (b,) int64: how many of its pixels come first, in fours of one target; or None
    buffer: Any,  # (frames of a block, values) the lines of one
    values: Any,  # (groups, slots, lanes) the same transposed
    A: Any,  # flat
    S: Any,  # (T or more,)
) -> None:
    """Add frames."""
    last, lanes = len(batches) - 2, values.shape[2]
    start = np.int64(0)  # typed, or the first turn of the loop is compiled apart
    n = _block(index, start, nx, len(buffer))
    while n:
        at, own = A[index[start] // nx * stride + index[start] % nx :], S[start:]
        after = start + n
        n_after = _block(index, after, nx, len(buffer))
        # Whole groups can be taken from the frames; not of the last one, beyond which is nothing.
        straight = min(n, len(frames) - 1 - start) // lanes * lanes if len(in_frame) else 0
        if len(in_frame) and not len(lines):
            straight = n  # lines that were held already; zeros fill the last group
        for b in range(last + 1):
            some = lines[batches[b, 0] : batches[b + 1, 0]]
            chunks = slice(batches[b, 1], batches[b + 1, 1])
            if straight < n:
                _copy(frames, start, n, straight, some, buffer, lanes)
            if straight:
                _gather(frames, start, 0, straight, in_frame[chunks], values)
            _gather(buffer, 0, straight, n, places[chunks], values)
            part = slots[batches[b, 2] : batches[b + 1, 2]]
            goals = targets[batches[b, 2] : batches[b + 1, 2]]
            first, count = (after, n_after) if b == last else (start, n)
            following, b_next = frames[first : first + count], 0 if b == last else b + 1
            some = lines[batches[b_next, 0] : batches[b_next + 1, 0]]
            if fours is not None:
                k = fours[b]
                ahead = count * k // len(part)
                _scatter(values, n, part[:k], goals[:k], 4, at, own, following[:ahead], some)
                part, goals, following = part[k:], goals[k:], following[ahead:]
            _scatter(values, n, part, goals, 1, at, own, following, some)
        start, n = after, n_after


@keep_on_disk
def hold(
    frames: Any,  # (T, h, w) the tile
    index: Any,  # (F,) int64 scan positions
    first: int,  # the first of those of the frames in the buffer, which these follow
    count: int,  # how many frames the buffer holds
    nx: int,  # scan columns
    lines: Any,  # (l, 2) as in `accumulate`, of all pixels
    buffer: Any,  # (frames of a block, values)
) -> int:
    """Copy lines of the frames that continue the block in the buffer, and count these."""
    most = min(count + len(frames), len(buffer))
    n: int = min(_block(index, first, nx, most), most) - count
    _copy(frames, 0, n, 0, lines, buffer[count:], 1)
    return n


def locked(values: NDArray[Any]) -> NDArray[Any]:
    """View that is read-only, as memory maps are: Numba compiles anew for these, so all are."""
    view = values.view()
    view.flags.writeable = False
    return view
