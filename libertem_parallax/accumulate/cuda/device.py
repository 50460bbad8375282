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
    "FREQUENCIES",
    "KERNELS",
    "NO_TROUBLE",
    "PIXELS",
    "POSITIONS",
    "WARPS",
    "describe",
    "events_launch_shape",
    "explained",
    "expression",
    "gather_launch_shape",
    "kernel",
    "launch_shape",
    "likelihood_launch_shape",
    "load_cupy",
    "memory",
    "pinned",
    "source",
    "to_device",
    "turn_launch_shape",
]

#: Of the kernels: frames (one a thread of a warp), warps and pixels of a block; frames of a thread
#: that gathers; warps of a block of a likelihood, few as they need many registers.
FRAMES, WARPS, PIXELS, POSITIONS, FREQUENCIES = 32, 8, 64, 4, 4

#: File of every kernel, and what its template is given beside dtypes.
KERNELS = {
    "scatter": ("scatter", (FRAMES, WARPS, PIXELS)),
    "events": ("events", (FRAMES, WARPS)),
    "gather": ("stack", (FRAMES, WARPS, POSITIONS)),
    "turn": ("stack", (FRAMES, WARPS)),
    "likelihood": ("likelihood", (FRAMES, FREQUENCIES)),
}

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


def memory(device: int = 0) -> tuple[int, int]:
    """Ask how much memory a GPU has.

    Parameters
    ----------
    device
        Number of the GPU.

    Returns
    -------
    tuple
        Bytes that are free, those that CuPy keeps for this process included, and of all.

    Raises
    ------
    CudaError
        If it cannot be used.
    """
    cupy = load_cupy()
    with explained("", device), cupy.cuda.Device(device):
        free, total = cupy.cuda.runtime.memGetInfo()
        free += cupy.get_default_memory_pool().free_bytes()
    return free, total


def source(name: str) -> Path:
    """Find a file of kernels: in the installed package, or in the checkout.

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


def expression(name: str, *of: np.dtype[Any] | int) -> str:
    """Name an instance of a kernel: most are for a dtype of the frames, and one of the sums."""
    own = (C_TYPES[part.name] if isinstance(part, np.dtype) else int(part) for part in of)
    return f"{name}<{', '.join(map(str, (*own, *KERNELS[name][1])))}>"


def launch_shape(frames: int, pixels: int) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Grid and block of a launch for frames."""
    return (-(-pixels // PIXELS), -(-frames // FRAMES)), (FRAMES, WARPS)


def events_launch_shape(frames: int) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Grid and block of a launch for events."""
    return (-(-frames // WARPS),), (FRAMES, WARPS)


def gather_launch_shape(grids: int, positions: int) -> tuple[tuple[int, ...], tuple[int, int], int]:
    """Grid and block of a launch that gathers sub-grids of a scan; tiles of one of them."""
    tiles = -(-positions // (FRAMES * POSITIONS))
    return (grids * tiles,), (FRAMES, WARPS), tiles


def turn_launch_shape(frames: int, pixels: int) -> tuple[tuple[int, ...], tuple[int, int], int]:
    """Grid and block of a launch that turns frames; tiles along the pixels."""
    tiles = -(-pixels // FRAMES)
    return (-(-frames // FRAMES) * tiles,), (FRAMES, WARPS), tiles


def likelihood_launch_shape(frequencies: int) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Grid and block of a launch for a likelihood."""
    return (-(-frequencies // FREQUENCIES),), (FRAMES, FREQUENCIES)


_kernels: dict[tuple[int, str], Any] = {}
_lock = threading.Lock()


def kernel(device: int, name: str, *of: np.dtype[Any] | int) -> Any:
    """Compile a kernel, or take it from this process's or CuPy's cache.

    Parameters
    ----------
    device
        Number of the GPU.
    name
        One of `KERNELS`.
    of
        See `expression`.

    Returns
    -------
    callable
        Called with grid, block and arguments, it launches the kernel on the current stream.

    Raises
    ------
    CudaError
        If the GPU cannot be used, or the kernel does not compile.
    """
    instance = expression(name, *of)
    key = (device, instance)
    with _lock:
        if key not in _kernels:
            describe(device)  # or say what it lacks
            cupy = load_cupy()
            path = source(KERNELS[name][0])
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
