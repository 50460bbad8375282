"""The contract that every engine keeps. No LiberTEM here, no physics."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace

import numpy as np
import pytest

from libertem_parallax.accumulate import ENGINES, Plan, accumulator_dtype

DTYPES = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]
FLOATS = ["float32", "float64"]


@pytest.fixture
def engine(engine_name):
    return ENGINES[engine_name]


def make_plan(scan=(5, 7), detector=(9, 11), u=2, *, pixels=0.5, reach=4, seed=0):
    """Random pixels with random shifts of up to `reach` image pixels."""
    rng = np.random.default_rng(seed)
    where = np.argwhere(rng.random(detector) < pixels)
    return Plan(scan, detector, u, where, rng.integers(-reach, reach + 1, where.shape))


def make_frames(plan, dtype, seed=1):
    """Values that span the dtype, so that too narrow a sum would overflow."""
    rng = np.random.default_rng(seed)
    shape = (plan.scan_shape[0] * plan.scan_shape[1], *plan.detector_shape)
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return rng.normal(size=shape).astype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    info = np.iinfo(dtype)
    # 64-bit counts are summed in 64 bits: room is left for all pixels.
    top = min(info.max, 2**50)
    return rng.integers(max(info.min, -top), top, shape, dtype=dtype, endpoint=True)


def by_formula(plan, frames):
    """``Σ_r Σ_m I δ[p - (u r + s_m)]`` in Python integers, or float64 for floats."""
    image = np.zeros(plan.image_shape, dtype=object)
    exact = float if frames.dtype.kind == "f" else int
    for f, frame in enumerate(frames):
        r = np.array(divmod(f, plan.scan_shape[1]))
        for pixel, shift in zip(plan.pixels, plan.shifts, strict=True):
            p = (plan.upsampling_factor * r + shift) % plan.image_shape
            image[tuple(p)] += exact(frame[tuple(pixel)])
    return image


def to_events(frames, seed=None, indices="int32"):
    """Frames as lists of events; with `seed` in random order, and some pixels in two events."""
    values, columns, bounds = [], [], [0]
    rng = np.random.default_rng(seed)
    for frame in frames:
        where = np.flatnonzero(frame)
        what = frame.reshape(-1)[where]
        if seed is not None:
            parts = what // 3
            where, what = np.tile(where, 2), np.concatenate([parts, what - parts])
            order = rng.permutation(len(where))
            where, what = where[order], what[order]
        values.append(what)
        columns.append(where)
        bounds.append(bounds[-1] + len(where))
    return SimpleNamespace(
        data=np.concatenate([*values, np.zeros(0, frames.dtype)]),
        indices=np.concatenate([*columns, []]).astype(indices),
        indptr=np.array(bounds),
    )


def empty(plan, dtype, count=None, *, events=False):
    accumulator = accumulator_dtype(dtype, len(plan.pixels), events)
    count = plan.scan_shape[0] * plan.scan_shape[1] if count is None else count
    return np.zeros(plan.accumulator_shape, accumulator), np.zeros(count, accumulator)


def run(engine, plan, frames, index=None):
    index = np.arange(len(frames)) if index is None else index
    A, S = empty(plan, frames.dtype, len(index))
    worker = engine(plan, frames.dtype, index, A, S)
    worker.add(frames)
    worker.finish()
    return A, S


def run_events(engine, plan, frames, index=None, **options):
    index = np.arange(len(frames)) if index is None else index
    A, S = empty(plan, frames.dtype, len(index), events=True)
    worker = engine(plan, frames.dtype, index, A, S, events=True)
    worker.add_events(to_events(frames, **options))
    worker.finish()
    return A, S


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
    A, S = run(engine, plan, frames)
    np.testing.assert_array_equal(image(plan, A), by_formula(plan, frames).astype(A.dtype))
    rows, cols = plan.pixels.T
    expected = [sum(map(int, frame[rows, cols])) for frame in frames]
    assert S.tolist() == expected


@pytest.mark.parametrize("dtype", ["float16", *FLOATS])
def test_floats_are_summed_in_double_precision(engine, dtype):
    plan = make_plan()
    frames = make_frames(plan, dtype)
    A, S = run(engine, plan, frames)
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
    A, _ = run(engine, plan, frames)
    np.testing.assert_array_equal(image(plan, A), by_formula(plan, frames).astype(A.dtype))
    assert A.size <= 4 * u * u * scan[0] * scan[1]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float64"])
def test_long_rows_and_many_pixels(engine, dtype):
    """Longer than any engine's block of frames, more pixels than its buffer holds."""
    plan = make_plan((2, 70), (70, 65), 2, pixels=0.95, reach=9)
    frames = make_frames(plan, dtype)
    if dtype == "float64":
        frames = np.rint(frames * 1000)  # sums of whole numbers are exact
    A, S = run(engine, plan, frames)
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
    whole = run(engine, plan, frames)

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
    A, S = run(engine, plan, frames[index], index)
    blank = np.zeros_like(frames)
    blank[index] = frames[index]
    expected, sums = run(engine, plan, blank)
    np.testing.assert_array_equal(A, expected)
    np.testing.assert_array_equal(S, sums[index])


@pytest.mark.parametrize("dtype", [*DTYPES, "bool"])
def test_engines_agree_bit_for_bit(engine, dtype):
    plan = make_plan((3, 70), (9, 10), 2, reach=11)
    frames = make_frames(plan, dtype)
    A, S = run(engine, plan, frames)
    for other in ("numba", "numpy"):
        expected = run(ENGINES[other], plan, frames)
        np.testing.assert_array_equal(A, expected[0])
        np.testing.assert_array_equal(S, expected[1])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", ">f4"])
def test_any_memory_layout(engine, dtype):
    plan = make_plan((4, 9))
    frames = make_frames(plan, np.dtype(dtype).newbyteorder("=")).astype(dtype)
    expected = run(engine, plan, frames)
    padded = np.zeros((len(frames), 20, 24), dtype)
    padded[:, 3:12, 5:16] = frames
    backwards = np.ascontiguousarray(frames[:, :, ::-1])[:, :, ::-1]
    locked = frames.copy()
    locked.flags.writeable = False
    for view in (padded[:, 3:12, 5:16], backwards, np.asfortranarray(frames), locked):
        A, S = run(engine, plan, view)
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
    once = run(engine, plan, frames)
    np.testing.assert_array_equal(A, 2 * once[0])
    np.testing.assert_array_equal(S, 2 * once[1])


def test_nothing_to_add(engine):
    """No frames, a tile without detector, a tile without bright field."""
    plan = Plan((2, 3), (8, 8), 1, np.array([[4, 4]]), np.array([[0, 0]]))
    A, S = empty(plan, "uint8")
    worker = engine(plan, np.uint8, np.arange(6), A, S)
    worker.add(np.ones((0, 8, 8), np.uint8))
    worker.add(np.ones((6, 0, 8), np.uint8))
    worker.add(np.ones((6, 4, 4), np.uint8))
    worker.add(np.ones((1, 4, 4), np.uint8), (4, 0), 5)
    worker.finish()
    worker = engine(plan, np.uint8, np.arange(0), A, S[:0])
    worker.add(np.ones((0, 8, 8), np.uint8))
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
    A, S = run(engine, plan, frames)
    assert set(S) == {len(plan.pixels)}
    row, col = plan.pixels[10]
    frames[8, row, col] = bad
    worker = engine(plan, dtype, np.arange(15), A, S)
    with pytest.raises(ValueError, match=rf"\(1, 3\), detector pixel \({row}, {col}\) is {bad}"):
        worker.add(frames)


def test_non_finite_pixels_that_are_not_used_do_not_matter(engine):
    plan = make_plan((3, 5), (6, 7))
    frames = make_frames(plan, "float32")
    expected = run(engine, plan, frames)
    unused = np.ones((6, 7), bool)
    unused[tuple(plan.pixels.T)] = False
    frames[:, unused] = np.nan
    A, S = run(engine, plan, frames)
    np.testing.assert_array_equal(A, expected[0])
    np.testing.assert_array_equal(S, expected[1])


@pytest.mark.parametrize("dtype", [*DTYPES, "bool", "float16", *FLOATS])
def test_events_are_added_as_frames_are(engine, dtype):
    plan = make_plan((3, 17), reach=9)
    frames = make_frames(plan, dtype)
    if np.dtype(dtype).itemsize == 8 and np.dtype(dtype).kind != "f":
        frames %= 2**31
    frames[np.random.default_rng(2).random(frames.shape) < 0.7] = 0
    frames[[0, 5, 6, -1]] = 0
    expected = run(engine, plan, frames)
    A, S = run_events(engine, plan, frames)
    if np.dtype(dtype).kind == "f":
        np.testing.assert_allclose(A, expected[0], rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(S, expected[1], rtol=1e-13, atol=1e-13)
    else:
        assert A.dtype == S.dtype == np.int64
        np.testing.assert_array_equal(A, expected[0])
        np.testing.assert_array_equal(S, expected[1])


@pytest.mark.parametrize("indices", ["int32", "int64", "uint16", "uint32", "uint64", ">i4", ">i8"])
@pytest.mark.parametrize("dtype", ["uint8", "uint32", "float64"])
def test_events_in_any_order_and_several_of_a_pixel(engine, dtype, indices):
    plan = make_plan((4, 11), reach=9)
    frames = make_frames(plan, "uint8").astype(dtype)  # sums of whole numbers are exact
    frames[np.random.default_rng(2).random(frames.shape) < 0.7] = 0
    expected = run(engine, plan, frames)
    A, S = run_events(engine, plan, frames, seed=3, indices=indices)
    np.testing.assert_array_equal(A, expected[0])
    np.testing.assert_array_equal(S, expected[1])


@pytest.mark.parametrize("seed", range(6))
def test_tiling_of_events_does_not_matter(engine, seed):
    """Any cut along frames and detector, in any order; empty tiles; some frames only."""
    plan = make_plan((4, 21), (9, 11), seed=seed)
    frames = make_frames(plan, "uint16")
    rng = np.random.default_rng(seed)
    frames[rng.random(frames.shape) < 0.8] = 0
    frames[rng.random(len(frames)) < 0.3] = 0
    index = np.flatnonzero(rng.random(len(frames)) < 0.8)
    whole = run(engine, plan, frames[index], index)

    n = len(index)
    cuts = [np.unique([0, k, *rng.integers(0, k, 3)]) for k in (n, *plan.detector_shape)]
    tiles = [
        (slice(t, t_stop), slice(y, y_stop), slice(x, x_stop))
        for t, t_stop in zip(cuts[0][:-1], cuts[0][1:], strict=True)
        for y, y_stop in zip(cuts[1][:-1], cuts[1][1:], strict=True)
        for x, x_stop in zip(cuts[2][:-1], cuts[2][1:], strict=True)
    ]
    tiles.append((slice(3, 3), slice(0, 9), slice(0, 11)))
    tiles.append((slice(3, 5), slice(4, 4), slice(0, 11)))
    A, S = empty(plan, "uint16", n, events=True)
    worker = engine(plan, "uint16", index, A, S, events=True)
    for k in rng.permutation(len(tiles)):
        t, y, x = tiles[k]
        part = frames[index][t, y, x]
        worker.add_events(to_events(part, seed), part.shape[1:], (y.start, x.start), t.start)
    worker.finish()
    np.testing.assert_array_equal(A, whole[0])
    np.testing.assert_array_equal(S, whole[1])


def test_a_pixel_may_count_more_than_its_dtype_holds(engine):
    plan = make_plan((2, 3), (4, 5), pixels=1.0)
    count = 70_000
    events = SimpleNamespace(
        data=np.full(count, 2**32 - 1, np.uint32),
        indices=np.full(count, 7),
        indptr=np.array([0, 0, 0, 0, 0, count, count]),
    )
    A, S = empty(plan, "uint32", events=True)
    worker = engine(plan, "uint32", np.arange(6), A, S, events=True)
    worker.add_events(events)
    worker.finish()
    assert S.tolist() == [0, 0, 0, 0, count * (2**32 - 1), 0]
    assert A.reshape(-1)[plan.targets[7] + A.shape[3] + 1] == count * (2**32 - 1)
    assert A.sum() == S.sum()


def test_events_that_belong_to_other_frames_are_left_out(engine):
    """Bounds need not begin at zero, nor end with the arrays."""
    plan = make_plan()
    frames = make_frames(plan, "uint8")
    expected = run(engine, plan, frames[10:20], np.arange(10, 20))
    events = to_events(frames)
    events.indices[: events.indptr[10]] = -1
    events.indices[events.indptr[20] :] = 2**31 - 1
    for dtype in (np.int32, np.int64):
        events.indices = events.indices.astype(dtype)
        A, S = empty(plan, "uint8", 10, events=True)
        worker = engine(plan, np.uint8, np.arange(10, 20), A, S, events=True)
        worker.add_events(SimpleNamespace(**{**vars(events), "indptr": events.indptr[10:21]}))
        worker.finish()
        np.testing.assert_array_equal(A, expected[0])
        np.testing.assert_array_equal(S, expected[1])


def add_events(engine, plan, events, dtype, *where):
    count = plan.scan_shape[0] * plan.scan_shape[1]
    A, S = empty(plan, dtype, events=True)
    worker = engine(plan, dtype, np.arange(count), A, S, events=True)
    worker.add_events(events, *where)
    worker.finish()
    return A, S


@pytest.mark.parametrize("indices", ["int32", "int64", "uint64"])
@pytest.mark.parametrize("bad", [-1, 99, 2**31 - 1, 2**32 + 5, -(2**63)])
def test_events_off_the_detector_are_refused(engine, indices, bad):
    plan = make_plan()
    events = to_events(make_frames(plan, "uint8"), indices=indices)
    info = np.iinfo(indices)
    bad = min(max(bad, info.min), info.max) or 99
    for event in (0, 20):  # the first of a frame is not taken for one of the frame before
        wrong = SimpleNamespace(**{**vars(events), "indices": events.indices.copy()})
        wrong.indices[events.indptr[[8, 21]] + event] = bad  # of two frames, the first is named
        with pytest.raises(ValueError, match=r"\(1, 1\) has an event off the detector, \(9, 11\)"):
            add_events(engine, plan, wrong, "uint8")


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [
        ("float32", np.nan),
        ("float64", np.inf),
        ("float64", -np.inf),
        ("float64", 1e31),
        ("int64", 2**31),
        ("int64", -(2**31) - 1),
        ("uint64", 2**32),
    ],
)
def test_events_whose_sums_were_not_exact_are_refused(engine, dtype, bad):
    plan = make_plan()
    events = to_events(np.ones((35, 9, 11), dtype))
    unused = np.ones((9, 11), bool)
    unused[tuple(plan.pixels.T)] = False
    dark = unused.reshape(-1)[events.indices]
    events.data[dark] = bad
    _, S = add_events(engine, plan, events, dtype)
    assert set(S) == {len(plan.pixels)}
    for frame in (8, 21):
        events.data[np.flatnonzero(~dark & (np.arange(len(dark)) > events.indptr[frame]))[0]] = bad
    with pytest.raises(ValueError, match=r"\(1, 1\) has an event in the bright field whose value"):
        add_events(engine, plan, events, dtype)


@pytest.mark.parametrize("indices", ["int32", "int64", "uint64"])
@pytest.mark.parametrize("first", ["outside", "value"])
def test_the_first_frame_with_a_bad_event_is_named(engine, indices, first):
    plan = make_plan()
    events = to_events(np.ones((35, 9, 11)), indices=indices)
    frames = (8, 21) if first == "outside" else (21, 8)
    outside, bad = (int(events.indptr[frame]) for frame in frames)
    events.indices[outside] = 99
    used = plan.lookup.reshape(-1)[events.indices[bad : bad + 99]] >= 0
    events.data[bad + np.argmax(used)] = np.nan
    message = "has an event off the detector" if first == "outside" else "in the bright field whose"
    with pytest.raises(ValueError, match=rf"scan position \(1, 1\) .*{message}"):
        add_events(engine, plan, events, "float64")


@pytest.mark.parametrize(
    "change",
    [
        {"indptr": np.array([0, 5, 3, 9])},
        {"indptr": np.array([-1, 5, 6, 9])},
        {"indptr": np.array([0, 5, 6, 10])},
        {"indptr": np.array([0, 2**63 - 1, -2, 9])},
        {"data": np.ones(8, np.uint8)},
        {"indices": np.arange(8)},
        {"indices": np.arange(9.0)},
        {"indptr": np.array([], int)},
    ],
)
def test_events_that_contradict_themselves_are_refused(engine, change):
    plan = make_plan()
    events = {"data": np.ones(9, np.uint8), "indices": np.arange(9), "indptr": np.arange(0, 10, 3)}
    with pytest.raises(ValueError, match="expected as many indices as values"):
        add_events(engine, plan, SimpleNamespace(**{**events, **change}), "uint8")


def test_tiles_of_events_out_of_bounds_are_refused(engine):
    plan = make_plan()
    events = to_events(make_frames(plan, "uint8"))
    for where in [((9, 12),), ((9, 11), (1, 0)), ((9, 11), (0, 0), 1), ((9, 11), (0, -1))]:
        with pytest.raises(ValueError, match="tile of shape"):
            add_events(engine, plan, events, "uint8", *where)
    with pytest.raises(ValueError, match="tile of dtype uint8: expected int8"):
        add_events(engine, plan, events, "int8")
    A, S = empty(plan, "uint8")
    with pytest.raises(ValueError, match="events of dtype uint8 need an accumulator of int64"):
        engine(plan, "uint8", np.arange(35), A, S, events=True)
    with pytest.raises(ValueError, match="takes frames: make one with events=True"):
        engine(plan, "uint8", np.arange(35), A, S).add_events(events)
    A, S = empty(plan, "uint8", events=True)
    with pytest.raises(ValueError, match="takes events: make one with events=False"):
        engine(plan, "uint8", np.arange(35), A, S, events=True).add(make_frames(plan, "uint8"))


def test_sums_that_are_too_large_are_reported(engine):
    plan = make_plan()
    frames = np.ones((35, 9, 11))
    frames[20:] = 9e29  # fits, but not the sum
    total = f"{9e29 * len(plan.pixels):.3g}"
    message = re.escape(f"scan position (2, 6) is {total}: expected at most 1e+30")
    with pytest.raises(ValueError, match=message):
        add_events(engine, plan, to_events(frames), "float64")
    A, S = empty(plan, "float64")
    worker = engine(plan, "float64", np.arange(35), A, S)
    with pytest.raises(ValueError, match=message):  # noqa: PT012
        worker.add(frames)
        worker.finish()


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
def test_parts_of_a_scan_add_up_to_the_whole(scan, reach, u):
    """Stretches of any length, some empty; only the rows that they reach are kept."""
    plan = make_plan(scan, (5, 6), u, reach=reach)
    frames = make_frames(plan, "uint8")
    whole, _ = run(ENGINES["numpy"], plan, frames)
    total = np.zeros(plan.folded_shape, np.int64)
    rng = np.random.default_rng(0)
    cuts = [0, *np.sort(rng.integers(0, len(frames) + 1, 5)), len(frames)]
    for start, stop in itertools.pairwise(cuts):
        index = np.arange(start, stop)
        A, _ = run(ENGINES["numpy"], plan, frames[index], index)
        first, count = plan.part(index)
        part = plan.fold(A, frames=index)
        assert part.shape == (u, u, count, scan[1])
        plan.add_part(part, first, total)
        rows = -(-(stop - start) // scan[1]) + 1 + plan.accumulator_shape[2] - scan[0]
        assert count <= min(scan[0], rows)
        assert 0 <= first < scan[0]
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
    others = [
        {"scan_shape": (7, 5)},
        {"detector_shape": (11, 11)},
        {"upsampling_factor": 3},
        {"pixels": plan.pixels[1:], "shifts": plan.shifts[1:]},
        {"shifts": plan.shifts + (np.arange(len(plan.shifts)) == 7)[:, None]},
        {"shifts": plan.shifts[:, ::-1]},
    ]
    digests = {Plan(**{**fields, **other}).digest for other in others}
    assert len(digests - {plan.digest}) == len(others)
    assert all(0 < digest < 2**63 for digest in digests)
