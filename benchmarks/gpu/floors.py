"""What a GPU can do at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from libertem_parallax.accumulate.cuda.device import C_TYPES, load_cupy, pinned, to_device

__all__ = ["make_additions", "make_upload", "measure", "seconds"]

_ROUNDS = 9

#: Bytes of one copy to the device.
_CHUNK = 1 << 26


class Floors(NamedTuple):
    """What a GPU can do at best, in a second."""

    upload: float  # bytes from the host
    copy: float  # bytes read and written on the device
    additions: dict[str, float]  # to global memory, by dtype of the sum


def seconds(work: Callable[[], Any], rounds: int | None = None) -> float:
    """Take the median time of a piece of work that waits for the device itself.

    Parameters
    ----------
    work
        Done once before, so that all is compiled.
    rounds
        How often to do it at most.
    """
    work()
    times = []
    for _ in range(min(rounds or _ROUNDS, _ROUNDS)):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def make_upload(size: int) -> Callable[[], None]:
    """Make an upload of so many bytes from pinned memory; calls wait for its end."""
    cupy = load_cupy()
    stream = cupy.cuda.Stream(non_blocking=True)
    step = min(size, _CHUNK)
    host = pinned(step)
    host[:] = 1
    device = cupy.empty(step, np.uint8)

    def upload() -> None:
        for first in range(0, size, step):
            device.data.copy_from_host_async(host.ctypes.data, min(step, size - first), stream)
        stream.synchronize()

    return upload


def make_additions(dtype: str, count: int) -> tuple[Callable[[], None], int]:
    """Make additions to global memory, at least `count`; calls wait for their end.

    Returns
    -------
    tuple
        What to call, and the number of additions.
    """
    cupy = load_cupy()
    stream = cupy.cuda.Stream(non_blocking=True)
    size, rounds = 1 << 20, 64
    blocks = -(-count // (256 * rounds))
    text = Path(__file__).with_name("floors.cu").read_text(encoding="utf-8")
    # atomicAdd knows no signed 64-bit integers; see kernels/scatter.cu.
    c_type = "unsigned long long" if dtype == "int64" else C_TYPES[dtype]
    name = f"additions<{c_type}>"
    module = cupy.RawModule(code=text, options=("-std=c++17",), name_expressions=(name,))
    function = module.get_function(name)
    A = to_device(np.zeros(size, dtype))

    def add() -> None:
        with stream:
            function((blocks,), (32, 8), (A, np.uint32(size), np.int32(rounds)))
        stream.synchronize()

    return add, blocks * 256 * rounds


def measure(size: int) -> Floors:
    """Measure the GPU by copies of so many bytes."""
    cupy = load_cupy()
    stream = cupy.cuda.Stream(non_blocking=True)
    one, other = (cupy.empty(size, np.uint8) for _ in range(2))

    def copy() -> None:
        other.data.copy_from_device_async(one.data, size, stream)
        stream.synchronize()

    additions = {}
    for dtype in ("int32", "int64", "float64"):
        add, count = make_additions(dtype, size // 4)
        additions[dtype] = count / seconds(add)
    return Floors(size / seconds(make_upload(size)), 2 * size / seconds(copy), additions)
