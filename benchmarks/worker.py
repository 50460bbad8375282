"""One path in a process of its own: gets a workload ready, then runs it whenever it is told to.

It needs LiberTEM, NumPy and the package that it measures, so that it also runs in the environment
of upstream 0.1.2, which has the same name as this package. Commands are lines of standard input,
answers are JSON on lines of standard output that start with ``=``:

``{...}``
    JSON of `benchmarks.workloads.Workload` and ``file``, a .npy file with its frames; answered with
    ``image``, the name of a .npy file with the image, which is the asker's to remove, and
    ``pixels``, the number of bright-field pixels; null where there is none.
``run``
    Answered with the seconds of one ``Context.run_udf``.
"""

import functools
import json
import sys
import tempfile
import time
from typing import Any

import libertem.api
import numpy as np


def make_udf(path: str, workload: dict[str, Any]) -> Any:
    """Make the UDF of a path."""
    if path == "SumUDF":
        from libertem.udf.sum import SumUDF

        return SumUDF()
    import libertem_parallax

    cls = (
        libertem_parallax.ParallaxPhaseFlipUDF
        if path.endswith("phase flip")
        else libertem_parallax.ParallaxUDF
    )
    engine: dict[str, Any] = {} if path.startswith("upstream") else {"engine": path.split()[0]}
    return cls.from_parameters(shape=workload["shape"], **workload["parameters"], **engine)


def make_touch(frames: Any, udf: Any) -> Any:
    """Make a pass over the data that reads every bright-field cache line once, and no more."""
    import numba

    pixels = udf.params.geometry.plan.pixels
    flat = frames.reshape(frames.shape[0] * frames.shape[1], -1)
    lines = (pixels[:, 0] * frames.shape[3] + pixels[:, 1]) * frames.itemsize // 64
    first = np.unique(lines) * 64 // frames.itemsize

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def touch(flat: Any, first: Any) -> Any:
        total = flat[0, 0]
        for t in range(flat.shape[0]):
            for i in range(first.size):
                total += flat[t, first[i]]
        return total

    return lambda: touch(flat, first)


@functools.cache
def make_context(executor: str, workers: int) -> Any:
    """Start an executor; kept until the process ends."""
    cpus = {} if executor == "inline" else {"cpus": workers}
    return libertem.api.Context.make_with(executor, **cpus)


def prepare(path: str, workload: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Load the data and run once; returns what to run, and the answer."""
    if path == "floor":
        frames = np.load(workload["file"], mmap_mode="r")
        touch = make_touch(frames, make_udf("numba", workload))
        touch()
        return touch, {"image": None, "pixels": None}
    udf = make_udf(path, workload)
    ctx = make_context(workload["executor"], workload["workers"])
    partitions = (
        {} if workload["partitions"] is None else {"num_partitions": workload["partitions"]}
    )
    ds = ctx.load("npy", path=workload["file"], **partitions)

    def run() -> Any:
        return ctx.run_udf(dataset=ds, udf=udf)

    with tempfile.NamedTemporaryFile(suffix=".npy", delete=False) as file:
        np.save(file, next(iter(run().values())).data)
    ours = path.startswith(("num", "cuda"))
    pixels = len(udf.params.geometry.plan.pixels) if ours else None
    return run, {"image": file.name, "pixels": pixels}


def main(path: str) -> None:
    """Obey until standard input ends."""
    run: Any = None
    for line in sys.stdin:
        answer: Any
        if line.strip() == "run":
            start = time.perf_counter()
            run()
            answer = time.perf_counter() - start
        else:
            run, answer = prepare(path, json.loads(line))
        sys.stdout.write(f"={json.dumps(answer)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
