"""Live runs by one and several processes, beside LiberTEM's sum: ``python -m benchmarks.live``."""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from libertem.udf.sum import SumUDF

from libertem_parallax import ParallaxUDF
from libertem_parallax.accumulate.stack import cores
from libertem_parallax.live import FRAMES_PER_PARTITION, make_context

SCAN, DETECTOR = (64, 128), (192, 192)
ROUNDS = 5


class Mapped(np.memmap[Any, Any]):
    """Frames in a file, of which processes get the name; they are in memory after the first run."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Tell how to open them."""
        return open_frames, (str(self.filename),)


def open_frames(path: str) -> Mapped:
    """Open the frames."""
    return Mapped(path, np.uint16, "r", shape=SCAN + DETECTOR)


def main() -> None:
    """Print frames/s behind a memory source: medians of interleaved rounds, and their range."""
    geometry: dict[str, Any] = {
        "shape": SCAN + DETECTOR,
        "scan_sampling": (4.0, 4.0),
        "energy": 300e3,
        "semiangle_cutoff": 4.0,
        "angular_sampling": (4 / 30, 4 / 30),
        "aberration_coefs": {"C10": -8e3},
        "upsampling_factor": 2,
    }
    total = SCAN[0] * SCAN[1]
    contexts = {workers: make_context(workers) for workers in sorted({1, 2, cores()})}
    rates: dict[tuple[int, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.raw"
        row, col = np.ogrid[-96:96, -96:96]
        disk = np.where(np.hypot(row, col) < 30, 2.0, 0.05)
        rng = np.random.default_rng(0)
        rng.poisson(disk, SCAN + DETECTOR).astype(np.uint16).tofile(path)
        for turn in range(ROUNDS + 1):  # the first one compiles
            for workers, ctx in contexts.items():
                for name in ("SumUDF", "parallax"):
                    conn = ctx.make_connection("memory").open(
                        data=open_frames(str(path)),
                        extra_kwargs={"num_partitions": total // FRAMES_PER_PARTITION},
                    )
                    udf = SumUDF() if name == "SumUDF" else ParallaxUDF.from_parameters(**geometry)
                    acquisition = ctx.make_acquisition(conn=conn)
                    begin = time.perf_counter()
                    ctx.run_udf(acquisition, udf)
                    seconds = time.perf_counter() - begin
                    if turn:
                        rates.setdefault((workers, name), []).append(total / seconds)
        for ctx in contexts.values():
            ctx.close()
    for (workers, name), each in rates.items():
        print(
            f"{workers} workers, {name:8}: {statistics.median(each):9,.0f} frames/s "
            f"({min(each):,.0f} to {max(each):,.0f})"
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
