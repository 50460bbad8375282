"""The likelihood on a GPU: its kernel on the CPU, and its engine on a device that stands in."""

from __future__ import annotations

import gc
import warnings

import numpy as np
import pytest
from helpers import needs_compiler
from interferences import COEFS, case
from standin import compiler
from standin.cupy import CUDARuntimeError

from kernels import SANITIZE, SOURCES
from libertem_parallax.accumulate import CudaError
from libertem_parallax.accumulate.cuda import device, upload
from libertem_parallax.interference import beams
from libertem_parallax.likelihood import ENGINES, Interference, make_engine, monomials
from libertem_parallax.likelihood.cuda import check

pytestmark = needs_compiler

#: Degrees of the polynomials, and whether derivatives are wanted; tests/test_kernels.py has all,
#: and runs these under AddressSanitizer.
INSTANCES = [(3, 1)] if SANITIZE else [(0, 1), (1, 0), (3, 1)]


def run(degree, derivatives, count, pixels, order, source=None, edge=0.3):
    """Launch the kernel; returns what it gave, and what the definition gives.

    Every array is just as large as the kernel may believe.
    """
    rng = np.random.default_rng(0)
    terms = len(monomials(degree))
    numbers = 2 * terms + 2
    images = rng.normal(size=(count, pixels, 2)).astype(np.float32).view(np.complex64)[..., 0]
    positions = rng.uniform(-0.9, 0.9, (2, pixels)).astype(np.float32)
    parameters = rng.uniform(-0.5, 0.5, (count, numbers)).astype(np.float32)
    sums = np.full((count, 3), np.nan, np.float32)
    changes = np.full((count if derivatives else 0, numbers), np.nan, np.float32)
    sizes = np.float32(edge), np.int32(count), np.int32(pixels)
    arguments = [images, positions, parameters, sums, changes, *sizes]
    expression = device.expression("likelihood", degree, derivatives)
    [kernel] = compiler.compile_kernels(source or SOURCES["likelihood"], (expression,), SANITIZE)
    arguments = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
    compiler.launch(kernel, *device.likelihood_launch_shape(count), arguments, order)
    parts = Interference(*np.split(parameters.astype(float), [terms, 2 * terms], axis=1))
    expected, gradients = ENGINES["numpy"](images, positions.T, edge).gradients(parts)
    wanted = [np.column_stack([expected.N.real, expected.N.imag, expected.D])]
    return [sums, changes][: 1 + derivatives], [*wanted, np.hstack(gradients)][: 1 + derivatives]


def agree(actual, expected):
    """Whether they do to single precision, summed over tens of pixels."""
    return all(
        np.allclose(one, other, rtol=0, atol=3e-6 * max(1, np.abs(other).max()))
        for one, other in zip(actual, expected, strict=True)
    )


@pytest.mark.parametrize("order", sorted(compiler.ORDERS))
@pytest.mark.parametrize(("degree", "derivatives"), INSTANCES)
def test_on_the_cpu(degree, derivatives, order):
    """One lane and several rounds of them; fewer frequencies than a block has warps, and more."""
    for count, pixels in [(1, 1), (4, 32), (5, 31), (9, 70)]:
        assert agree(*run(degree, derivatives, count, pixels, order))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("other > 0", "other > 1"),  # a lane of two is left out
        ("m += LANES", "m += 2 * LANES"),
        ("- explained * re", ""),
        ("slope * y;", "0.0f;"),
    ],
)
def test_mistakes_are_found(right, wrong):
    source = SOURCES["likelihood"].replace(right, wrong)
    assert source != SOURCES["likelihood"]
    assert not agree(*run(1, 1, 5, 70, "forward", source))


def test_a_device_that_sums_wrongly_is_found(standin, monkeypatch, tmp_path):
    standin()
    assert check() == []
    source = SOURCES["likelihood"].replace("- explained * re", "")
    (tmp_path / "likelihood.cu").write_text(source)
    monkeypatch.setattr(device, "source", lambda name: tmp_path / f"{name}.cu")
    monkeypatch.setattr(device, "_kernels", {})
    wrong = [f"derivatives by {part} of a likelihood" for part in ("minus", "plus", "center")]
    assert check() == wrong


def make(coefs="third order", Q=23, M=70, **options):
    images, xi, eta, turns = case(COEFS[coefs], Q=Q, M=M)
    engine = make_engine(*options.pop("engine", ("cuda",)), images, xi, 0.1, **options)
    return engine, ENGINES["numba"](images, xi, 0.1), beams(turns, eta / 2)


def flat(result):
    return [part for values in result for part in values]


def assert_same(actual, expected):
    for one, other in zip(flat(actual), flat(expected), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("work", ["early", "late", "random"])
def test_the_device_may_take_its_time(standin, monkeypatch, work):
    """Many pieces through two buffers, results larger than these."""
    monkeypatch.setattr(upload, "SLOT_BYTES", 600)
    standin(work=work)
    engine, other, interference = make()
    first = engine.gradients(interference)
    for one, expected in zip(flat(first), flat(other.gradients(interference)), strict=True):
        np.testing.assert_allclose(one, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    for _ in range(2):  # and the same bits every time
        assert_same(engine.gradients(interference), first)


def test_images_cross_the_bus_once(standin):
    cupy = standin()
    engine, _, interference = make()
    assert cupy.uploaded == engine.images.nbytes + 4 * engine.positions.size
    before = cupy.uploaded
    engine.sums(interference)
    assert cupy.uploaded - before == 4 * sum(part.size for part in interference)


def test_no_images_at_all(standin):
    standin()
    engine, _, _ = make(Q=0)
    sums, gradients = engine.gradients(Interference(*np.zeros((2, 0, 3)), np.zeros((0, 2))))
    assert sums.N.shape == (0,)
    assert gradients.minus.shape == (0, 3)


def test_nothing_is_left_behind(standin):
    cupy = standin()
    used = []
    for _ in range(4):
        engine, _, interference = make()
        engine.gradients(interference)
        del engine
        gc.collect()
        used.append((cupy.pools[0].in_use, cupy.pools[0].taken, cupy.pinned.taken))
    assert len(set(used)) == 1
    assert used[0][0] == 0


# What goes wrong


def test_engines_are_made_where_they_are_wanted(standin):
    standin(devices=2)
    for name, number, kind in [
        ("auto", None, "numba"),
        ("auto", 1, "cuda"),
        ("cuda", None, "cuda"),
        ("numba", 1, "numba"),
        ("numpy", 1, "numpy"),
    ]:
        engine, _, _ = make(engine=(name,), device=number)
        assert type(engine) is ENGINES[kind]
        assert getattr(engine, "device", None) == (number or 0 if kind == "cuda" else None)
    with pytest.raises(ValueError, match="engine = 'gpu': expected one of auto, cuda, numba, nump"):
        make(engine=("gpu",))


def test_too_little_memory_says_so_and_the_cpu_does_it(standin):
    standin(memory=1000)
    with pytest.raises(CudaError, match=r"keeping images of .* GiB: out of memory"):
        make()
    with pytest.warns(RuntimeWarning, match="likelihood is summed on the CPU.*out of memory"):
        engine, _, _ = make(engine=("auto",), device=0)
    assert type(engine) is ENGINES["numba"]


@pytest.mark.parametrize("operation", ["launch", "synchronize", "device"])
def test_a_device_that_is_lost_is_an_error_or_the_cpu_goes_on(standin, operation):
    cupy = standin(work="late")
    strict, other, interference = make()
    lenient, _, _ = make(engine=("auto",), device=0)
    strict.sums(interference)
    cupy.faults[operation] = CUDARuntimeError("cudaErrorIllegalAddress: some words")
    with pytest.raises(CudaError, match=r"GPU 0, .*: cudaErrorIllegalAddress"):
        strict.sums(interference)
    expected = other.gradients(interference)
    with pytest.warns(RuntimeWarning, match=r"summed on the CPU from now on. GPU 0.*IllegalAddr"):
        assert_same(lenient.gradients(interference), expected)
    cupy.faults.clear()  # but what the device has is not trusted any more
    with pytest.raises(CudaError, match="GPU 0 failed before"):
        strict.sums(interference)
    with warnings.catch_warnings(action="error"):  # one warning will do
        assert_same(lenient.gradients(interference), expected)
