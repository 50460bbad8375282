"""The engine: keeps the device busy while the host gets the next frames ready.

The host cuts the box around the bright field out of the frames into one of `SLOTS` pinned buffers,
or copies events into it; when that is full, its stream copies it to the device and starts the
kernel, while the host fills the next one. So cropping, copying and adding overlap, and no more than
the box crosses the bus, but for rows so short that cutting them gains nothing. The accumulator
stays on the device until `CudaEngine.finish`.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..dtypes import is_small, value_range
from ..engine import Engine, Events
from ..plan import Plan
from .device import (
    NO_TROUBLE,
    events_launch_shape,
    explained,
    kernel,
    launch_shape,
    load_cupy,
    to_device,
)
from .messages import CudaError
from .upload import SLOTS, Batch, EventBatch, Slot, Table, drain, make_table, slot_size

__all__ = ["CudaEngine"]

_INCOMPLETE = "the image is not complete: run again, with engine = 'numba' on the CPU"

# Constants of the plans in use, by device and part of the detector.
_tables: weakref.WeakKeyDictionary[Plan, dict[tuple[int, ...], Any]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class CudaEngine(Engine):
    """`Engine` on a GPU, for one thread of any number that may share it.

    Parameters
    ----------
    plan, dtype, index, A, S, events
        See `Engine`. `A` and `S` are added to in `finish`.
    device
        Number of the GPU.

    Raises
    ------
    CudaError
        If the GPU cannot be used; from `add` and `finish`, if it failed.
    """

    def __init__(
        self,
        plan: Plan,
        dtype: DTypeLike,
        index: NDArray[np.int64],
        A: NDArray[Any],
        S: NDArray[Any],
        device: int = 0,
        *,
        events: bool = False,
    ) -> None:
        super().__init__(plan, dtype, index, A, S, events=events)
        self._kernel = kernel(device, "events" if events else "scatter", self.dtype, A.dtype)
        slot_bytes = slot_size(plan, self.dtype.itemsize, events=events)
        y, x = np.divmod(index, plan.scan_shape[1])
        with explained(", making ready for a part of the scan", device):
            cupy = load_cupy()
            self._device = cupy.cuda.Device(device)
            with self._device:
                self._slots = [Slot(slot_bytes) for _ in range(SLOTS)]
                self._device_A = cupy.empty(A.size, A.dtype)
                self._device_S = cupy.empty(S.size, S.dtype)
                self._trouble = cupy.empty(2, np.int32)
                # Last, since it waits until the memory is free.
                self._positions = to_device(y * A.shape[3] + x)
                stream = self._slots[0].stream
                sums = (self._device_A, 0), (self._device_S, 0), (self._trouble, NO_TROUBLE & 0xFF)
                for array, byte in sums:
                    if array.size:
                        array.data.memset_async(byte, array.nbytes, stream)
                stream.synchronize()
        self._turn = 0
        self._batch: Batch | EventBatch | None = None
        self._tables: dict[tuple[int, ...], Any] = {}  # by part of the detector
        self._failed = False
        # CuPy reuses memory as soon as it is let go: not before the device has done with it. That
        # holds for the tables, too, since the plan may go before the engine.
        buffers = (
            self._device_A,
            self._device_S,
            self._positions,
            self._trouble,
            self._tables,
        )
        self._abandon = weakref.finalize(self, drain, self._device, self._slots, buffers)
        self._abandon.atexit = False

    def _add(self, frames: NDArray[Any], origin: tuple[int, int], first: int) -> None:
        table = self._table(origin, frames.shape[1:])
        if table is None:
            return
        box = frames[:, table.rows, table.cols]
        done = 0
        while done < len(box):
            batch = self._open(table, first + done)
            n = min(len(batch.frames) - batch.count, len(box) - done)
            part = batch.frames[batch.count : batch.count + n]
            part[...] = box[done : done + n]
            # Here, while it is in the cache; a sum tells nearly always, and fast.
            if part.dtype.kind == "f":
                with np.errstate(over="ignore", invalid="ignore"):
                    suspicious = not is_small(part.sum())
                if suspicious:
                    self._refuse_values(frames[done : done + n], origin, first + done)
            batch.count += n
            done += n
            if batch.count == len(batch.frames):
                self._launch()

    def _add_events(
        self, events: Events, shape: tuple[int, int], origin: tuple[int, int], first: int
    ) -> None:
        _, columns, bounds = events
        pixels = shape[0] * shape[1]
        if columns.dtype != np.int32:  # in the kernel's, others may look as if they were inside
            narrow = columns.astype(np.int32)
            narrow[(columns < 0) | (columns >= pixels)] = -1
            events = events._replace(columns=narrow)
        lookup = self._shared(
            origin, shape, lambda: to_device(self._lookup(shape, origin).astype(np.int64))
        )
        frame, event = 0, int(bounds[0])
        while frame < len(bounds) - 1:
            batch = self._batch
            if (
                not isinstance(batch, EventBatch)
                or batch.lookup is not lookup
                or batch.first + batch.count != first + frame
            ):
                batch = self._batch = EventBatch(
                    lookup, pixels, first + frame, self._next_slot(), self.dtype
                )
            end, stop = batch.append(events, frame, event)
            if end == frame:
                self._launch()  # it is full
            frame, event = end, stop

    def finish(self) -> None:
        """Wait for the device and add its sums to `A` and `S`."""
        self._launch()
        with self._failing(), self._device:
            for slot in self._slots:
                slot.stream.synchronize()
            slot.read(self._device_A, self.A.reshape(-1))
            slot.read(self._device_S, self.S)
            self._trouble.data.copy_to_host_async(slot.host.ctypes.data, 8, slot.stream)
            slot.stream.synchronize()
            outside, bad = slot.host[:8].view(np.int32)
        self._abandon.detach()
        if min(outside, bad) < NO_TROUBLE:
            if outside <= bad:
                self._refuse_outside(outside)
            self._refuse_value(bad)
        if self.S.dtype.kind == "f":
            self._refuse_sums()

    def _open(self, table: Table, first: int) -> Batch:
        """Batch to which a tile's frames from `first` on can be appended."""
        batch = self._batch
        if isinstance(batch, Batch) and batch.table is table and batch.first + batch.count == first:
            return batch
        self._batch = batch = Batch(table, first, self._next_slot(), self.dtype)
        return batch

    def _next_slot(self) -> Slot:
        """Slot for a new batch, after that of the last one was sent."""
        self._launch()
        slot = self._slots[self._turn]
        with self._failing():
            slot.stream.synchronize()  # its last batch may be under way
        return slot

    def _launch(self) -> None:
        """Copy the batch to the device and add it, without waiting."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        slot = self._slots[self._turn]
        self._turn = (self._turn + 1) % SLOTS
        first = batch.first
        with self._failing(), self._device, slot.stream:
            on_device = [slot.copy(part) for part in batch.parts()]
            if isinstance(batch, Batch):
                table, n, m = batch.table, batch.count, len(batch.table.pixels)
                shape = launch_shape(n, m)
                arguments: tuple[Any, ...] = (
                    *on_device,
                    self._positions[first:],
                    table.pixels,
                    table.targets,
                    self._device_A,
                    self._device_S[first:],
                    np.int32(n),
                    np.int32(table.size),
                    np.int32(m),
                )
            else:
                shape = events_launch_shape(batch.count)
                arguments = (
                    *on_device,
                    self._positions[first:],
                    batch.lookup,
                    self._device_A,
                    self._device_S[first:],
                    self._trouble,
                    np.int32(batch.count),
                    np.int32(batch.pixels),
                    np.int32(first),
                    *value_range(self.dtype),
                )
            self._kernel(*shape, arguments)

    def _table(self, origin: tuple[int, int], shape: tuple[int, ...]) -> Table | None:
        """Constants of one part of the detector; None without bright field."""
        table: Table | None = self._shared(
            origin, shape, lambda: make_table(self.plan, origin, shape, self.dtype.itemsize)
        )
        return table

    def _shared(
        self, origin: tuple[int, int], shape: tuple[int, ...], make: Callable[[], Any]
    ) -> Any:
        """Constants of one part of the detector, made once for a plan."""
        place = (*origin, *shape)
        if place not in self._tables:
            key = (self._device.id, self.events, self.dtype.itemsize, *place)
            # One thread makes them: if another replaced them, they would go while in use.
            with _lock, self._failing(), self._device:
                shared = _tables.setdefault(self.plan, {})
                if key not in shared:
                    shared[key] = make()
                self._tables[place] = shared[key]
        return self._tables[place]

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Explain errors; after one, nothing is done any more, as batches are missing."""
        device = self._device.id
        if self._failed:
            raise CudaError(f"GPU {device} failed before; {_INCOMPLETE}.")
        try:
            with explained(f", adding frames ({_INCOMPLETE})", device):
                yield
        except CudaError:
            self._failed = True
            raise
