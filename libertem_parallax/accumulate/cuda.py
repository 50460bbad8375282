"""CUDA: the default on GPUs.

The host cuts the box around the bright field out of the frames into one of `SLOTS` pinned buffers,
or copies events into it; when that is full, its stream copies it to the device and starts the
kernel, while the host fills the next one. So cropping, copying and adding overlap, and no more than
the box crosses the bus, but for rows so short that cutting them gains nothing. The accumulator
stays on the device until `CudaEngine.finish`.

All that is done with CuPy is memory, streams and launches; none of its own kernels is needed, so it
does not compile any.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .engine import Engine, Events, value_range
from .plan import Plan

__all__ = ["CudaEngine", "CudaError", "describe"]

#: Pinned buffers that are filled in turn, and their size: more for boxes of which not `FRAMES` fit,
#: but no more than the limit, or one box.
SLOTS = 3
SLOT_BYTES = 1 << 22
SLOT_LIMIT = 1 << 26

#: Rows of the detector that are no longer than a cache line are not cut: they are read as a whole
#: anyway, and copied in one piece.
ROW_BYTES = 64

#: Of the kernel: frames (one a thread of a warp), warps and pixels of a block; frames of a launch.
FRAMES, WARPS, PIXELS = 32, 8, 64
MOST_FRAMES = 65535 * FRAMES

#: Part of a buffer that is for events; the rest is for where those of each frame begin.
EVENTS_SHARE = 0.75

#: In place of a frame with a bad event: more than there can be, of equal bytes to be set at once.
NO_TROUBLE = 0x7F7F7F7F

_C_TYPES = {
    "int8": "signed char",
    "uint8": "unsigned char",
    "int16": "short",
    "uint16": "unsigned short",
    "int32": "int",
    "uint32": "unsigned int",
    "int64": "long long",
    "uint64": "unsigned long long",
    "float32": "float",
    "float64": "double",
}


_INSTALL = "Install libertem-parallax[cuda12] or libertem-parallax[cuda13]"


class CudaError(RuntimeError):
    """The GPU cannot be used, or failed: the message says why, and what to do."""


def describe(device: int = 0) -> str:
    """Say which GPU there is.

    Parameters
    ----------
    device
        Number of the GPU.

    Returns
    -------
    str
        Its name, and the versions of what drives it.

    Raises
    ------
    CudaError
        If it cannot be used.
    """
    cupy = _cupy()
    with _explained("", device):
        name = cupy.cuda.runtime.getDeviceProperties(device)["name"].decode()
        driver = _version(cupy.cuda.runtime.driverGetVersion())
        return f"{name}, driver for CUDA {driver}, CuPy {cupy.__version__}"


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
        self._kernel = _kernel(device, "events" if events else "scatter", self.dtype, A.dtype)
        rows, cols = plan.pixels.max(axis=0) - plan.pixels.min(axis=0) + 1
        frame_bytes = int(rows) * max(int(cols) * self.dtype.itemsize, ROW_BYTES)
        slot_bytes = SLOT_BYTES
        if not events:
            slot_bytes = max(SLOT_BYTES, frame_bytes, min(FRAMES * frame_bytes, SLOT_LIMIT))
        y, x = np.divmod(index, plan.scan_shape[1])
        with _explained(", making ready for a part of the scan", device):
            cupy = _cupy()
            self._device = cupy.cuda.Device(device)
            with self._device:
                self._slots = [_Slot(slot_bytes) for _ in range(SLOTS)]
                self._device_A = cupy.empty(A.size, A.dtype)
                self._device_S = cupy.empty(S.size, S.dtype)
                self._trouble = cupy.empty(2, np.int32)
                # Last, since it waits until the memory is free.
                self._positions = _to_device(y * A.shape[3] + x)
                stream = self._slots[0].stream
                sums = (self._device_A, 0), (self._device_S, 0), (self._trouble, NO_TROUBLE & 0xFF)
                for array, byte in sums:
                    if array.size:
                        array.data.memset_async(byte, array.nbytes, stream)
                stream.synchronize()
        self._turn = 0
        self._batch: _Batch | _EventBatch | None = None
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
        self._abandon = weakref.finalize(self, _drain, self._device, self._slots, buffers)
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
                    suspicious = not np.isfinite(part.sum())
                if suspicious:
                    self._refuse_non_finite(frames[done : done + n], origin, first + done)
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
            origin, shape, lambda: _to_device(self._lookup(shape, origin).astype(np.int64))
        )
        frame, event = 0, int(bounds[0])
        while frame < len(bounds) - 1:
            batch = self._batch
            if (
                not isinstance(batch, _EventBatch)
                or batch.lookup is not lookup
                or batch.first + batch.count != first + frame
            ):
                batch = self._batch = _EventBatch(
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
            # Through a slot, piece by piece, since pinned memory is scarce.
            for sums, device_sums in ((self.A, self._device_A), (self.S, self._device_S)):
                flat = sums.reshape(-1)
                step = len(slot.host) // sums.itemsize
                for start in range(0, flat.size, step):
                    part = flat[start : start + step]
                    piece = device_sums[start : start + step].data
                    piece.copy_to_host_async(slot.host.ctypes.data, part.nbytes, slot.stream)
                    slot.stream.synchronize()
                    part += slot.host[: part.nbytes].view(part.dtype)
            self._trouble.data.copy_to_host_async(slot.host.ctypes.data, 8, slot.stream)
            slot.stream.synchronize()
            outside, bad = slot.host[:8].view(np.int32)
        self._abandon.detach()
        if min(outside, bad) < NO_TROUBLE:
            if outside <= bad:
                self._refuse_outside(outside)
            self._refuse_value(bad)
        if self.S.dtype.kind == "f":
            self._refuse_overflow()

    def _open(self, table: _Table, first: int) -> _Batch:
        """Batch to which a tile's frames from `first` on can be appended."""
        batch = self._batch
        if (
            isinstance(batch, _Batch)
            and batch.table is table
            and batch.first + batch.count == first
        ):
            return batch
        self._batch = batch = _Batch(table, first, self._next_slot(), self.dtype)
        return batch

    def _next_slot(self) -> _Slot:
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
            if isinstance(batch, _Batch):
                table, n, m = batch.table, batch.count, len(batch.table.pixels)
                shape = _launch_shape(n, m)
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
                shape = _events_launch_shape(batch.count)
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

    def _table(self, origin: tuple[int, int], shape: tuple[int, ...]) -> _Table | None:
        """Constants of one part of the detector; None without bright field."""
        table: _Table | None = self._shared(
            origin, shape, lambda: _make_table(self.plan, origin, shape, self.dtype.itemsize)
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
            raise CudaError(f"GPU {device} failed before; the image is not complete.")
        try:
            with _explained(", adding frames (the image is not complete)", device):
                yield
        except CudaError:
            self._failed = True
            raise


class _Table(NamedTuple):
    """Where the bright field lies on a part of the detector, and where it goes."""

    rows: slice  # of the box around the pixels, on the part
    cols: slice
    size: int  # pixels in the box
    pixels: Any  # (m,) int32 on the device: where in the box each pixel is
    targets: Any  # (m,) int64 on the device: where in the accumulator it goes


class _Batch:
    """Frames that go to the device together."""

    def __init__(self, table: _Table, first: int, slot: _Slot, dtype: np.dtype[Any]) -> None:
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


class _EventBatch:
    """Events that go to the device together."""

    def __init__(
        self, lookup: Any, pixels: int, first: int, slot: _Slot, dtype: np.dtype[Any]
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


class _Slot:
    """Buffer on the host and on the device, and the stream on which it is used."""

    def __init__(self, size: int) -> None:
        cupy = _cupy()
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.host = _pinned(cupy, size)
        self.device = cupy.empty(size, np.uint8)

    def copy(self, part: NDArray[Any]) -> Any:
        """Start to copy a part of the buffer on the host; returns that on the device."""
        there = self.device[part.ctypes.data - self.host.ctypes.data :]
        if part.size:
            there.data.copy_from_host_async(part.ctypes.data, part.nbytes, self.stream)
        return there


# Constants of the plans in use, by device and part of the detector.
_tables: weakref.WeakKeyDictionary[Plan, dict[tuple[int, ...], Any]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _make_table(
    plan: Plan, origin: tuple[int, int], shape: tuple[int, ...], itemsize: int
) -> _Table | None:
    pixels = plan.pixels - np.asarray(origin)
    inside = ((pixels >= 0) & (pixels < shape)).all(axis=1)
    if not inside.any():
        return None
    pixels = pixels[inside]
    low, high = pixels.min(axis=0), pixels.max(axis=0) + 1
    if shape[1] * itemsize <= ROW_BYTES:
        low[1], high[1] = 0, shape[1]
    height, width = high - low
    return _Table(
        slice(int(low[0]), int(high[0])),
        slice(int(low[1]), int(high[1])),
        int(height * width),
        _to_device(((pixels - low) @ (width, 1)).astype(np.int32)),
        _to_device(plan.targets[inside]),
    )


def _to_device(values: NDArray[Any]) -> Any:
    """Copy to the current device, and wait until it is there, and all memory so far is free.

    The stream in whose order CuPy gives memory away may still be at work there for somebody else,
    and other streams would not wait for it.
    """
    cupy = _cupy()
    array = cupy.empty(values.shape, values.dtype)
    cupy.cuda.get_current_stream().synchronize()
    if values.size:
        staged = _pinned(cupy, values.nbytes)
        staged[:] = np.ascontiguousarray(values).view(np.uint8)
        stream = cupy.cuda.Stream(non_blocking=True)
        array.data.copy_from_host_async(staged.ctypes.data, values.nbytes, stream)
        stream.synchronize()
    return array


def _pinned(cupy: Any, size: int) -> NDArray[np.uint8]:
    return np.frombuffer(cupy.cuda.alloc_pinned_memory(size), np.uint8, size)


def _drain(device: Any, slots: list[_Slot], buffers: Any) -> None:  # noqa: ARG001 - kept alive
    """Wait until the device has done with what an engine leaves behind."""
    # That it may have failed is known: it is why the engine was left.
    with contextlib.suppress(Exception), device:
        for slot in slots:
            slot.stream.synchronize()


def _source(name: str) -> Path:
    """Find a kernel's file: in the installed package, or in the checkout."""
    package = Path(__file__).parents[1]
    path = Path("kernels", f"{name}.cu")
    for folder in (package, package.parent):
        if (folder / path).is_file():
            return folder / path
    raise CudaError(f"{package / path} is missing: install the package anew.")


def _expression(name: str, dtype: np.dtype[Any], accumulator: np.dtype[Any]) -> str:
    """Name a kernel for a dtype of the frames, and of the sums."""
    types = f"{_C_TYPES[dtype.name]}, {_C_TYPES[accumulator.name]}"
    return f"{name}<{types}, {FRAMES}, {WARPS}{f', {PIXELS}' if name == 'scatter' else ''}>"


def _launch_shape(frames: int, pixels: int) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Grid and block of a launch for frames."""
    return (-(-pixels // PIXELS), -(-frames // FRAMES)), (FRAMES, WARPS)


def _events_launch_shape(frames: int) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Grid and block of a launch for events."""
    return (-(-frames // WARPS),), (FRAMES, WARPS)


_kernels: dict[tuple[int, str], Any] = {}


def _kernel(device: int, name: str, dtype: np.dtype[Any], accumulator: np.dtype[Any]) -> Any:
    """Compile a kernel, or take it from this process's or CuPy's cache."""
    expression = _expression(name, dtype, accumulator)
    key = (device, expression)
    with _lock:
        if key not in _kernels:
            describe(device)  # or say what it lacks
            cupy = _cupy()
            path = _source(name)
            with _explained(f", {path}", device), cupy.cuda.Device(device):
                module = cupy.RawModule(
                    code=path.read_text(encoding="utf-8"),
                    options=("-std=c++17",),
                    name_expressions=(expression,),
                )
                _kernels[key] = module.get_function(expression)
        return _kernels[key]


def _cupy() -> Any:
    try:
        return importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise CudaError(f"CuPy cannot be imported: {error}. {_INSTALL}.") from error
        raise CudaError(
            f"CuPy is not installed. {_INSTALL}; nvidia-smi shows which CUDA the driver is for."
        ) from error
    except Exception as error:
        raise CudaError(f"CuPy cannot be imported: {_say(error)}") from error


@contextlib.contextmanager
def _explained(doing: str, device: int) -> Iterator[None]:
    """Turn CuPy's errors into messages for people."""
    try:
        yield
    except (CudaError, TypeError, ValueError):
        raise
    except Exception as error:
        raise CudaError(f"GPU {device}{doing}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Say what an error of CuPy means, and what to do."""
    cupy = _cupy()
    name, _, text = str(error).partition(":")
    if name == "cudaErrorInsufficientDriver":
        driver, needed = (
            cupy.cuda.runtime.driverGetVersion(),
            cupy.cuda.runtime.runtimeGetVersion(),
        )
        if not driver:
            return "there is no NVIDIA driver. Install it, or let the container see the GPU."
        return (
            f"the driver is for CUDA {_version(driver)}, CuPy for {_version(needed)}. Update the "
            f"driver, or take the other CuPy: {_INSTALL}."
        )
    if name in ("cudaErrorNoDevice", "cudaErrorInvalidDevice"):
        return f"there is no such GPU ({text.strip()}). Check nvidia-smi and CUDA_VISIBLE_DEVICES."
    memory = ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY")
    if isinstance(error, MemoryError) or name in memory:
        return (
            f"out of memory ({error}). Close what else uses the GPU, have fewer workers share it, "
            "or lower upsampling_factor."
        )
    if "--gpu-architecture" in str(error):
        return f"this GPU is too old for this CUDA: libertem-parallax[cuda12] may do ({error})."
    if isinstance(error, cupy.cuda.compiler.CompileException):
        return f"the kernel does not compile: {error}"
    if "nvrtc" in str(error).lower() or "CUDA headers" in str(error):
        return f"the compiler of kernels, NVRTC, does not work ({error}). {_INSTALL}."
    if name.startswith(("cuda", "CUDA_ERROR")):
        return f"{error}. If this goes on, restart Python: after some errors a GPU needs that."
    return _say(error)


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".: ") + "."


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
