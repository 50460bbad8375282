"""Where counts go: plans, and the dtypes that hold the sums."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from helpers import by_formula, make_frames, make_plan, run_engine

from libertem_parallax.accumulate import ENGINES, Plan, accumulator_dtype


@pytest.mark.parametrize(
    ("dtype", "pixels", "expected"),
    [
        ("bool", 2**31 - 1, "int32"),
        ("bool", 2**31, "int64"),
        ("uint8", (2**31 - 1) // 255, "int32"),
        ("uint8", (2**31 - 1) // 255 + 1, "int64"),
        ("uint16", 32768, "int32"),
        ("uint16", 32769, "int64"),
        ("int16", 65535, "int32"),
        ("int16", 65536, "int64"),
        ("int8", 1, "int32"),
        ("uint32", 1, "int64"),
        ("float16", 1, "float64"),
        ("float32", 1, "float64"),
    ],
)
def test_accumulator_dtype_holds_the_largest_sum(dtype, pixels, expected):
    assert accumulator_dtype(dtype, pixels) == expected


def test_tables_hold_targets_of_any_size():
    pixel = np.zeros((1, 2), int)
    for columns, dtype in ((2**31 - 1, np.int32), (2**31, np.int64)):
        plan = Plan((1, columns), (1, 1), 1, pixel, pixel)
        assert plan.lookup.dtype == dtype
        assert plan.lookup == 0


def test_plans_that_lead_out_of_bounds_are_refused():
    zeros = np.zeros((1, 2), int)
    for pixels, shifts, message in [
        (np.zeros((0, 2), int), np.zeros((0, 2), int), "M > 0"),
        (np.array([[0, 8]]), zeros, "on the detector"),
        (np.array([[-1, 0]]), zeros, "on the detector"),
        (np.array([[1, 0], [0, 0]]), np.zeros((2, 2), int), "row-major order"),
        (np.array([[1, 0], [1, 0]]), np.zeros((2, 2), int), "row-major order"),
        (np.array([[1, 0]]), np.zeros((2, 2), int), "shape of pixels"),
    ]:
        with pytest.raises(ValueError, match=message):
            Plan((2, 3), (8, 8), 1, pixels, shifts)


def test_histogram_counts_pixels_by_shift():
    plan = make_plan((4, 6), u=3, reach=20)
    one = np.zeros((24, *plan.detector_shape), np.uint8)
    one[0] = 1
    assert plan.histogram.sum() == len(plan.pixels)
    expected = by_formula(plan, one).astype(int)
    folded = plan.histogram.transpose(2, 0, 3, 1).reshape(plan.image_shape)
    np.testing.assert_array_equal(folded, expected)


@pytest.mark.parametrize("scan", [(1, 1), (7, 3), (12, 5), (40, 6)])
@pytest.mark.parametrize("reach", [0, 5, 60])
@pytest.mark.parametrize("u", [1, 3])
@pytest.mark.parametrize("wraps", [True, False])
def test_parts_of_a_scan_add_up_to_the_whole(scan, reach, u, wraps):
    """Stretches of any length, some empty; only the rows that they reach are kept."""
    plan = replace(make_plan(scan, (5, 6), u, reach=reach), wraps=wraps)
    frames = make_frames(plan, "uint8")
    whole, _ = run_engine(ENGINES["numpy"], plan, frames)
    total = np.zeros(plan.folded_shape, np.int64)
    span = plan.accumulator_shape[2] - scan[0]
    rng = np.random.default_rng(0)
    cuts = [0, *np.sort(rng.integers(0, len(frames) + 1, 5)), len(frames)]
    for start, stop in itertools.pairwise(cuts):
        index = np.arange(start, stop)
        A, _ = run_engine(ENGINES["numpy"], plan, frames[index], index)
        rows = plan.reach(index)
        assert 0 <= rows.start < rows.stop <= plan.accumulator_shape[2]
        assert rows.stop - rows.start <= -(-(stop - start) // scan[1]) + 1 + span
        others = A.copy()
        others[:, :, rows] = 0
        assert not others.any()
        plan.add(A[:, :, rows], rows.start, total)
    np.testing.assert_array_equal(total, plan.fold(whole))


def test_digests_tell_plans_apart():
    plan = make_plan()
    fields = {
        "scan_shape": plan.scan_shape,
        "detector_shape": plan.detector_shape,
        "upsampling_factor": plan.upsampling_factor,
        "pixels": plan.pixels,
        "shifts": plan.shifts,
    }
    assert Plan(**fields).digest == plan.digest
    assert plan.pixels[-1].tolist() != [8, 10]
    others = [
        {"scan_shape": (7, 5)},
        {"detector_shape": (11, 11)},
        {"upsampling_factor": 3},
        {"pixels": plan.pixels[1:], "shifts": plan.shifts[1:]},
        {"shifts": plan.shifts + (np.arange(len(plan.shifts)) == 7)[:, None]},
        {"shifts": plan.shifts[:, ::-1]},
        # Another mask, or center, of which the shifts happen to be the same.
        {"pixels": np.array([*plan.pixels[:-1], [8, 10]])},
    ]
    digests = {Plan(**{**fields, **other}).digest for other in others}
    assert len(digests - {plan.digest}) == len(others)
    assert all(0 < digest < 2**63 for digest in digests)
