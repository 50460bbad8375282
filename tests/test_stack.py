"""Frames that are kept to be added again: the sums are those of the frames themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import DTYPES, FLOATS, by_formula, make_frames, make_plan, needs_compiler, to_events
from hypothesis import given, settings
from hypothesis import strategies as st

from libertem_parallax.accumulate import ENGINES, Plan, Stack
from libertem_parallax.accumulate import stack as stack_module
from libertem_parallax.accumulate.cuda import CudaStack, upload
from libertem_parallax.accumulate.fill import Fill


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("cuda", id="cuda-on-cpu", marks=needs_compiler),
        pytest.param("cuda", id="cuda", marks=pytest.mark.gpu),
    ]
)
def make_stack(request):
    """Make stacks of every kind, for which the same holds."""
    if request.param == "cuda" and request.node.get_closest_marker("gpu") is None:
        request.getfixturevalue("standin")()
        # So that several pieces are uploaded.
        request.getfixturevalue("monkeypatch").setattr(upload, "SLOT_BYTES", 500)

    def make(plan, frames, mask=None):
        stack = Stack.from_array(frames.reshape(*plan.scan_shape, *plan.detector_shape), mask)
        return CudaStack.of(stack) if request.param == "cuda" else stack

    return make


def mask_of(plan):
    mask = np.zeros(plan.detector_shape, bool)
    mask[tuple(plan.pixels.T)] = True
    return mask


def as_image(plan, A):
    return A.transpose(2, 0, 3, 1).reshape(plan.image_shape)


def by_engine(plan, frames):
    A = np.zeros(plan.accumulator_shape, np.int64 if frames.dtype.kind in "biu" else np.float64)
    S = np.zeros(len(frames), A.dtype)
    engine = ENGINES["numpy"](plan, frames.dtype, np.arange(len(frames)), A, S)
    engine.add(frames)
    engine.finish()
    return plan.fold(A), S.reshape(plan.scan_shape)


@pytest.mark.parametrize("u", [1, 2, 3])
@pytest.mark.parametrize("reach", [0, 4, 30])
def test_sums_are_those_of_the_formula(make_stack, u, reach):
    plan = make_plan((5, 7), (6, 8), u, reach=reach)
    frames = make_frames(plan, "uint16")
    A, S = make_stack(plan, frames, mask_of(plan)).add(plan)
    np.testing.assert_array_equal(as_image(plan, A), by_formula(plan, frames).astype(int))
    np.testing.assert_array_equal(S.reshape(-1), frames[:, *plan.pixels.T].sum(axis=1))


@pytest.mark.parametrize("dtype", [*DTYPES, "bool", ">u2", "float16", *FLOATS])
def test_every_dtype(make_stack, dtype):
    plan = make_plan((4, 19), (9, 11), 2)
    frames = make_frames(plan, np.dtype(dtype).newbyteorder("=")).astype(dtype)
    stack = make_stack(plan, frames)
    assert stack.frames.dtype.isnative
    if frames.dtype.kind in "iu":
        assert stack.frames.dtype == frames.dtype.newbyteorder("=")
    A, S = stack.add(plan)
    expected_A, expected_S = by_engine(plan, frames)
    if np.dtype(dtype).kind == "f":
        np.testing.assert_allclose(A, expected_A, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(S, expected_S, rtol=1e-13, atol=1e-13)
    else:
        np.testing.assert_array_equal(A, expected_A)
        np.testing.assert_array_equal(S, expected_S)


def test_a_stack_of_more_pixels_serves_many_plans(make_stack):
    """Other shifts, other upsampling, other pixels within it."""
    frames = make_frames(make_plan((6, 9)), "uint8")
    stack = make_stack(make_plan((6, 9)), frames)
    for seed in range(6):
        plan = make_plan((6, 9), u=1 + seed % 3, seed=seed, pixels=0.2 + 0.1 * seed)
        for one, other in zip(stack.add(plan), by_engine(plan, frames), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("threads", [1, 2, 3, 16, None])
@pytest.mark.parametrize("reach", [3, 40])
def test_threads_share_the_scan(make_stack, monkeypatch, threads, reach):
    monkeypatch.setattr(stack_module, "_THREAD_VALUES", 1)
    plan = make_plan((13, 11), reach=reach)
    frames = make_frames(plan, "int16")
    for one, other in zip(
        make_stack(plan, frames).add(plan, threads), by_engine(plan, frames), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shift", [-9, -2, 2, 9])
def test_images_are_whole_where_all_pixels_leave_them_on_one_side(
    make_stack, monkeypatch, threads, shift
):
    """Rows to which nothing is added are zero, not missing."""
    monkeypatch.setattr(stack_module, "_THREAD_VALUES", 1)
    plan = make_plan((7, 5), u=1)
    plan = replace(plan, shifts=np.full_like(plan.shifts, shift), wraps=False)
    frames = make_frames(plan, "uint8")
    A, _ = make_stack(plan, frames).add(plan, threads)
    np.testing.assert_array_equal(A, by_engine(plan, frames)[0])


def test_a_narrower_stack_adds_the_same(make_stack):
    plan = make_plan((6, 9), pixels=0.3)
    frames = make_frames(plan, "uint8")
    stack = make_stack(plan, frames)
    narrow = stack.select(mask_of(plan))
    np.testing.assert_array_equal(narrow.pixels, plan.pixels)
    np.testing.assert_array_equal(narrow.frames, frames[:, *plan.pixels.T])
    assert narrow.frames.flags.c_contiguous
    for one, other in zip(narrow.add(plan), stack.add(plan), strict=True):
        np.testing.assert_array_equal(one, other)
    # What the stack does not have cannot be taken.
    wide = narrow.select(np.ones(plan.detector_shape, bool))
    np.testing.assert_array_equal(wide.pixels, plan.pixels)


def test_what_is_not_scanned_yet_adds_nothing_and_shows_when_it_is(make_stack):
    plan = make_plan((6, 9))
    frames = make_frames(plan, "uint8")
    blank = np.zeros_like(frames)
    stack = make_stack(plan, blank)
    stack.scanned[...] = False
    assert not stack.add(plan)[0].any()
    stack.frames[:20] = make_stack(plan, frames).frames[:20]
    blank[:20] = frames[:20]
    scanned = np.arange(54).reshape(6, 9) < 20
    if isinstance(stack, CudaStack):
        stack.refresh(scanned)
        np.testing.assert_array_equal(stack.scanned, scanned)
    stack.scanned[...] = scanned
    for one, other in zip(stack.add(plan), by_engine(plan, blank), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("threads", [1, 3])
def test_what_comes_meanwhile_is_not_added(threads, monkeypatch):
    """Partitions come in any order: frames between those that are there may be half written."""
    monkeypatch.setattr(stack_module, "_THREAD_VALUES", 500)
    monkeypatch.setattr(stack_module, "_SPLIT", 64)
    plan = make_plan((20, 30))
    frames = make_frames(plan, "uint8")
    for there in (np.arange(600) // 100 % 2 == 1, np.random.default_rng(0).random(600) < 0.3):
        scanned = there.reshape(20, 30)
        stack = replace(
            Stack.from_array(frames.reshape(20, 30, *frames.shape[1:])), scanned=scanned
        )
        blank = frames * there[:, None, None].astype("uint8")
        for one, other in zip(stack.add(plan, threads), by_engine(plan, blank), strict=True):
            np.testing.assert_array_equal(one, other)


def test_bad_values_are_named_by_their_place_on_the_detector(make_stack):
    plan = make_plan()
    frames = make_frames(plan, "float32")
    row, col = plan.pixels[10]
    frames[8, row, col] = np.nan
    unused = ~mask_of(plan)
    frames[:, unused] = np.inf
    stack = make_stack(plan, frames)
    with pytest.raises(ValueError, match=rf"\(1, 1\), detector pixel \({row}, {col}\) is nan"):
        stack.add(plan)
    frames[8, row, col] = 0
    make_stack(plan, frames).add(plan)
    huge = np.full((35, 9, 11), 2**62)
    row, col = plan.pixels[0]
    with pytest.raises(ValueError, match=rf"\(0, 0\), detector pixel \({row}, {col}\) is 4611"):
        make_stack(plan, huge).add(plan)


def test_plans_that_do_not_fit_are_refused(make_stack):
    plan = make_plan()
    stack = make_stack(plan, make_frames(plan, "uint8"), mask_of(plan))
    for other, message in [
        (make_plan((7, 5)), r"a scan of 7 x 5, the stack has 5 x 7"),
        (make_plan(detector=(11, 9)), r"a detector of 11 x 9, the stack has 9 x 11"),
    ]:
        with pytest.raises(ValueError, match=message):
            stack.add(other)
    extra = np.argwhere(~mask_of(plan))[:3]
    pixels = np.unique(np.vstack([plan.pixels, extra]), axis=0)
    other = Plan((5, 7), (9, 11), 1, pixels, np.zeros_like(pixels))
    row, col = extra[0]
    with pytest.raises(ValueError, match=rf"3 of the {len(pixels)} .*\({row}, {col}\)"):
        stack.add(other)


def test_stacks_that_contradict_themselves_are_refused():
    good = {
        "frames": np.zeros((6, 2), np.uint8),
        "pixels": np.array([[0, 1], [2, 0]]),
        "scan_shape": (2, 3),
        "detector_shape": (3, 4),
        "scanned": np.ones((2, 3), bool),
    }
    Stack(**good)
    for change, message in [
        ({"frames": np.zeros((2, 6), np.uint8)}, r"shape \(6, 2\)"),
        ({"frames": np.zeros((2, 6), np.uint8).T}, "not C-contiguous"),
        ({"frames": np.zeros((6, 2), ">u2")}, "dtype uint16"),
        ({"pixels": np.array([[0, 1], [3, 0]])}, "on the detector"),
        ({"pixels": np.array([[2, 0], [0, 1]])}, "row-major order"),
        ({"scanned": np.ones((3, 2), bool)}, r"booleans of shape \(2, 3\)"),
        ({"scanned": np.ones((2, 3))}, "booleans"),
    ]:
        with pytest.raises(ValueError, match=message):
            Stack(**{**good, **change})
    with pytest.raises(TypeError, match="complex"):
        Stack(**{**good, "frames": np.zeros((6, 2), complex)})
    stack = Stack(**good)
    with pytest.raises(ValueError, match=r"mask: expected booleans of .*\(3, 4\)"):
        stack.select(np.ones((4, 3), bool))
    with pytest.raises(ValueError, match="no pixel"):
        stack.select(np.zeros((3, 4), bool))
    with pytest.raises(ValueError, match="Reshape"):
        Stack.from_array(np.zeros((6, 3, 4)))


# How it is filled


def cut(draw, size):
    """Cut a range into pieces of any length."""
    cuts = sorted(draw(st.sets(st.integers(1, size - 1), max_size=4)) if size > 1 else ())
    return [slice(a, b) for a, b in zip([0, *cuts], [*cuts, size], strict=True)]


@st.composite
def tilings(draw, shape):
    """Tiles that cover frames and detector, in any order."""
    tiles = [
        (t, y, x)
        for t in cut(draw, shape[0])
        for y in cut(draw, shape[1])
        for x in cut(draw, shape[2])
    ]
    return draw(st.permutations(tiles))


FRAMES = make_frames(make_plan((4, 5), (6, 7)), "uint16")
FEW = np.where(np.random.default_rng(0).random(FRAMES.shape) < 0.2, FRAMES, 0).astype("uint16")


@settings(deadline=None)
@given(
    tiles=tilings(FRAMES.shape),
    mask=st.lists(st.booleans(), min_size=42, max_size=42).filter(any),
    events=st.booleans(),
    dtype=st.sampled_from(["uint16", "uint32", "int32", "float32", "float64"]),
)
def test_tiles_of_any_kind_fill_it(tiles, mask, events, dtype):
    pixels = np.argwhere(np.reshape(mask, (6, 7)))
    frames = np.zeros((20, len(pixels)), dtype)
    fill = Fill(frames, pixels, (6, 7), np.arange(20), 5)
    data = FEW if events else FRAMES
    for t, y, x in tiles:
        tile, origin = data[t, y, x], (y.start, x.start)
        if events:
            fill.add_events(to_events(tile, seed=1), tile.shape[1:], origin, t.start)
        else:
            fill.add(tile, origin, t.start)
    np.testing.assert_array_equal(frames, data[:, *pixels.T])


def fill_events(values, dtype, columns=None, mask=None):
    """Three frames of 2 x 2 pixels, the last two of which have the events."""
    values = np.asarray(values)
    pixels = np.argwhere(np.ones((2, 2), bool) if mask is None else mask)
    frames = np.zeros((3, len(pixels)), dtype)
    n = len(values)
    events = to_events(np.zeros((3, 2, 2), values.dtype))
    events.data = np.tile(values, 2)
    events.indices = np.tile(np.full(n, 2) if columns is None else columns, 2)
    events.indptr = np.array([0, 0, n, 2 * n])
    Fill(frames, pixels, (2, 2), np.arange(3), 2).add_events(events, (2, 2))
    return frames


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.ones(255, "uint8"), "uint8"),
        (np.full(3, 85, "uint8"), "uint8"),
        (np.full(5, 51.0, "float32"), "uint8"),
        (np.full(2, -64, "int16"), "int8"),
        (np.full(4, 2**32 - 1, "uint64"), "uint64"),
        (np.full(4, -(2**31), "int64"), "int64"),
        (np.full(4, 0.25, "float32"), "float32"),
    ],
)
def test_events_of_a_pixel_add_up(values, dtype):
    frames = fill_events(values, dtype)
    assert frames.sum(axis=0).tolist() == [0, 0, 2 * sum(values.tolist()), 0]
    assert frames[0, 2] == 0


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.ones(256, "uint8"), "uint8"),
        (np.array([200, 56], "uint8"), "uint8"),
        (np.array([256], "uint16"), "uint8"),
        (np.array([-1], "int8"), "uint8"),
        (np.full(3, -64, "int16"), "int8"),
        (np.full(2, 2**31 - 1, "int64"), "int32"),
        (np.array([2**32], "uint64"), "uint64"),
        (np.array([0.5], "float32"), "uint8"),
        (np.array([2.0**32], "float32"), "uint32"),
        (np.array([np.nan], "float32"), "uint8"),
        (np.array([np.inf], "float64"), "float64"),
    ],
)
def test_events_that_do_not_fit_are_refused_not_wrapped(values, dtype):
    message = rf"\(0, 1\), detector pixel \(1, 0\) has .* stack of {dtype} does not hold"
    with pytest.raises(ValueError, match=message):
        fill_events(values, dtype)
    # Where they are not wanted they do not matter.
    mask = np.array([[True, True], [False, True]])
    assert not fill_events(values, dtype, mask=mask).any()


@pytest.mark.parametrize("column", [-1, 4, 2**31 - 1])
def test_events_off_the_tile_are_refused(column):
    with pytest.raises(ValueError, match=rf"\(0, 1\) has an event at pixel {column} of .*2 x 2"):
        fill_events(np.ones(3, "uint8"), "uint8", np.array([0, 1, column]))


@pytest.mark.parametrize(
    ("bad", "dtype", "to"),
    [
        (300, "uint16", "uint8"),
        (-1, "int16", "uint8"),
        (2**62, "int64", "int32"),
        (0.5, "float32", "uint8"),
        (np.nan, "float32", "uint8"),
        (1e300, "float64", "float32"),
    ],
)
def test_values_that_do_not_fit_are_refused_not_wrapped(bad, dtype, to):
    tile = np.ones((3, 2, 2), dtype)
    tile[2, 1, 0] = bad
    pixels = np.argwhere(np.ones((2, 2), bool))
    frames = np.zeros((3, 4), to)
    fill = Fill(frames, pixels, (2, 2), np.arange(3), 2)
    with pytest.raises(ValueError, match=r"\(1, 0\), detector pixel \(1, 0\) is .* wider dtype"):
        fill.add(tile)
    fill.add(tile[:2])
    with pytest.raises(ValueError, match="tile of shape"):
        fill.add(tile, first=1)
