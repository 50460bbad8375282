"""With CuPy itself, which needs no GPU for this: ``pytest -m cupy``."""

from __future__ import annotations

import inspect

import libertem.api
import numpy as np
import pytest
from helpers import PARAMETERS, make_scan, run_udf
from standin.cupy import CuPy, _Array, _Pointer

from libertem_parallax import ParallaxUDF
from libertem_parallax.accumulate import CudaError
from libertem_parallax.accumulate.cuda import describe

pytestmark = pytest.mark.cupy


def names(thing):
    return {name for name in vars(thing) if not name.startswith("_")}


def test_the_stand_in_offers_nothing_that_cupy_lacks():
    import cupy

    fake = CuPy()
    internal = names(fake) - {"RawModule", "cuda"}
    offered = {"empty", "get_default_memory_pool", "RawModule", "cuda", "__version__"}
    assert all(hasattr(cupy, name) for name in offered)
    assert not any(hasattr(cupy, name) for name in internal - offered - {"random"})
    assert "free_bytes" in dir(cupy.get_default_memory_pool())
    assert names(fake.cuda) <= set(dir(cupy.cuda))
    for name in ("runtime", "compiler"):
        assert names(getattr(fake.cuda, name)) <= set(dir(getattr(cupy.cuda, name)))
    for name in ("Device", "Stream"):
        assert names(getattr(fake.cuda, name)) <= set(dir(getattr(cupy.cuda, name)))
    assert names(_Array) - {"address"} <= set(dir(cupy.ndarray))
    assert names(_Pointer) <= set(dir(cupy.cuda.MemoryPointer))
    assert issubclass(cupy.cuda.runtime.CUDARuntimeError, RuntimeError)
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)
    # Nothing is compiled before a function is asked for.
    keywords = {"code": "", "options": ("-std=c++17",), "name_expressions": ("f<int>",)}
    assert isinstance(cupy.RawModule(**keywords), cupy.RawModule)
    assert set(keywords) <= set(inspect.signature(fake.RawModule).parameters)


def test_what_images_ask_of_numpy_is_handed_on_to_cupy():
    """Without a driver, CuPy gets as far as to ask for it, with an array that is none."""
    import cupy

    host = np.zeros((4, 4))
    if without_driver():
        memory = cupy.cuda.UnownedMemory(host.ctypes.data, host.nbytes, host, 0)
        array = cupy.ndarray(host.shape, host.dtype, cupy.cuda.MemoryPointer(memory, 0))
    else:
        array = cupy.zeros(host.shape)
    assert array.device.id == 0
    assert isinstance(array.view(np.complex128).real[0::2], cupy.ndarray)
    for call in (
        lambda: np.fft.rfft2(array),
        lambda: np.fft.irfft2(array, (4, 4)),
        lambda: np.empty_like(array, np.float32, shape=(8, 8)),
        lambda: np.asarray(host, like=array),
        lambda: np.multiply(array, array, out=array),
        lambda: np.subtract(array[0::2], array[1::2], out=array[0::2]),
        lambda: np.abs(array) <= 1,
        lambda: array[0::2].sum(axis=1, keepdims=True),
        lambda: np.take(array, array.astype(np.int64), axis=1),
        lambda: np.mean(array, axis=-1),
        lambda: np.sqrt(np.maximum(array, 1))[:, None],
        lambda: array @ array.T @ array,
    ):
        if without_driver():
            # Or the libraries of transforms and products, which only the extras install.
            refused = cupy.cuda.runtime.CUDARuntimeError, ImportError
            with pytest.raises(refused, match=r"InsufficientDriver|libcu(fft|blas)"):
                call()
        else:
            assert isinstance(call(), cupy.ndarray)


def without_driver():
    import cupy

    return cupy.cuda.runtime.driverGetVersion() == 0


def test_cupy_without_a_driver_says_so():
    if not without_driver():
        assert describe()
        return
    with pytest.raises(CudaError, match="there is no NVIDIA driver"):
        describe()


# LiberTEM says this by itself.
@pytest.mark.filterwarnings("ignore:CUDARuntimeError:RuntimeWarning")
def test_cupy_without_a_driver_leaves_the_work_to_the_cpu(monkeypatch):
    if not without_driver():
        pytest.skip("there is a driver")
    frames = make_scan(PARAMETERS["shape"], "uint8")
    images = []
    with libertem.api.Context.make_with("inline") as ctx:
        images.append(run_udf(ctx, frames, ParallaxUDF.from_parameters(**PARAMETERS)))
        monkeypatch.setenv("LIBERTEM_USE_CUDA", "0")
        with pytest.warns(RuntimeWarning, match="on the CPU.*no NVIDIA driver"):
            images.append(run_udf(ctx, frames, ParallaxUDF.from_parameters(**PARAMETERS)))
    np.testing.assert_array_equal(*(image["reconstruction"] for image in images))
