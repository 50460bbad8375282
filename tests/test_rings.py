"""The sums that tell without a closer look that the disk is where it should be."""

from itertools import pairwise

import numpy as np
import pytest
from helpers import draw_disk

from libertem_parallax import ParallaxUDF
from libertem_parallax.contradictions import seems_to_differ
from libertem_parallax.geometry import Geometry
from libertem_parallax.rings import COUNT, add_rings, rings_agree

PARAMETERS = {
    "scan_sampling": (4.0, 4.0),
    "energy": 300e3,
    "semiangle_cutoff": 6.0,
    "aberration_coefs": {"C10": -2000.0},
}
CENTER = (23.3, 24.6)


def geometry_of(radius, shape=(48, 50), center=CENTER, **parameters):
    sampling = PARAMETERS["semiangle_cutoff"] / radius
    return Geometry.from_parameters(
        (32, 32, *shape),
        **PARAMETERS,
        angular_sampling=(sampling, sampling),
        center=center,
        **parameters,
    )


def sums_of(geometry, frames):
    sums = np.zeros(COUNT)
    agree = add_rings(geometry, sums, frames, range(len(frames)), (0, 0))
    assert agree == rings_agree(geometry, sums)
    return sums


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.float32])
@pytest.mark.parametrize("masked", [False, True])
def test_sums_are_those_of_pixels_one_by_one_whatever_parts_come(dtype, masked):
    radius, rng = 11.0, np.random.default_rng(0)
    mask = rng.random((48, 50)) < 0.9 if masked else np.ones((48, 50), bool)
    geometry = geometry_of(radius, bf_mask=mask)
    most = 120 if dtype == np.uint8 else 32000
    frames = rng.integers(0, most, (7, 48, 50)).astype(dtype)
    chosen = [1, 4, 5]
    slow = np.zeros(COUNT)
    for row, column in np.argwhere(mask):
        y, x = row - CENTER[0], column - CENTER[1]
        distance = np.hypot(y, x) / radius
        quadrant = 2 + (y >= 0) if abs(y) > abs(x) else int(x >= 0)
        value = frames[chosen, row, column].sum(dtype=float)
        slow[0] += value * (distance < 0.5)
        slow[1 + quadrant] += value * (0.7 <= distance < 0.85)
        slow[5 + quadrant] += value * (1.2 <= distance < 1.4)
        slow[9 + quadrant] += value * (0.85 <= distance < 1.2)
    assert (slow > 0).all()
    for cuts in ([0, 48], [0, 1, 20, 40, 48]):
        sums = np.zeros(COUNT)
        for top, bottom in pairwise(cuts):
            for left, right in ((0, 23), (23, 50)):
                part = frames[:, top:bottom, left:right]
                assert not add_rings(geometry, sums, part, chosen, (top, left))
        np.testing.assert_array_equal(sums, slow)


@pytest.mark.parametrize("radius", [1.6, 2.5, 4.0, 8.0, 14.0])
@pytest.mark.filterwarnings("ignore:the detector cuts off")
def test_a_disk_that_is_there_agrees_and_others_do_not(radius):
    geometry = geometry_of(radius)

    def agree(row, column, size):
        frame = draw_disk((row, column), size, shape=(48, 50), counts=200.0)
        return rings_agree(geometry, sums_of(geometry, frame[None]))

    y, x = CENTER
    assert agree(y, x, radius)
    assert not agree(y - 2 * radius, x, radius)
    assert not agree(y, x + 2 * radius, radius)
    assert not agree(y, x, 60.0)
    frame = draw_disk(CENTER, radius, shape=(48, 50), counts=200.0)
    part = frame[None, : round(y + 1.3 * radius)]  # what is beyond may be as bright
    assert not add_rings(geometry, np.zeros(COUNT), part, [0], (0, 0))
    if radius > 4:  # else some pixels are not told apart
        assert not agree(y + radius / 2, x, radius)
        assert agree(y, x - radius / 50, radius)
        if radius < 10:  # of larger ones, the detector cuts off what is further away
            assert not agree(y, x - radius / 10, radius)
            assert not agree(y - radius / 13, x + radius / 13, radius)
        assert not agree(y, x, 2 * radius)
        assert not agree(y, x, radius / 2)
        right = sums_of(geometry, frame[None])
        for which in range(1, COUNT):  # each quadrant matters
            assert not rings_agree(
                geometry, np.where(np.arange(COUNT) == which, which > 4, right / right[0])
            )
    assert not rings_agree(geometry, np.zeros(COUNT))
    assert not rings_agree(geometry, np.full(COUNT, np.nan))


def test_what_agrees_does_not_seem_to_differ():
    """Whoever has the whole pattern says the same."""
    rng, found = np.random.default_rng(1), []
    for radius in (1.6, 3.0, 6.0, 12.0):
        geometry = geometry_of(radius)
        for _ in range(60):
            off, size = rng.normal(0, 0.2 * radius, 2), radius * rng.uniform(0.7, 1.4)
            frame = draw_disk(CENTER + off, size, shape=(48, 50), counts=rng.uniform(0.1, 30))
            agree = rings_agree(geometry, sums_of(geometry, frame[None]))
            found.append((agree, seems_to_differ(geometry, frame)))
    assert (True, True) not in found
    assert {(True, False), (False, True), (False, False)} <= set(found)


def test_of_large_disks_some_rows_are_enough():
    frame = draw_disk((110.0, 123.0), 60.0, shape=(220, 240), counts=50.0)
    geometry = geometry_of(60.0, frame.shape, center=(110.0, 123.0))
    rows = np.flatnonzero(
        [
            sums_of(geometry, np.eye(220)[row, None, :, None] + np.zeros(240)).any()
            for row in range(220)
        ]
    )
    assert set(np.diff(rows)) == {5}  # 12 along the radius
    assert rings_agree(geometry, sums_of(geometry, frame[None]))


def test_sums_of_frames_that_agree_do():
    """So none of them needs a closer look."""
    geometry, rng = geometry_of(6.0), np.random.default_rng(2)
    mean = draw_disk(CENTER, 6.0, shape=(48, 50), counts=1e4) / 1e4
    frames = rng.poisson(rng.uniform(0, 8, (300, 1, 1)) * mean)
    each = np.array([sums_of(geometry, frame[None]) for frame in frames])
    agree = np.flatnonzero([rings_agree(geometry, sums) for sums in each])
    assert 20 < len(agree) < 280
    for _ in range(50):
        assert rings_agree(geometry, each[rng.choice(agree, 5)].sum(axis=0))


@pytest.mark.parametrize("tiles", [{}, {"tileshape": (3, 48, 48)}, {"tileshape": (64, 40, 48)}])
def test_frames_that_agree_are_looked_at_there_only(inline, monkeypatch, tiles):
    looked = []
    monkeypatch.setattr("libertem_parallax.udf.base.add_frames", lambda *_: looked.append(1))
    frame = draw_disk((24, 24), 10.0, shape=(48, 48), counts=50.0).astype(np.uint16)
    ds = inline.load(
        "memory", data=np.tile(frame, (32, 32, 1, 1)), sig_dims=2, num_partitions=3, **tiles
    )
    udf = ParallaxUDF.from_parameters(ds.shape, **PARAMETERS, angular_sampling=(0.6, 0.6))
    inline.run_udf(ds, udf)
    assert not looked
    inline.run_udf(
        ds, ParallaxUDF.from_parameters(ds.shape, **PARAMETERS, angular_sampling=(0.3, 0.3))
    )
    assert looked
