"""The device: CuPy, the kernels, and copies to where they work."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .messages import INSTALL, CudaError, reason, say, version

__all__ = [
    "C_TYPES",
    "FRAMES",
    "NO_TROUBLE",
    "PIXELS",
    "WARPS",
    "describe",
    "events_launch_shape",
    "explained",
    "expression",
    "kernel",
    "launch_shape",
    "load_cupy",
    "pinned",
    "source",
    "to_device",
]

#: Of the kernels: frames (one a thread of a warp), warps and pixels of a block.
FRAMES, WARPS, PIXELS = 32, 8, 64

#: In place of a frame with a bad event: more than there can be, of equal bytes to be set at once.
NO_TROUBLE = 0x7F7F7F7F

#: What kernels call the dtypes of frames and sums.
C_TYPES = {
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


def load_cupy() -> Any:
    """Import CuPy, which works without a GPU, too.

    Raises
    ------
    CudaError
        If it cannot be imported.
    """
    try:
        return importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise CudaError(f"CuPy cannot be imported: {error}. {INSTALL}.") from error
        raise CudaError(
            f"CuPy is not installed. {INSTALL}; nvidia-smi shows which CUDA the driver is for."
        ) from error
    except Exception as error:
        raise CudaError(f"CuPy cannot be imported: {say(error)}") from error


@contextlib.contextmanager
def explained(doing: str, device: int) -> Iterator[None]:
    """Turn CuPy's errors into messages for people.

    Parameters
    ----------
    doing
        What is done inside, from a comma on; empty if that goes without saying.
    device
        Number of the GPU.

    Raises
    ------
    CudaError
        In place of what CuPy raises.
    """
    try:
        yield
    except (CudaError, TypeError, ValueError):
        raise
    except Exception as error:
        raise CudaError(f"GPU {device}{doing}: {reason(load_cupy(), error)}") from error


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
    cupy = load_cupy()
    with explained("", device):
        name = cupy.cuda.runtime.getDeviceProperties(device)["name"].decode()
        driver = version(cupy.cuda.runtime.driverGetVersion())
        return f"{name}, driver for CUDA {driver}, CuPy {cupy.__version__}"


def source(name: str) -> Path:
    """Find a kernel's file: in the installed package, or in the checkout.

    Raises
    ------
    CudaError
        If it is in neither.
    """
    package = Path(__file__).parents[2]
    path = Path("kernels", f"{name}.cu")
    for folder in (package, package.parent):
        if (folder / path).is_file():
            return folder / path
    raise CudaError(f"{package / path} is missing: install the package anew.")


def expression(name: str, dtype: np.dtype[Any], accumulator: np.dtype[Any]) -> str:
    """Name a kernel for a dtype of the frames, and of the sums."""
    types = f"{C_TYPES[dtype.name]}, {C_TYPES[accumulator.name]}"
    return f"{name}<{types}, {FRAMES}, {WARPS}{f', {PIXELS}' if name == 'scatter' else ''}>"


def launch_shape(frames: int, pixels: int) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Grid and block of a launch for frames."""
    return (-(-pixels // PIXELS), -(-frames // FRAMES)), (FRAMES, WARPS)


def events_launch_shape(frames: int) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Grid and block of a launch for events."""
    return (-(-frames // WARPS),), (FRAMES, WARPS)


_kernels: dict[tuple[int, str], Any] = {}
_lock = threading.Lock()


def kernel(device: int, name: str, dtype: np.dtype[Any], accumulator: np.dtype[Any]) -> Any:
    """Compile a kernel, or take it from this process's or CuPy's cache.

    Parameters
    ----------
    device
        Number of the GPU.
    name
        Of the kernel.
    dtype, accumulator
        Of the frames, native; of the sums.

    Returns
    -------
    callable
        Called with grid, block and arguments, it launches the kernel on the current stream.

    Raises
    ------
    CudaError
        If the GPU cannot be used, or the kernel does not compile.
    """
    instance = expression(name, dtype, accumulator)
    key = (device, instance)
    with _lock:
        if key not in _kernels:
            describe(device)  # or say what it lacks
            cupy = load_cupy()
            path = source(name)
            with explained(f", {path}", device), cupy.cuda.Device(device):
                module = cupy.RawModule(
                    code=path.read_text(encoding="utf-8"),
                    options=("-std=c++17",),
                    name_expressions=(instance,),
                )
                _kernels[key] = module.get_function(instance)
        return _kernels[key]


def to_device(values: NDArray[Any]) -> Any:
    """Copy to the current device, and wait until it is there, and all memory so far is free.

    The stream in whose order CuPy gives memory away may still be at work there for somebody else,
    and other streams would not wait for it.
    """
    cupy = load_cupy()
    array = cupy.empty(values.shape, values.dtype)
    cupy.cuda.get_current_stream().synchronize()
    if values.size:
        staged = pinned(values.nbytes)
        staged[:] = np.ascontiguousarray(values).view(np.uint8)
        stream = cupy.cuda.Stream(non_blocking=True)
        array.data.copy_from_host_async(staged.ctypes.data, values.nbytes, stream)
        stream.synchronize()
    return array


def pinned(size: int) -> NDArray[np.uint8]:
    """Take so many bytes of the host's memory from which the device can copy by itself."""
    return np.frombuffer(load_cupy().cuda.alloc_pinned_memory(size), np.uint8, size)
