"""What the host does for a GPU, which is none here: ``python -m benchmarks.gpu.cutting``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import click
import numpy as np
from numpy.typing import NDArray

from libertem_parallax.accumulate import ENGINES, Plan, accumulator_dtype
from libertem_parallax.accumulate.cuda import device, engine, upload
from libertem_parallax.geometry import Geometry

from ..workloads import WORKLOADS, Workload
from .rows import CORES

__all__ = ["main", "measure"]

#: Bytes of frames, more than caches hold, and of a cache line.
_BYTES, _LINE = 1 << 27, 64


def _nothing(*_: Any) -> None:
    """Do what the device would."""


class _Array:
    """Memory of a device that does nothing."""

    data = SimpleNamespace(
        copy_from_host_async=_nothing, copy_to_host_async=_nothing, memset_async=_nothing
    )

    def __init__(self, shape: Any, dtype: Any) -> None:
        self.size = int(np.prod(shape))
        self.nbytes = self.size * np.dtype(dtype).itemsize

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, _: Any) -> _Array:
        return self


class _Stream(nullcontext[None]):
    def __init__(self, non_blocking: bool = False) -> None:  # noqa: ARG002 - as CuPy calls it
        super().__init__()

    def synchronize(self) -> None:
        """Wait for nothing."""


class _Device(nullcontext[None]):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.id = number


_CUPY = SimpleNamespace(
    empty=_Array,
    cuda=SimpleNamespace(
        Device=_Device,
        Stream=_Stream,
        alloc_pinned_memory=bytearray,
        get_current_stream=_Stream,
    ),
)


def measure(workload: Workload, threads: tuple[int, ...], rounds: int) -> Iterator[str]:
    """Lines of a table: frames/s of the host's part, and of adding on the CPU, by threads.

    Parameters
    ----------
    workload
        What is cut, or added.
    threads
        How many share the frames, each with an engine and a part of the scan.
    rounds
        Rounds in which all take turns; the best of each counts.
    """
    plan = Geometry.from_parameters(shape=workload.shape, **workload.parameters).plan
    size = int(np.prod(workload.shape[2:])) * np.dtype(workload.dtype).itemsize
    count = min(_BYTES // size, plan.scan_shape[0] * plan.scan_shape[1])
    shape = (count, *plan.detector_shape)
    frames = np.random.default_rng(0).integers(1, 3, shape, np.uint8).astype(workload.dtype)
    ways = {
        (name, n): _adding(name, plan, frames, n) for name in ("cuda", "numba") for n in threads
    }
    best = dict.fromkeys(ways, (np.inf, np.inf))
    for _ in range(rounds + 1):
        for way, work in ways.items():
            start, cpu = time.perf_counter(), time.process_time()
            work()
            took = time.perf_counter() - start, time.process_time() - cpu
            best[way] = min(best[way][0], took[0]), min(best[way][1], took[1])
    read, cut = _bytes(plan, frames.dtype)
    for (name, n), (wall, cpu) in best.items():
        first = best[name, threads[0]]
        moved = f"{read}, {cut}, {cut}" if name == "cuda" else f"{read}, 0, 0"
        yield (
            f"| {workload.name}, M = {len(plan.pixels)} | {'cut' if name == 'cuda' else 'added'} "
            f"| {n} | {count / wall / 1e6:.3g} | {count / cpu / 1e6:.3g} | {first[0] / wall:.2f} "
            f"| {cpu / first[1]:.2f} | {moved} |"
        )


def _bytes(plan: Plan, dtype: np.dtype[Any]) -> tuple[int, int]:
    """Bytes of a frame: of cache lines with bright field, and of what is cut out."""
    row = plan.detector_shape[1] * dtype.itemsize
    at = plan.pixels[:, 0] * row + plan.pixels[:, 1] * dtype.itemsize
    low, high = plan.pixels.min(axis=0), plan.pixels.max(axis=0) + 1
    width = row if row <= upload.ROW_BYTES else int(high[1] - low[1]) * dtype.itemsize
    return _LINE * len(np.unique(at // _LINE)), int(high[0] - low[0]) * width


def _adding(name: str, plan: Plan, frames: NDArray[Any], threads: int) -> Callable[[], None]:
    """Make engines, one for each thread, and return what adds all frames with them."""
    dtype, parts = accumulator_dtype(frames.dtype, len(plan.pixels)), []
    for start, stop in pairwise(len(frames) * i // threads for i in range(threads + 1)):
        A, S = np.zeros(plan.accumulator_shape, dtype), np.zeros(stop - start, dtype)
        made = ENGINES[name](plan, frames.dtype, np.arange(start, stop), A, S)
        parts.append((made, frames[start:stop]))
    pool = ThreadPoolExecutor(threads)

    def run() -> None:
        list(pool.map(lambda part: part[0].add(part[1]), parts))

    return run


@click.command()
@click.option("--threads", default=CORES, show_default=True, help="How many at most.")
@click.option("--rounds", default=7, show_default=True, help="Rounds; the best counts.")
def main(threads: int, rounds: int) -> None:
    """Measure how what the host does for a GPU grows with threads, with a GPU that does nothing.

    Threads cut frames that are in memory into pinned buffers, as workers do, each its part of the
    scan. Launches, copies and the GPU take no time, so this is what the host allows at best. Beside
    it, Numba's engine adds the same frames on as many threads. Bytes are of one frame: read by the
    host, written to a buffer, and copied from there by the bus.
    """
    counts = (*(n for n in (1, 2, 4, 8, 16, 32, 64) if n < threads), threads)
    click.echo("| frames | | threads | M/s | M/s of CPU time | x one thread | CPU time x | bytes |")
    click.echo("|---|---|---|---|---|---|---|---|")
    with (
        patch.object(device, "load_cupy", lambda: _CUPY),
        patch.object(engine, "load_cupy", lambda: _CUPY),
        patch.object(upload, "load_cupy", lambda: _CUPY),
        patch.object(engine, "kernel", lambda *_: _nothing),
    ):
        for workload in WORKLOADS:
            if workload.storage == "npy" and workload.shape[0] >= 128:
                for line in measure(workload, counts, rounds):
                    click.echo(line)


if __name__ == "__main__":
    main()
