from __future__ import annotations

import re
import warnings

import definition
import numpy as np
import pytest

from libertem_parallax.geometry import Geometry

PARAMETERS = {
    "shape": (8, 9, 24, 25),
    "scan_sampling": (4.1, 3.9),
    "energy": 300e3,
    "semiangle_cutoff": 4.0,
    "angular_sampling": (0.41, 0.37),
    "aberration_coefs": {"C10": -2500.0, "C12": 300.0, "phi12": 0.4, "C21": 3000.0, "phi21": 1.0},
}


def make(**changes):
    parameters = {**PARAMETERS, **changes}
    return Geometry.from_parameters(**{k: v for k, v in parameters.items() if v is not ...})


@pytest.mark.parametrize("rotation", [0.0, 0.3, -0.26, 2.0])
@pytest.mark.parametrize(("flip_rows", "flip_cols"), [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("center", "u"), [(None, 1), ((11.3, 12.8), 3), ((12.5, 11.5), 1)])
def test_pixels_and_shifts_follow_the_definition(
    rotation, flip_rows, flip_cols, transpose, center, u
):
    order = {"flip_rows": bool(flip_rows), "transpose": transpose}
    plan = make(
        rotation_angle=rotation, center=center, upsampling_factor=u,
        detector_flip_cols=bool(flip_cols),
        **{f"detector_{name}": value for name, value in order.items()},
    ).plan  # fmt: skip
    pixels, angles = definition.bright_field(
        (24, 25), (0.41, 0.37), 4.0, rotation=rotation, center=center, flip=flip_cols, **order
    )
    np.testing.assert_array_equal(plan.pixels, pixels)
    expected = definition.shifts(PARAMETERS["aberration_coefs"], angles, (4.1, 3.9), u)
    np.testing.assert_array_equal(plan.shifts, expected)


def test_a_geometry_tells_directions_sampling_and_center():
    reciprocal = tuple(a * 1e-3 / definition.WAVELENGTH_300KEV for a in (0.41, 0.37))
    parameters = {"rotation_angle": 0.3, "detector_flip_cols": True, "detector_transpose": True}
    geometry = make(angular_sampling=..., reciprocal_sampling=reciprocal, **parameters)
    _, angles = definition.bright_field(
        (24, 25), (0.41, 0.37), 4.0, rotation=0.3, flip=True, transpose=True
    )
    np.testing.assert_allclose(geometry.angles, angles, rtol=1e-6)
    np.testing.assert_allclose(geometry.sampling, (0.41, 0.37), rtol=1e-6)
    assert geometry.center == (12, 12)
    assert make(center=(1, 2), **parameters, semiangle_cutoff=0.3).center == (1, 2)


def test_reciprocal_sampling_is_angular_sampling_over_wavelength():
    reciprocal = tuple(a * 1e-3 / definition.WAVELENGTH_300KEV for a in (0.41, 0.37))
    a = make(rotation_angle=0.1)
    b = make(rotation_angle=0.1, angular_sampling=..., reciprocal_sampling=reciprocal)
    np.testing.assert_array_equal(a.plan.pixels, b.plan.pixels)
    np.testing.assert_array_equal(a.plan.shifts, b.plan.shifts)


@pytest.mark.parametrize("rotation", [0.0, 0.1, 0.7, np.pi / 4, np.pi / 2])
@pytest.mark.parametrize("sampling", [0.3, 0.1, 0.41])
def test_pixels_on_the_edge_are_inside(rotation, sampling):
    """3-4-5 triangles lie on the edge; rounding must not let some of them drop out."""
    plan = make(
        shape=(8, 8, 15, 15), angular_sampling=(sampling, sampling), semiangle_cutoff=5 * sampling,
        rotation_angle=rotation, aberration_coefs=None,
    ).plan  # fmt: skip
    assert len(plan.pixels) == 81


@pytest.mark.parametrize("turn", [0, 1, 2, -1])
def test_halves_are_rounded_alike_wherever_they_stand(turn):
    """Round numbers put shifts on exact halves: these go to even numbers, in every layout."""
    plan = make(
        shape=(50, 50, 25, 25), scan_sampling=(2.0, 2.0), angular_sampling=(0.1, 0.1),
        semiangle_cutoff=1.0, aberration_coefs={"C10": -1e4}, rotation_angle=turn * np.pi / 2,
    ).plan  # fmt: skip
    y, x = (plan.pixels - 12).T
    # -1e4 Å times 0.1 mrad is half a scan step a pixel.
    halves = {0: (-y, -x), 1: (x, -y), 2: (y, x), -1: (-x, y)}[turn]
    expected = [[round(int(a) / 2), round(int(b) / 2)] for a, b in zip(*halves, strict=True)]
    assert plan.shifts.tolist() == expected


def test_mask_takes_pixels_out_in_the_layout_as_stored():
    mask = np.random.default_rng(0).random((24, 25)) < 0.7
    for flip in (False, True):
        everything = make(detector_flip_cols=flip).plan
        some = make(detector_flip_cols=flip, bf_mask=mask).plan
        keep = mask[tuple(everything.pixels.T)]
        np.testing.assert_array_equal(some.pixels, everything.pixels[keep])
        np.testing.assert_array_equal(some.shifts, everything.shifts[keep])


def test_rotation_does_not_jump_anywhere_but_at_exact_quarter_turns():
    """Upstream moves the center by a pixel for every angle beyond 45°."""
    before, after = (make(rotation_angle=np.deg2rad(45 + d)).plan for d in (-1e-7, 1e-7))
    np.testing.assert_array_equal(before.pixels, after.pixels)
    np.testing.assert_array_equal(before.shifts, after.shifts)
    for off in (1e-6, 1e-8, -1e-8):
        near = make(shape=(8, 9, 24, 24), rotation_angle=np.pi / 2 + off, semiangle_cutoff=0.1).plan
        assert near.pixels.tolist() == [[12, 12]]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turn", [1, 2, 3, -1, -2, 5])
@pytest.mark.parametrize("detector", [(24, 24), (25, 24), (24, 25)])
def test_an_exact_quarter_turn_says_what_it_means(turn, flip, detector):
    """What the warning proposes for frames in another order gives the same geometry.

    And what it proposes for a detector that is turned is where rotations nearby have their center.
    """
    parameters = {"shape": (8, 9, *detector), "detector_flip_cols": flip}
    nearby = make(**parameters, rotation_angle=turn * np.pi / 2 + 1e-7)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        turned = make(**parameters, rotation_angle=turn * np.pi / 2)
    if turned.center == nearby.center:  # of odd length
        assert not caught
        return
    [text] = [str(warning.message) for warning in caught]
    assert f"is exactly {90 * (turn % 4)}°" in text
    flags = dict.fromkeys(re.findall(r"(detector_\w+)=True", text), True)
    said = make(**{**parameters, "detector_flip_cols": False, **flags}, rotation_angle=0)
    assert said.plan.digest == turned.plan.digest
    [center] = re.findall(r"is turned, give center=\((\d+), (\d+)\)", text)
    assert tuple(map(int, center)) == nearby.center
    physical = make(**parameters, rotation_angle=turn * np.pi / 2, center=nearby.center)
    np.testing.assert_array_equal(physical.plan.pixels, nearby.plan.pixels)


def test_a_quarter_turn_beside_a_given_order_is_a_rotation():
    for flag in ("detector_flip_rows", "detector_transpose"):
        parameters = {"shape": (8, 9, 24, 24), flag: True}
        exact, nearby = (make(**parameters, rotation_angle=np.pi + off) for off in (0, 1e-7))
        assert exact.center == nearby.center


@pytest.mark.parametrize("shape", [(6, 9), (7, 8), (8, 8), (7, 7)])
@pytest.mark.parametrize("u", [1, 2])
@pytest.mark.parametrize("suppress", [True, False])
def test_phase_flip_filter_is_the_transform_of_the_real_kernel(shape, u, suppress):
    coefs = {"C10": -700.0, "C12": 200.0, "phi12": 0.4, "C21": 9000.0, "C30": 1e6}
    geometry = make(
        shape=(*shape, 24, 24), upsampling_factor=u, aberration_coefs=coefs, semiangle_cutoff=1.0
    )
    delta = np.zeros((u * shape[0], u * shape[1]))
    delta[0, 0] = 1
    kernel = definition.phase_flip(
        delta, coefs, definition.WAVELENGTH_300KEV, (4.1, 3.9), u, suppress=suppress
    )
    actual = geometry.phase_flip_filter(suppress_Nyquist_noise=suppress)
    np.testing.assert_allclose(actual, np.fft.rfft2(kernel), atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (8, 9, 24)}, r"shape = \(8, 9, 24\): expected four positive integers"),
        ({"shape": (8, 9, 24, 0)}, "expected four positive integers"),
        ({"shape": (8, 9, 24, 2.5)}, "expected four positive integers"),
        ({"scan_sampling": (0, 1)}, r"scan_sampling\[0\] = 0: expected a positive number \(Å\)"),
        ({"scan_sampling": 3.0}, "scan_sampling = 3.0: expected two positive numbers"),
        ({"scan_sampling": (1, float("inf"))}, r"scan_sampling\[1\] = inf"),
        ({"scan_sampling": (1, "x")}, r"scan_sampling\[1\] = 'x'"),
        ({"energy": 300}, r"energy = 300: expected a number from 10000 to 1e\+07 \(eV\)"),
        ({"energy": float("nan")}, "energy = nan"),
        ({"energy": None}, "energy is missing: expected the energy of the electrons"),
        ({"energy": "300e3"}, "energy = '300e3': expected a positive number"),
        ({"semiangle_cutoff": -4.0}, r"semiangle_cutoff = -4.0: expected a positive .* \(mrad\)"),
        ({"scan_sampling": "12"}, "scan_sampling = '12': expected two positive numbers"),
        ({"upsampling_factor": True}, "upsampling_factor = True: expected an integer"),
        ({"aberration_coefs": [1.0]}, r"aberration_coefs = \[1.0\]: expected names and values"),
        ({"angular_sampling": None}, "reciprocal_sampling is missing: .*, or angular_sampling"),
        ({"reciprocal_sampling": (0.1, 0.1)}, "angular_sampling and .* both given: expected one"),
        ({"angular_sampling": (0.4, -0.4)}, r"angular_sampling\[1\] = -0.4"),
        (
            {"angular_sampling": None, "reciprocal_sampling": (0.0, 1)},
            r"reciprocal_sampling\[0\] = 0.0: expected a positive number \(1/Å\)",
        ),
        ({"aberration_coefs": {"C1": 1}}, "unknown name 'C1'"),
        ({"rotation_angle": float("inf")}, "rotation_angle = inf: expected an angle"),
        ({"upsampling_factor": 0}, "upsampling_factor = 0: expected an integer of at least 1"),
        ({"upsampling_factor": 1.5}, "upsampling_factor = 1.5: expected an integer"),
        ({"upsampling_factor": 1001}, "upsampling_factor = 1001: .* no more than 1000"),
        ({"upsampling_factor": 10**400}, "upsampling_factor = 10+: expected an integer"),
        ({"shape": 5}, "shape = 5: expected four positive integers"),
        ({"energy": 9999.0}, "energy = 9999: expected a number from 10000"),
        ({"energy": 1e300}, r"energy = 1e\+300: expected a number from 10000"),
        ({"energy": 10**400}, "energy = 10+: expected a positive number"),
        ({"aberration_coefs": {"C10": 10**400}}, r"aberration_coefs\['C10'\] = 10+: expected a"),
        ({"aberration_coefs": {"C10": 1e25}}, "aberration_coefs = .* shift the images by up to"),
        ({"aberration_coefs": {"C10": 1e308}}, "aberration_coefs = .* shift the images by up to"),
        ({"scan_sampling": (1e-300, 1)}, "shift the images by up to"),
        ({"rotation_angle": ""}, "rotation_angle = ''"),
        ({"rotation_angle": [0.1, 0.2]}, "rotation_angle = "),
        ({"detector_flip_cols": "False"}, "detector_flip_cols = 'False': expected True or False"),
        ({"center": "12"}, "center = '12'"),
        ({"center": (-0.6, 3)}, "center = "),
        ({"center": (3, 24.6)}, "center = "),
        ({"center": (12, 25)}, r"center = \(12\.0, 25\.0\): expected row and column .* 24 x 25"),
        ({"center": (-1, 3)}, "center = "),
        ({"center": (float("nan"), 3)}, "center = "),
        ({"center": 12}, "center = 12"),
        ({"bf_mask": np.ones((24, 24), bool)}, r"bf_mask: expected a boolean array .* \(24, 25\)"),
        ({"bf_mask": np.ones((24, 25))}, "bf_mask: expected a boolean array .* got float64"),
        ({"bf_mask": np.zeros((24, 25), bool)}, "the bright field is empty"),
        ({"center": (12.5, 12.5), "semiangle_cutoff": 0.1}, "the bright field is empty"),
    ],
)  # fmt: skip
def test_errors_name_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("center", "place"),
    [((8, 12), "row 8"), ((15, 12), "row 15"), ((12, 9), "column 9"), ((12, 15), "column 15")],
)
def test_a_bright_field_cut_off_by_the_detector_warns(center, place, flip):
    """The disk ends where the outer pixels do; on all four sides, named as the user does."""
    shape = {"shape": (8, 9, 24, 25), "detector_flip_cols": flip, "center": center}
    row, col = center
    room = min(row + 0.5, 23.5 - row, col + 0.5, 24.5 - col)
    sampling = (0.4, 0.4)
    make(**shape, angular_sampling=sampling, semiangle_cutoff=0.4 * room)
    with pytest.warns(UserWarning, match=f"the detector cuts off the bright field: .* {place} of"):
        make(**shape, angular_sampling=sampling, semiangle_cutoff=0.4 * (room + 1e-6))


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({"aberration_coefs": None}, ["no aberration shifts", "Give a defocus"]),
        ({"aberration_coefs": {"C10": 0.0, "phi12": 1.0}}, ["no aberration shifts"]),
        ({"semiangle_cutoff": 0.1}, ["a single detector pixel", "semiangle_cutoff (mrad)"]),
        ({"aberration_coefs": {"C10": -400.0}}, ["by no more than 0.76 pixels", "_factor of 2 is"]),
        ({"aberration_coefs": {"C10": -100.0}}, ["by no more than 0.19 pixels", "_factor of 6 is"]),
        ({"aberration_coefs": {"C10": -2.0}}, ["by no more than 0.0038 pixels", "coefs (Å, azi"]),
        (
            {"angular_sampling": (4e-4, 4e-4), "semiangle_cutoff": 4e-3},
            ["by no more than 0.0056 pixels", "semiangle_cutoff (mrad)"],
        ),
    ],
)
def test_shifts_that_come_to_nothing_are_told_with_what_would_help(change, reasons):
    geometry = make(**change)
    assert len(np.unique(geometry.plan.shifts, axis=0)) == 1
    assert geometry.nothing_shifts is not None
    for reason in reasons:
        assert reason in geometry.nothing_shifts
    for factor in re.findall(r"upsampling_factor of (\d+) is", geometry.nothing_shifts):
        assert geometry.replace(upsampling_factor=int(factor)).nothing_shifts is None
        assert geometry.replace(upsampling_factor=int(factor) - 1).nothing_shifts is not None
    assert ("upsampling_factor" in geometry.nothing_shifts) == ("_factor of" in "".join(reasons))


def test_degrees_for_radians_warn():
    with pytest.warns(UserWarning, match=r"rotation_angle = -15 is .* -15 degrees are -0\.2618"):
        make(rotation_angle=-15)
    make(rotation_angle=4 + np.pi)
    make(rotation_angle=np.float32(-4 * np.pi))
    coefs = {"C12": 300.0, "phi12": 15.0, "C21": 1.0, "coma_angle": -2 * np.pi}
    with pytest.warns(UserWarning, match=r"phi12'\] = 15 is more than a turn.* \"15deg\"") as told:
        make(aberration_coefs=coefs)
    assert len(told) == 1
    make(aberration_coefs={"C12": 300.0, "phi12": "-355deg"})


def test_shifts_beyond_the_scan_warn():
    with pytest.warns(UserWarning, match="exceed the scan of 3.28 x 3.51 nm: the image wraps"):
        make(aberration_coefs={"C10": -1e5})


@pytest.mark.parametrize("center", [(-0.5, -0.5), (23.5, 24.5), (0, 24.5)])
def test_the_beam_may_be_on_the_edge_of_the_detector(center):
    """Pixels reach half a pixel beyond the outermost centers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the detector cuts off")
        assert make(center=center, angular_sampling=(0.41, 0.37)).center == center
