"""The kernels themselves: run on the CPU, and compiled for GPUs. Nothing here needs one."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers import needs_compiler
from standin import compiler

from libertem_parallax.accumulate import accumulator_dtype
from libertem_parallax.accumulate.cuda import device
from libertem_parallax.accumulate.engine import value_range

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is missing")

#: Every template instance in use: dtype of the frames, dtype of the sums.
WIDE = [
    *((f"{sign}int{bits}", "int64") for bits in (8, 16, 32, 64) for sign in ("", "u")),
    ("float32", "float64"),
    ("float64", "float64"),
]
NARROW = [(dtype, "int32") for dtype in ("int8", "uint8", "int16", "uint16")]
INSTANCES = {
    "scatter": [*NARROW, *WIDE],
    "events": WIDE,
    "gather": [*NARROW, *WIDE],
    "turn": [(dtype,) for dtype in ("uint8", "uint16", "uint32", "uint64")],
    # Degree of the polynomials, and whether derivatives are wanted; launched by
    # test_cuda_likelihood.py.
    "likelihood": [(degree, derivatives) for degree in range(6) for derivatives in (0, 1)],
}
#: Under AddressSanitizer, where compiling takes long: one of every width.
SANITIZED = {
    name: [instance for instance in instances if instance[0] not in ("int8", "int16", "int32")]
    for name, instances in INSTANCES.items()
}
SANITIZE = "KERNELS_SANITIZE" in os.environ
if SANITIZE:
    INSTANCES = SANITIZED
SOURCES = {
    name: device.source(device.KERNELS[name][0]).read_text(encoding="utf-8") for name in INSTANCES
}
EXPRESSIONS = {
    name: tuple(
        device.expression(name, *(p if isinstance(p, int) else np.dtype(p) for p in instance))
        for instance in instances
    )
    for name, instances in INSTANCES.items()
}
ARCHITECTURES = [75, 80, 90, 100]
ORDERS = sorted(compiler.ORDERS)


def launch(name, instance, shape, arguments, order, seed, source=None):
    """Run an instance of a kernel; arrays are given by their address."""
    kernels = compiler.compile_kernels(source or SOURCES[name], EXPRESSIONS[name], SANITIZE)
    kernel = kernels[INSTANCES[name].index(instance)]
    arguments = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
    compiler.launch(kernel, *shape, arguments, order, seed)


def run(dtype, accumulator, n, count, order, source=None, seed=0):
    """Launch the kernel for frames; returns what it gave and what plain NumPy gives.

    Every array is just as large as the kernel may believe; the lowest and the highest target of the
    first and the last frame are the first and the last element of A.
    """
    rng = np.random.default_rng(seed)
    size = count + int(rng.integers(0, 20))
    if np.dtype(dtype).kind == "f":
        frames = rng.integers(-1000, 1000, (n, size)).astype(dtype)
    else:
        info = np.iinfo(dtype)
        bound = (2**31 if accumulator == "int32" else 2**62) // count
        frames = rng.integers(
            max(info.min, -bound), min(info.max, bound - 1), (n, size), dtype, endpoint=True
        )
    frames[rng.random(frames.shape) < 0.3] = 0
    pixels = np.sort(rng.choice(size, count, replace=False)).astype(np.int32)
    pixels[-1] = size - 1
    positions = np.sort(rng.choice(3 * n, n, replace=False)).astype(np.int64)
    positions -= positions[0]
    targets = rng.integers(0, 40, count).astype(np.int64)  # many of them twice
    targets[[0, -1]] = 40, 0
    if count > 2:
        targets[1] = 40
    A = rng.integers(-5, 5, int(targets.max() + positions.max()) + 1).astype(accumulator)
    S = rng.integers(-5, 5, n).astype(accumulator)
    expected_A, expected_S = A.copy(), S.copy()
    for target, pixel in zip(targets, pixels, strict=True):
        np.add.at(expected_A, target + positions, frames[:, pixel].astype(accumulator))
    expected_S += frames[:, pixels].sum(axis=1, dtype=accumulator)

    arguments = [frames, positions, pixels, targets, A, S, *np.array([n, size, count], np.int32)]
    shape = device.launch_shape(n, count)
    launch("scatter", (dtype, accumulator), shape, arguments, order, seed, source)
    return (A, S), (expected_A, expected_S)


def run_events(dtype, accumulator, counts, order, source=None, seed=0, first=3, bad=()):
    """Launch the kernel for events; returns what it gave, and its trouble, and what it should.

    Frame t has ``counts[t]`` events; those of `bad` are of frames and their columns or values.
    Arrays are just as large as the kernel may believe, as for frames.
    """
    rng = np.random.default_rng(seed)
    n, size = len(counts), 50
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    low, high = value_range(dtype)
    if np.dtype(dtype).kind == "f":
        values = rng.integers(-1000, 1000, bounds[-1]).astype(dtype)
    else:
        values = rng.integers(low, high, bounds[-1], dtype, endpoint=True)
    columns = rng.integers(0, size, bounds[-1]).astype(np.int32)  # of any order, many twice
    lookup = np.where(rng.random(size) < 0.7, rng.integers(0, 41, size), -1)
    lookup[[0, 1, 2]] = 40, 0, -1
    positions = np.sort(rng.choice(3 * n, n, replace=False)).astype(np.int64)
    positions -= positions[0]
    A = rng.integers(-5, 5, int(40 + positions.max()) + 1).astype(accumulator)
    S = rng.integers(-5, 5, n).astype(accumulator)
    trouble = np.full(2, device.NO_TROUBLE, np.int32)
    keep = np.ones(len(values), bool)
    for frame, what, value in bad:
        event = bounds[frame] + counts[frame] // 2
        columns[event] = 0
        {"column": columns, "value": values}[what][event] = value
        keep[event] = False
    frames = np.repeat(np.arange(n), counts)
    targets = lookup[np.where(keep, columns, 2)]
    keep = targets >= 0
    expected_A, expected_S = A.copy(), S.copy()
    summands = values[keep].astype(accumulator)
    np.add.at(expected_A, targets[keep] + positions[frames[keep]], summands)
    np.add.at(expected_S, frames[keep], summands)

    sizes = np.array([n, size, first], np.int32)
    arguments = [values, columns, bounds, positions, lookup, A, S, trouble, *sizes, low, high]
    shape = device.events_launch_shape(n)
    launch("events", (dtype, accumulator), shape, arguments, order, seed, source)
    return (A, S, trouble), (expected_A, expected_S)


def pairwise(instances, shapes):
    """Cases in which every two of instance, shape and order of the threads meet."""
    return [
        (*instance, shape, ORDERS[(i + j) % len(ORDERS)])
        for i, instance in enumerate(instances)
        for j, shape in enumerate(shapes)
    ]


#: Frames and pixels: one, as many as a block takes, some more and some less, many.
SHAPES = [(1, 1), (32, 64), (31, 65), (33, 63), (70, 200), (1, 130), (129, 1)]


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "accumulator", "shape", "order"), pairwise(INSTANCES["scatter"], SHAPES)
)
def test_on_the_cpu(dtype, accumulator, shape, order):
    actual, expected = run(dtype, accumulator, *shape, order)
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])


#: Events of the frames: one, none, about as many as a warp has lanes, more frames than a block.
COUNTS = [[1], [0], [31, 0, 32, 33, 200, 1, 0, 5], [7, 64] * 9]


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "accumulator", "counts", "order"), pairwise(INSTANCES["events"], COUNTS)
)
def test_events_on_the_cpu(dtype, accumulator, counts, order):
    actual, expected = run_events(dtype, accumulator, counts, order)
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])
    assert actual[2].tolist() == [device.NO_TROUBLE] * 2


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "what", "value"),
    [
        ("uint8", "column", -1),
        ("uint8", "column", 50),
        ("uint8", "column", -(2**31)),
        ("uint8", "column", 2**31 - 1),
        ("int64", "value", 2**31),
        ("int64", "value", -(2**31) - 1),
        ("uint64", "value", 2**32),
        ("float32", "value", np.nan),
        ("float64", "value", np.inf),
        ("float64", "value", -np.inf),
    ],
)
def test_bad_events_on_the_cpu(dtype, what, value):
    """They are left out, and the first of them is reported."""
    accumulator = "float64" if dtype.startswith("f") else "int64"
    bad = [(4, what, value), (9, what, value)]
    actual, expected = run_events(dtype, accumulator, [40] * 20, "shuffled", bad=bad, first=3)
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])
    none = device.NO_TROUBLE
    assert actual[2].tolist() == ([7, none] if what == "column" else [none, 7])


def run_gather(dtype, accumulator, scan, count, grids, order, source=None, seed=0):
    """Launch the kernel that gathers; returns what it gave and what plain NumPy gives.

    Some sub-grids may have no image; what was in A before does not matter.
    """
    rng = np.random.default_rng(seed)
    shape = (count + 2, *scan)  # some images are not used, some twice
    if np.dtype(dtype).kind == "f":
        images = rng.integers(-1000, 1000, shape).astype(dtype)
    else:
        info = np.iinfo(dtype)
        bound = (2**31 if accumulator == "int32" else 2**62) // count
        images = rng.integers(
            max(info.min, -bound), min(info.max, bound - 1), shape, dtype, endpoint=True
        )
    pixels = rng.integers(0, count + 2, count).astype(np.int32)
    pixels[[0, -1]] = 0, count + 1
    steps = rng.integers(0, scan, (count, 2)).astype(np.int32)
    steps[0], steps[-1] = (0, 0), np.array(scan) - 1
    bounds = np.sort(rng.integers(0, count + 1, grids + 1)).astype(np.int32)
    bounds[[0, -1]] = 0, count
    A = rng.integers(-5, 5, (grids, *scan)).astype(accumulator)
    expected = np.zeros_like(A)
    for g, (start, stop) in enumerate(itertools.pairwise(bounds)):
        for m in range(start, stop):
            expected[g] += np.roll(images[pixels[m]].astype(accumulator), steps[m], (0, 1))

    *shape, tiles = device.gather_launch_shape(grids, scan[0] * scan[1])
    arguments = [images, bounds, pixels, steps, A, *np.array([*scan, tiles], np.int32)]
    launch("gather", (dtype, accumulator), shape, arguments, order, seed, source)
    return A, expected


def run_turn(dtype, n, count, order, source=None, seed=0):
    """Launch the kernel that turns frames; returns what it gave and what plain NumPy gives."""
    rng = np.random.default_rng(seed)
    size, first = n + 5, 3
    frames, images = (rng.integers(0, 2**8, s).astype(dtype) for s in ((n, count), (count, size)))
    expected = images.copy()
    expected[:, first : first + n] = frames.T
    *shape, tiles = device.turn_launch_shape(n, count)
    arguments = [frames, images, *np.array([n, count, size, first, tiles], np.int32)]
    launch("turn", (dtype,), shape, arguments, order, seed, source)
    return images, expected


#: Scan, images and sub-grids: one block and several, full and not; one image a warp and several.
SCANS = [((1, 1), 1, 1), ((4, 32), 8, 1), ((7, 19), 9, 4), ((16, 17), 70, 9)]


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "accumulator", "scan", "order"), pairwise(INSTANCES["gather"], SCANS)
)
def test_gathering_on_the_cpu(dtype, accumulator, scan, order):
    actual, expected = run_gather(dtype, accumulator, *scan, order)
    np.testing.assert_array_equal(actual, expected)


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "shape", "order"),
    pairwise(INSTANCES["turn"], [(1, 1), (32, 32), (33, 31), (5, 100), (130, 7)]),
)
def test_turning_on_the_cpu(dtype, shape, order):
    actual, expected = run_turn(dtype, *shape, order)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.skipif(SANITIZE, reason="this is the run that is asked for")
@needs_compiler
def test_on_the_cpu_within_bounds():
    """Once more under AddressSanitizer, in a process of its own as it must be loaded first."""
    done = sanitized("on_the_cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    shapes = {"scatter": len(SHAPES), "events": len(COUNTS), "gather": len(SCANS), "turn": 5}
    passed = 10 + sum(len(SANITIZED[name]) * shapes[name] for name in SANITIZED)
    assert f"{passed} passed" in done.stdout


def sanitized(test, file=__file__, **environment):
    library = compiler.sanitizer()
    if library is None:
        pytest.skip("g++ has no AddressSanitizer")
    environment = {
        **os.environ,
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1",
        "PYTHONMALLOC": "malloc",
        "KERNELS_SANITIZE": "1",
        **environment,
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    return subprocess.run(
        [*command, "-k", f"{test}[", "-x"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def compile_for_gpu(name, architecture, source=None):
    """Compile all instances with NVRTC; returns the compiler's report and PTX."""

    def done(result):
        status, *values = result
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise AssertionError(f"{status}\n{log().decode()}")
        return values[0] if values else None

    def log():
        text = b" " * nvrtc.nvrtcGetProgramLogSize(program)[1]
        nvrtc.nvrtcGetProgramLog(program, text)
        return text

    expressions = [expression.encode() for expression in EXPRESSIONS[name]]
    source = (source or SOURCES[name]).encode()
    program = done(nvrtc.nvrtcCreateProgram(source, f"{name}.cu".encode(), 0, [], []))
    for expression in expressions:
        done(nvrtc.nvrtcAddNameExpression(program, expression))
    # -ftz is what CuPy adds.
    options = [b"-std=c++17", b"-ftz=true", b"-arch=sm_%d" % architecture, b"--ptxas-options=-v"]
    done(nvrtc.nvrtcCompileProgram(program, len(options), options))
    ptx = b" " * done(nvrtc.nvrtcGetPTXSize(program))
    done(nvrtc.nvrtcGetPTX(program, ptx))
    names = [done(nvrtc.nvrtcGetLoweredName(program, e)).decode() for e in expressions]
    return log().decode(), ptx.decode(), names


def check_ptx(name, ptx, names):
    """Threads that write to one place of device memory add there, and cannot be interrupted."""
    bodies = dict(re.findall(r"\.entry (\w+)\((.*?)\n\}", ptx, flags=re.DOTALL))
    for instance, mangled in zip(INSTANCES[name], names, strict=True):
        atomics = re.findall(r"\b(?:red|atom)[\w.]*\.global[\w.]*", bodies[mangled])
        stores = re.findall(r"\bst\.(?!shared)[\w.]*", bodies[mangled])
        if name in ("gather", "turn", "likelihood"):
            # Every element is written by one thread, once.
            assert not atomics, (instance, atomics)
            assert stores, instance
            assert all(store.startswith("st.global") for store in stores), stores
            continue
        kind = {"int32": "u32", "int64": "u64", "float64": "f64"}[instance[1]]
        if name == "events":
            atomics = [a for a in atomics if not a.endswith(".min.s32")]
        # One for A, one for S.
        assert len(atomics) >= 2, (instance, atomics)
        assert all(a.endswith(f".add.{kind}") for a in atomics), atomics
        assert not stores, (instance, stores)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", sorted(INSTANCES))
def test_for_gpus(name, architecture):
    log, ptx, names = compile_for_gpu(name, architecture)
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", log)
    assert spills == [("0", "0", "0")] * len(INSTANCES[name]), log
    check_ptx(name, ptx, names)


#: Mistakes that these tests must find.
BARRIER = "__syncthreads();"
ATOMICS = {
    "scatter": (
        "add(begin + targets[first_pixel + p], value);",
        "begin[targets[first_pixel + p]] += value;",
    ),
    "events": ("add(S + t, sum);", "S[t] += sum;"),
}


@needs_compiler
@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_barrier_is_found(which):
    parts = SOURCES["scatter"].split(BARRIER)
    assert len(parts) == 3
    parts[which] += parts.pop(which + 1)
    source = BARRIER.join(parts)
    wrong = []
    for order in compiler.ORDERS:
        actual, expected = run("uint8", "int32", 33, 130, order, source)
        wrong.append(not all(map(np.array_equal, actual, expected)))
    assert any(wrong)


@needs_compiler
def test_a_missing_barrier_is_found_for_events():
    source = SOURCES["events"].replace(BARRIER, "")
    wrong = []
    for order in compiler.ORDERS:
        actual, expected = run_events("uint8", "int64", [40] * 20, order, source)
        wrong.append(not np.array_equal(actual[1], expected[1]))
    assert any(wrong)


@needs_compiler
@pytest.mark.parametrize("name", ["gather", "turn"])
def test_a_missing_barrier_is_found_for_stacks(name):
    before, between, after = SOURCES[name].split(BARRIER)
    source = (
        before + between + BARRIER + after
        if name == "gather"
        else before + BARRIER + between + after
    )
    wrong = []
    for order in compiler.ORDERS:
        if name == "gather":
            actual, expected = run_gather("uint8", "int32", (16, 17), 70, 9, order, source)
        else:
            actual, expected = run_turn("uint8", 33, 31, order, source)
        wrong.append(not np.array_equal(actual, expected))
    assert any(wrong)


@pytest.mark.parametrize("name", sorted(ATOMICS))
def test_a_missing_atomic_is_found(name):
    atomic, plain = ATOMICS[name]
    assert SOURCES[name].count(atomic) == 1
    source = SOURCES[name].replace(atomic, plain)
    _, ptx, names = compile_for_gpu(name, 90, source)
    with pytest.raises(AssertionError):
        check_ptx(name, ptx, names)


def test_instances_are_those_that_accumulators_ask_for():
    kinds = sorted({dtype for dtype, _ in INSTANCES["scatter"]})
    assert sorted(device.C_TYPES) == kinds
    for dtype in kinds:
        for pixels in (1, 2**30):
            assert (dtype, accumulator_dtype(dtype, pixels).name) in INSTANCES["scatter"]
            assert (dtype, accumulator_dtype(dtype, pixels).name) in INSTANCES["gather"]
        assert (dtype, accumulator_dtype(dtype, 1, events=True).name) in INSTANCES["events"]
