"""What goes from the host to the device together: slots, and the batches that fill them."""

from __future__ import annotations

import contextlib
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..engine import Events
from ..plan import Plan
from .device import FRAMES, explained, load_cupy, pinned, to_device
from .messages import CudaError

__all__ = [
    "SLOTS",
    "Batch",
    "EventBatch",
    "Resident",
    "Slot",
    "Table",
    "drain",
    "make_table",
    "slot_size",
]

_T = TypeVar("_T")

#: Pinned buffers that are filled in turn, and their size: more for boxes of which not `FRAMES` fit,
#: but no more than the limit, or one box.
SLOTS = 3
SLOT_BYTES = 1 << 22
SLOT_LIMIT = 1 << 26

#: Rows of the detector that are no longer than two cache lines are not cut: they are read as a
#: whole anyway, and copied in one piece.
ROW_BYTES = 128

#: Frames of a launch.
MOST_FRAMES = 65535 * FRAMES

#: Part of a buffer that is for events; the rest is for where those of each frame begin.
EVENTS_SHARE = 0.75


class Table(NamedTuple):
    """Where the bright field lies on a part of the detector, and where it goes."""

    rows: slice  # of the box around the pixels, on the part
    cols: slice
    size: int  # pixels in the box
    pixels: Any  # (m,) int32 on the device: where in the box each pixel is
    targets: Any  # (m,) int64 on the device: where in the accumulator it goes


class Batch:
    """Frames that go to the device together."""

    def __init__(self, table: Table, first: int, slot: Slot, dtype: np.dtype[Any]) -> None:
        self.table = table
        self.first = first  # position in the engine's index
        self.count = 0  # frames that are there
        size = table.size * dtype.itemsize
        room = min(len(slot.host) // size, MOST_FRAMES)
        box = (s.stop - s.start for s in (table.rows, table.cols))
        self.frames = slot.host[: room * size].view(dtype).reshape(room, *box)

    def parts(self) -> list[NDArray[Any]]:
        """List what is to be sent."""
        return [self.frames[: self.count]]


class EventBatch:
    """Events that go to the device together."""

    def __init__(
        self, lookup: Any, pixels: int, first: int, slot: Slot, dtype: np.dtype[Any]
    ) -> None:
        self.lookup = lookup  # on the device
        self.pixels = pixels  # of the tile
        self.first = first  # position in the engine's index
        self.count = 0  # frames that are there
        self.events = 0
        room = int(EVENTS_SHARE * len(slot.host)) // (dtype.itemsize + 4) // 8 * 8
        cuts = np.cumsum([room * dtype.itemsize, room * 4])
        values, columns, bounds = np.split(slot.host[: len(slot.host) // 8 * 8], cuts)
        self.values = values.view(dtype)
        self.columns = columns.view(np.int32)
        self.bounds = bounds.view(np.int64)
        self.bounds[0] = 0

    def append(self, events: Events, frame: int, event: int) -> tuple[int, int]:
        """Take what fits of a tile, from an event of a frame on; return where to go on."""
        values, columns, bounds = events
        room = len(self.values) - self.events
        end = int(np.searchsorted(bounds, event + room, "right")) - 1
        end = min(end, len(bounds) - 1, frame + len(self.bounds) - 1 - self.count)
        if end == frame and not self.count:
            end = frame + 1  # a frame that fills the batch: a piece of it
        stop = min(int(bounds[end]), event + room)
        n, frames = stop - event, slice(self.count + 1, self.count + 1 + end - frame)
        self.values[self.events : self.events + n] = values[event:stop]
        self.columns[self.events : self.events + n] = columns[event:stop]
        self.bounds[frames] = np.minimum(bounds[frame + 1 : end + 1], stop) - event + self.events
        self.count += end - frame
        self.events += n
        return (end if stop == bounds[end] else end - 1), stop

    def parts(self) -> list[NDArray[Any]]:
        """List what is to be sent."""
        return [
            self.values[: self.events],
            self.columns[: self.events],
            self.bounds[: self.count + 1],
        ]


def slot_size(plan: Plan, itemsize: int, *, events: bool) -> int:
    """Bytes of a slot: more than usual for frames of which too few would fit to fill warps."""
    if events:
        return SLOT_BYTES
    rows, cols = plan.pixels.max(axis=0) - plan.pixels.min(axis=0) + 1
    frame = int(rows) * max(int(cols) * itemsize, ROW_BYTES)
    return max(SLOT_BYTES, frame, min(FRAMES * frame, SLOT_LIMIT))


class Slot:
    """Buffer on the host and on the device, and the stream on which it is used."""

    def __init__(self, size: int) -> None:
        cupy = load_cupy()
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.host = pinned(size)
        self.device = cupy.empty(size, np.uint8)

    def copy(self, part: NDArray[Any]) -> Any:
        """Start to copy a part of the buffer on the host; returns that on the device."""
        there = self.device[part.ctypes.data - self.host.ctypes.data :]
        self.copy_on(part, there)
        return there

    def copy_on(self, part: NDArray[Any], there: Any) -> None:
        """Start to copy a part of the buffer on the host to an array on the device."""
        if part.size:
            there.data.copy_from_host_async(part.ctypes.data, part.nbytes, self.stream)

    def read(self, there: Any, out: NDArray[Any]) -> None:
        """Add an array on the device to one on the host.

        It comes through the buffer, piece by piece, since pinned memory is scarce.
        """
        step = len(self.host) // out.itemsize
        for start in range(0, out.size, step):
            part = out[start : start + step]
            piece = there[start : start + step].data
            piece.copy_to_host_async(self.host.ctypes.data, part.nbytes, self.stream)
            self.stream.synchronize()
            part += self.host[: part.nbytes].view(part.dtype)


def make_table(
    plan: Plan, origin: tuple[int, int], shape: tuple[int, ...], itemsize: int
) -> Table | None:
    """Look where the bright field lies on a part of the detector.

    Parameters
    ----------
    plan
        Which pixels, and where to.
    origin, shape
        Row and column at which the part begins; rows and columns that it has.
    itemsize
        Bytes of a pixel.

    Returns
    -------
    Table or None
        On the current device; None where there is no bright field.
    """
    pixels = plan.pixels - np.asarray(origin)
    inside = ((pixels >= 0) & (pixels < shape)).all(axis=1)
    if not inside.any():
        return None
    pixels = pixels[inside]
    low, high = pixels.min(axis=0), pixels.max(axis=0) + 1
    if shape[1] * itemsize <= ROW_BYTES:
        low[1], high[1] = 0, shape[1]
    height, width = high - low
    return Table(
        slice(int(low[0]), int(high[0])),
        slice(int(low[1]), int(high[1])),
        int(height * width),
        to_device(((pixels - low) @ (width, 1)).astype(np.int32)),
        to_device(plan.targets[inside]),
    )


class Resident:
    """What stays on a device: used by one thread at a time, and after an error not at all.

    Parameters
    ----------
    device
        Number of the GPU.
    values
        Number of values that stay; or these, if they are there.
    dtype
        Of these.
    doing
        What this is for, from a comma on.
    slot_bytes
        Of the buffers through which they come.

    Raises
    ------
    CudaError
        If the GPU cannot be used, or has too little memory.
    """

    def __init__(
        self, device: int, values: Any, dtype: np.dtype[Any], doing: str, slot_bytes: int
    ) -> None:
        self.failed = False
        self._lock = threading.Lock()
        with explained(doing, device):
            cupy = load_cupy()
            self.device = cupy.cuda.Device(device)
            with self.device:
                # One is filled while the other is copied.
                self.slots = [Slot(slot_bytes) for _ in range(2)]
                self.values = cupy.empty(values, dtype) if isinstance(values, int) else values
                cupy.cuda.get_current_stream().synchronize()  # see `to_device`
        abandon = weakref.finalize(self, drain, self.device, self.slots, [self.values])
        abandon.atexit = False

    @contextlib.contextmanager
    def working(self, doing: str, *, writing: bool = False) -> Iterator[None]:
        """Use the device; after an error nothing is done any more, as it may be lost.

        Too little memory is no such error, unless values may be incomplete now.

        Parameters
        ----------
        doing
            See `explained`.
        writing
            Whether what stays is changed.

        Raises
        ------
        CudaError
            If the GPU failed, now or before.
        """
        if self.failed:
            raise CudaError(f"GPU {self.device.id} failed before; upload everything again.")
        with self._lock:
            try:
                with explained(doing, self.device.id), self.device:
                    yield
            except ValueError:  # of what was to be done: nothing is wrong with the device
                raise
            except BaseException as error:
                self.failed = writing or not isinstance(error.__cause__, MemoryError)
                drain(self.device, self.slots, None)
                raise

    def or_none(self, work: Callable[[], _T], what: str, *, fall_back: bool) -> _T | None:
        """Return what `work` does with the device, or None where the CPU has to go on.

        Parameters
        ----------
        work
            Takes no arguments.
        what
            Whatever the CPU goes on with, to warn.
        fall_back
            Whether it may.

        Raises
        ------
        CudaError
            If the GPU failed, and the CPU may not go on.

        Warns
        -----
        RuntimeWarning
            If the GPU failed, once, or has too little memory, and the CPU goes on.
        """
        if fall_back and self.failed:
            return None
        try:
            return work()
        except CudaError as error:
            if not fall_back:
                raise
            until = "from now on" if self.failed else "this time"
            warnings.warn(f"{what} on the CPU {until}. {error}", RuntimeWarning, stacklevel=4)
            return None


def drain(device: Any, slots: list[Slot], buffers: Any) -> None:  # noqa: ARG001 - kept alive
    """Wait until the device has done with what an engine leaves behind."""
    # That it may have failed is known: it is why the engine was left.
    with contextlib.suppress(Exception), device:
        for slot in slots:
            slot.stream.synchronize()
