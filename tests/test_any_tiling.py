"""Any plan, frames, region and tiling that Hypothesis finds: the sums are the plain engine's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers import PARAMETERS, assert_same, empty, make_scan, run_engine, sums, to_events
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from libertem_parallax import ParallaxUDF
from libertem_parallax.accumulate import ENGINES, Plan

# Fixtures are set up once for all examples, which is what is meant here.
many = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)


@st.composite
def plans(draw):
    """Of any shape, with any pixels and shifts, also far beyond the scan."""
    ny, nx = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    rows, cols = draw(st.integers(1, 7)), draw(st.integers(1, 9))
    u = draw(st.integers(1, 3))
    used = draw(st.sets(st.integers(0, rows * cols - 1), min_size=1))
    pixels = np.stack(np.divmod(sorted(used), cols), axis=-1)
    reach = draw(st.sampled_from([0, 2, 11, 100]))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    return Plan((ny, nx), (rows, cols), u, pixels, rng.integers(-reach, reach + 1, pixels.shape))


def cuts(draw, length):
    """Pairs of bounds that cut an axis in up to four parts."""
    inner = draw(st.sets(st.integers(1, length - 1), max_size=3)) if length > 1 else set()
    return list(itertools.pairwise(sorted({0, length, *inner}))) if length else []


@many
@given(data=st.data())
def test_sums_do_not_depend_on_tiles(engine, data):
    draw = data.draw
    plan = draw(plans())
    dtype = draw(st.sampled_from(["uint8", "int16", "float64"]))
    events = draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    total = plan.scan_shape[0] * plan.scan_shape[1]
    index = np.array(sorted(draw(st.sets(st.integers(0, total - 1)))), np.int64)
    frames = rng.integers(-128 if dtype == "int16" else 0, 128, (len(index), *plan.detector_shape))
    frames = (frames * (rng.random(frames.shape) < draw(st.sampled_from([0.1, 1])))).astype(dtype)
    expected = run_engine(ENGINES["numpy"], plan, frames, index)

    A, S = empty(plan, dtype, len(index), events=events)
    worker = engine(plan, dtype, index, A, S, events=events)
    axes = [cuts(draw, length) for length in frames.shape]
    for (t, t_stop), (y, y_stop), (x, x_stop) in draw(st.permutations([*itertools.product(*axes)])):
        tile = frames[t:t_stop, y:y_stop, x:x_stop]
        if events:
            worker.add_events(to_events(tile, 1), tile.shape[1:], (y, x), t)
        else:
            worker.add(tile, (y, x), t)
    worker.finish()
    assert_same((A, S), expected)


FRAMES = make_scan((8, 9, 24, 25), "uint16")


@pytest.mark.filterwarnings("ignore:dataset.adjust_tileshape:UserWarning")
@many
@given(data=st.data())
def test_sums_do_not_depend_on_regions_tiles_and_partitions(inline, data):
    """Through LiberTEM, which cuts in its own ways."""
    draw = data.draw
    roi = draw(st.none() | st.lists(st.booleans(), min_size=72, max_size=72).filter(any))
    # Partitions have eight frames or more. LiberTEM refuses tiles of more than a partition, of any
    # UDF that takes the data as they are.
    tileshape = st.tuples(st.integers(1, 8), st.integers(6, 24), st.integers(7, 25))
    ds = inline.load(
        "memory",
        data=FRAMES,
        sig_dims=2,
        num_partitions=draw(st.integers(1, 9)),
        tileshape=draw(st.none() | tileshape),
    )
    u = draw(st.integers(1, 3))
    udf = ParallaxUDF.from_parameters(**{**PARAMETERS, "upsampling_factor": u})
    inline.run_udf(ds, udf, roi=None if roi is None else np.reshape(roi, (8, 9)))
    index = np.arange(72) if roi is None else np.flatnonzero(roi)
    plan = udf.params.geometry.plan
    A, S = run_engine(ENGINES["numpy"], plan, FRAMES.reshape(72, 24, 25)[index], index)
    assert_same(sums(udf), (plan.fold(A), S))
