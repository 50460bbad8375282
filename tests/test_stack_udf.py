"""Stacks filled through LiberTEM: they add what the other UDFs add on the way."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import (
    PARAMETERS,
    assert_same,
    forced_tiles,
    make_events,
    make_scan,
    run_udf,
    sums,
    write,
)
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from libertem.api import Context
from libertem_live.api import LiveContext

from libertem_parallax import ParallaxUDF
from libertem_parallax.accumulate import add_kept
from libertem_parallax.udf import StackUDF, base

SHAPE = PARAMETERS["shape"]
PLAN = ParallaxUDF.from_parameters(**PARAMETERS).params.geometry.plan
MASK = PLAN.lookup >= 0


def assert_does_both(both, parallax, udf):
    """One UDF has the sums of one that only adds, and the stack of one that only keeps frames."""
    assert_same(sums(both), sums(parallax))
    np.testing.assert_array_equal(both.stack.frames, udf.stack.frames)
    np.testing.assert_array_equal(both.stack.scanned, udf.stack.scanned)


def assert_adds_the_same(ctx, ds, udf, roi=None):
    """The stack's sums are those of the frames; one UDF that does both does both the same."""
    parallax = ParallaxUDF.from_parameters(**PARAMETERS)
    both = parallax.keeping(udf.selection)
    ctx.run_udf(ds, [parallax, udf, both], roi=roi)
    assert_does_both(both, parallax, udf)
    A, S = udf.stack.add(PLAN)
    np.testing.assert_array_equal(A, sums(parallax)[0])
    expected = np.zeros(PLAN.scan_shape, S.dtype)
    expected[... if roi is None else roi] = sums(parallax)[1].reshape(
        PLAN.scan_shape if roi is None else -1
    )
    np.testing.assert_array_equal(S, expected)
    np.testing.assert_array_equal(udf.stack.scanned, True if roi is None else roi)


@pytest.mark.parametrize(("dtype", "part"), [("uint8", False), (">u2", True)])
def test_every_executor(ctx, dtype, part):
    roi = np.random.default_rng(0).random(SHAPE[:2]) < 0.6 if part else None
    ds = ctx.load("memory", data=make_scan(SHAPE, dtype), sig_dims=2, num_partitions=3)
    udf = StackUDF.for_dataset(ds, MASK)
    assert_adds_the_same(ctx, ds, udf, roi)
    assert udf.stack.frames.dtype == np.dtype(dtype).newbyteorder("=")
    assert udf.stack.frames.nbytes == udf.nbytes


@pytest.mark.parametrize("dtype", [None, "uint8"])
def test_events_with_every_executor(ctx, tmp_path, dtype):
    path = write(tmp_path, make_events("uint8"), seed=3)
    ds = ctx.load("raw_csr", path=path, num_partitions=3)
    udf = StackUDF.for_dataset(ds, MASK, dtype=dtype)
    assert_adds_the_same(ctx, ds, udf)
    assert udf.stack.frames.dtype == (dtype or "uint16")


@pytest.mark.parametrize("rows", [1, 5])
def test_events_of_the_first_rows(inline, tmp_path, rows):
    """The others are added as they come; partitions may have both."""
    events = make_events("uint8")
    ds = inline.load("raw_csr", path=write(tmp_path, events, seed=3), num_partitions=3)
    parallax = ParallaxUDF.from_parameters(**PARAMETERS)
    selection = StackUDF.for_dataset(ds, MASK).selection
    both = parallax.keeping(selection._replace(region=(slice(0, rows), slice(0, 9))))
    inline.run_udf(ds, [parallax, both])
    assert_same(sums(both), sums(parallax))
    expected = events[:rows, :, MASK].reshape(9 * rows, -1)
    np.testing.assert_array_equal(both.stack.frames, expected)


FRAMES = make_scan(SHAPE, "uint16")


@forced_tiles
@settings(deadline=None, max_examples=60, phases=[Phase.generate])
@given(data=st.data())
def test_any_tiling_region_and_part(inline, data):
    draw = data.draw
    (ny, nx), count = SHAPE[:2], SHAPE[0] * SHAPE[1]
    roi = draw(st.none() | st.lists(st.booleans(), min_size=count, max_size=count).filter(any))
    # LiberTEM's memory source fails with both, and mixes frames up where negative offsets meet
    # tiles that cut columns.
    offset = draw(st.sampled_from([0, 5, -13])) if roi is None else 0
    # Nor are tiles of more frames than a partition taken: eight, at least.
    least = 1, 6, 7 if offset >= 0 else 25
    sizes = [st.integers(low, high) for low, high in zip(least, (8, 24, 25), strict=True)]
    ds = inline.load(
        "memory",
        data=FRAMES,
        sig_dims=2,
        num_partitions=draw(st.integers(1, 9)),
        tileshape=draw(st.none() | st.tuples(*sizes)),
        sync_offset=offset,
    )
    scanned = np.ones(count, bool) if roi is None else np.array(roi)
    expected = np.zeros((count, *SHAPE[2:]), FRAMES.dtype)
    for f in np.flatnonzero(scanned):
        scanned[f] = 0 <= f + offset < count
        if scanned[f]:
            expected[f] = FRAMES.reshape(expected.shape)[f + offset]
    top, left = draw(st.integers(0, ny - 1)), draw(st.integers(0, nx - 1))
    bottom, right = draw(st.integers(top + 1, ny)), draw(st.integers(left + 1, nx))
    region = slice(top, bottom), slice(left, right)
    # The last one lacks pixels of the bright field, which are added though they are not kept.
    mask = draw(st.sampled_from([MASK, np.ones_like(MASK), np.arange(25) > np.zeros((24, 1)) + 9]))
    pixels = np.argwhere(mask).astype(draw(st.sampled_from(["int64", "int32"])))
    udf = StackUDF(SHAPE, FRAMES.dtype, pixels, region)
    parallax = ParallaxUDF.from_parameters(**PARAMETERS)
    both = parallax.keeping(udf.selection)
    roi = None if roi is None else np.reshape(roi, (ny, nx))
    inline.run_udf(ds, [udf, parallax, both], roi=roi)
    assert_does_both(both, parallax, udf)
    stack = udf.stack
    kept = expected.reshape(SHAPE)[region]
    assert stack.scan_shape == kept.shape[:2]
    assert np.array_equal(stack.frames, kept.reshape(-1, *SHAPE[2:])[:, mask])
    assert np.array_equal(stack.scanned, scanned.reshape(ny, nx)[region])


def test_it_can_be_used_while_it_fills(inline):
    frames = make_scan(SHAPE, "uint8")
    ds = inline.load("memory", data=frames, sig_dims=2, num_partitions=4)
    udf = StackUDF.for_dataset(ds, MASK)
    with pytest.raises(ValueError, match="run the UDF first"):
        _ = udf.stack
    seen = []
    for part in inline.run_udf_iter(ds, udf):
        scanned = udf.stack.scanned
        np.testing.assert_array_equal(scanned, part.damage.data)
        seen.append(scanned.sum())
        expected = np.where(scanned[..., None, None], frames, 0)
        np.testing.assert_array_equal(udf.stack.frames, expected.reshape(-1, *SHAPE[2:])[:, MASK])
    assert seen == [18, 36, 54, 72]


@pytest.mark.parametrize(
    ("dtype", "kept", "kept_ones"),
    [("uint8", None, 45), ("int16", None, 45), ("uint8", "int32", 0), ("float32", None, 0)],
)
def test_sums_are_of_what_is_kept(inline, monkeypatch, dtype, kept, kept_ones):
    """Of integers whose sums are no wider, for rows that are kept; others are added as they come.

    Floats have the same bits as without: their sums depend on the order.
    """
    frames = make_scan(SHAPE, dtype)
    ds = inline.load("memory", data=frames, sig_dims=2, num_partitions=3)
    selection = StackUDF.for_dataset(ds, MASK, dtype=kept).selection
    selection = selection._replace(region=(slice(0, 5), slice(0, 9)))
    added = []

    def add(frames, *more):
        added.append(len(frames))
        add_kept(frames, *more)

    monkeypatch.setattr(base, "add_kept", add)
    parallax = ParallaxUDF.from_parameters(**PARAMETERS)
    both = parallax.keeping(selection)
    run_udf(inline, frames, both)
    run_udf(inline, frames, parallax)
    assert sum(added) == kept_ones
    assert_same(sums(both), sums(parallax))
    np.testing.assert_array_equal(both.stack.frames, frames[:5, :, MASK].reshape(45, -1))


@pytest.mark.parametrize("executor", ["inline", "threads"])
def test_another_geometry_leaves_what_is_kept(executor):
    """The sums start anew with it; threads go on with those that they had before."""
    frames = make_scan(SHAPE, "uint16")
    other = ParallaxUDF.from_parameters(**{**PARAMETERS, "center": (11.2, 12.4)})
    with Context.make_with(executor) as ctx:
        ds = ctx.load("memory", data=frames, sig_dims=2, num_partitions=8)
        everything = StackUDF.for_dataset(ds).selection
        udf = ParallaxUDF.from_parameters(**PARAMETERS).keeping(everything)
        results = ctx.run_udf_iter(ds, udf)
        for number, _ in enumerate(results, 1):
            if number == 3:
                results.update_parameters_experimental([{"geometry": other.params.geometry}])
        late = np.where(np.arange(8)[:, None, None, None] >= 3, frames, 0).astype(np.uint16)
        run_udf(ctx, late, other)
    if executor == "inline":
        assert_same(sums(udf), sums(other))
    np.testing.assert_array_equal(udf.stack.frames, frames.reshape(72, -1))


def test_live():
    frames = make_scan(SHAPE, "uint16")
    with (
        LiveContext.make_with("inline") as ctx,
        ctx.make_connection("memory").open(data=frames) as conn,
    ):
        aq = ctx.make_acquisition(conn=conn, nav_shape=SHAPE[:2])
        assert_adds_the_same(ctx, aq, StackUDF.for_dataset(aq, MASK))


def test_what_exceeds_the_limit_is_the_middle_and_read_alone(inline):
    frames = make_scan(SHAPE, "uint16")
    ds = inline.load("memory", data=frames, sig_dims=2, num_partitions=3)
    whole = StackUDF.for_dataset(ds, MASK)
    pixels = MASK.sum()
    assert whole.nbytes == 8 * 9 * pixels * 2
    assert whole.roi is None
    with pytest.warns(UserWarning, match=r"the stack is of the middle 4 x 4 frames"):
        part = StackUDF.for_dataset(ds, MASK, limit=whole.nbytes // 4)
    assert part.nbytes <= whole.nbytes // 4
    middle = frames[2:6, 2:6]
    for roi in (None, part.roi):
        inline.run_udf(ds, part, roi=roi)
        stack = part.stack
        assert stack.scan_shape == (4, 4)
        assert stack.scanned.all()
        np.testing.assert_array_equal(stack.frames, middle[:, :, MASK].reshape(16, -1))
    with pytest.warns(UserWarning, match="the middle 1 x 1"):
        StackUDF.for_dataset(ds, MASK, limit=2 * pixels)
    with pytest.raises(ValueError, match=rf"limit = 9 bytes: a single frame .* takes {2 * pixels}"):
        StackUDF.for_dataset(ds, MASK, limit=9)


def test_what_does_not_fit_is_refused(inline, tmp_path):
    ds = inline.load("memory", data=make_scan(SHAPE, "uint16"), sig_dims=2)
    with pytest.raises(ValueError, match=r"a stack of uint8 does not hold that"):
        inline.run_udf(ds, StackUDF.for_dataset(ds, MASK, dtype="uint8"))
    narrow = StackUDF.for_dataset(ds, MASK, dtype="uint8").selection
    with pytest.raises(ValueError, match=r"a stack of uint8 does not hold that"):
        inline.run_udf(ds, ParallaxUDF.from_parameters(**PARAMETERS).keeping(narrow))
    with pytest.raises(ValueError, match="no stack yet: the UDF keeps no frames"):
        _ = ParallaxUDF.from_parameters(**PARAMETERS).stack
    with pytest.raises(ValueError, match="mask: expected booleans"):
        StackUDF.for_dataset(ds, MASK[1:])
    with pytest.raises(TypeError, match="complex"):
        StackUDF.for_dataset(ds, MASK, dtype="complex64")
    other = inline.load("memory", data=make_scan((9, 8, 24, 25), "uint8"), sig_dims=2)
    with pytest.raises(ValueError, match=r"shape \(9, 8, 24, 25\), the UDF was made for \(8, 9"):
        inline.run_udf(other, StackUDF.for_dataset(ds, MASK))
    flat = inline.load("memory", data=make_scan((9, 8, 24, 25), "uint8")[0], sig_dims=2)
    with pytest.raises(ValueError, match="Give nav_shape"):
        StackUDF.for_dataset(flat)
