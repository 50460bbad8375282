"""What Numba compiles to add frames.

Frames of successive scan positions land side by side, pixel by pixel. So the kernel works on blocks
of successive frames of one scan row, which are groups of as many frames as a vector has values, and
on as many pixels as fit the caches, in three steps:

1. *copy*: of a group, the lines of memory that hold the pixels come side by side into a buffer that
   stays in the L1 cache, frame by frame, which is the order in which memory is fastest.
2. *gather*: these are transposed into another one. Then the next group is copied.
3. *scatter*: every pixel's values are added to the accumulator, all groups at once, while the lines
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

__all__ = ["CHUNK", "CHUNKS", "GROUPS", "LINE", "accumulate", "hold", "lanes_of", "locked"]

#: Bytes of a frame that are transposed in one go, and those that are copied.
CHUNK, LINE = 32, 64

#: Groups of a block, and chunks at a time, by measurement: the transposed buffer and the rows of
#: the accumulator should nearly fit the L1 cache.
GROUPS, CHUNKS = 4, 32

#: Bytes of a file that the system maps at a time, and how many blocks ahead of it frames are looked
#: at: two are better than one by a fiftieth.
MAPPED, BLOCKS = 1 << 16, 2

#: How many frames ahead lines are asked for while they are copied, and how many lines while a pixel
#: is added: what memory brings in that time. If it is asked for more, it forgets some.
AHEAD, ASKED = 4, 2


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
        _ask(context, builder, F, *arguments)
        return context.get_dummy_value()

    return types.void(F, t, source), generate


def _ask(context: Any, builder: Any, F: Any, frames: Any, t: Any, source: Any) -> None:
    byte, int32 = ir.IntType(8), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), int32, int32, int32])
    prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte.as_pointer()], kind)
    frame = _pointer(context, builder, F, frames, [t, t.type(0), t.type(0)], byte)
    # Data, to be read, into all caches.
    builder.call(prefetch, [builder.gep(frame, [source]), int32(0), int32(3), int32(1)])


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
    # Two rows of the chunk are a vector of several parts, `lanes` pixels of one and then the other.
    # Each step interleaves these with those of two more rows, until all of a part is two pixels.
    parts = [range(p, p + 2 * lanes) for p in range(0, 2 * count, 2 * lanes)]
    pair = [p // 2 + row + i for p, *_ in parts for row in (0, count) for i in range(lanes)]
    low = [i for part in parts for j in part[:lanes] for i in (j, 2 * count + j)]
    high = [i + lanes for i in low]

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

        rows = [take(load(row), load(row + 1), pair) for row in range(0, lanes, 2)]
        for _step in range(lanes.bit_length() - 1):
            pairs = zip(rows[: lanes // 4], rows[lanes // 4 :], strict=True)
            rows = [take(a, b, order) for a, b in pairs for order in (low, high)]
        pixels = [take(row, row, part) for part in parts for row in rows]
        for j, two in enumerate(pixels):
            index = [group, builder.add(slot, slot.type(2 * j)), slot.type(0)]
            to = _pointer(context, builder, V, values, index, two.type)
            builder.store(two, to, align=size)
        return context.get_dummy_value()

    return types.void(B, k, place, V, group, slot), generate


def _make_add(groups: int, step: int) -> Callable[..., Any]:
    """Make what adds pixels to `A`, and to the sums `S` of frames: so many groups from one on.

    Given are the transposed values and the first group; slots and targets; `A` and `S`; frames and
    lines; and from which to which pixel to add, of which every `step` have one target, from which
    to which frame to ask memory meanwhile, and for which lines.
    """

    def add(values: Any, group: int, table: Any, sums: Any, _: Any, spans: Any) -> None:
        (slots, targets), begin = table, int(group) * values.shape[2]
        for m in range(spans[0], spans[1], step):
            some = values[group : group + groups, slots[m : m + step]]
            total = some.sum(axis=1, dtype=sums[0].dtype).reshape(-1)
            for of, start in zip(sums, (targets[m] + begin, begin), strict=True):
                of[start : start + len(total)] += total

    return add


def _make_add_vectors(groups: int, step: int) -> Callable[..., Any]:
    def add(
        _: Any, V: Any, group: Any, table: Any, sums: Any, memory: Any, spans: Any
    ) -> tuple[Any, Callable[..., Any]]:
        (of_slots, of_targets), (A, _S), (F, L) = (tuple(of) for of in (table, sums, memory))
        size, A_size = V.dtype.bitwidth // 8, A.dtype.bitwidth // 8
        lanes = lanes_of(size)

        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            values, group_0, *tuples = arguments
            (slots, targets), (a, s), (frames, lines), spans_ = (
                cgutils.unpack_tuple(builder, of) for of in tuples
            )
            begin, end, first, after, line, line_end = spans_
            number = begin.type
            narrow, wide = (ir.VectorType(context.get_data_type(i.dtype), lanes) for i in (V, A))
            if isinstance(A.dtype, types.Float):
                widen, plus = builder.fpext, builder.fadd
            else:
                widen, plus = builder.sext if V.dtype.signed else builder.zext, builder.add

            def entry(kind: Any, array: Any, *index: Any) -> Any:
                return builder.load(_pointer(context, builder, kind, array, index, number))

            def value(slot: Any, g: int) -> Any:
                at = [builder.add(group_0, number(g)), slot, number(0)]
                loaded = builder.load(_pointer(context, builder, V, values, at, narrow), align=size)
                return loaded if size == A_size else widen(loaded, wide)

            def add_to(array: Any, target: Any, g: int, more: Any) -> None:
                frame = builder.mul(builder.add(group_0, number(g)), number(lanes))
                to = _pointer(context, builder, A, array, [builder.add(target, frame)], wide)
                builder.store(plus(builder.load(to, align=A_size), more), to, align=A_size)

            # Frames' sums stay in registers.
            own = [cgutils.alloca_once_value(builder, wide(None)) for g in range(groups)]
            # All lines of a frame, then some pixels: one by one, both would take longer.
            turns = builder.add(builder.sub(after, first), number(1))
            few = builder.udiv(builder.sub(end, begin), builder.mul(turns, number(step)))
            few = builder.mul(few, number(step))
            with cgutils.for_range(builder, turns) as turn:
                t = builder.add(first, turn.index)
                last = builder.icmp_unsigned("==", t, after)
                with (
                    builder.if_then(builder.not_(last)),
                    cgutils.for_range_slice(builder, line, line_end, number(1)) as (i, _),
                ):
                    _ask(context, builder, F, frames, t, entry(L, lines, i, number(0)))
                start = builder.add(begin, builder.mul(turn.index, few))
                stop = builder.select(last, end, builder.add(start, few))
                with cgutils.for_range_slice(builder, start, stop, number(step)) as (m, _):
                    ms = [builder.add(m, number(i)) for i in range(step)]
                    same = [entry(of_slots, slots, m) for m in ms]
                    target = entry(of_targets, targets, m)
                    for g, of_group in enumerate(own):
                        more = reduce(plus, [value(slot, g) for slot in same])
                        add_to(a, target, g, more)
                        builder.store(plus(builder.load(of_group), more), of_group)
            for g, of_group in enumerate(own):
                add_to(s, number(0), g, builder.load(of_group))
            return context.get_dummy_value()

        return types.void(V, group, table, sums, memory, spans), generate

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
def _batch(batches: Any, b: int) -> tuple[int, int, int]:
    """Tell a batch's first line, chunk and pixel: a row by itself would count references."""
    return batches[uintp(b), 0], batches[uintp(b), 1], batches[uintp(b), 2]


@njit(nogil=True)
def _copy(frames: Any, start: int, n: int, lines: Any, buffer: Any) -> None:
    """Copy lines of `n` frames."""
    for k in range(n):
        t, ahead = uintp(start + k), uintp(min(start + k + AHEAD, len(frames) - 1))
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


@njit(nogil=True)
def _gather(
    rows: Any, first: int, places: Any, chunk: int, chunk_end: int, values: Any, group: int
) -> None:
    """Transpose chunks of a group's rows, from the `first` on: of the buffer, or frames."""
    count = CHUNK // values.itemsize
    for i in range(chunk, chunk_end):
        slot = uintp((i - chunk) * count)
        _transpose(rows, uintp(first), uintp(places[uintp(i)]), values, uintp(group), slot)


@njit(nogil=True)
def _scatter(
    values: Any, n: int, groups: int, step: int, table: Any, sums: Any, memory: Any, spans: Any
) -> None:
    """Add pixels of `n` frames: whole groups, as `_make_add` says, and what remains one by one.

    With a `step` of 4, every four pixels have the same target; else it is 1.
    """
    (slots, targets), (A, S), (m, end, first, after, line, line_end) = table, sums, spans
    g, many = 0, groups == GROUPS
    while g < groups:
        at, ahead = uintp(g), after if many else first + (after - first) // (groups - g)
        spans = m, end, first, ahead, line, line_end
        if many and step == 1:
            _add_many(values, at, table, sums, memory, spans)
        elif many:
            _add_many_fours(values, at, table, sums, memory, spans)
        elif step == 1:
            _add_one(values, at, table, sums, memory, spans)
        else:
            _add_one_fours(values, at, table, sums, memory, spans)
        first = ahead
        g += GROUPS if many else 1
    lanes = values.shape[2]
    for k in range(groups * lanes, n):
        for i in range(m, end):
            value = values[uintp(groups), uintp(slots[uintp(i)]), uintp(k - groups * lanes)]
            A[uintp(targets[uintp(i)] + k)] += A.dtype.type(value)
            S[uintp(k)] += A.dtype.type(value)


@njit(nogil=True)
def _look(frames: Any, lines: Any) -> Any:
    """Look at frames of a file that was just mapped, so that the system maps their pages.

    What is asked of memory before that never comes. Runs from files take 2 to 8 % less.
    """
    row, col = divmod(lines[0, 0] // frames.itemsize, frames.shape[2])
    seen, frame = frames.dtype.type(0), frames.shape[1] * frames.shape[2] * frames.itemsize
    for t in range(0, len(frames), max(1, MAPPED // frame)):
        seen += frames[uintp(t), uintp(row), uintp(col)]
    return seen


@keep_on_disk
def accumulate(
    frames: Any,  # (T, h, w) the tile; pixels of a frame side by side
    mapped: bool,  # whether it may be of a file
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
    buffer: Any,  # (lanes or more, values) the lines of a group
    values: Any,  # (groups, slots, lanes) the same transposed
    A: Any,  # flat
    S: Any,  # (T or more,); what follows is of later positions, for which A has room, too
) -> None:
    """Add frames."""
    last, lanes, block = len(batches) - 2, values.shape[2], values.shape[0] * values.shape[2]
    table, memory = (slots, targets), (frames, lines)
    seen = values.dtype.type(0)
    start = np.int64(0)  # typed, or the first turn of the loop is compiled apart
    n = _block(index, start, nx, block)
    while n:
        at = A[index[start] // nx * stride + index[start] % nx :]
        sums = (at, S[start:])
        after = start + n
        n_after = _block(index, after, nx, block)
        # Whole groups can be taken from the frames; not of the last one, beyond which is nothing.
        straight = min(n, len(frames) - 1 - start) // lanes * lanes if len(in_frame) else 0
        if len(in_frame) and not len(lines):
            straight = n  # lines that were held already; zeros fill the last group
        # The last group is added as such, too, if its zeros have a place. If S has one, A has,
        # as positions ascend.
        groups = (n + lanes - 1) // lanes
        if groups * lanes > len(S) - start:
            groups = n // lanes
        if mapped and len(lines):
            seen += _look(frames[after : after + BLOCKS * block], lines)
        for b in range(last + 1):
            line, chunk, m = _batch(batches, b)
            line_end, chunk_end, end = _batch(batches, b + 1)
            for k in range(0, straight, lanes):
                _gather(frames, start + k, in_frame, chunk, chunk_end, values, k // lanes)
            for k in range(straight, n, lanes):
                count = min(lanes, n - k)
                _copy(frames, start + k, count, lines[line:line_end], buffer)
                if count < lanes:
                    buffer[count:lanes] = 0
                _gather(buffer, 0, places, chunk, chunk_end, values, k // lanes)
            # Lines of the next batch, or block.
            first, count = (after, n_after) if b == last else (start, n)
            then = 0 if b == last else b + 1
            some = _batch(batches, then)[0], _batch(batches, then + 1)[0]
            count = min(count, (end - m) * ASKED // max(some[1] - some[0], 1))
            if fours is not None:
                stop, ahead = m + fours[b], first + count * fours[b] // (end - m)
                _scatter(values, n, groups, 4, table, sums, memory, (m, stop, first, ahead, *some))
                m, first, count = stop, ahead, first + count - ahead
            _scatter(
                values, n, groups, 1, table, sums, memory, (m, end, first, first + count, *some)
            )
        start, n = after, n_after
    if len(values):
        values[0, 0, 0] = seen  # or the compiler leaves it out


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
    _copy(frames, 0, n, lines, buffer[count:])
    return n


def locked(values: NDArray[Any]) -> NDArray[Any]:
    """View that is read-only, as memory maps are: Numba compiles anew for these, so all are."""
    view = values.view()
    view.flags.writeable = False
    return view
