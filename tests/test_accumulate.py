"""The contract that every engine keeps. No LiberTEM here, no physics."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import DTYPES, FLOATS, by_formula, empty, make_frames, make_plan, run_engine

from libertem_parallax.accumulate import ENGINES, Plan


def image(plan, A):
    """Sub-grids put together, one position at a time."""
    folded = plan.fold(A)
    u = plan.upsampling_factor
    result = np.zeros(plan.image_shape, A.dtype)
    for y in range(result.shape[0]):
        for x in range(result.shape[1]):
            result[y, x] = folded[y % u, x % u, y // u, x // u]
    return result


@pytest.mark.parametrize("dtype", [*DTYPES, "bool"])
def test_integers_are_summed_exactly(engine, dtype):
    plan = make_plan()
    frames = make_frames(plan, dtype)
    A, S = run_engine(engine, plan, frames)
    np.testing.assert_array_equal(image(plan, A), by_formula(plan, frames).astype(A.dtype))
    rows, cols = plan.pixels.T
    expected = [sum(map(int, frame[rows, cols])) for frame in frames]
    assert S.tolist() == expected


@pytest.mark.parametrize("dtype", ["float16", *FLOATS])
def test_floats_are_summed_in_double_precision(engine, dtype):
    plan = make_plan()
    frames = make_frames(plan, dtype)
    A, S = run_engine(engine, plan, frames)
    assert A.dtype == np.float64
    expected = by_formula(plan, frames).astype(float)
    np.testing.assert_allclose(image(plan, A), expected, rtol=1e-13, atol=1e-13)
    rows, cols = plan.pixels.T
    np.testing.assert_allclose(
        S, frames[:, rows, cols].sum(axis=1, dtype=float), rtol=1e-13, atol=1e-13
    )


@pytest.mark.parametrize("u", [1, 2, 3, 4])
@pytest.mark.parametrize("scan", [(1, 1), (1, 9), (6, 1), (4, 6), (5, 3)])
@pytest.mark.parametrize("reach", [0, 3, 40])
def test_any_scan_upsampling_and_reach(engine, u, scan, reach):
    """The halo is as wide as the scan at most, however far the shifts go."""
    plan = make_plan(scan, (5, 6), u, reach=reach)
    frames = make_frames(plan, "uint8")
    A, _ = run_engine(engine, plan, frames)
    np.testing.assert_array_equal(image(plan, A), by_formula(plan, frames).astype(A.dtype))
    assert A.size <= 4 * u * u * scan[0] * scan[1]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float64"])
def test_long_rows_and_many_pixels(engine, dtype):
    """Longer than any engine's block of frames, more pixels than its buffer holds."""
    plan = make_plan((2, 70), (70, 65), 2, pixels=0.95, reach=9)
    frames = make_frames(plan, dtype)
    if dtype == "float64":
        frames = np.rint(frames * 1000)  # sums of whole numbers are exact
    A, S = run_engine(engine, plan, frames)
    rows, cols = plan.pixels.T
    np.testing.assert_array_equal(S, frames[:, rows, cols].sum(axis=1, dtype=S.dtype))
    expected = np.zeros(plan.image_shape, A.dtype)
    y, x = np.divmod(np.arange(len(frames)), 70)
    for (row, col), (dy, dx) in zip(plan.pixels, plan.shifts, strict=True):
        np.add.at(expected, ((2 * y + dy) % 4, (2 * x + dx) % 140), frames[:, row, col])
    folded = plan.fold(A).transpose(2, 0, 3, 1).reshape(4, 140)
    np.testing.assert_array_equal(folded, expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float64"])
@pytest.mark.parametrize("seed", range(6))
def test_tiling_does_not_matter(engine, dtype, seed):
    """Any cut along frames and detector, in any order, gives the bits of the whole."""
    plan = make_plan((4, 21), (9, 11), seed=seed)
    frames = make_frames(plan, dtype)
    if dtype == "float64":
        frames = np.rint(frames * 1000)
    whole = run_engine(engine, plan, frames)

    rng = np.random.default_rng(seed)
    cuts = [np.unique([0, n, *rng.integers(0, n, 3)]) for n in (len(frames), *plan.detector_shape)]
    tiles = [
        tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        for low, high in zip(
            np.stack(np.meshgrid(*[c[:-1] for c in cuts]), -1).reshape(-1, 3),
            np.stack(np.meshgrid(*[c[1:] for c in cuts]), -1).reshape(-1, 3),
            strict=True,
        )
    ]
    A, S = empty(plan, dtype)
    worker = engine(plan, dtype, np.arange(len(frames)), A, S)
    for t in rng.permutation(len(tiles)):
        t, rows, cols = tiles[t]
        worker.add(frames[t, rows, cols], (rows.start, cols.start), t.start)
    worker.finish()
    np.testing.assert_array_equal(A, whole[0])
    np.testing.assert_array_equal(S, whole[1])


@pytest.mark.parametrize("seed", range(4))
def test_some_frames_only(engine, seed):
    """A stretch of the scan with gaps, as a region of interest or lost frames leave it."""
    plan = make_plan((6, 13), u=3)
    frames = make_frames(plan, "uint16")
    index = np.flatnonzero(np.random.default_rng(seed).random(len(frames)) < 0.6)
    A, S = run_engine(engine, plan, frames[index], index)
    blank = np.zeros_like(frames)
    blank[index] = frames[index]
    expected, sums = run_engine(engine, plan, blank)
    np.testing.assert_array_equal(A, expected)
    np.testing.assert_array_equal(S, sums[index])


@pytest.mark.parametrize("dtype", [*DTYPES, "bool"])
def test_engines_agree_bit_for_bit(engine, dtype):
    plan = make_plan((3, 70), (9, 10), 2, reach=11)
    frames = make_frames(plan, dtype)
    A, S = run_engine(engine, plan, frames)
    for other in ("numba", "numpy"):
        expected = run_engine(ENGINES[other], plan, frames)
        np.testing.assert_array_equal(A, expected[0])
        np.testing.assert_array_equal(S, expected[1])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", ">f4"])
def test_any_memory_layout(engine, dtype):
    plan = make_plan((4, 9))
    frames = make_frames(plan, np.dtype(dtype).newbyteorder("=")).astype(dtype)
    expected = run_engine(engine, plan, frames)
    padded = np.zeros((len(frames), 20, 24), dtype)
    padded[:, 3:12, 5:16] = frames
    backwards = np.ascontiguousarray(frames[:, :, ::-1])[:, :, ::-1]
    locked = frames.copy()
    locked.flags.writeable = False
    for view in (padded[:, 3:12, 5:16], backwards, np.asfortranarray(frames), locked):
        A, S = run_engine(engine, plan, view)
        np.testing.assert_array_equal(A, expected[0])
        np.testing.assert_array_equal(S, expected[1])


def test_adds_to_what_is_there(engine):
    plan = make_plan()
    frames = make_frames(plan, "uint8")
    A, S = empty(plan, "uint8")
    for _ in range(2):
        worker = engine(plan, frames.dtype, np.arange(len(frames)), A, S)
        worker.add(frames)
        worker.finish()
    once = run_engine(engine, plan, frames)
    np.testing.assert_array_equal(A, 2 * once[0])
    np.testing.assert_array_equal(S, 2 * once[1])


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_nothing_to_add(engine, dtype):
    """No frames, a tile without detector, a tile without bright field."""
    plan = Plan((2, 3), (8, 8), 1, np.array([[4, 4]]), np.array([[0, 0]]))
    A, S = empty(plan, dtype)
    worker = engine(plan, dtype, np.arange(6), A, S)
    worker.add(np.ones((0, 8, 8), dtype))
    worker.add(np.ones((6, 0, 8), dtype))
    worker.add(np.ones((6, 4, 4), dtype))
    worker.add(np.ones((1, 4, 4), dtype), (4, 0), 5)
    worker.finish()
    worker = engine(plan, dtype, np.arange(0), A, S[:0])
    worker.add(np.ones((0, 8, 8), dtype))
    worker.finish()
    assert not A.any()
    assert not S.any()


@pytest.mark.parametrize(
    ("shape", "origin", "first"),
    [
        ((7, 8, 8), (0, 0), 0),
        ((1, 8, 8), (0, 0), 6),
        ((1, 8, 8), (1, 0), 0),
        ((1, 8, 8), (0, 1), 0),
        ((1, 4, 4), (-1, 0), 0),
        ((1, 4, 4), (0, -1), 0),
        ((1, 8, 8), (0, 0), -1),
        ((8, 8), (0, 0), 0),
    ],
)
def test_tiles_out_of_bounds_are_refused(engine, shape, origin, first):
    plan = make_plan((2, 3), (8, 8), 1)
    A, S = empty(plan, "uint8")
    worker = engine(plan, np.uint8, np.arange(6), A, S)
    with pytest.raises(ValueError, match="tile of shape"):
        worker.add(np.ones(shape, np.uint8), origin, first)
    worker.finish()
    assert not A.any()


@pytest.mark.parametrize(
    ("index", "dtype"),
    [
        ([0, 6], "int64"),
        ([-1, 0], "int64"),
        ([1, 0], "int64"),
        ([2, 2], "int64"),
        ([0, 1], "int32"),
        ([0, 2**40, 1], "uint64"),
        ([0, 1], "float64"),
        ([0, 1], ">i8"),
    ],
)
def test_positions_off_the_scan_are_refused(engine, index, dtype):
    plan = make_plan((2, 3), (8, 8), 1)
    A, S = empty(plan, "uint8", len(index))
    with pytest.raises(ValueError, match="ascending scan positions from 0 to 5, of int64"):
        engine(plan, np.uint8, np.array(index, dtype), A, S)


def test_unfit_accumulators_are_refused(engine):
    plan = make_plan((2, 3), (8, 8), 1)
    A, S = empty(plan, "uint8")
    index = np.arange(6)
    with pytest.raises(ValueError, match="A: expected a C-contiguous array"):
        engine(plan, np.uint8, index, A[:, :, :-1], S)
    with pytest.raises(ValueError, match=r"A: expected a C-contiguous array .* not C-contiguous"):
        engine(plan, np.uint8, index, np.asfortranarray(A), S)
    with pytest.raises(ValueError, match=r"A: expected .* and dtype int32, got .* >i4"):
        engine(plan, np.uint8, index, A.astype(">i4"), S.astype(">i4"))
    with pytest.raises(ValueError, match="S: expected a C-contiguous array"):
        engine(plan, np.uint8, index, A, S[:-1])
    with pytest.raises(ValueError, match=r"S: expected .* and dtype int32, got .* int64"):
        engine(plan, np.uint8, index, A, S.astype(np.int64))
    for apart in (np.repeat(S, 2)[::2], S[::-1]):
        with pytest.raises(ValueError, match=r"S: expected .* not C-contiguous"):
            engine(plan, np.uint8, index, A, apart)
    for dtype in ("uint32", "float32"):
        with pytest.raises(ValueError, match=f"frames of dtype {dtype} need an accumulator of"):
            engine(plan, dtype, index, A, S)
    with pytest.raises(TypeError, match="frames of dtype complex64"):
        engine(plan, np.complex64, index, A, S)
    with pytest.raises(ValueError, match="tile of dtype int8: expected uint8"):
        engine(plan, np.uint8, index, A, S).add(np.ones((6, 8, 8), np.int8))
    # More than fits the sums of truth values.
    with pytest.raises(ValueError, match="tile of dtype uint8: expected bool"):
        engine(plan, np.bool_, index, A, S).add(np.full((6, 8, 8), 255, np.uint8))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e31, -1e38])
@pytest.mark.parametrize("dtype", FLOATS)
def test_pixels_that_are_not_finite_or_too_large_are_reported(engine, bad, dtype):
    plan = make_plan((3, 5), (6, 7))
    frames = make_frames(plan, dtype)
    row, col = plan.pixels[10]
    frames[8, row, col] = bad
    A, S = empty(plan, dtype)
    worker = engine(plan, dtype, np.arange(len(frames)), A, S)
    value = r"\S+" if np.isfinite(bad) else bad
    message = rf"\(1, 3\), detector pixel \({row}, {col}\) is {value}: expected finite"
    with pytest.raises(ValueError, match=message):
        worker.add(frames[5:, row:, col:], (row, col), 5)


@pytest.mark.parametrize("values", [(np.inf, -np.inf), (1e308, 1e308), (-1e39, 0.0)])
def test_bad_pixels_are_named_where_numpy_raises_errors_of_its_own(engine, values):
    plan = make_plan((3, 5), (6, 7))
    frames = make_frames(plan, "float64")
    pixels = plan.pixels[10:12]
    frames[8, pixels[:, 0], pixels[:, 1]] = values
    A, S = empty(plan, "float64")
    worker = engine(plan, "float64", np.arange(len(frames)), A, S)
    row, col = pixels[0]
    message = rf"\(1, 3\), detector pixel \({row}, {col}\) is \S+: expected finite"
    with np.errstate(all="raise"), pytest.raises(ValueError, match=message):
        worker.add(frames)


@pytest.mark.parametrize(
    ("dtype", "bad"), [("uint64", 2**63), ("int64", -(2**62)), ("int64", 2**62)]
)
def test_64_bit_pixels_that_could_overflow_are_reported(engine, dtype, bad):
    plan = make_plan((3, 5), (6, 7))
    frames = np.ones((15, 6, 7), dtype)
    unused = np.ones((6, 7), bool)
    unused[tuple(plan.pixels.T)] = False
    frames[:, unused] = bad
    A, S = run_engine(engine, plan, frames)
    assert set(S) == {len(plan.pixels)}
    row, col = plan.pixels[10]
    frames[8, row, col] = bad
    worker = engine(plan, dtype, np.arange(15), A, S)
    with pytest.raises(ValueError, match=rf"\(1, 3\), detector pixel \({row}, {col}\) is {bad}"):
        worker.add(frames)


def test_non_finite_pixels_that_are_not_used_do_not_matter(engine):
    plan = make_plan((3, 5), (6, 7))
    frames = make_frames(plan, "float32")
    expected = run_engine(engine, plan, frames)
    unused = np.ones((6, 7), bool)
    unused[tuple(plan.pixels.T)] = False
    frames[:, unused] = np.nan
    A, S = run_engine(engine, plan, frames)
    np.testing.assert_array_equal(A, expected[0])
    np.testing.assert_array_equal(S, expected[1])
