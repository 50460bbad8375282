"""What several test modules share: plans and frames for engines, scans for UDFs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from standin import compiler
from standin.cupy import CUDARuntimeError

from libertem_parallax.accumulate import Plan, accumulator_dtype

needs_compiler = pytest.mark.skipif(
    not compiler.AVAILABLE, reason="g++ is missing, with which the CUDA kernels run on the CPU"
)


def assert_same(actual, expected):
    """Several arrays, bit for bit."""
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def error(name="cudaErrorIllegalAddress"):
    return CUDARuntimeError(f"{name}: some words")


class Late(dict):
    """Faults that come after some launches."""

    def __init__(self, cupy, launches, **faults):
        super().__init__(faults)
        self.cupy, self.launches = cupy, launches

    def __contains__(self, operation):
        return super().__contains__(operation) and self.cupy.launches >= self.launches


# For engines, without LiberTEM

DTYPES = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]
FLOATS = ["float32", "float64"]


def make_plan(scan=(5, 7), detector=(9, 11), u=2, *, pixels=0.5, reach=4, seed=0):
    """Random pixels with random shifts of up to `reach` image pixels."""
    rng = np.random.default_rng(seed)
    where = np.argwhere(rng.random(detector) < pixels)
    return Plan(scan, detector, u, where, rng.integers(-reach, reach + 1, where.shape))


def make_frames(plan, dtype, seed=1):
    """Values that span the dtype, so that too narrow a sum would overflow."""
    rng = np.random.default_rng(seed)
    shape = (plan.scan_shape[0] * plan.scan_shape[1], *plan.detector_shape)
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return rng.normal(size=shape).astype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    info = np.iinfo(dtype)
    # 64-bit counts are summed in 64 bits: room is left for all pixels.
    top = min(info.max, 2**50)
    return rng.integers(max(info.min, -top), top, shape, dtype=dtype, endpoint=True)


def by_formula(plan, frames):
    """``Σ_r Σ_m I δ[p - (u r + s_m)]`` in Python integers, or float64 for floats."""
    image = np.zeros(plan.image_shape, dtype=object)
    exact = float if frames.dtype.kind == "f" else int
    for f, frame in enumerate(frames):
        r = np.array(divmod(f, plan.scan_shape[1]))
        for pixel, shift in zip(plan.pixels, plan.shifts, strict=True):
            p = (plan.upsampling_factor * r + shift) % plan.image_shape
            image[tuple(p)] += exact(frame[tuple(pixel)])
    return image


def to_events(frames, seed=None, indices="int32"):
    """Frames as lists of events; with `seed` in random order, and some pixels in two events."""
    values, columns, bounds = [], [], [0]
    rng = np.random.default_rng(seed)
    for frame in frames:
        where = np.flatnonzero(frame)
        what = frame.reshape(-1)[where]
        if seed is not None:
            parts = what // 3
            where, what = np.tile(where, 2), np.concatenate([parts, what - parts])
            order = rng.permutation(len(where))
            where, what = where[order], what[order]
        values.append(what)
        columns.append(where)
        bounds.append(bounds[-1] + len(where))
    return SimpleNamespace(
        data=np.concatenate([*values, np.zeros(0, frames.dtype)]),
        indices=np.concatenate([*columns, []]).astype(indices),
        indptr=np.array(bounds),
    )


def empty(plan, dtype, count=None, *, events=False):
    accumulator = accumulator_dtype(dtype, len(plan.pixels), events)
    count = plan.scan_shape[0] * plan.scan_shape[1] if count is None else count
    return np.zeros(plan.accumulator_shape, accumulator), np.zeros(count, accumulator)


def run_engine(engine, plan, frames, index=None):
    index = np.arange(len(frames)) if index is None else index
    A, S = empty(plan, frames.dtype, len(index))
    worker = engine(plan, frames.dtype, index, A, S)
    worker.add(frames)
    worker.finish()
    return A, S


# For UDFs

EVERYTHING = {
    "C10": -2500.0, "C12": 300.0, "phi12": 0.4, "C21": 2e4, "phi21": 1.0, "C23": 3e4, "phi23": -0.7,
    "C30": 4e6, "C32": 2e6, "phi32": 0.2, "C34": 3e6, "phi34": 1.2, "C41": 3e8, "phi41": 0.1,
    "C43": 2e8, "phi43": 2.0, "C45": 4e8, "phi45": 0.3, "C50": 3e10, "C52": 2e10, "phi52": 1.3,
    "C54": 4e10, "phi54": 0.9, "C56": 3e10, "phi56": -1.1,
}  # fmt: skip
PARAMETERS = {
    "shape": (8, 9, 24, 25),
    "scan_sampling": (4.1, 3.9),
    "energy": 300e3,
    "semiangle_cutoff": 4.0,
    "angular_sampling": (0.41, 0.37),
    "aberration_coefs": EVERYTHING,
    "rotation_angle": -0.26,
    "upsampling_factor": 2,
}

#: Parameters of UDFs that are not those above.
CASES = {
    "plain": {},
    "u1": {"upsampling_factor": 1},
    "u3": {"upsampling_factor": 3},
    "u4": {"upsampling_factor": 4},
    "noisy": {"suppress_Nyquist_noise": False},
    "noisy-u1": {"suppress_Nyquist_noise": False, "upsampling_factor": 1},
    "rotated": {"rotation_angle": 2.2},
    "centered": {"center": (11.3, 12.8), "semiangle_cutoff": 3.7},
    "flipped": {"detector_flip_cols": True},
    "flipped-centered": {"detector_flip_cols": True, "center": (11.3, 12.8)},
    "masked": {"bf_mask": np.random.default_rng(1).random((24, 25)) < 0.6},
    "odd-scan": {"shape": (7, 9, 24, 25)},
    "even-scan": {"shape": (6, 10, 24, 25)},
    "even-detector": {"shape": (8, 9, 24, 26)},
    "odd-detector": {"shape": (8, 9, 23, 25)},
    "one-row": {"shape": (1, 30, 24, 25), "aberration_coefs": {"C10": -300.0}},
}
# LiberTEM says this whenever a tile shape is forced that it did not propose.
forced_tiles = pytest.mark.filterwarnings("ignore:dataset.adjust_tileshape:UserWarning")


def make_scan(shape, dtype, seed=0):
    """Counts over the full range of 8 and 16 bits, with a bright field that fluctuates."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return (rng.random(shape) * rng.random((*shape[:2], 1, 1))).astype(dtype)
    top = min(np.iinfo(dtype).max, 2**31 - 1)
    bottom = max(np.iinfo(dtype).min, -(2**31))
    native = dtype.newbyteorder("=")
    return rng.integers(bottom, top, shape, dtype=native, endpoint=True).astype(dtype)


def run_udf(ctx, frames, udf, *, roi=None, **load):
    ds = ctx.load("memory", data=frames, sig_dims=2, **{"num_partitions": 3, **load})
    result = ctx.run_udf(dataset=ds, udf=udf, roi=roi)
    return {name: buffer.data for name, buffer in result.items()}


def sums(udf):
    """Accumulator and bright-field sums of the last run."""
    return tuple(udf.results.get_buffer(name).raw_data.copy() for name in "AS")


def make_events(dtype="uint8", shape=PARAMETERS["shape"], occupancy=0.05):
    """Frames of which most pixels, and some altogether, are empty."""
    frames = make_scan(shape, dtype)
    rng = np.random.default_rng(1)
    frames[rng.random(shape) > occupancy] = 0
    frames[rng.random(shape[:2]) < 0.2] = 0
    frames[-1, -1] = 0
    return frames


def save(folder, events, shape):
    """Write LiberTEM's raw_csr; returns its path."""
    lines = ["[params]", 'filetype = "raw_csr"']
    lines += [f"nav_shape = {list(shape[:2])}", f"sig_shape = {list(shape[2:])}", "[raw_csr]"]
    for name in ("data", "indices", "indptr"):
        values = getattr(events, name)
        values.tofile(folder / f"{name}.raw")
        lines += [f'{name}_file = "{name}.raw"', f'{name}_dtype = "{values.dtype.str}"']
    path = folder / "scan.toml"
    path.write_text("\n".join(lines))
    return str(path)


def write(folder, frames, seed=None, indices="int32"):
    """Write frames as raw_csr; with `seed`, pixels come in any order and some twice."""
    events = to_events(frames.reshape(-1, *frames.shape[2:]), seed, indices)
    return save(folder, events, frames.shape)


# Diffraction patterns


def draw_disk(
    center: tuple[float, float],
    radius: float,
    *,
    shape: tuple[int, int] = (64, 64),
    pixel: tuple[float, float] = (1.0, 1.0),
    counts: float = 3000.0,
    outside: float = 5.0,
    scattered: float = 0.0,
    slope: tuple[float, float] = (0.0, 0.0),
    descan: tuple[float, float] = (0.0, 0.0),
    seed: int = 0,
) -> np.ndarray:
    """Electrons of a disk, by counting 8 x 8 points a pixel.

    During the scan, it moves by `descan` pixels.
    """
    y, x = ((np.arange(n * 8) + 0.5) / 8 - 0.5 for n in shape)
    mean = np.zeros((len(y), len(x)))
    moves = np.linspace(-0.5, 0.5, 15 if any(descan) else 1)
    for move in moves if any(descan) else (0.0,):
        distance = np.hypot(
            (y[:, None] - center[0] - move * descan[0]) * pixel[0],
            (x - center[1] - move * descan[1]) * pixel[1],
        )
        tails = scattered * np.exp(-np.maximum(distance - radius, 0) / (radius / 2))
        mean += np.where(distance < radius, counts, outside + counts * tails) / len(moves)
    mean = mean.reshape(shape[0], 8, shape[1], 8).mean(axis=(1, 3))
    mean += counts * np.add.outer(
        *(s * np.arange(n) / n for s, n in zip(slope, shape, strict=True))
    )
    return np.random.default_rng(seed).poisson(mean).astype(float)
