"""Live runs by one and several processes, beside LiberTEM's sum: ``python -m benchmarks.live``."""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from libertem.udf import UDF
from libertem.udf.base import NoOpUDF
from libertem.udf.sum import SumUDF

from libertem_parallax import ParallaxUDF
from libertem_parallax.accumulate.threads import cores
from libertem_parallax.live import FRAMES_PER_PARTITION, make_context

SCAN, DETECTOR = (64, 128), (192, 192)
ROUNDS = 5


class Mapped(np.memmap[Any, Any]):
    """Frames in a file, of which processes get the name; they are in memory after the first run."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Tell how to open them."""
        return open_frames, (str(self.filename), self.dtype.str)


def open_frames(path: str, dtype: str) -> Mapped:
    """Open the frames."""
    return Mapped(path, dtype, "r", shape=SCAN + DETECTOR)


def measure(rounds: int = ROUNDS, *, decoded: bool = False) -> dict[tuple[int, str], list[float]]:
    """Measure frames/s behind a memory source, in turns, by number of workers and UDF.

    LiberTEM copies frames of that size, in tiles of 168 and of 24 rows of all frames of a
    partition. With `decoded`, they are of big-endian integers, and come as from detectors: in tiles
    of 14 frames, each of which is decoded into memory.
    """
    dtype, more = (">u2", {"base_shape": (1, *DETECTOR)}) if decoded else ("<u2", {})
    geometry: dict[str, Any] = {
        "shape": SCAN + DETECTOR,
        "scan_sampling": (4.0, 4.0),
        "energy": 300e3,
        "semiangle_cutoff": 4.0,
        "angular_sampling": (4 / 30, 4 / 30),
        "aberration_coefs": {"C10": -8e3},
        "upsampling_factor": 2,
    }
    udfs: dict[str, Callable[[], UDF]] = {
        "NoOpUDF": NoOpUDF,
        "SumUDF": SumUDF,
        "parallax": lambda: ParallaxUDF.from_parameters(**geometry),
    }
    total = SCAN[0] * SCAN[1]
    contexts = {workers: make_context(workers) for workers in sorted({1, 2, cores()})}
    rates: dict[tuple[int, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.raw"
        row, col = np.ogrid[-96:96, -96:96]
        disk = np.where(np.hypot(row, col) < 30, 2.0, 0.05)
        rng = np.random.default_rng(0)
        some = rng.poisson(disk, (64, *DETECTOR)).astype(np.uint16)
        with path.open("wb") as file:
            for _ in range(total // len(some)):
                some[rng.permutation(len(some))].tofile(file)
        for turn in range(rounds + 1):  # the first one compiles
            for workers, ctx in contexts.items():
                for name, make in udfs.items():
                    conn = ctx.make_connection("memory").open(
                        data=open_frames(str(path), dtype),
                        extra_kwargs={"num_partitions": total // FRAMES_PER_PARTITION, **more},
                    )
                    udf = make()
                    acquisition = ctx.make_acquisition(conn=conn)
                    begin = time.perf_counter()
                    ctx.run_udf(acquisition, udf)
                    seconds = time.perf_counter() - begin
                    if turn:
                        rates.setdefault((workers, name), []).append(total / seconds)
        for ctx in contexts.values():
            ctx.close()
    return rates


def main() -> None:
    """Print frames/s behind a memory source: medians of interleaved rounds, and their range."""
    for decoded in (False, True):
        for (workers, name), each in measure(decoded=decoded).items():
            print(
                f"{workers} workers, {name:8}{', decoded' * decoded}: "
                f"{statistics.median(each):9,.0f} frames/s "
                f"({min(each):,.0f} to {max(each):,.0f})"
            )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
