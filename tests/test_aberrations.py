from __future__ import annotations

import definition
import numpy as np
import pytest

from libertem_parallax import aberrations

RNG = np.random.default_rng(5)
ANGLES = RNG.normal(scale=10e-3, size=(40, 2))
EVERYTHING = {
    name: float(
        RNG.uniform(-1, 1) * (np.pi if name.startswith("phi") else 10.0 ** (int(name[1]) + 2))
    )
    for name in aberrations.SYMBOLS
}


def test_the_polar_set_is_complete():
    assert " ".join(aberrations.SYMBOLS) == (
        "C10 C12 phi12 C21 phi21 C23 phi23 C30 C32 phi32 C34 phi34 C41 phi41 C43 phi43 C45 phi45 "
        "C50 C52 phi52 C54 phi54 C56 phi56"
    )


@pytest.mark.parametrize(
    ("kilovolt", "picometer"), [(60, 4.866), (100, 3.701), (200, 2.508), (300, 1.969)]
)
def test_wavelength_is_that_of_textbooks(kilovolt, picometer):
    """Williams & Carter, table 1.2 (rounded to a femtometer)."""
    assert aberrations.wavelength(kilovolt * 1e3) * 100 == pytest.approx(picometer, abs=6e-4)


@pytest.mark.parametrize("even_only", [False, True])
@pytest.mark.parametrize("names", [*aberrations.SYMBOLS, "all"])
def test_surface_equals_complex_notation(names, even_only):
    coefs = {
        name: value
        for name, value in EVERYTHING.items()
        if names == "all" or name in (names, names.replace("phi", "C"))
    }
    np.testing.assert_allclose(
        aberrations.surface(coefs, ANGLES, 0.02, even_only=even_only),
        definition.chi(coefs, *ANGLES.T, 0.02, even_only=even_only),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("order", [*(s for s in aberrations.SYMBOLS if s.startswith("C")), "all"])
def test_gradient_is_the_slope_of_the_surface(order):
    coefs = {
        name: value
        for name, value in EVERYTHING.items()
        if order == "all" or name[-2:] == order[1:]
    }
    wavelength, step = 0.02, 1e-6
    slopes = []
    for axis in (0, 1):
        aside = np.eye(2)[axis] * step
        difference = aberrations.surface(coefs, ANGLES + aside, wavelength) - aberrations.surface(
            coefs, ANGLES - aside, wavelength
        )
        # ∂χ/∂k / 2π, with angle = λ k.
        slopes.append(difference / (2 * step) * wavelength / (2 * np.pi))
    expected = np.stack(slopes, axis=-1)
    actual = aberrations.gradient(coefs, ANGLES)
    np.testing.assert_allclose(actual, expected, atol=1e-6 * np.abs(expected).max())


def test_defocus_displaces_by_angle_times_defocus():
    np.testing.assert_allclose(aberrations.gradient({"C10": -100.0}, ANGLES), -100 * ANGLES)


def test_even_aberrations_are_even():
    for even_only in (True, False):
        there, back = (
            aberrations.surface(EVERYTHING, sign * ANGLES, 0.02, even_only=even_only)
            for sign in (1, -1)
        )
        assert np.allclose(there, back) == even_only


def test_nothing_happens_in_the_center():
    assert not aberrations.gradient(EVERYTHING, [0.0, 0.0]).any()
    assert aberrations.surface(EVERYTHING, [0.0, 0.0], 0.02) == 0


def test_aliases():
    assert aberrations.canonical(
        {
            "defocus": 100,
            "astigmatism": 2,
            "astigmatism_angle": 0.3,
            "coma": 4,
            "coma_angle": 0.5,
            "Cs": 1e7,
            "C5": 6,
        }
    ) == {"C10": -100.0, "C12": 2.0, "phi12": 0.3, "C21": 4.0, "phi21": 0.5, "C30": 1e7, "C50": 6.0}
    assert dict(aberrations.ALIASES) == {
        "defocus": "C10", "Cs": "C30", "C5": "C50",
        "astigmatism": "C12", "astigmatism_angle": "phi12",
        "astigmatism3": "C32", "astigmatism3_angle": "phi32",
        "astigmatism5": "C52", "astigmatism5_angle": "phi52",
        "coma": "C21", "coma_angle": "phi21", "coma4": "C41", "coma4_angle": "phi41",
        "trefoil": "C23", "trefoil_angle": "phi23", "trefoil4": "C43", "trefoil4_angle": "phi43",
        "quadrafoil": "C34", "quadrafoil_angle": "phi34",
        "quadrafoil5": "C54", "quadrafoil5_angle": "phi54",
        "pentafoil": "C45", "pentafoil_angle": "phi45",
        "hexafoil": "C56", "hexafoil_angle": "phi56",
    }  # fmt: skip
    assert aberrations.canonical(None) == {}
    assert aberrations.canonical({"phi12": " -15 deg", "coma_angle": "1e1deg"}) == pytest.approx(
        {"phi12": -np.pi / 12, "phi21": np.pi / 18}
    )


@pytest.mark.parametrize(
    ("coefs", "message"),
    [
        ({"C100": 1}, "unknown name 'C100'; the nearest known one is 'C10' in Å"),
        ({"C1": 1}, "unknown name 'C1'; the nearest known one is 'C10' in Å"),
        ({"A1": 1}, "unknown name 'A1'; the nearest known one is 'C12' in Å"),
        ({"C11": 1}, "unknown name 'C11'; the nearest known one is 'C1[02]' in Å"),
        ({"c10": 1}, "unknown name 'c10'; the nearest known one is 'C10' in Å"),
        ({"df": 1}, "unknown name 'df'; the nearest known one is 'defocus' in Å"),
        ({"defocus_A": 1}, "unknown name 'defocus_A'; the nearest known one is 'defocus' in Å"),
        ({"Defocus_nm": 1}, "the nearest known one is 'defocus' in Å"),
        ({"cs_mm": 1}, "unknown name 'cs_mm'; the nearest known one is 'Cs' in Å"),
        ({"astig_angle_deg": 1}, "the nearest known one is 'astigmatism_angle' in rad"),
        ({"x": 1}, r"unknown name 'x'\. Known"),
        ({1: 1}, r"unknown name 1\. Known"),
        ({"C99": 1}, r"unknown name 'C99'\. Known: C10"),
        ({"C10": "-1.5e4"}, r"aberration_coefs\['C10'\] = '-1.5e4': expected a finite number"),
        ({"defocsu": 1}, "the nearest known one is 'defocus'"),
        ({"phi_12": 1}, "the nearest known one is 'phi12'"),
        ({"C10": float("nan")}, r"aberration_coefs\['C10'\] = nan: expected a finite number \(Å\)"),
        ({"phi12": "x"}, r"aberration_coefs\['phi12'\] = 'x': expected an angle, a number in rad"),
        ({"phi12": "1"}, r"aberration_coefs\['phi12'\] = '1': expected an angle"),
        ({"phi12": "nandeg"}, "'nandeg': expected an angle"),
        ({"C10": True}, r"aberration_coefs\['C10'\] = True: expected a finite number \(Å\)"),
        ({"C10": "15deg"}, r"aberration_coefs\['C10'\] = '15deg': expected a finite number"),
        ({"C10": 1, "defocus": -1}, "'C10' and 'defocus' both name C10"),
    ],
)
def test_errors_name_what_is_wrong(coefs, message):
    with pytest.raises(ValueError, match=message):
        aberrations.canonical(coefs)
