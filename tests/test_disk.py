"""Disks are found where they were drawn: by counting, 8 x 8 points a pixel."""

import numpy as np
import pytest
from helpers import draw_disk as draw

from libertem_parallax.disk import find_disk

WHOLE = {
    "many electrons": {},
    "few electrons": {"counts": 30.0, "outside": 0.5},
    "scattering": {"scattered": 0.3},
    "sloping background": {"slope": (0.3, 0.2)},
    "descan": {"descan": (4.0, 1.0)},
    "much descan": {"descan": (8.0, 3.0)},
    "oblong pixels": {"pixel": (1.5, 0.8)},
    "odd detector": {"shape": (63, 81)},
}


@pytest.mark.parametrize("how", WHOLE)
@pytest.mark.parametrize("center", [(32.3, 29.6), (27.1, 33.5)])
def test_whole_disks_are_found_to_a_tenth_of_a_pixel(how, center):
    disk = find_disk(draw(center, 13.2, **WHOLE[how]), pixel=WHOLE[how].get("pixel", (1.0, 1.0)))
    np.testing.assert_allclose(disk.center, center, atol=0.1)
    np.testing.assert_allclose(disk.radius, 13.2, rtol=0.01)


@pytest.mark.parametrize("radius", [3.5, 27.0])
def test_small_and_large_disks_are_found(radius):
    disk = find_disk(draw((33.2, 30.7), radius))
    np.testing.assert_allclose(disk.center, (33.2, 30.7), atol=0.1)
    np.testing.assert_allclose(disk.radius, radius, rtol=0.01)


def test_large_detectors_are_fitted_in_full():
    disk = find_disk(draw((90.27, 101.4), 30.3, shape=(192, 192), counts=50.0))
    np.testing.assert_allclose(disk.center, (90.27, 101.4), atol=0.05)
    np.testing.assert_allclose(disk.radius, 30.3, rtol=0.002)


@pytest.mark.parametrize("center", [(3.2, 32.1), (-3.0, 30.4), (60.3, 55.2), (4.1, 5.3)])
@pytest.mark.parametrize("how", ["many electrons", "scattering", "sloping background"])
def test_the_detector_may_cut_the_disk(center, how):
    disk = find_disk(draw(center, 13.2, **WHOLE[how]))
    np.testing.assert_allclose(disk.center, center, atol=0.3)
    np.testing.assert_allclose(disk.radius, 13.2, rtol=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_hot_and_dead_pixels_do_not_matter(seed):
    pattern = draw((30.4, 33.1), 13.2, scattered=0.2, slope=(0.1, 0.1), seed=seed)
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(0, 64, (2, 30))
    pattern[rows, columns] = rng.choice([0, 3e4, 1e6, np.nan], 30)
    pattern[40:42, 30:32] = 1e5
    disk = find_disk(pattern)
    np.testing.assert_allclose(disk.center, (30.4, 33.1), atol=0.1)
    np.testing.assert_allclose(disk.radius, 13.2, rtol=0.01)


def test_a_masked_beam_stop_does_not_matter():
    pattern, usable = draw((30.4, 33.1), 13.2), np.ones((64, 64), bool)
    usable[27:34, :37] = False
    pattern[~usable] = 0
    disk = find_disk(pattern, usable)
    np.testing.assert_allclose(disk.center, (30.4, 33.1), atol=0.3)
    np.testing.assert_allclose(disk.radius, 13.2, rtol=0.01)


@pytest.mark.parametrize("counts", [8.0, 800.0])
def test_errors_are_standard_deviations(counts):
    """By noise, also where the shape of pixels moves what is found by more than that."""
    places = {"center": (32.2, 31.9), "radius": 9.3, "counts": counts, "outside": counts / 40}
    patterns = (draw(**places, seed=seed) for seed in range(30))
    found = [find_disk(pattern) for pattern in patterns]
    scatter = np.std([(*disk.center, disk.radius) for disk in found], axis=0)
    stated = np.mean([(*disk.center_error, disk.radius_error) for disk in found], axis=0)
    assert (scatter < 1.5 * stated).all()
    assert (scatter > stated / 1.5).all()


def test_levels_and_edge_are_told():
    disk = find_disk(draw((32.0, 32.0), 15.0, counts=400.0, outside=20.0, descan=(0.0, 6.0)))
    np.testing.assert_allclose((disk.inside, disk.outside), (400, 20), atol=15)
    # That of an even distribution over 6 pixels.
    np.testing.assert_allclose(disk.edge, 6 / np.sqrt(12), rtol=0.2)


@pytest.mark.parametrize("unit", [1e-3, 0.3, 1e3])
def test_units_do_not_matter(unit):
    pattern = draw((30.4, 33.1), 13.2)
    disk, same = find_disk(pattern), find_disk(pattern * unit**2, pixel=(unit, unit))
    np.testing.assert_allclose(same.center, disk.center, atol=1e-4)
    np.testing.assert_allclose(same.radius, disk.radius * unit, rtol=1e-5)


def test_where_there_is_none_none_is_found():
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:64, :64] - 31.5
    patterns = [
        *(rng.poisson(mean, (64, 64)) for mean in (0.0, 0.03, 1.0, 1.0, 100.0, 100.0)),
        np.ones((64, 64)),
        np.full((8, 8), np.nan),
        draw((32.0, 32.0), 100.0, slope=(0.2, 0.3)),  # no edge on the detector
        1000 * np.exp(-(y**2 + x**2) / 300),
        rng.poisson(1.0, (1, 1)),
        rng.poisson(1.0, (1, 64)),
    ]
    assert [find_disk(pattern) for pattern in patterns] == [None] * len(patterns)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="rows and columns"):
        find_disk(np.zeros(4))
    with pytest.raises(ValueError, match=r"expected the pattern's \(4, 4\)"):
        find_disk(np.zeros((4, 4)), np.ones((4, 5), bool))
    with pytest.raises(ValueError, match="positive height and width"):
        find_disk(np.zeros((4, 4)), pixel=(1.0, 0.0))
