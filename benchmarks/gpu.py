"""What the CUDA engine does apart from LiberTEM, against what the GPU can do at best.

Kernel-only figures: the end-to-end ones are those of ``python -m benchmarks``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from libertem_parallax.accumulate import ENGINES, CudaError, Plan, accumulator_dtype
from libertem_parallax.accumulate.cuda.device import (
    C_TYPES,
    describe,
    kernel,
    launch_shape,
    load_cupy,
    pinned,
    to_device,
)
from libertem_parallax.accumulate.cuda.upload import SLOT_BYTES, make_table
from libertem_parallax.geometry import Geometry

from .workloads import WORKLOADS, Workload

_ROUNDS = 9

#: Bytes of one copy to the device.
_CHUNK = 1 << 26


def _seconds(work: Callable[[], None]) -> float:
    """Median time of a piece of work that waits for the device itself."""
    work()
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


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


def floors(size: int) -> tuple[float, float, dict[str, float]]:
    """Measure the GPU.

    Parameters
    ----------
    size
        Bytes to copy.

    Returns
    -------
    tuple
        Bytes per second from the host; bytes per second read and written on the device; additions
        per second by dtype of the sum.
    """
    cupy = load_cupy()
    stream = cupy.cuda.Stream(non_blocking=True)
    one, other = (cupy.empty(size, np.uint8) for _ in range(2))

    def copy() -> None:
        other.data.copy_from_device_async(one.data, size, stream)
        stream.synchronize()

    additions = {}
    for dtype in ("int32", "int64", "float64"):
        add, count = make_additions(dtype, size // 4)
        additions[dtype] = count / _seconds(add)
    return size / _seconds(make_upload(size)), 2 * size / _seconds(copy), additions


def _frames(workload: Workload, plan: Plan, size: int) -> Any:
    """At least one row of the scan, and so many frames that the bright field has `size` bytes."""
    itemsize = np.dtype(workload.dtype).itemsize
    where = make_table(plan, (0, 0), plan.detector_shape, itemsize)
    assert where is not None
    positions = plan.scan_shape[0] * plan.scan_shape[1]
    count = min(max(size // (where.size * itemsize), plan.scan_shape[1]), positions)
    rng = np.random.default_rng(0)  # no zeros, which the kernel does not send
    shape = (count, *plan.detector_shape)
    return where, rng.integers(1, 3, shape, dtype=np.uint8).astype(workload.dtype)


def kernel_rate(workload: Workload, plan: Plan, size: int, batch_bytes: int) -> tuple[float, float]:
    """Measure the kernel on frames that are on the device.

    Parameters
    ----------
    workload, plan
        What to add.
    size
        Bytes of all frames.
    batch_bytes
        Bytes of the frames of one launch.

    Returns
    -------
    tuple
        Additions per second, and bytes of frames per second.
    """
    cupy = load_cupy()
    where, frames = _frames(workload, plan, size)
    box = np.ascontiguousarray(frames[:, where.rows, where.cols])
    accumulator = accumulator_dtype(box.dtype, len(plan.pixels))
    scatter = kernel(0, "scatter", box.dtype, accumulator)
    y, x = np.divmod(np.arange(len(box)), plan.scan_shape[1])
    positions = to_device(y * plan.accumulator_shape[3] + x)
    A = to_device(np.zeros(np.prod(plan.accumulator_shape), accumulator))
    S = to_device(np.zeros(len(box), accumulator))
    device_frames = to_device(box.reshape(-1))
    stream = cupy.cuda.Stream(non_blocking=True)
    step = max(1, batch_bytes // (where.size * box.itemsize))

    def work() -> None:
        with stream:
            for first in range(0, len(box), step):
                n = min(step, len(box) - first)
                scatter(
                    *launch_shape(n, len(where.pixels)),
                    (
                        device_frames[first * where.size :],
                        positions[first:],
                        where.pixels,
                        where.targets,
                        A,
                        S[first:],
                        np.int32(n),
                        np.int32(where.size),
                        np.int32(len(where.pixels)),
                    ),
                )
        stream.synchronize()

    seconds = _seconds(work)
    return len(box) * len(plan.pixels) / seconds, box.nbytes / seconds


def engine_rate(name: str, workload: Workload, plan: Plan, size: int) -> float:
    """Measure an engine on frames in memory; frames per second.

    Parameters
    ----------
    name
        Of the engine.
    workload, plan
        What to add.
    size
        Bytes of the bright field of all frames.
    """
    _, frames = _frames(workload, plan, size)
    accumulator = accumulator_dtype(frames.dtype, len(plan.pixels))
    A = np.zeros(plan.accumulator_shape, accumulator)
    S = np.zeros(len(frames), accumulator)

    def work() -> None:
        engine = ENGINES[name](plan, frames.dtype, np.arange(len(frames)), A, S)
        engine.add(frames)
        engine.finish()

    return len(frames) / _seconds(work)


def table(size: int) -> Iterator[str]:
    """Lines of the report.

    Parameters
    ----------
    size
        Bytes of the frames of every workload; several times the GPU's cache.
    """
    yield describe()
    upload, copy, additions = floors(size)
    yield f"From the host {upload / 1e9:.1f} GB/s; on the device {copy / 1e9:,.0f} GB/s"
    rates = ", ".join(f"{rate / 1e9:,.0f} G/s {dtype}" for dtype, rate in additions.items())
    yield f"Additions {rates}"
    yield ""
    yield "Kernels alone, launched for so many bytes of frames at a time; engines alone"
    for workload in (w for w in WORKLOADS if w.storage == "npy"):
        plan = Geometry.from_parameters(shape=workload.shape, **workload.parameters).plan
        yield f"{workload.name}, {len(plan.pixels)} bright-field pixels"
        accumulator = accumulator_dtype(workload.dtype, len(plan.pixels)).name
        for batch in (SLOT_BYTES, 4 * SLOT_BYTES, size):
            added, read = kernel_rate(workload, plan, size, batch)
            yield (
                f"  kernel, {batch / 2**20:6.1f} MiB{added / 1e9:10.1f} G additions/s"
                f"{added / additions[accumulator]:8.0%} of floor{read / 1e9:10.1f} GB/s"
            )
        for name in ("cuda", "numba"):
            yield f"  engine {name:<11}{engine_rate(name, workload, plan, size):15,.0f} frames/s"


@click.command()
@click.option("--size", default=256, show_default=True, help="MiB of frames in every workload.")
def main(size: int) -> None:
    """Measure the CUDA engine without LiberTEM, and what the GPU can do at best."""
    try:
        for line in table(size << 20):
            click.echo(line)
    except CudaError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
