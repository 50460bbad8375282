"""Borders that do not wrap: against the definition, and a scan cut out of a larger one."""

from __future__ import annotations

import definition
import numpy as np
import pytest
import weak
from helpers import CASES, PARAMETERS, make_scan, run_udf

from libertem_parallax import ParallaxUDF
from libertem_parallax.accumulate import Stack

COEFS = {"C10": -2000.0, "C12": 250.0, "phi12": 0.4}
SMALL = {**PARAMETERS, "aberration_coefs": COEFS, "borders": "coverage"}


def covered(frames, parameters, scanned=None):
    """Image, frame by frame and pixel by pixel."""
    u, (ny, nx) = parameters["upsampling_factor"], frames.shape[:2]
    pixels, angles = definition.bright_field(
        frames.shape[2:],
        parameters["angular_sampling"],
        parameters["semiangle_cutoff"],
        rotation=parameters["rotation_angle"],
    )
    shifts = definition.shifts(
        parameters["aberration_coefs"], angles, parameters["scan_sampling"], u
    )
    # Pixels at the rim are as bright as a part of them is lit.
    edge = np.sqrt(np.prod(parameters["angular_sampling"]))
    inside = (parameters["semiangle_cutoff"] - np.hypot(*angles.T) * 1e3) / edge + 0.5
    bright = np.clip(inside, 0, 1) / np.clip(inside, 0, 1).sum()
    image, received = np.zeros((2, u * ny, u * nx))
    for y in range(ny):
        for x in range(nx):
            if scanned is not None and not scanned[y, x]:
                continue
            counts = frames[y, x][tuple(pixels.T)].astype(float)
            for count, weight, (dy, dx) in zip(
                counts - counts.sum() * bright, bright, shifts, strict=True
            ):
                row, col = u * y + dy, u * x + dx
                if 0 <= row < u * ny and 0 <= col < u * nx:
                    image[row, col] += count
                    received[row, col] += weight
    # Where nothing is missing
    most = np.zeros((u, u))
    np.add.at(most, tuple((shifts % u).T), bright)
    share = received / np.maximum(np.tile(most, (ny, nx)), 1e-9)
    return np.where(share >= 0.1, image / np.maximum(share, 1e-9), 0)


@pytest.mark.parametrize("engine", ["numba", "numpy"])
@pytest.mark.parametrize("case", ["plain", "u1", "u3", "odd-scan", "half", "one-row"])
def test_equals_the_definition(inline, case, engine):
    changes = dict(CASES.get(case, {}))
    parameters = {**SMALL, "suppress_Nyquist_noise": False, **changes}
    frames = make_scan(parameters["shape"], "uint16")
    scanned = np.ones(parameters["shape"][:2], bool)
    if case == "half":
        scanned[5:] = False
        scanned[4, 3:] = False
    udf = ParallaxUDF.from_parameters(**parameters, engine=engine)
    roi = None if scanned.all() else scanned
    image = run_udf(inline, frames, udf, roi=roi)["reconstruction"]
    expected = covered(frames, parameters, scanned)
    assert abs(expected).max() > 0
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-5 * abs(expected).max())
    if scanned.all():
        A, S = Stack.from_array(frames).add(udf.params.geometry.plan, threads=2)
        for name, array in (("A", A), ("S", S)):
            there = udf.results.get_buffer(name).raw_data.reshape(array.shape)
            np.testing.assert_array_equal(array, there)


def test_shifts_that_leave_the_scan_count_nothing(inline):
    """Among them some by more than its length."""
    parameters = {**SMALL, "aberration_coefs": {"C10": -12000.0, "C12": 700.0, "phi12": 0.4}}
    parameters |= {"suppress_Nyquist_noise": False, "upsampling_factor": 1}
    frames = make_scan(parameters["shape"], "uint16")
    with pytest.warns(UserWarning, match="exceed the scan"):
        udf = ParallaxUDF.from_parameters(**parameters)
    image = run_udf(inline, frames, udf)["reconstruction"]
    expected = covered(frames, parameters)
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-5 * abs(expected).max())


def test_a_scan_cut_out_of_a_larger_one_shows_the_same(inline):
    """Inside no worse than the brightness of frames differs; at the border better than wrapped."""
    counts, _, parameters = weak.scan_of_object("0", (3, 3), size=0.2, whole=True)
    counts = (counts * 1e7).astype("uint32")
    options = {"regularization": 5.0, "image": ["parallax", "phase_flip", "phase"]}
    large = run_udf(inline, counts, ParallaxUDF.from_parameters(**parameters, **options))
    parameters |= options | {"shape": (14, 14, 9, 9)}
    cut = {
        borders: run_udf(
            inline, counts[3:17, 3:17], ParallaxUDF.from_parameters(**parameters, borders=borders)
        )
        for borders in ("periodic", "coverage")
    }
    expected = large["parallax"][3:17, 3:17]
    errors = {name: abs(images["parallax"] - expected) for name, images in cut.items()}
    inside, rim = np.s_[5:-5, 5:-5], np.ones((14, 14), bool)
    rim[3:-3, 3:-3] = False
    assert errors["coverage"][inside].max() < 2e-3 * abs(expected).max()
    assert errors["coverage"][rim].mean() < 0.5 * errors["periodic"][rim].mean()
    for name in ("phase_flip", "phase"):
        wrong = {
            borders: abs(images[name] - large[name][3:17, 3:17]).mean()
            for borders, images in cut.items()
        }
        assert wrong["coverage"] < 0.95 * wrong["periodic"]
