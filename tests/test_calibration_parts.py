"""The likelihood over parameters and what comes before it, piece by piece."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scans import (
    CENTER,
    COEFS,
    ROTATION,
    SAMPLING,
    SHAPE,
    bright_field,
    count,
    expected,
    frames,
    part,
    specimen,
)

from libertem_parallax.calibration.fit import (
    ascend,
    covariance,
    decompose,
    frequency_weights,
    twin,
)
from libertem_parallax.calibration.model import Model, Optics, turn
from libertem_parallax.calibration.search import _Band, matrices
from libertem_parallax.calibration.spectra import independent, transform


def small(data: np.ndarray | None = None) -> tuple[Any, Optics]:
    data = frames() if data is None else data
    optics = Optics(0.0197, 0.02, CENTER, (SAMPLING * 1e-3, SAMPLING * 1e-3))
    xi = optics.positions(np.argwhere(np.ones((16, 16), bool)))
    stack = bright_field(data, (np.hypot(*xi.T) <= 1).reshape(16, 16))
    return transform(stack, (0.9, 0.9), independent(SHAPE, (0.9, 0.9), 0.3)), optics


LAYOUTS = {
    "straight": np.eye(2), "columns": np.diag([1.0, -1.0]), "rows": np.diag([-1.0, 1.0]),
    "transposed": np.array([[0.0, 1.0], [1.0, 0.0]]), "turned": np.array([[0.0, -1.0], [1.0, 0.0]]),
}  # fmt: skip


def test_uncertainties_are_true() -> None:
    """The scatter of fits over seeds of the noise is what is stated."""
    x, stated = [], []
    mean = expected(specimen(SHAPE), dose=500.0)
    for seed in range(25):
        spectra, optics = small(count(mean, seed))
        model = Model(spectra, optics, np.eye(2), [(1, 0), (1, 2)])
        free = list(range(model.size))
        best = ascend(model, model.vector(COEFS, ROTATION), free)
        radius = np.hypot(*spectra.q.T)
        model = model.replace(weights=frequency_weights(radius, model.explained(best)))
        x.append(ascend(model, best, free))
        stated.append(np.diag(covariance(model, x[-1], free)))
    ratio = np.std(x, axis=0, ddof=1) / np.sqrt(np.mean(stated, axis=0))
    assert (ratio > 1 / 1.5).all()
    assert (ratio < 1.5).all()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_gradients_of_the_model(layout: np.ndarray) -> None:
    """Against differences; its edge is sharp, so these are near only."""
    spectra, optics = small()
    model = Model(spectra, optics, layout, [(1, 0), (1, 2), (2, 1), (2, 3), (3, 0)])
    coefs = {**COEFS, "C21": 2e3, "phi21": 1.0, "C23": 3e3, "phi23": 0.2, "C30": 1e5}
    x = model.vector(coefs, 0.4)
    assert model.coefs(x) == pytest.approx(coefs)
    _, gradient = model.value_and_gradient(x)
    step = 1e-4
    differences = [
        (model.value(x + step * unit) - model.value(x - step * unit)) / (2 * step)
        for unit in np.eye(model.size)
    ]
    np.testing.assert_allclose(gradient, differences, atol=0.01 * np.abs(differences).max())


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_twin_is_as_likely(layout: np.ndarray) -> None:
    spectra, optics = small()
    model = Model(spectra, optics, layout, [(1, 0), (1, 2), (2, 1), (3, 0)])
    x = model.vector({**COEFS, "C21": 2e3, "phi21": 1.0, "C30": 1e5}, 0.4)
    one, other = model.sums(x), model.sums(twin(model, x))
    np.testing.assert_allclose(other.explained, one.explained, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(other.N, -one.N, atol=1e-3 * np.abs(one.N).max())


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_shifts_and_what_makes_them(layout: np.ndarray) -> None:
    """Shifts are H R F ξ, H the aberrations, R the rotation, F the order of the array."""
    C10, C12, phi12, rotation = -800.0, 150.0, 0.6, 2.1
    H = np.array(
        [
            [C10 + C12 * np.cos(2 * phi12), C12 * np.sin(2 * phi12)],
            [C12 * np.sin(2 * phi12), C10 - C12 * np.cos(2 * phi12)],
        ]
    )
    coefs, angle = decompose(H @ turn(rotation) @ layout * 0.02, layout, 0.02)
    # The twin, as C10 is positive where a decomposition may choose.
    assert coefs["C10"] == pytest.approx(-C10)
    assert part(coefs) == pytest.approx(-part({"C12": C12, "phi12": phi12}))
    assert abs(math.remainder(angle - rotation, 2 * math.pi)) == pytest.approx(math.pi)


def test_the_transform_is_the_sum() -> None:
    """E at Mᵀq against the sum over pixels that it stands for, exact but for interpolation."""
    spectra, optics = small()
    some = spectra.take(slice(0, 30))
    M = np.random.default_rng(0).uniform(-10, 10, (200, 2, 2))
    M[0] = 0
    xi = optics.positions(some.pixels)
    phases = np.exp(-2j * np.pi * np.einsum("qi,nij,mj->nqm", some.q, M, xi))
    expected = (np.abs((phases * some.images).sum(axis=2)) ** 2).mean(axis=1) / len(xi)
    heights = _Band(some, optics).heights(M)
    assert heights[0] == pytest.approx(expected[0], rel=0.2)
    assert np.corrcoef(heights, expected)[0, 1] > 0.95
    other = _Band(some, optics).heights(-M)
    assert np.corrcoef(other, expected)[0, 1] < 0.5


def test_matrices_of_complex_numbers() -> None:
    a, b, z = 1 + 2j, 0.3 - 0.4j, 0.7 - 1.1j
    moved = a * z + b * np.conj(z)
    np.testing.assert_allclose(matrices(a, b) @ [z.real, z.imag], [moved.real, moved.imag])


@pytest.mark.parametrize("shape", [(6, 8), (7, 5), (6, 5)])
def test_frequencies_say_different_things(shape: tuple[int, int]) -> None:
    """As many as real values have independent coefficients, but for 0 and Nyquist frequencies."""
    index = independent(shape, (1.0, 1.0), 10.0)
    signed = {(int(y) - shape[0] * (2 * y > shape[0]), int(x)) for y, x in index}
    assert len(signed) == len(index)
    assert not any((-y, -x) in signed for y, x in signed)
    odd = [n - 1 + n % 2 for n in shape]
    assert len(index) == (odd[0] * odd[1] - 1) // 2


@pytest.mark.parametrize("shape", [(24, 26), (1, 624), (208, 3)])
def test_spectra_of_noise_have_a_power_of_one(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    data = rng.poisson(np.linspace(1, 40, 16).reshape(4, 4), (*shape, 4, 4)).astype(np.uint8)
    data[..., 0, 0] = 0
    stack = bright_field(data, np.ones((4, 4), bool))
    spectra = transform(stack, (1.0, 1.0), independent(shape, (1.0, 1.0), 1.0))
    assert len(spectra.pixels) == 15
    power = (np.abs(spectra.images) ** 2).mean(axis=0)
    np.testing.assert_allclose(power, 1, atol=0.25)
    assert spectra.noise == pytest.approx(1, abs=0.1)


def test_what_the_specimen_is_not_is_taken_off() -> None:
    """Smooth changes over the scan, and what all pixels do at one frequency."""
    rng = np.random.default_rng(0)
    y, x = np.indices((24, 26)) / 25
    slow = 1 + 0.4 * y - 0.5 * x * y
    fast = 0.3 * np.cos(2 * np.pi * np.arange(26) * 5 / 26)
    mean = 50 * np.ones((24, 26, 4, 4)) * (slow + fast)[..., None, None]
    stack = bright_field(rng.poisson(mean).astype(np.uint16), np.ones((4, 4), bool))
    index = independent((24, 26), (1.0, 1.0), 1.0)
    spectra = transform(stack, (1.0, 1.0), index)
    at = np.flatnonzero((index == (0, 5)).all(axis=1))
    others = np.delete(spectra.power, at)
    assert others.max() < 4  # without, hundreds at the lowest
    assert spectra.power[at] > 100
    assert spectra.strong[at]
    power = (np.abs(spectra.images) ** 2).mean(axis=1)
    np.testing.assert_allclose(power[at], 1, rtol=1e-5)
