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
    assert all(hasattr(cupy, name) for name in {"empty", "RawModule", "cuda", "__version__"})
    assert not any(hasattr(cupy, name) for name in internal - {"random"})
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
