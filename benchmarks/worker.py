"""Paths of one environment: gets a workload ready, then runs it whenever it is told to.

It needs NumPy and what it measures, so that it also runs in the environments of peers, one of which
has the same name as this package. Commands are JSON on lines of standard input, answers are JSON on
lines of standard output that start with ``=``:

``{"path": ..., "file": ..., ...}``
    Path, file with the frames, and the rest of `benchmarks.workloads.Workload`; answered with
    ``image``, the name of a .npy file with the image, which is the asker's to remove, ``pixels``,
    the number of bright-field pixels, and ``electrons``, the counts in all of them; null where
    there is none.
``"path"``
    Answered with the seconds of one run.
"""

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def make_udf(path: str, workload: dict[str, Any]) -> Any:
    """Make the UDF of a path."""
    if path.endswith("UDF"):
        from libertem.udf.base import NoOpUDF
        from libertem.udf.sum import SumUDF

        class EventsNoOpUDF(NoOpUDF):  # type: ignore[misc]
            """Takes events as they are, where LiberTEM's own asks for dense frames."""

            def get_backends(self) -> Any:
                return (self.BACKEND_SCIPY_CSR,)

        if path == "NoOpUDF" and workload["storage"] == "raw_csr":
            return EventsNoOpUDF()
        return {"SumUDF": SumUDF, "NoOpUDF": NoOpUDF}[path]()
    import libertem_parallax

    cls = (
        libertem_parallax.ParallaxPhaseFlipUDF
        if path.endswith("phase flip")
        else libertem_parallax.ParallaxUDF
    )
    name = path.split(",")[0]
    engine: dict[str, Any] = {} if name == "upstream" else {"engine": name}
    return cls.from_parameters(shape=workload["shape"], **workload["parameters"], **engine)


_contexts: dict[tuple[str, int], Any] = {}


def make_context(executor: str, workers: int) -> Any:
    """Start an executor, or give one again; of those with processes there is one at a time."""
    import libertem.api

    key = (executor, workers)
    if key not in _contexts:
        for other in [other for other in _contexts if other[0] == "dask"]:
            _contexts.pop(other).close()
        cpus = {} if executor == "inline" else {"cpus": workers}
        _contexts[key] = libertem.api.Context.make_with(executor, **cpus)
    return _contexts[key]


def read_events(file: str) -> Any:
    """Map the events of a raw_csr file into memory, as SciPy's CSR matrix."""
    import tomllib

    import scipy.sparse

    config = tomllib.loads(Path(file).read_text())
    (rows, cols), detector = config["params"]["nav_shape"], config["params"]["sig_shape"]
    data, indices, indptr = (
        np.memmap(
            Path(file).with_name(config["raw_csr"][f"{name}_file"]),
            config["raw_csr"][f"{name}_dtype"],
            "r",
        )
        for name in ("data", "indices", "indptr")
    )
    return scipy.sparse.csr_matrix((data, indices, indptr), (rows * cols, np.prod(detector)))


def make_dense(workload: dict[str, Any]) -> dict[str, Any]:
    """Write the same frames as events beside them; returns the workload of those."""
    file = Path(workload["file"]).with_suffix(".npy")
    if not file.exists():
        events, cols = read_events(workload["file"]), workload["shape"][1]
        frames = np.lib.format.open_memmap(file, "w+", events.dtype, tuple(workload["shape"]))
        for y, row in enumerate(frames):
            row[:] = events[y * cols : (y + 1) * cols].toarray().reshape(row.shape)
    return {**workload, "storage": "npy", "file": str(file)}


_in_memory: dict[str, Any] = {}


def load_frames(workload: dict[str, Any]) -> Any:
    """Map the frames of a .npy file, or get those that all paths have in memory.

    Pages of a file begin with a line of memory, NumPy's arrays 16 bytes after one: then a disk of
    30 pixels in 512 x 512 of uint16 lies in 161 lines instead of 122.
    """
    file = workload["file"]
    if workload["storage"] != "memory":
        return np.load(file, mmap_mode="r")
    if file not in _in_memory:
        _in_memory.clear()
        _in_memory[file] = np.load(file)
    return _in_memory[file]


def make_run(
    udf: Any, workload: dict[str, Any], backends: tuple[str, ...] | None = None
) -> Callable[[], Any]:
    """Make ``Context.run_udf``; it returns the first result, the image if there is one."""
    ctx = make_context(workload["executor"], workload["workers"])
    data: dict[str, Any] = {"path": workload["file"]}
    if workload["storage"] == "memory":
        data = {"data": load_frames(workload), "sig_dims": 2}
    if workload["partitions"] is not None:
        data["num_partitions"] = workload["partitions"]
    ds = ctx.load(workload["storage"], **data)

    def run() -> Any:
        results = ctx.run_udf(dataset=ds, udf=udf, backends=backends)
        return next((buffer.data for buffer in results.values()), None)

    return run


def take_part(frames: Any, workload: dict[str, Any]) -> Any:
    """Take a part of the frames, or of a list of them, if that is said: which of how many."""
    part, parts = workload.get("part", (0, 1))
    return frames[len(frames) * part // parts : len(frames) * (part + 1) // parts]


def make_floor(path: str, plan: Any, workload: dict[str, Any]) -> Callable[[], Any]:
    """Make a pass over the data that reads every bright-field cache line once, and no more.

    The path ``floor, file mapped`` also maps the file into memory, as LiberTEM does in every run;
    ``floor, asked`` asks for the next frame's lines meanwhile.
    """
    from benchmarks import floor

    def load() -> Any:
        frames = load_frames(workload).reshape(-1, np.prod(plan.detector_shape))
        return take_part(frames, workload)

    return floor.make_floor(
        load, plan, mapped=path.endswith("mapped"), asked=path.endswith("asked")
    )


def make_events_floor(path: str, plan: Any, workload: dict[str, Any]) -> Callable[[], Any]:
    """Make what events need at least, on one core.

    ``floor``
        Reads every event's column, its value, and what the table says of its pixel, and combines
        them all to one number.
    ``floor, file mapped``
        Also maps the files into memory.
    ``scatter floor``
        Adds one as often to the accumulator, at the targets of the bright field's pixels in a
        random order, which are at hand; knows nothing of events.
    """
    import numba

    if path == "scatter floor":
        _, electrons = make_engine_run("numba", plan, workload)()
        A = np.zeros(np.prod(plan.accumulator_shape), np.int64)
        targets = np.random.default_rng(0).permutation(plan.targets)
        y, x = np.divmod(np.arange(len(electrons)), plan.scan_shape[1])
        positions = y * plan.accumulator_shape[3] + x

        @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
        def scatter(electrons: Any, targets: Any, positions: Any, A: Any) -> Any:
            m = np.uintp(0)
            for t in range(electrons.size):
                for _ in range(electrons[t]):
                    A[np.uintp(targets[m] + positions[t])] += 1
                    m += np.uintp(1)
                    if m == np.uintp(targets.size):
                        m = np.uintp(0)
            return A

        return lambda: scatter(electrons, targets, positions, A)

    def load() -> Any:
        events = read_events(workload["file"])
        return events.indices.view(np.uint32), events.data

    lookup, kept = plan.lookup.reshape(-1), load()

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def touch(columns: Any, values: Any, lookup: Any) -> Any:
        total = 0
        for i in range(columns.size):
            # A plain sum, which the compiler can vectorise, took three times as long.
            total = (total ^ lookup[columns[i]]) + values[i]
        return total

    if path == "floor":
        return lambda: touch(*kept, lookup)
    return lambda: touch(*load(), lookup)


def make_gpu_floor(path: str, plan: Any, workload: dict[str, Any]) -> Callable[[], Any]:
    """Make what a GPU has to do at least: get the bright field's box or all events, or add them."""
    from benchmarks.gpu import floors
    from libertem_parallax.accumulate import accumulator_dtype

    if workload["storage"] == "raw_csr":
        events = read_events(workload["file"])
        if path == "bus floor":
            return floors.make_upload(events.data.nbytes + events.indices.nbytes)
        _, S = make_engine_run("numba", plan, workload)()
        return floors.make_additions(S.dtype.name, int(S.sum()))[0]
    count = workload["shape"][0] * workload["shape"][1]
    if path == "bus floor":
        box = np.prod(np.ptp(plan.pixels, axis=0) + 1)
        return floors.make_upload(count * int(box) * np.dtype(workload["dtype"]).itemsize)
    dtype = accumulator_dtype(workload["dtype"], len(plan.pixels))
    return floors.make_additions(dtype.name, count * len(plan.pixels))[0]


def make_engine_run(path: str, plan: Any, workload: dict[str, Any]) -> Callable[[], Any]:
    """Make a run of the engine without LiberTEM; returns its sums."""
    from libertem_parallax.accumulate import ENGINES, accumulator_dtype

    name, events = path.split(",")[0], workload["storage"] == "raw_csr"
    if events:
        frames = read_events(workload["file"])
    else:
        frames = np.asarray(load_frames(workload).reshape(-1, *plan.detector_shape))
        frames = take_part(frames, workload)
    index = take_part(np.arange(np.prod(plan.scan_shape)), workload)
    dtype = accumulator_dtype(frames.dtype, len(plan.pixels), events)

    def run() -> tuple[Any, Any]:
        A, S = np.zeros(plan.accumulator_shape, dtype), np.zeros(len(index), dtype)
        engine = ENGINES[name](plan, frames.dtype, index, A, S, events=events)
        if events:
            engine.add_events(frames)
        else:
            engine.add(frames)
        engine.finish()
        return A, S

    return run


def make_stack_run(path: str, udf: Any, workload: dict[str, Any]) -> tuple[Callable[[], Any], Any]:
    """Make a run that fills a stack, or adds one that is there; and a way to get its sums."""
    run, stack = fill_stack(udf, workload)
    plan = udf.params.geometry.plan
    threads = None if path.endswith("all cores") else workload["workers"]
    if path.endswith("filling a stack"):
        return run, stack.add(plan)
    return lambda: stack.add(plan, threads), stack.add(plan)


def fill_stack(udf: Any, workload: dict[str, Any]) -> tuple[Callable[[], Any], Any]:
    """Make a run that fills a stack, and the stack that it filled."""
    from libertem_parallax import StackUDF

    ctx = make_context(workload["executor"], workload["workers"])
    ds = ctx.load(workload["storage"], path=workload["file"])
    filling = StackUDF.for_dataset(ds, udf.params.geometry.plan.lookup >= 0, limit=sys.maxsize)
    ctx.run_udf(ds, filling)
    return lambda: ctx.run_udf(ds, filling), filling.stack


def make_quantem(path: str, workload: dict[str, Any]) -> Callable[[], Any]:
    """Make quantEM's Montage with one thread, from frames to the image; its own units.

    Its search for the beam is left out, and so is the estimate of the bright field.
    """
    import torch
    from quantem.core.datastructures import Dataset2d, Dataset3d
    from quantem.diffractive_imaging import DirectPtychographyMontage

    torch.set_num_threads(1)
    parameters = workload["parameters"]
    frames = np.load(workload["file"], mmap_mode="r")
    scan, detector = frames.shape[:2], frames.shape[2:]
    angles = [
        (np.arange(n) - n // 2) * step
        for n, step in zip(detector, parameters["angular_sampling"], strict=True)
    ]
    mask = np.hypot(*np.meshgrid(*angles, indexing="ij")) <= parameters["semiangle_cutoff"]
    # quantEM wants the beam at pixel (0, 0).
    corner_mask = np.fft.ifftshift(mask)
    rows, cols = ((i + n // 2) % n for i, n in zip(np.nonzero(corner_mask), detector, strict=True))
    volts = parameters["energy"]
    wavelength = 12.264259661 / np.sqrt(volts * (1 + 0.978475597e-6 * volts))  # Å
    bright_field = Dataset2d.from_array(
        corner_mask,
        units=("A^-1", "A^-1"),
        sampling=tuple(step * 1e-3 / wavelength for step in parameters["angular_sampling"]),
    )

    def run() -> Any:
        images = frames[:, :, rows, cols].transpose(2, 0, 1).astype(np.float32)
        assert images.shape[1:] == scan
        montage = DirectPtychographyMontage.from_virtual_bfs(
            Dataset3d.from_array(
                images, units=("index", "A", "A"), sampling=(1, *parameters["scan_sampling"])
            ),
            bright_field,
            energy=volts,
            rotation_angle=np.rad2deg(parameters["rotation_angle"]),
            semiangle_cutoff=parameters["semiangle_cutoff"],
            aberration_coefs=parameters["aberration_coefs"],
            subtract_frame_mean=True,
            crop_bf_mask=False,
            verbose=False,
        )
        montage.reconstruct(
            upsampling_factor=parameters["upsampling_factor"],
            parallax_flip_phase=path.endswith("phase flip"),
            band_limit=False,
            suppress_nyquist=True,
            compute_variance=False,
        )
        return montage.corrected_bf.numpy()

    return run


def prepare(
    path: str, workload: dict[str, Any]
) -> tuple[Callable[[], Any], Any, int | None, float | None]:
    """Load the data and run once.

    Returns
    -------
    tuple
        What to run; the image; number of bright-field pixels; counts in them. The last three are
        None where the path has none.
    """
    if path == "numba, dense":
        workload = make_dense(workload)
    if path.startswith("quantEM"):
        run = make_quantem(path, workload)
        return run, run(), None, None
    if "floor" in path and not path.endswith("at the floor"):
        plan = make_udf("numba", workload).params.geometry.plan
        if path in ("bus floor", "device floor"):
            run = make_gpu_floor(path, plan, workload)
        elif workload["storage"] == "raw_csr":
            run = make_events_floor(path, plan, workload)
        else:
            run = make_floor(path, plan, workload)
        run()
        return run, None, None, None
    if path.endswith("engine alone") or "stack" in path:
        from libertem_parallax.images import IMAGES, Imaging, Sums

        udf = make_udf(path, workload)
        plan = udf.params.geometry.plan
        if "stack" in path:
            run, (A, S) = make_stack_run(path, udf, workload)
        else:
            run = make_engine_run(path, plan, workload)
            A, S = run()
            A = plan.fold(A)
        scan = S.reshape(plan.scan_shape)
        sums = Sums(Imaging(udf.params.geometry), A, scan, np.ones(scan.shape, bool))
        image = IMAGES["parallax"].make(sums)
        return run, image, len(plan.pixels), float(S.sum())
    udf = make_udf(path, workload)
    if path.endswith("at the floor"):
        from benchmarks import floor

        run = floor.at_the_floor(make_run(udf, workload))
        run()
        return run, None, None, None
    run = make_run(udf, workload, (udf.BACKEND_NUMPY,) if path.endswith("made dense") else None)
    image = run()
    if path.endswith("UDF"):
        return run, None, None, None
    if path.startswith("upstream"):
        return run, image, None, None
    electrons = float(udf.results.get_buffer("S").raw_data.sum())
    return run, image, len(udf.params.geometry.plan.pixels), electrons


def main() -> None:
    """Obey until standard input ends."""
    # The smallest scans wrap around, which takes as long as if they did not.
    warnings.filterwarnings("ignore", "shifts of up to")
    runs: dict[str, Callable[[], Any]] = {}
    last = None
    for line in sys.stdin:
        question = json.loads(line)
        answer: Any
        if isinstance(question, str):
            start = time.perf_counter()
            runs[question]()
            answer = time.perf_counter() - start
        else:
            path = question.pop("path")
            if question["file"] != last:
                runs.clear()  # and with them files that are gone, but mapped
                last = question["file"]
            runs[path], image, pixels, electrons = prepare(path, question)
            answer = {"image": None, "pixels": pixels, "electrons": electrons}
            if image is not None:
                with tempfile.NamedTemporaryFile(suffix=".npy", delete=False) as file:
                    np.save(file, image)
                answer["image"] = file.name
        sys.stdout.write(f"={json.dumps(answer)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
