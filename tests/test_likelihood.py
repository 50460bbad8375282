"""The contract of the likelihood's engines, and the polynomials that they are given."""

from __future__ import annotations

import numpy as np
import pytest
from interferences import COEFS, SEMIANGLE, WAVELENGTH, case

from libertem_parallax import aberrations
from libertem_parallax.interference import beams, beams_gradient
from libertem_parallax.likelihood import ENGINES, Interference, Sums, monomials
from libertem_parallax.weak_object import aperture, transfer


@pytest.mark.parametrize("coefs", COEFS.values(), ids=COEFS)
def test_is_the_transfer_over_the_mean(engine_name, coefs):
    images, xi, eta, turns = case(coefs)
    edge = 0.15
    T = transfer(
        xi * SEMIANGLE,
        eta * SEMIANGLE / WAVELENGTH,
        coefs,
        WAVELENGTH,
        SEMIANGLE,
        edge * SEMIANGLE,
    )
    gamma = T / (1j * aperture(xi, 1, edge))
    N, D = ENGINES[engine_name](images, xi, edge).sums(beams(turns, eta))
    np.testing.assert_allclose(N, (gamma.conj() * images).sum(axis=1), rtol=0, atol=3e-4)
    np.testing.assert_allclose(D, (np.abs(gamma) ** 2).sum(axis=1), rtol=1e-5, atol=1e-6)


def explained(images, xi, edge, interference):
    return ENGINES["numpy"](images, xi, edge).sums(interference).explained


def test_gradients_are_those_of_the_sums(engine_name):
    """Against differences, with an edge so wide that all disks are smooth at all pixels."""
    images, xi, eta, turns = case(COEFS["third order"])
    edge = 4.0
    start = beams(turns, eta / 3)
    sums, gradients = ENGINES[engine_name](images, xi, edge).gradients(start)
    np.testing.assert_allclose(sums.explained, explained(images, xi, edge, start), rtol=1e-5)
    for part, gradient in zip(start._fields, gradients, strict=True):
        for t in range(gradient.shape[1]):
            two = []
            for step in (1e-5, -1e-5):
                moved = getattr(start, part).copy()
                moved[:, t] += step
                two.append(explained(images, xi, edge, start._replace(**{part: moved})))
            difference = (two[0] - two[1]) / 2e-5
            np.testing.assert_allclose(gradient[:, t], difference, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("coefs", COEFS.values(), ids=COEFS)
def test_gradients_by_aberrations_and_frequencies(coefs):
    images, xi, eta, turns = case(coefs)
    edge, eta = 4.0, eta / 3
    _, by = ENGINES["numpy"](images, xi, edge).gradients(beams(turns, eta))
    by_turns, by_eta = beams_gradient(turns, eta, by)

    def difference(d_turns, d_eta):
        h = 1e-6
        two = [
            explained(images, xi, edge, beams(turns + s * h * d_turns, eta + s * h * d_eta))
            for s in (1, -1)
        ]
        return (two[0] - two[1]) / (2 * h)

    for t, unit in enumerate(np.eye(len(turns))):
        np.testing.assert_allclose(by_turns[:, t], difference(unit, np.zeros(2)), atol=1e-4)
    for axis, unit in enumerate(np.eye(2)):
        np.testing.assert_allclose(by_eta[:, axis], difference(0 * turns, unit), atol=1e-4)


@pytest.mark.parametrize("coefs", COEFS.values(), ids=COEFS)
def test_polynomial_is_the_surface(coefs):
    _, xi, _, turns = case(coefs)
    degree = int(np.sqrt(2 * len(turns))) - 1
    values = sum(
        c * xi[:, 0] ** i * xi[:, 1] ** j
        for c, (i, j) in zip(turns, monomials(degree), strict=True)
    )
    surface = aberrations.surface(coefs, xi * SEMIANGLE, WAVELENGTH)
    np.testing.assert_allclose(2 * np.pi * values, surface, atol=1e-9)


def test_of_noise_the_explained_power_is_one(engine_name):
    images, xi, eta, turns = case(COEFS["second order"], Q=2000)
    sums = ENGINES[engine_name](images / np.float32(np.sqrt(2)), xi, 0.1).sums(beams(turns, eta))
    assert abs(sums.explained.mean() - 1) < 5 / np.sqrt(2000)


def test_what_no_beam_reaches(engine_name):
    """Where both beams miss all pixels there is nothing, not NaN."""
    images, xi, eta, turns = case(COEFS["second order"])
    eta = eta + 5
    sums, gradients = ENGINES[engine_name](images, xi, 0.1).gradients(beams(turns, eta))
    assert not sums.D.any()
    assert not sums.explained.any()
    assert not any(part.any() for part in gradients)


def test_threads_change_nothing():
    images, xi, eta, turns = case(COEFS["second order"], Q=1500, M=1000)
    one, three = (ENGINES["numba"](images, xi, 0.1, threads=n) for n in (1, 3))
    expected, actual = (engine.gradients(beams(turns, eta)) for engine in (one, three))
    for a, b in zip((*expected[0], *expected[1]), (*actual[0], *actual[1]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_does_not_fit_is_refused(engine_name):
    images, xi, eta, turns = case(COEFS["second order"])
    make = ENGINES[engine_name]
    with pytest.raises(ValueError, match="complex64 of shape"):
        make(images.astype(complex), xi, 0.1)
    with pytest.raises(ValueError, match=r"positions: expected shape \(40, 2\)"):
        make(images, xi[:-1], 0.1)
    with pytest.raises(ValueError, match="edge = 0: expected a positive width"):
        make(images, xi, 0.0)
    minus, plus, center = beams(turns, eta)
    for bad in (
        Interference(minus[:-1], plus, center),
        Interference(minus, plus[:, :-1], center),
        Interference(minus[:, :2], plus[:, :2], center),
        Interference(minus, plus, center[:, :1]),
    ):
        with pytest.raises(ValueError, match="interference of shapes"):
            make(images, xi, 0.1).sums(bad)


def test_explained_power():
    sums = Sums(np.array([3 + 4j, 0]), np.array([5.0, 0]))
    np.testing.assert_array_equal(sums.explained, [5, 0])
