"""What Numba compiles to add frames and events.

Frames of successive scan positions land side by side, pixel by pixel. So the kernel works on blocks
of successive frames of one scan row, `BLOCK` bytes of every pixel, in two steps:

1. *gather*: the block's bright-field pixels are transposed into a small buffer, in groups of as
   many frames as a vector has values, while the next group is on its way from memory.
2. *scatter*: every pixel's values are added to the accumulator, a group at a time.

Adding straight from the frames is slower: each pixel's targets overlap the last one's, and loads
that overlap recent stores stall.

Numba has no vectors, and LLVM does not find the transposition by itself. So the innermost part of
both steps is written in LLVM's language, where vectors have any length on any CPU. It follows the
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

__all__ = [
    "BLOCK",
    "CHUNK",
    "GROUP_BYTES",
    "VECTOR",
    "accumulate",
    "accumulate_events",
    "locked",
]

#: Bytes of a vector, and those of a frame's row that are transposed in one go.
VECTOR, CHUNK = 16, 32

#: Bytes of every pixel in a block, and of the buffer for one group of frames, by measurement: what
#: is written for a group should stay in the L1 cache, and the whole buffer in L2.
BLOCK = 128
GROUP_BYTES = 1 << 14


def _transpose(
    frames: Any,
    t: int,
    ahead: int,  # noqa: ARG001
    row: int,
    column: int,
    values: Any,
    group: int,
    slot: int,
) -> None:
    """Transpose a chunk of the frames from `t` on; in vectors, prefetch that of those `ahead`."""
    count, lanes = CHUNK // frames.itemsize, values.shape[2]
    chunk = frames[t : t + lanes, row, column : column + count]
    values[group, slot : slot + count] = chunk.T


def _transpose_vectors(
    _: Any, F: Any, t: Any, ahead: Any, row: Any, column: Any, V: Any, group: Any, slot: Any
) -> tuple[Any, Callable[..., Any]]:
    size = F.dtype.bitwidth // 8
    lanes, count = VECTOR // size, CHUNK // size
    # A row of the chunk is a vector of several parts of `lanes` pixels. Each step interleaves these
    # with those of another row, until all of a part is one pixel.
    low = [p + i for p in range(0, count, lanes) for k in range(lanes // 2) for i in (k, count + k)]
    high = [i + lanes // 2 for i in low]
    parts = [range(p, p + lanes) for p in range(0, count, lanes)]

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        frames, t, ahead, row, column, values, group, slot = arguments
        vector = ir.VectorType(context.get_data_type(F.dtype), count)
        byte, int32 = ir.IntType(8), ir.IntType(32)

        def frame(t: Any, k: int, to: Any) -> Any:
            index = [builder.add(t, t.type(k)), row, column]
            return _pointer(context, builder, F, frames, index, to)

        def take(a: Any, b: Any, order: Any) -> Any:
            return builder.shuffle_vector(a, b, ir.VectorType(int32, len(order))(list(order)))

        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [byte.as_pointer()],
            ir.FunctionType(ir.VoidType(), [byte.as_pointer(), int32, int32, int32]),
        )
        for k in range(lanes):
            # Data, to be read; into L2, since in L1 frames of 4 KiB would drive out each other.
            builder.call(prefetch, [frame(ahead, k, byte), int32(0), int32(2), int32(1)])
        rows = [builder.load(frame(t, k, vector), align=size) for k in range(lanes)]
        for _step in range(lanes.bit_length() - 1):
            pairs = zip(rows[: lanes // 2], rows[lanes // 2 :], strict=True)
            rows = [take(a, b, order) for a, b in pairs for order in (low, high)]
        pixels = [take(row, row, part) for part in parts for row in rows]
        for j, pixel in enumerate(pixels):
            index = [group, builder.add(slot, slot.type(j)), slot.type(0)]
            to = _pointer(context, builder, V, values, index, pixel.type)
            builder.store(pixel, to, align=size)
        return context.get_dummy_value()

    return types.void(F, t, ahead, row, column, V, group, slot), generate


def _add_group(values: Any, group: int, slots: tuple[int, ...], A: Any, target: int) -> None:
    """Add the sum of a group's values in `slots` to `A` from `target` on."""
    total = sum(values[group, slot].astype(A.dtype) for slot in slots)
    A[target : target + values.shape[2]] += total


def _add_group_vectors(
    _: Any, V: Any, group: Any, slots: Any, A: Any, target: Any
) -> tuple[Any, Callable[..., Any]]:
    lanes, size, A_size = (
        VECTOR * 8 // V.dtype.bitwidth,
        V.dtype.bitwidth // 8,
        A.dtype.bitwidth // 8,
    )

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        values, group, slots, a, target = arguments
        narrow, wide = (ir.VectorType(context.get_data_type(i.dtype), lanes) for i in (V, A))
        if isinstance(A.dtype, types.Float):
            widen, plus = builder.fpext, builder.fadd
        else:
            widen, plus = builder.sext if V.dtype.signed else builder.zext, builder.add

        def value(slot: Any) -> Any:
            index = [group, slot, slot.type(0)]
            where = _pointer(context, builder, V, values, index, narrow)
            loaded = builder.load(where, align=size)
            return loaded if size == A_size else widen(loaded, wide)

        total = reduce(plus, map(value, cgutils.unpack_tuple(builder, slots)))
        to = _pointer(context, builder, A, a, [target], wide)
        builder.store(plus(builder.load(to, align=A_size), total), to, align=A_size)
        return context.get_dummy_value()

    return types.void(V, group, slots, A, target), generate


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any, to: Any) -> Any:
    """Pointer to an item of an array, as one `to` another type."""
    array = context.make_array(kind)(context, builder, array)
    item = cgutils.get_item_pointer(context, builder, kind, array, index, wraparound=False)
    return builder.bitcast(item, to.as_pointer())


if not config.DISABLE_JIT:
    _transpose, _add_group = intrinsic(_transpose_vectors), intrinsic(_add_group_vectors)

#: Events that are looked up at once.
EVENTS = 1024

# All indices are unsigned (`uintp`): Numba then leaves out the handling of negative indices, which
# keeps loops from being vectorised.


@njit(nogil=True)
def _gather(frames: Any, start: int, n: int, chunks: Any, values: Any) -> None:
    """Transpose `n` frames from `start` on into `values`; more where that fills a group."""
    lanes, count = values.shape[2], CHUNK // frames.itemsize
    for group in range((n + lanes - 1) // lanes):
        t = start + group * lanes
        left = len(frames) - t
        ahead = min(t + lanes, len(frames) - lanes)
        for i in range(len(chunks)):
            row, column, slot = uintp(chunks[i, 0]), uintp(chunks[i, 1]), uintp(chunks[i, 2])
            if left >= lanes:
                _transpose(frames, uintp(t), uintp(ahead), row, column, values, uintp(group), slot)
                continue
            for k in range(left):
                for j in range(count):
                    value = frames[uintp(t + k), row, column + uintp(j)]
                    values[uintp(group), slot + uintp(j), uintp(k)] = value


@njit(nogil=True)
def _scatter(values: Any, n: int, slots: Any, targets: Any, shift: int, A: Any) -> None:
    """Add pixels to the accumulator."""
    lanes = values.shape[2]
    groups = n // lanes
    for m in range(len(targets)):
        slot, target = uintp(slots[m]), uintp(targets[m] + shift)
        for group in range(groups):
            _add_group(values, uintp(group), (slot,), A, target + uintp(group * lanes))
        for k in range(n - groups * lanes):
            value = values[uintp(groups), slot, uintp(k)]
            A[target + uintp(groups * lanes + k)] += A.dtype.type(value)


@njit(nogil=True)
def _sum(values: Any, n: int, slots: Any, start: int, S: Any) -> None:
    """Add up the pixels of each frame; four at a time, to load and store `S` less often."""
    lanes = values.shape[2]
    groups = n // lanes
    fours = len(slots) // 4 * 4
    for group in range(groups):
        g, target = uintp(group), uintp(start + group * lanes)
        for m in range(0, fours, 4):
            a, b, c, d = slots[m], slots[m + 1], slots[m + 2], slots[m + 3]
            _add_group(values, g, (uintp(a), uintp(b), uintp(c), uintp(d)), S, target)
        for m in range(fours, len(slots)):
            _add_group(values, g, (uintp(slots[m]),), S, target)
    for m in range(len(slots)):
        for k in range(n - groups * lanes):
            value = values[uintp(groups), uintp(slots[m]), uintp(k)]
            S[uintp(start + groups * lanes + k)] += S.dtype.type(value)


@keep_on_disk
def accumulate(
    frames: Any,  # (T, h, w) the tile; pixels of a row side by side, a chunk of them or more
    index: Any,  # (T,) int64 scan positions
    nx: int,  # scan columns
    stride: int,  # accumulator columns
    chunks: Any,  # (c, 3) int64: row, column in the tile; slot in the buffer
    slots: Any,  # (m,) int64 where in the buffer each pixel of the tile goes
    targets: Any,  # (m,) int64 where in A
    batches: Any,  # (b, 4) int64: chunks from, to; pixels from, to
    values: Any,  # (BLOCK / VECTOR, slots, lanes) the buffer
    A: Any,  # flat
    S: Any,  # (T,)
) -> None:
    """Add frames."""
    start = np.int64(0)  # typed, or the first turn of the loop is compiled apart
    while start < len(frames):
        y, x = index[start] // nx, index[start] % nx
        n = 1
        while (
            n < len(values) * values.shape[2]
            and start + n < len(frames)
            and x + n < nx
            and index[start + n] == index[start] + n
        ):
            n += 1
        for b in range(len(batches)):
            part = slots[batches[b, 2] : batches[b, 3]]
            goals = targets[batches[b, 2] : batches[b, 3]]
            _gather(frames, start, n, chunks[batches[b, 0] : batches[b, 1]], values)
            _scatter(values, n, part, goals, y * stride + x, A)
            _sum(values, n, part, start, S)
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


@keep_on_disk
def accumulate_events(
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


def locked(values: NDArray[Any]) -> NDArray[Any]:
    """View that is read-only, as memory maps are: Numba compiles anew for these, so all are."""
    view = values.view()
    view.flags.writeable = False
    return view
