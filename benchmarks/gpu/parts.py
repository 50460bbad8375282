"""The parts of the report: what kernels, engines, stacks and runs do."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from libertem_parallax import ParallaxUDF
from libertem_parallax.accumulate import ENGINES, Plan, Stack, accumulator_dtype
from libertem_parallax.accumulate.cuda import CudaStack, check
from libertem_parallax.accumulate.cuda.device import (
    C_TYPES,
    kernel,
    launch_shape,
    load_cupy,
    to_device,
)
from libertem_parallax.accumulate.cuda.upload import SLOT_BYTES, make_table
from libertem_parallax.geometry import Geometry
from libertem_parallax.images import IMAGES, Imaging, Sums
from libertem_parallax.interference import beams, polynomial
from libertem_parallax.likelihood import ENGINES as LIKELIHOODS
from libertem_parallax.likelihood import Interference
from libertem_parallax.likelihood.cuda import check as check_likelihood
from libertem_parallax.weak_object import frequencies

from ..worker import make_context, make_run, make_udf
from ..workloads import Workload, write
from .floors import Floors, seconds
from .patch import make_patches
from .rows import CORES, Row

__all__ = [
    "correctness",
    "end_to_end",
    "kernels",
    "likelihoods",
    "live",
    "sanitizer",
    "stacks",
    "tests",
]


def correctness() -> tuple[list[Row], bool]:
    """Compare the sums of frames, events and stacks of all dtypes with NumPy's, and others."""
    wrong, differ = check(0, sorted(C_TYPES)), check_likelihood(0)
    text = "; ".join(wrong) or f"equal to the last bit, {len(C_TYPES)} dtypes"
    rows = [
        Row("frames, events and stacks against NumPy", text),
        Row("likelihood against NumPy", "; ".join(differ) or "equal to single precision"),
    ]
    return rows, not wrong + differ


def sanitizer() -> tuple[list[Row], bool]:
    """Look for accesses out of bounds and races, where CUDA's compute-sanitizer is installed."""
    name = "compute-sanitizer"
    program = shutil.which(name) or shutil.which(f"/usr/local/cuda/bin/{name}")
    if program is None:
        return [Row(name, "not installed")], True
    rows, good = [], True
    for tool in ("memcheck", "racecheck"):
        last, clean = _run(program, "--tool", tool, "--error-exitcode", "1", *_SELF, "--check")
        good &= clean
        rows.append(Row(f"{name}, {tool}", "nothing found" if clean else last))
    return rows, good


def tests() -> tuple[list[Row], bool]:
    """Run the tests that need a GPU."""
    last, good = _run(sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider")
    return [Row("tests that need a GPU", last)], good


_SELF = sys.executable, "-m", "benchmarks.gpu"


def _run(*command: str) -> tuple[str, bool]:
    """Run a command; its last line, and whether all went well."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return "".join(lines[-1:]), done.returncode == 0


def _frames(workload: Workload, plan: Plan, size: int) -> Any:
    """At least one row of the scan, and so many frames that the bright field has `size` bytes."""
    itemsize = np.dtype(workload.dtype).itemsize
    table = make_table(plan, (0, 0), plan.detector_shape, itemsize)
    assert table is not None
    positions = plan.scan_shape[0] * plan.scan_shape[1]
    count = min(max(size // (table.size * itemsize), plan.scan_shape[1]), positions)
    rng = np.random.default_rng(0)  # no zeros, which the kernel does not send
    shape = (count, *plan.detector_shape)
    return table, rng.integers(1, 3, shape, dtype=np.uint8).astype(workload.dtype)


def _scatter(plan: Plan, frames: Any, pixels: Any, targets: Any, batch: int) -> Callable[[], None]:
    """Make a run of `scatter` on frames that are on the device, so many bytes in a launch."""
    count, size = frames.shape
    accumulator = accumulator_dtype(frames.dtype, len(plan.pixels))
    scatter = kernel(0, "scatter", frames.dtype, accumulator)
    y, x = np.divmod(np.arange(count), plan.scan_shape[1])
    positions = to_device(y * plan.accumulator_shape[3] + x)
    A = to_device(np.zeros(np.prod(plan.accumulator_shape), accumulator))
    S = to_device(np.zeros(count, accumulator))
    there = to_device(frames.reshape(-1))
    stream = load_cupy().cuda.Stream(non_blocking=True)
    step = max(1, batch // (size * frames.itemsize))

    def work() -> None:
        with stream:
            for first in range(0, count, step):
                n = min(step, count - first)
                arguments = there[first * size :], positions[first:], pixels, targets, A, S[first:]
                numbers = map(np.int32, (n, size, len(pixels)))
                scatter(*launch_shape(n, len(pixels)), (*arguments, *numbers))
        stream.synchronize()

    return work


def kernels(workload: Workload, size: int, floors: Floors) -> Iterator[Row]:
    """Measure the kernel for frames that are on the device, and engines on frames in memory.

    Parameters
    ----------
    workload
        What to add.
    size
        Bytes of the bright field of all frames; several times the GPU's cache.
    floors
        Of the GPU.
    """
    plan = Geometry.from_parameters(shape=workload.shape, **workload.parameters).plan
    table, frames = _frames(workload, plan, size)
    name = f"{workload.name}, M = {len(plan.pixels)}"
    box = np.ascontiguousarray(frames[:, table.rows, table.cols]).reshape(len(frames), -1)
    accumulator = accumulator_dtype(box.dtype, len(plan.pixels))
    for batch in (SLOT_BYTES, size):
        rate = 1 / seconds(_scatter(plan, box, table.pixels, table.targets, batch))
        added, read = rate * len(box) * len(plan.pixels), rate * box.nbytes
        yield Row(
            f"scatter, {batch / 2**20:g} MiB a launch: {name}",
            f"{added / 1e9:.3g} G additions/s",
            f"{added / floors.additions[accumulator.name]:.0%} of additions, "
            f"{read / floors.copy:.0%} of copies",
        )
    rates = {}
    for engine in ("cuda", "numba"):
        A = np.zeros(plan.accumulator_shape, accumulator)
        S = np.zeros(len(frames), accumulator)

        def work(engine: str = engine, A: Any = A, S: Any = S) -> None:
            worker = ENGINES[engine](plan, frames.dtype, np.arange(len(frames)), A, S)
            worker.add(frames)
            worker.finish()

        rates[engine] = len(frames) / seconds(work)
    yield Row(
        f"engine cuda alone: {name}",
        f"{rates['cuda']:,.0f} frames/s",
        f"{rates['cuda'] / rates['numba']:.2f} of numba on one core",
    )


def stacks(workload: Workload, floors: Floors) -> Iterator[Row]:
    """Measure stacks on the device, by both ways to add them, and what becomes of their sums."""
    geometry = Geometry.from_parameters(shape=workload.shape, **workload.parameters)
    plan = geometry.plan
    rng = np.random.default_rng(0)
    shape = plan.scan_shape[0] * plan.scan_shape[1], len(plan.pixels)
    values = rng.integers(1, 3, shape, dtype=np.uint8).astype(workload.dtype)
    scanned = np.ones(plan.scan_shape, bool)
    host = Stack(values, plan.pixels, plan.scan_shape, plan.detector_shape, scanned)
    name = f"{workload.name}, M = {len(plan.pixels)}"
    upload = seconds(lambda: CudaStack.of(host))
    yield Row(
        f"upload of a stack: {name}",
        f"{upload:.3g} s",
        f"{values.nbytes / upload / floors.upload:.0%} of uploads",
    )
    stack = CudaStack.of(host)
    stack.add_on_device(plan)  # with the sums of frames, which stay
    pixels = to_device(np.arange(len(plan.pixels), dtype=np.int32))
    scatter = _scatter(plan, values, pixels, to_device(plan.targets), values.nbytes)
    imaging = Imaging(geometry)

    def image(stack: Stack, name: str = "parallax") -> Any:
        return stack.make(plan, lambda A, S: IMAGES[name].make(Sums(imaging, A, S, scanned)))

    ways: dict[str, Callable[[], Any]] = {
        "gather, sums stay there": lambda: stack.add_on_device(plan),
        "scatter, sums stay there": scatter,
        **_patches(stack, plan),
        "gather, sums come to the host": lambda: stack.add(plan),
        "gather, parallax image made on the host": lambda: IMAGES["parallax"].make(
            Sums(imaging, *stack.add(plan), scanned)
        ),
        "gather, parallax image made there": lambda: image(stack),
        "gather, phase-flipped image made there": lambda: image(stack, "phase_flip"),
        f"CPU, {CORES} cores": lambda: host.add(plan),
        f"CPU, {CORES} cores, parallax image": lambda: image(host),
    }
    for way, work in ways.items():
        rate = 1 / seconds(work)
        against = f"{rate * values.size / 1e9:.3g} G additions/s"
        if way.startswith("gather"):
            against += f", {rate * values.nbytes / floors.copy:.0%} of copies"
        yield Row(f"stack added again, {way}: {name}", f"{rate:.4g} /s", against)


def _patches(stack: CudaStack, plan: Plan) -> dict[str, Callable[[], Any]]:
    """Give one more way to add a stack, if shifts are small enough, and its sums are right."""
    made = make_patches(plan, stack._resident.values)
    if made is None:
        return {}
    add, A = made
    add()
    right = bool((stack.add_on_device(plan)[0] == A).all())
    return {f"patches in shared memory, {'' if right else 'WRONG, '}sums stay there": add}


def likelihoods(workload: Workload, floors: Floors) -> Iterator[Row]:
    """Measure the sums of a calibration and of direct ptychography, of images that stay there."""
    geometry = Geometry.from_parameters(shape=workload.shape, **workload.parameters)
    engines, interference = _likelihood(geometry)
    images = engines["cuda"].images
    name = f"{images.shape[0]} frequencies, M = {images.shape[1]}: {workload.name}"
    positions, edge = engines["cuda"].positions, engines["cuda"].edge
    upload = seconds(lambda: LIKELIHOODS["cuda"](images, positions, edge))
    yield Row(
        f"upload of images: {name}",
        f"{upload:.3g} s",
        f"{images.nbytes / upload / floors.upload:.0%} of uploads",
    )
    for what, way in (
        ("direct ptychography, its sums", "sums"),
        ("calibration, a step (sums and derivatives)", "gradients"),
    ):
        times = {
            engine: seconds(partial(getattr(made, way), interference))
            for engine, made in engines.items()
        }
        yield Row(
            f"{what}: {name}",
            f"{times['cuda']:.3g} s",
            f"{times['numba'] / times['cuda']:.3g} x as fast as numba on {CORES} cores, "
            f"{images.nbytes / times['cuda'] / floors.copy:.0%} of copies",
        )


def _likelihood(geometry: Geometry) -> tuple[dict[str, Any], Interference]:
    """Make engines for all frequencies within the semiangle, with noise in place of images."""
    plan, semiangle = geometry.plan, geometry.parameters["semiangle_cutoff"] * 1e-3
    eta = frequencies(plan.scan_shape, geometry.scan_sampling) * geometry.wavelength / semiangle
    eta = eta[np.hypot(eta[..., 0], eta[..., 1]) < 1]
    noise = np.random.default_rng(0).normal(size=(len(eta), len(plan.pixels), 2))
    images = noise.astype(np.float32).view(np.complex64)[..., 0]
    turns = polynomial(geometry.aberration_coefs, semiangle, geometry.wavelength)
    engines = {
        name: LIKELIHOODS[name](images, geometry.angles / semiangle, 0.1)
        for name in ("cuda", "numba")
    }
    return engines, beams(turns, eta)


def end_to_end(workload: Workload, folder: Path) -> Iterator[Row]:
    """Measure ``Context.run_udf`` on a file that is in memory: one GPU against all cores."""
    question = dataclasses.asdict(workload) | {"file": str(write(workload, folder))}
    frames = workload.shape[0] * workload.shape[1]
    rates = {}
    for path, executor, workers in (
        ("numba", "threads", CORES),
        ("cuda", "inline", 1),
        ("cuda", "threads", CORES),
    ):
        asked = question | {"executor": executor, "workers": workers}
        run = make_run(make_udf(path, asked), asked)
        rates[path, workers, executor] = rate = frames / seconds(run)
        yield Row(
            f"run_udf, {path}, {workers} thread{'s' * (workers > 1)}: {workload.name}",
            f"{rate:,.0f} frames/s",
            ""
            if path == "numba"
            else f"{rate / rates['numba', CORES, 'threads']:.2f} of numba on {CORES} cores",
        )
    make_context("inline", 1)  # and end the other


def live(workload: Workload) -> Iterator[Row]:
    """Measure a live run, with an array in place of a detector, in one process."""
    from libertem.udf.base import NoOpUDF
    from libertem_live.api import LiveContext

    shape = workload.shape
    frames = np.random.default_rng(0).integers(0, 3, shape, np.uint8).astype(workload.dtype)
    # A disk, as the parameters say: another one would be searched, and told.
    disk = np.zeros(shape[2:], workload.dtype)
    disk[workload.lit_part] = ~workload.dark
    frames *= disk
    rates = {}
    with (
        LiveContext.make_with("inline") as ctx,
        ctx.make_connection("memory").open(data=frames) as conn,
    ):
        for name in ("NoOpUDF", "cuda", "numba"):
            udf = (
                NoOpUDF()
                if name == "NoOpUDF"
                else ParallaxUDF.from_parameters(shape=shape, **workload.parameters, engine=name)
            )

            def run(udf: Any = udf) -> Any:
                acquisition = ctx.make_acquisition(conn=conn, nav_shape=shape[:2])
                return ctx.run_udf(acquisition, udf)

            with warnings.catch_warnings(action="ignore"):
                rates[name] = rate = shape[0] * shape[1] / seconds(run)
            yield Row(
                f"live, {name}, one process: {workload.name}",
                f"{rate:,.0f} frames/s",
                f"{rate / rates['NoOpUDF']:.2f} of NoOpUDF",
            )
