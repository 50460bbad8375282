"""The kernels themselves: run on the CPU, and compiled for GPUs. Nothing here needs one."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import needs_compiler
from standin import compiler

from libertem_parallax.accumulate import accumulator_dtype, cuda

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is missing")

SOURCE = cuda._source().read_text(encoding="utf-8")

#: Every template instance in use: dtype of the frames, dtype of the sums.
INSTANCES = [
    *((dtype, "int32") for dtype in ("int8", "uint8", "int16", "uint16")),
    *((f"{sign}int{bits}", "int64") for bits in (8, 16, 32, 64) for sign in ("", "u")),
    ("float32", "float64"),
    ("float64", "float64"),
]
EXPRESSIONS = tuple(cuda._expression(*instance) for instance in INSTANCES)
ARCHITECTURES = [75, 80, 90, 100]
SANITIZE = "KERNELS_SANITIZE" in os.environ


def run(dtype, accumulator, n, count, order, source=SOURCE, seed=0):
    """Launch the kernel; returns what it gave and what plain NumPy gives.

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

    arrays = [frames, positions, pixels, targets, A, S]
    compiler.launch(
        compiler.compile_kernels(source, EXPRESSIONS, SANITIZE)[
            INSTANCES.index((dtype, accumulator))
        ],
        *cuda._launch_shape(n, count),
        [*(a.ctypes.data for a in arrays), *np.array([n, size, count], np.int32)],
        order,
        seed,
    )
    return (A, S), (expected_A, expected_S)


@needs_compiler
@pytest.mark.parametrize("order", sorted(compiler.ORDERS))
@pytest.mark.parametrize(
    ("n", "count"), [(1, 1), (32, 64), (31, 65), (33, 63), (70, 200), (1, 130), (129, 1)]
)
@pytest.mark.parametrize(("dtype", "accumulator"), INSTANCES)
def test_on_the_cpu(dtype, accumulator, n, count, order):
    actual, expected = run(dtype, accumulator, n, count, order)
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])


@pytest.mark.skipif(SANITIZE, reason="this is the run that is asked for")
@needs_compiler
def test_on_the_cpu_within_bounds():
    """Once more under AddressSanitizer, in a process of its own as it must be loaded first."""
    done = sanitized("test_on_the_cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(INSTANCES) * 21} passed" in done.stdout


def sanitized(test, **environment):
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
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    return subprocess.run(
        [*command, "-k", f"{test}[", "-x"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def compile_for_gpu(architecture, source=SOURCE):
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

    expressions = [expression.encode() for expression in EXPRESSIONS]
    program = done(nvrtc.nvrtcCreateProgram(source.encode(), b"scatter.cu", 0, [], []))
    for expression in expressions:
        done(nvrtc.nvrtcAddNameExpression(program, expression))
    # -ftz is what CuPy adds.
    options = [b"-std=c++17", b"-ftz=true", b"-arch=sm_%d" % architecture, b"--ptxas-options=-v"]
    done(nvrtc.nvrtcCompileProgram(program, len(options), options))
    ptx = b" " * done(nvrtc.nvrtcGetPTXSize(program))
    done(nvrtc.nvrtcGetPTX(program, ptx))
    names = [done(nvrtc.nvrtcGetLoweredName(program, e)).decode() for e in expressions]
    return log().decode(), ptx.decode(), names


def check_ptx(ptx, names):
    """Every write to device memory is an addition that others cannot interrupt."""
    bodies = dict(re.findall(r"\.entry (\w+)\((.*?)\n\}", ptx, flags=re.DOTALL))
    for (dtype, accumulator), name in zip(INSTANCES, names, strict=True):
        kind = {"int32": "u32", "int64": "u64", "float64": "f64"}[accumulator]
        atomics = re.findall(r"\b(?:red|atom)[\w.]*\.global[\w.]*", bodies[name])
        # One for A, one for S.
        assert len(atomics) >= 2, (dtype, accumulator, atomics)
        assert all(a.endswith(f".add.{kind}") for a in atomics), atomics
        assert not re.search(r"\bst\.(?!shared)", bodies[name]), (dtype, accumulator)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_for_gpus(architecture):
    log, ptx, names = compile_for_gpu(architecture)
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", log)
    assert spills == [("0", "0", "0")] * len(INSTANCES), log
    check_ptx(ptx, names)


#: Mistakes that these tests must find.
BARRIER, ATOMIC = "__syncthreads();", "add(begin + targets[first_pixel + p], value);"


@needs_compiler
@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_barrier_is_found(which):
    parts = SOURCE.split(BARRIER)
    assert len(parts) == 3
    parts[which] += parts.pop(which + 1)
    source = BARRIER.join(parts)
    wrong = []
    for order in compiler.ORDERS:
        actual, expected = run("uint8", "int32", 33, 130, order, source)
        wrong.append(not all(map(np.array_equal, actual, expected)))
    assert any(wrong)


def test_a_missing_atomic_is_found():
    assert SOURCE.count(ATOMIC) == 1
    source = SOURCE.replace(ATOMIC, "begin[targets[first_pixel + p]] += value;")
    _, ptx, names = compile_for_gpu(90, source)
    with pytest.raises(AssertionError):
        check_ptx(ptx, names)


def test_instances_are_those_that_accumulators_ask_for():
    kinds = sorted({dtype for dtype, _ in INSTANCES})
    assert sorted(cuda._C_TYPES) == kinds
    for dtype in kinds:
        for pixels in (1, 2**30):
            assert (dtype, accumulator_dtype(dtype, pixels).name) in INSTANCES
