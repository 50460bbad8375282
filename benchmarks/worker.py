"""One path in a process of its own: builds a workload, then runs it whenever it is told to.

It needs LiberTEM, NumPy and the package that it measures, so that it also runs in the environment
of upstream 0.1.2, which has the same name as this package. Commands are lines of standard input,
answers are lines of standard output that start with ``=``:

``{...}``
    JSON of `benchmarks.workloads.Workload` and ``file``, a .npy file with its frames; answered with
    the name of a .npy file with the image, which is the asker's to remove.
``run``
    Answered with the seconds of one ``Context.run_udf``.
"""

import json
import sys
import tempfile
import time
from typing import Any

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


def main(path: str) -> None:
    """Obey until standard input ends."""
    import libertem.api

    ctx = libertem.api.Context.make_with("inline")
    run: Any = None
    for line in sys.stdin:
        if line.strip() == "run":
            start = time.perf_counter()
            run()
            answer = str(time.perf_counter() - start)
        else:
            workload = json.loads(line)
            answer = ""
            if path == "floor":
                frames = np.load(workload["file"], mmap_mode="r")
                run = make_touch(frames, make_udf("numba", workload))
            else:
                udf = make_udf(path, workload)
                ds = ctx.load("npy", path=workload["file"])

                def run(ds: Any = ds, udf: Any = udf) -> Any:
                    return ctx.run_udf(dataset=ds, udf=udf)

                with tempfile.NamedTemporaryFile(suffix=".npy", delete=False) as file:
                    np.save(file, next(iter(run().values())).data)
                    answer = file.name
            run()
        sys.stdout.write(f"={answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
