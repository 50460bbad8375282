"""The kernels, compiled for the CPU and for GPUs."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from standin import compiler

from libertem_parallax.accumulate.cuda import device

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


ARCHITECTURES = [75, 90, 100]


ORDERS = sorted(compiler.ORDERS)


def launch(name, instance, shape, arguments, order, seed, source=None):
    """Run an instance of a kernel; arrays are given by their address."""
    kernels = compiler.compile_kernels(source or SOURCES[name], EXPRESSIONS[name], SANITIZE)
    kernel = kernels[INSTANCES[name].index(instance)]
    arguments = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
    compiler.launch(kernel, *shape, arguments, order, seed)


def sanitized(test, *files):
    """Run tests of files once more, in a process that AddressSanitizer is loaded in first.

    Without `conftest.py`: there, imports take several times as long.
    """
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
    }
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, "--noconftest", "-k", f"{test}[", "-x", *files],
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
