"""As much of CuPy as the package uses, on a device that is the CPU.

What is asked of a stream is queued, as on a device, and done early (at once), late (when somebody
waits for it) or at random; memory that is let go is overwritten and given to the next who asks. So
whoever does not wait for a copy or lets go of a buffer too soon gets wrong sums.
"""

from __future__ import annotations

import ctypes
import random
import threading
import weakref
from types import SimpleNamespace

import numpy as np

from . import compiler

POISON = 0xA5


class CUDARuntimeError(RuntimeError):
    """As raised by calls of the CUDA runtime."""


class OutOfMemoryError(MemoryError):
    """As raised by CuPy's memory pool."""


class CompileException(Exception):  # noqa: N818 - CuPy's name
    """As raised where NVRTC refuses a source."""


class _Pool:
    """Memory that is never given back, so stale addresses can be followed."""

    def __init__(self, limit=None):
        self.free = {}
        self.in_use = 0
        self.taken = 0  # from the device, to be used again and again
        self.limit = limit
        self.lock = threading.RLock()

    def take(self, size):
        with self.lock:
            if self.limit is not None and self.in_use + size > self.limit:
                raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes")
            self.in_use += size
            free = self.free.setdefault(size, [])
            if not free:
                self.taken += size
            block = free.pop() if free else np.full(size, POISON, np.uint8)
        # A buffer, which dies with its last user; the block stays.
        taken = (ctypes.c_uint8 * size).from_address(block.ctypes.data)
        weakref.finalize(taken, self._give_back, block).atexit = False
        return taken

    def _give_back(self, block):
        with self.lock:
            block[:] = POISON
            self.free[block.size].append(block)
            self.in_use -= block.size


class CuPy:
    """Stands in for the module ``cupy``.

    Parameters
    ----------
    devices
        How many there are.
    work
        When the devices do what is queued: "early", "late" or "random".
    order
        Order of a block's threads: "forward", "reverse" or "shuffled".
    memory
        Bytes of a device. Default: no limit.
    """

    __version__ = "0 (on the CPU)"

    def __init__(self, devices=1, work="random", order="shuffled", memory=None):
        self.work = work
        self.order = order
        self.random = random.Random(0)
        self.lock = threading.RLock()
        self.pools = [_Pool(memory) for _ in range(devices)]
        self.pinned = _Pool()
        self.busy = {}  # queues with work; streams that are gone may have left some
        self.current = threading.local()
        self.compiled = []
        self.launches = 0
        self.uploaded = self.downloaded = 0  # bytes
        #: Errors by the operation that is to fail: device, pinned, compile, launch, synchronize,
        #: compute (what NumPy's functions do there) and get.
        self.faults = {}
        self.driver = 13000
        top = self

        class Device:
            def __init__(self, device=None):
                self.id = top._device() if device is None else device

            def __enter__(self):
                top._fail("device")
                if self.id >= devices:
                    raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
                top._stack("devices").append(self.id)
                return self

            def __exit__(self, *_):
                top._stack("devices").pop()

        class Stream:
            def __init__(self, non_blocking=False):
                self.device = top._device()
                self.queue = []

            def __enter__(self):
                top._stack("streams").append(self)
                return self

            def __exit__(self, *_):
                top._stack("streams").pop()

            def synchronize(self):
                top._fail("synchronize")
                with top.lock:
                    while self.queue:
                        top._step(self.queue)

        class RawModule:
            def __init__(self, *, code, options, name_expressions):
                self.code, self.options, self.names = code, options, name_expressions

            def get_function(self, name):
                top._fail("compile")
                assert name in self.names
                assert all(option.startswith("-std=") for option in self.options)
                try:
                    [kernel] = compiler.compile_kernels(self.code, (name,))
                except compiler.CompileError as error:
                    raise CompileException(str(error)) from error
                device = top._device()
                top.compiled.append((device, name))

                def launch(grid, block, args):
                    assert top._device() == device, "a function of another device's module"
                    top._fail("launch")
                    limits = (2**31 - 1, 65535, 65535)
                    assert all(0 < n <= most for n, most in zip(grid, limits, strict=False))
                    values = [a.address() if isinstance(a, _Array) else a for a in args]
                    top.launches += 1
                    top._queue(
                        top._stack("streams")[-1],
                        lambda: compiler.launch(kernel, grid, block, values, top.order),
                    )

                return launch

        defaults = [Stream() for _ in range(devices)]
        for device, stream in enumerate(defaults):
            stream.device = device

        def current_stream():
            return (self._stack("streams") or [defaults[self._device()]])[-1]

        self._wait = lambda: current_stream().synchronize()

        self.RawModule = RawModule
        self.cuda = SimpleNamespace(
            Device=Device,
            Stream=Stream,
            alloc_pinned_memory=self._alloc_pinned,
            get_current_stream=current_stream,
            compiler=SimpleNamespace(CompileException=CompileException),
            runtime=SimpleNamespace(
                driverGetVersion=lambda: self.driver,
                runtimeGetVersion=lambda: 13020,
                getDeviceProperties=self._properties,
                memGetInfo=self._memory,
            ),
        )

    def get_default_memory_pool(self):
        return SimpleNamespace(free_bytes=lambda: self._pool().taken - self._pool().in_use)

    def _pool(self):
        return self.pools[self._device()]

    def empty(self, shape, dtype):
        dtype, device = np.dtype(dtype), self._device()
        count = int(np.prod(shape))
        memory = self.pools[device].take(count * dtype.itemsize)
        return _Array(self, device, np.frombuffer(memory, dtype, count).reshape(shape))

    def _alloc_pinned(self, size):
        self._fail("pinned")
        return self.pinned.take(size)

    def _properties(self, device):
        with self.cuda.Device(device):
            return {"name": b"No GPU"}

    def _memory(self):
        total = 2**30 if self._pool().limit is None else self._pool().limit
        return total - self._pool().taken, total

    def _fail(self, operation):
        if operation in self.faults:
            raise self.faults[operation]

    def _stack(self, name):
        if not hasattr(self.current, name):
            setattr(self.current, name, [])
        return getattr(self.current, name)

    def _device(self):
        return self._stack("devices")[-1] if self._stack("devices") else 0

    def _queue(self, stream, work):
        assert stream.device == self._device(), "a stream of another device"
        with self.lock:
            stream.queue.append(work)
            self.busy[id(stream.queue)] = stream.queue
            if self.work == "early":
                self._step(stream.queue)
            while self.work == "random" and self.busy and self.random.random() < 0.6:
                self._step(self.random.choice(list(self.busy.values())))

    def _step(self, queue):
        queue.pop(0)()
        if not queue:
            del self.busy[id(queue)]


class _Array(np.lib.mixins.NDArrayOperatorsMixin):
    """Array on a device.

    What NumPy's functions make of it is computed as CuPy does: in the order of the current stream,
    with new memory of the device. Other streams have to be waited for, and NumPy's own arrays are
    refused.
    """

    def __init__(self, cupy, device, values):
        self._cupy, self._device, self._values = cupy, device, values
        self.dtype, self.size, self.shape = values.dtype, values.size, values.shape
        self.nbytes = values.nbytes

    @property
    def data(self):
        return _Pointer(self)

    def __len__(self):
        return len(self._values)

    @property
    def device(self):
        return self._cupy.cuda.Device(self._device)

    def _of(self, values):
        return _Array(self._cupy, self._device, values)

    def __getitem__(self, where):
        return self._of(self._values[where])

    def __setitem__(self, where, values):
        self._compute(lambda new: self._values.__setitem__(where, new), values)

    def reshape(self, *shape):
        values = self._values.view()
        values.shape = shape[0] if isinstance(shape[0], tuple) else shape  # without a copy
        return self._of(values)

    def view(self, dtype):
        return self._of(self._values.view(dtype))

    @property
    def T(self):  # noqa: N802 - CuPy's name
        return self._of(self._values.T)

    @property
    def real(self):
        return self._of(self._values.real)

    @property
    def imag(self):
        return self._of(self._values.imag)

    def astype(self, dtype):
        return self._compute(lambda values: values.astype(dtype), self)

    def sum(self, *arguments, **options):
        return self._compute(lambda values: np.asarray(values.sum(*arguments, **options)), self)

    def max(self):
        return self._compute(lambda values: np.asarray(values.max()), self)

    def min(self):
        return self._compute(lambda values: np.asarray(values.min()), self)

    def all(self):
        return self._compute(lambda values: np.asarray(values.all()), self)

    def __bool__(self):
        return bool(self.get())

    def __float__(self):
        return float(self.get())

    def get(self):
        """Copy to the host, after all that the current stream has to do."""
        self._cupy._fail("get")
        self.address()
        self._cupy._wait()
        self._cupy.downloaded += self.nbytes
        return self._values.copy()

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **options):
        assert method == "__call__"
        assert ufunc.nin == len(inputs)
        to = {"out": tuple(array._values for array in out)} if out else {}
        made = self._compute(lambda *of: ufunc(*of, **to, **options), *inputs)
        return out[0] if out else made

    def __array_function__(self, function, _, arguments, options):
        if function is np.asarray:  # like=
            if isinstance(arguments[0], _Array):
                return arguments[0]
            values = np.asarray(*arguments, **options)
            self._cupy.uploaded += values.nbytes
            return self._compute(lambda: values)
        return self._compute(lambda *of: function(*of, **options), *arguments)

    def _compute(self, function, *of):
        self._cupy._fail("compute")
        if any(isinstance(array, np.ndarray) for array in of):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        for array in of:
            if isinstance(array, _Array):
                array.address()
        self._cupy._wait()
        made = function(*(a._values if isinstance(a, _Array) else a for a in of))
        if isinstance(made, np.ndarray | np.generic):
            new = self._cupy.empty(made.shape, made.dtype)
            new._values[...] = made
            return new
        return None

    def address(self):
        assert self._cupy._device() == self._device, "an array of another device"
        return self._values.ctypes.data


class _Pointer:
    """What CuPy calls MemoryPointer."""

    def __init__(self, array):
        self._array = array

    def memset_async(self, value, size, stream):
        self._queue(stream, size, lambda here: ctypes.memset(here, value, size))

    def copy_from_host_async(self, mem, size, stream):
        self._array._cupy.uploaded += size
        self._queue(stream, size, lambda here: ctypes.memmove(here, mem, size))

    def copy_to_host_async(self, mem, size, stream):
        self._array._cupy.downloaded += size
        self._queue(stream, size, lambda here: ctypes.memmove(mem, here, size))

    def copy_from_device_async(self, src, size, stream):
        there = src._array.address()
        self._queue(stream, size, lambda here: ctypes.memmove(here, there, size))

    def _queue(self, stream, size, work):
        assert 0 < size <= self._array.nbytes, "nothing, or beyond the end of the array"
        assert self._array._values.flags.c_contiguous
        here = self._array.address()
        self._array._cupy._queue(stream, lambda: work(here))
