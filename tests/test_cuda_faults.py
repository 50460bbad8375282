"""GPUs that cannot be used, that fail on the way, and the CPU in their place."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from helpers import assert_same, empty, error, make_frames, make_plan, needs_compiler, run_engine
from standin.cupy import CompileException, CUDARuntimeError

from libertem_parallax.accumulate import ENGINES, CudaError, make_engine
from libertem_parallax.accumulate.cuda import device, upload

CUDA, NUMBA = ENGINES["cuda"], ENGINES["numba"]


@pytest.mark.parametrize(
    ("faults", "driver", "message"),
    [
        ({"device": error("cudaErrorInsufficientDriver")}, 0, r"GPU 0: there is no NVIDIA driver"),
        (
            {"device": error("cudaErrorInsufficientDriver")},
            12020,
            r"the driver is for CUDA 12\.2, CuPy for 13\.2.*\[cuda12\]",
        ),
        ({"device": error("cudaErrorNoDevice")}, 13000, "no such GPU.*CUDA_VISIBLE_DEVICES"),
        (
            {"compile": CompileException("scatter.cu(1): error: no")},
            13000,
            r"scatter\.cu: the kernel does not compile: scatter\.cu\(1\): error: no",
        ),
        (
            {"compile": RuntimeError('Failure finding "libnvrtc.so.13"')},
            13000,
            r"NVRTC.*\[cuda12\]",
        ),
        ({"pinned": error("cudaErrorMemoryAllocation")}, 13000, "out of memory"),
        ({"compile": CUDARuntimeError("CUDA_ERROR_OUT_OF_MEMORY: no")}, 13000, "out of memory"),
        (
            {"compile": CompileException("invalid value for --gpu-architecture (-arch)")},
            13000,
            r"too old for this CUDA: libertem-parallax\[cuda12\]",
        ),
        ({"compile": RuntimeError("Failed to find CUDA headers")}, 13000, r"NVRTC.*\[cuda12\]"),
        (
            {"compile": RuntimeError('Failure finding "libcublas.so.13"')},
            13000,
            r"library of CUDA is missing \(.*cublas.*\[cuda12\]",
        ),
        ({"compile": OSError("No space left on device")}, 13000, r"OSError: No space left[^R]*$"),
        ({"device": error("cudaErrorUnknown")}, 13000, "cudaErrorUnknown: some words.*restart"),
    ],
)
def test_gpus_that_cannot_be_used_say_why(standin, faults, driver, message):
    cupy = standin()
    cupy.faults = faults
    cupy.driver = driver
    plan = make_plan()
    with pytest.raises(CudaError, match=message):
        CUDA(plan, "uint8", np.arange(35), *empty(plan, "uint8"))


@needs_compiler
def test_a_full_device_says_so(standin):
    standin(memory=100)
    plan = make_plan()
    with pytest.raises(CudaError, match=r"making ready.*out of memory.*fewer workers"):
        CUDA(plan, "uint8", np.arange(35), *empty(plan, "uint8"))


@needs_compiler
def test_unknown_devices_are_refused(standin):
    standin(devices=2)
    plan = make_plan()
    with pytest.raises(CudaError, match="GPU 2: there is no such GPU"):
        CUDA(plan, "uint8", np.arange(35), *empty(plan, "uint8"), device=2)


def test_cupy_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(CudaError, match=r"CuPy is not installed\. Install .*\[cuda12\]"):
        device.describe()


def test_cupy_is_broken(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('libcudart.so.13 is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    with pytest.raises(CudaError, match=r"cannot be imported: ImportError: libcudart.so.13"):
        device.describe()


def test_the_kernel_is_missing(monkeypatch, standin, tmp_path):
    standin()
    file = tmp_path / "package" / "accumulate" / "cuda" / "device.py"
    monkeypatch.setattr(device, "__file__", str(file))
    plan = make_plan()
    with pytest.raises(CudaError, match=r"scatter\.cu is missing: install"):
        CUDA(plan, "uint8", np.arange(35), *empty(plan, "uint8"))


@needs_compiler
def test_a_mistake_in_the_kernel_is_shown(monkeypatch, standin, tmp_path):
    standin()
    source = device.source("scatter").read_text(encoding="utf-8")
    (tmp_path / "scatter.cu").write_text(source.replace("const int lane", "const int line"))
    monkeypatch.setattr(device, "source", lambda _: tmp_path / "scatter.cu")
    plan = make_plan()
    with pytest.raises(CudaError, match=r"(?s)does not compile.*lane. was not declared"):
        CUDA(plan, "uint8", np.arange(35), *empty(plan, "uint8"))


@needs_compiler
@pytest.mark.parametrize("operation", ["launch", "synchronize", "device"])
@pytest.mark.parametrize("after", range(4))
def test_a_failure_in_mid_scan_is_an_error(standin, monkeypatch, operation, after):
    """Whenever it is noticed; what was added so far is not taken for the sum."""
    monkeypatch.setattr(upload, "SLOT_BYTES", 99)
    monkeypatch.setattr(upload, "SLOT_LIMIT", 0)
    cupy = standin(work="late")
    plan = make_plan()
    frames = make_frames(plan, "uint8")
    A, S = empty(plan, "uint8")
    worker = make_engine("auto", plan, "uint8", np.arange(35), A, S, 0)
    for t in range(after):
        worker.add(frames[t : t + 1], first=t)
    cupy.faults[operation] = error("cudaErrorIllegalAddress")

    def go_on():
        for t in range(after, 35):
            worker.add(frames[t : t + 1], first=t)
        worker.finish()

    message = r"GPU 0, adding frames \(the image is not complete: run again, with engine = 'numba' "
    message += r"on the CPU\): cudaErrorIllegalAddress"
    with pytest.raises(CudaError, match=message):
        go_on()
    cupy.faults.clear()
    with pytest.raises(CudaError, match=r"GPU 0 failed before; the image is not complete"):
        worker.finish()
    assert not A.any()
    assert not S.any()


def test_a_sum_that_is_too_large_is_an_error(standin):
    standin()
    plan = make_plan()
    A, S = empty(plan, "float64")
    worker = CUDA(plan, "float64", np.arange(35), A, S)
    frames = np.ones((35, 9, 11))
    worker.add(frames[:20])
    frames[20:] = 9e29  # fits, but not the sum
    worker.add(frames[20:], first=20)
    with pytest.raises(ValueError, match=r"scan position \(2, 6\) is .*: expected at most 1e\+30"):
        worker.finish()


@needs_compiler
def test_without_a_gpu_the_cpu_is_used_and_one_warning_says_so(standin):
    cupy = standin()
    cupy.faults = {"device": error("cudaErrorNoDevice")}
    plan = make_plan()
    frames = make_frames(plan, "uint8")
    expected = run_engine(NUMBA, plan, frames)
    parts = [slice(0, 10), slice(10, 30), slice(30, 35)]
    A, S = empty(plan, "uint8")

    def add(part):
        worker = make_engine("auto", plan, "uint8", np.arange(35)[part], A, S[part], 0)
        assert isinstance(worker, NUMBA)
        worker.add(frames[part])
        worker.finish()

    with pytest.warns(RuntimeWarning, match=r"on the CPU.*no such GPU"):
        add(parts[0])
    cupy.faults = {}  # it would work now, but nobody tries again
    for part in parts[1:]:
        add(part)
    assert_same((A, S), expected)
    # The next acquisition does.
    other = make_plan()
    worker = make_engine("auto", other, "uint8", np.arange(35), *empty(other, "uint8"), 0)
    assert isinstance(worker, CUDA)


@needs_compiler
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_the_gpu_of_the_worker_is_used(standin, name):
    cupy = standin(devices=3)
    plan = make_plan()
    frames = make_frames(plan, "uint8")
    A, S = empty(plan, "uint8")
    worker = make_engine(name, plan, "uint8", np.arange(35), A, S, 2)
    worker.add(frames)
    worker.finish()
    assert {device for device, _ in cupy.compiled} == {2}
    assert_same((A, S), run_engine(NUMBA, plan, frames))


def test_who_asks_for_cuda_gets_cuda_or_an_error(standin):
    cupy = standin()
    cupy.faults = {"device": error("cudaErrorNoDevice")}
    plan = make_plan()
    for number in (None, 0):
        with pytest.raises(CudaError, match="no such GPU"):
            make_engine("cuda", plan, "uint8", np.arange(35), *empty(plan, "uint8"), number)


def test_where_there_is_no_gpu_none_is_looked_for(standin):
    cupy = standin()
    cupy.faults = {"device": error("cudaErrorNoDevice")}
    plan = make_plan()
    for name, expected in (("auto", NUMBA), ("numba", NUMBA), ("numpy", ENGINES["numpy"])):
        worker = make_engine(name, plan, "uint8", np.arange(35), *empty(plan, "uint8"))
        assert type(worker) is expected
