"""Calibration against scans of known parameters, made with the plain transfer."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from scans import (
    CENTER,
    COEFS,
    KNOWN,
    ROTATION,
    SAMPLING,
    SHAPE,
    bright_field,
    frames,
    part,
    scan,
    specimen,
)

from libertem_parallax.calibration import (
    Calibration,
    CalibrationError,
    Hints,
    calibrate_stack,
    check_search,
    find_beam,
    reduce,
    without,
)
from libertem_parallax.calibration.calibration import _within_errors
from libertem_parallax.calibration.fit import (
    twin,
)
from libertem_parallax.parameters import Parameters


def calibrated(
    data: np.ndarray, hints: Hints | None = None, search: Any = (), **known: Any
) -> Calibration:
    parameters = Parameters(**{**KNOWN, **known})
    beam = find_beam(data.mean(axis=(0, 1)), without(parameters, search))
    return calibrate_stack(bright_field(data, beam.mask), parameters, beam, search, hints)


@cache
def plain(flip: bool = False) -> Calibration:
    return calibrated(frames(flip))


@pytest.mark.parametrize("flip", [False, True])
def test_finds_what_was_simulated(flip: bool) -> None:
    found = plain(flip)
    p, coefs = found.parameters, found.parameters["aberration_coefs"]
    assert p["detector_flip_cols"] == flip
    np.testing.assert_allclose(p["center"], CENTER, atol=0.1)
    np.testing.assert_allclose(p["angular_sampling"], SAMPLING, rtol=0.01)
    assert coefs["C10"] == pytest.approx(COEFS["C10"], rel=0.015)
    assert abs(part(coefs) - part(COEFS)) < 0.01 * abs(COEFS["C10"])
    assert not found.notes
    assert p["rotation_angle"] == pytest.approx(ROTATION, abs=math.radians(0.3))


@pytest.mark.parametrize("layout", [np.diag([-1.0, 1.0]), np.array([[0.0, 1.0], [1.0, 0.0]])])
def test_other_orders_of_the_array(layout: np.ndarray) -> None:
    """Frames stored otherwise, read as `detector_flip_rows` and `detector_transpose` say."""
    transposed = not layout[0, 0]
    data = frames()
    stored = data.swapaxes(2, 3) if transposed else data[:, :, ::-1]
    order = {"detector_transpose": True} if transposed else {"detector_flip_rows": True}
    found = calibrated(np.ascontiguousarray(stored), **order)
    straight = plain()
    p, expected = found.parameters, straight.parameters
    assert not p["detector_flip_cols"]
    assert p["rotation_angle"] == pytest.approx(expected["rotation_angle"], abs=2e-3)
    for name, value in expected["aberration_coefs"].items():
        assert p["aberration_coefs"][name] == pytest.approx(value, rel=0.02), name


def test_the_twin_is_told() -> None:
    found = plain()
    other = found.alternatives[0]
    p, q = found.parameters, other.parameters
    assert q["aberration_coefs"]["C10"] == pytest.approx(-p["aberration_coefs"]["C10"])
    assert part(q["aberration_coefs"]) == pytest.approx(-part(p["aberration_coefs"]))
    turned = math.remainder(q["rotation_angle"] - p["rotation_angle"], 2 * math.pi)
    assert abs(turned) == pytest.approx(math.pi)
    assert "twin" in other.why
    assert found.decided.startswith("skewness of the phase image, ")


@pytest.mark.parametrize(
    "hints",
    [Hints((-math.inf, 0)), Hints((-2000, -100)), Hints(rotation=ROTATION + math.pi - 1)],
    ids=["overfocus", "range", "rotation"],
)
def test_a_hint_decides(hints: Hints) -> None:
    """Here, against the skewness."""
    found = calibrated(frames(), hints)
    assert found.decided == "the hint"
    coefs = found.parameters["aberration_coefs"]
    assert coefs["C10"] == pytest.approx(-COEFS["C10"], rel=0.015)
    assert found.alternatives[0].parameters["aberration_coefs"]["C10"] < 0


def test_a_hint_that_fits_nothing() -> None:
    with pytest.raises(CalibrationError, match="with a defocus between 2000 and 3000 Å"):
        calibrated(frames(), Hints((2000, 3000)))
    with pytest.raises(CalibrationError, match=r"or what was given of defocus \(in Å\)"):
        calibrated(noise(), Hints((-3000, 3000)))


def test_what_is_given_is_kept() -> None:
    given = {
        "aberration_coefs": {"C10": -425.0},
        "center": (8.4, 7.4),
        "angular_sampling": (3.0, 3.0),
        "detector_flip_cols": False,
        "upsampling_factor": 2,
    }
    found = calibrated(frames(), **given)
    for name, value in given.items():
        if name != "aberration_coefs":
            assert found.parameters[name] == value
    assert found.parameters["aberration_coefs"]["C10"] == -425.0
    assert found.parameters["rotation_angle"] == pytest.approx(ROTATION, abs=0.01)
    assert set(found.uncertainties) == {"rotation_angle", "C12", "phi12"}
    assert not found.alternatives
    also = calibrated(frames(), search=["C10", "center"], **given)
    assert also.parameters["aberration_coefs"]["C10"] == pytest.approx(COEFS["C10"], rel=0.015)
    assert also.parameters["center"] != given["center"]


def test_given_astigmatism_turns_with_nothing() -> None:
    """It is along the scan's axes, while the rotation is searched."""
    found = calibrated(frames(), aberration_coefs={"C12": 60.0, "phi12": 0.4})
    coefs = found.parameters["aberration_coefs"]
    assert part(coefs) == pytest.approx(part(COEFS))
    assert coefs["C10"] == pytest.approx(COEFS["C10"], rel=0.015)
    assert found.parameters["rotation_angle"] == pytest.approx(ROTATION, abs=math.radians(0.3))


def noise() -> np.ndarray:
    """No specimen."""
    return scan(np.zeros(SHAPE), seed=3)


def shuffled() -> np.ndarray:
    data = frames()
    order = np.random.default_rng(0).permutation(SHAPE[0] * SHAPE[1])
    return data.reshape(-1, *data.shape[2:])[order].reshape(data.shape)


def dark() -> np.ndarray:
    return np.random.default_rng(0).poisson(2, (*SHAPE, 16, 16)).astype(np.uint8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (noise, "nothing stands out"),
        (shuffled, "nothing stands out"),
        (dark, "no bright-field disk"),
    ],
)
def test_where_there_is_nothing(data: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        calibrated(data())


def test_a_sampling_that_does_not_fit_is_told() -> None:
    found = calibrated(frames(), angular_sampling=(3.2, 3.2))
    assert "the disk's radius is 21" in found.notes[0]
    assert not calibrated(frames(), angular_sampling=(3.0, 3.0)).notes


def test_a_center_that_does_not_fit_and_a_hot_pixel_are_told() -> None:
    pattern = frames().mean(axis=(0, 1))
    for row in (8.9, 9.3):
        [note] = find_beam(pattern, Parameters(**KNOWN, center=(row, 7.4))).notes
        assert re.match(
            rf"the disk's center is row 8\.[34], column 7\.[345]; {row}, 7\.4 was given", note
        )
    assert not find_beam(pattern, Parameters(**KNOWN, center=(8.4, 7.3))).notes
    pattern[10, 6] = 1e5
    [note] = find_beam(pattern, Parameters(**KNOWN, center=(8.4, 7.3))).notes
    assert note.startswith("the pixel at row 10, column 6 is")


def test_oblong_pixels_are_seen() -> None:
    center = (9.4, 10.2)
    found = calibrated(scan(specimen(SHAPE), oblong=0.9, detector=20, center=center))
    np.testing.assert_allclose(found.parameters["angular_sampling"], (3.0, 2.7), rtol=0.015)
    np.testing.assert_allclose(found.parameters["center"], center, atol=0.1)
    assert "times as long" in found.notes[0]
    assert found.parameters["aberration_coefs"]["C10"] == pytest.approx(COEFS["C10"], rel=0.015)


def test_a_disk_that_moves_while_scanning() -> None:
    """Pixels at its rim become brighter along the scan, far more than by the specimen."""
    found = calibrated(scan(specimen(SHAPE), descan=1.0))
    coefs = found.parameters["aberration_coefs"]
    # The movement stretches the image: C10 times its rate, 1 pixel of 3 mrad in 32 Å.
    assert coefs["C10"] == pytest.approx(COEFS["C10"], rel=0.05)
    assert found.parameters["rotation_angle"] == pytest.approx(ROTATION, abs=math.radians(3))
    # By 1 pixel of 3 mrad.
    [distance] = re.findall(r"moves by about (\S+) mrad", found.notes[0])
    assert float(distance) == pytest.approx(3, rel=0.2)


def test_a_wrong_semiangle_is_told() -> None:
    with pytest.raises(CalibrationError, match=r"13 mrad does not fit: (19|2[01])(\.\d)? mrad"):
        calibrated(frames(), semiangle_cutoff=13.0)


@pytest.mark.parametrize("semiangle", [16.0, 40.0])
def test_a_semiangle_that_may_be_wrong_is_told(semiangle: float) -> None:
    """It changes little but what an Å of defocus is."""
    [note] = calibrated(frames(), semiangle_cutoff=semiangle).notes
    assert re.match(
        rf"semiangle_cutoff = {semiangle:g} mrad may be wrong: (19|2[01])(\.\d)? mrad", note
    )


def test_a_semiangle_that_is_a_little_wrong_is_told_where_electrons_suffice() -> None:
    data = frames(dose=20000.0)
    assert not calibrated(data).notes
    for semiangle in (19.0, 21.0):
        [note] = calibrated(data, semiangle_cutoff=semiangle).notes
        [better] = re.findall(rf"= {semiangle:g} mrad may be wrong: (\S+) mrad explain", note)
        assert float(better) == pytest.approx(20, rel=0.02)


def test_a_rotation_that_is_given_wrong_is_told() -> None:
    """Far off, astigmatism of the other hand takes the place of the defocus."""
    data = frames()
    assert not calibrated(data, rotation_angle=ROTATION).notes
    for off in (5, 30, -90):
        [note] = calibrated(data, rotation_angle=ROTATION + math.radians(off)).notes
        assert note.startswith("another rotation_angle explains"), off


HIGHER = {**COEFS, "C21": 5e3, "phi21": 1.0, "C23": 4e3, "phi23": -0.3, "C30": 3e5}


def test_higher_aberrations() -> None:
    """They are found where they are searched, else missed."""
    data = scan(specimen(SHAPE), HIGHER, dose=20000.0)
    found = calibrated(data, search=["C21", "C23", "C30"], angular_sampling=(3.0, 3.0))
    coefs, errors = found.parameters["aberration_coefs"], found.uncertainties
    for order in ("12", "21", "23"):
        off = abs(part(coefs, order) - part(HIGHER, order))
        assert off < 3 * math.sqrt(2) * errors[f"C{order}"] + 0.01 * abs(part(HIGHER, order)), order
    assert coefs["C30"] == pytest.approx(HIGHER["C30"], abs=3 * errors["C30"] + 0.1 * 3e5)
    assert coefs["C10"] == pytest.approx(HIGHER["C10"], rel=0.015)
    assert not found.notes
    assert "search for C21, C23 and C30" in calibrated(data).notes[0]


def test_a_crystal_tells_alternatives() -> None:
    """Of few spots, that of several defoci look alike."""
    y, x = np.indices(SHAPE) * 0.9
    lattice = sum(
        np.cos(2 * np.pi * (y * a + x * b) / 32.4) for a, b in ((14, 3), (-3, 14), (9, 9))
    )
    found = calibrated(scan(0.15 * lattice, {"C10": -420.0}))
    every = [found.parameters, *(other.parameters for other in found.alternatives)]
    assert len(every) > 2  # more than the twin
    assert min(abs(p["aberration_coefs"]["C10"] + 420) for p in every) < 10
    assert all("explains" in other.why for other in found.alternatives[1:])


def test_what_lies_within_errors_is_no_alternative() -> None:
    estimate = plain().estimate
    model, x = estimate.best.model, estimate.best.x
    away = np.linalg.cholesky(estimate.covariance)[:, 0]  # one standard deviation
    for start in (x, twin(model, x)):
        for deviations, other in ((2, False), (5, True)):
            solution = estimate.best._replace(x=start + deviations * away)
            assert _within_errors(estimate, solution) != other
            assert not _within_errors(estimate, solution._replace(mirrored=True))


def test_a_part_of_the_scan_and_all_pixels() -> None:
    """As a live run has them: the beam is found in what there is, rows that have begun are left."""
    data = frames().copy()
    scanned = np.zeros(SHAPE, bool)
    scanned[:28] = scanned[28, :20] = True
    data[~scanned] = 0
    stack = replace(bright_field(data, np.ones((16, 16), bool)), scanned=scanned)
    found = calibrate_stack(stack, Parameters(**KNOWN))
    assert found.stack.scan_shape == (28, 36)
    expected = calibrated(data[:28])
    assert dict(found.parameters) == dict(expected.parameters)


def test_large_detectors_are_binned(monkeypatch: pytest.MonkeyPatch) -> None:
    center = (15.8, 16.7)
    data = scan(specimen(SHAPE), detector=34, sampling=1.5, center=center)
    fine = calibrated(data)
    monkeypatch.setattr(reduce, "_PIXELS", 200)
    stack, optics = reduce.binned(fine.stack, fine.beam.optics)
    assert stack.detector_shape == (17, 17)
    rows, cols = stack.pixels[0] * 2
    expected = data[..., rows : rows + 2, cols : cols + 2].sum(axis=(2, 3)).ravel()
    np.testing.assert_array_equal(stack.frames[:, 0], expected)
    # Middles of the larger pixels.
    middles = fine.beam.optics.positions(2 * stack.pixels) + 0.5 * 1.5 / 20
    np.testing.assert_allclose(optics.positions(stack.pixels), middles, rtol=0.01, atol=1e-3)
    coarse = calibrated(data)
    for found in (fine, coarse):
        coefs = found.parameters["aberration_coefs"]
        assert coefs["C10"] == pytest.approx(COEFS["C10"], rel=0.015)
        np.testing.assert_allclose(found.parameters["center"], center, atol=0.1)


def test_names_of_search() -> None:
    assert check_search(["coma", "C23", "C21"]) == ("C21", "C23")
    with pytest.raises(ValueError, match="search: 'C13': expected some of center"):
        check_search(["C13"])
