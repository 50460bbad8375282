"""The contract that every engine keeps for frames that are lists of events."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import DTYPES, FLOATS, empty, make_frames, make_plan, run_engine, to_events


def run_events(engine, plan, frames, index=None, **options):
    index = np.arange(len(frames)) if index is None else index
    A, S = empty(plan, frames.dtype, len(index), events=True)
    worker = engine(plan, frames.dtype, index, A, S, events=True)
    worker.add_events(to_events(frames, **options))
    worker.finish()
    return A, S


@pytest.mark.parametrize("dtype", [*DTYPES, "bool", "float16", *FLOATS])
def test_events_are_added_as_frames_are(engine, dtype):
    plan = make_plan((3, 17), reach=9)
    frames = make_frames(plan, dtype)
    if np.dtype(dtype).itemsize == 8 and np.dtype(dtype).kind != "f":
        frames %= 2**31
    frames[np.random.default_rng(2).random(frames.shape) < 0.7] = 0
    frames[[0, 5, 6, -1]] = 0
    expected = run_engine(engine, plan, frames)
    A, S = run_events(engine, plan, frames)
    if np.dtype(dtype).kind == "f":
        np.testing.assert_allclose(A, expected[0], rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(S, expected[1], rtol=1e-13, atol=1e-13)
    else:
        assert A.dtype == S.dtype == np.int64
        np.testing.assert_array_equal(A, expected[0])
        np.testing.assert_array_equal(S, expected[1])


@pytest.mark.parametrize(
    ("dtype", "indices"),
    [
        *(("uint8", i) for i in ("int32", "int64", "uint16", "uint32", "uint64", ">i4", ">i8")),
        ("uint32", "int64"),
        ("float64", "uint32"),
    ],
)
def test_events_in_any_order_and_several_of_a_pixel(engine, dtype, indices):
    plan = make_plan((4, 11), reach=9)
    frames = make_frames(plan, "uint8").astype(dtype)  # sums of whole numbers are exact
    frames[np.random.default_rng(2).random(frames.shape) < 0.7] = 0
    expected = run_engine(engine, plan, frames)
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
    whole = run_engine(engine, plan, frames[index], index)

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
    expected = run_engine(engine, plan, frames[10:20], np.arange(10, 20))
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
@pytest.mark.parametrize("first", ["outside", "value", "both"])
def test_the_first_frame_with_a_bad_event_is_named(engine, indices, first):
    plan = make_plan()
    events = to_events(np.ones((35, 9, 11)), indices=indices)
    frames = {"outside": (8, 21), "value": (21, 8), "both": (9, 8)}[first]
    outside, bad = (int(events.indptr[frame]) for frame in frames)
    if first == "both":  # one frame has a bad value, then an event outside
        outside -= 1
    events.indices[outside] = 99
    used = plan.lookup.reshape(-1)[events.indices[bad : bad + 98]] >= 0
    events.data[bad + np.argmax(used)] = np.nan
    message = "in the bright field whose" if first == "value" else "has an event off the detector"
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
