"""Parameters that the frames contradict are told, those that fit are not."""

import re
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from file_commands import Run, succeeded
from helpers import draw_disk
from scipy.sparse import csr_array
from threadpoolctl import threadpool_info, threadpool_limits

from libertem_parallax import ParallaxUDF
from libertem_parallax.contradictions import (
    add_frames,
    contradiction,
    pattern_shape,
    positions_to_compare,
    seems_to_differ,
)
from libertem_parallax.disk import find_disk
from libertem_parallax.event_files import write_events
from libertem_parallax.geometry import Geometry

SHAPE = (32, 32, 48, 48)
RADIUS = 12.0
PARAMETERS = {
    "scan_sampling": (4.0, 4.0),
    "energy": 300e3,
    "semiangle_cutoff": 6.0,
    "angular_sampling": (0.5, 0.5),
    "aberration_coefs": {"C10": -2000.0},
}


def said(changes, pattern, **parameters):
    geometry = Geometry.from_parameters(SHAPE, **{**PARAMETERS, **parameters, **changes})
    return contradiction(geometry, pattern) if seems_to_differ(geometry, pattern) else None


RIGHT = {
    "nothing": {},
    "an offset that is no harm": {"center": (25.0, 23.4)},
    "a smaller cutoff": {"semiangle_cutoff": 5.0},
    "a larger cutoff": {"semiangle_cutoff": 7.0},
    "reciprocal sampling": {"angular_sampling": None, "reciprocal_sampling": (0.0254, 0.0254)},
}


@pytest.mark.parametrize("changes", RIGHT.values(), ids=RIGHT)
@pytest.mark.parametrize("counts", [1.0, 100.0])
@pytest.mark.filterwarnings("ignore:the detector cuts off")
def test_what_fits_is_not_told(changes, counts):
    pattern = draw_disk((24.1, 24.0), RADIUS, shape=SHAPE[2:], counts=counts, outside=counts / 10)
    assert said(changes, pattern) is None


def test_too_little_to_tell_is_not_told():
    rng = np.random.default_rng(0)
    assert said({}, np.zeros(SHAPE[2:])) is None
    for seed in range(20):
        assert said({}, rng.poisson(0.005, SHAPE[2:]).astype(float)) is None
        shown = draw_disk((24, 24), RADIUS, shape=SHAPE[2:], counts=0.05, outside=0.0, seed=seed)
        assert said({}, shown) is None


@pytest.mark.parametrize("counts", [0.1, 0.2, 0.4])
def test_a_clump_of_few_electrons_is_no_disk(counts):
    for seed in range(15):
        shown = draw_disk((24, 24), RADIUS, shape=SHAPE[2:], counts=counts, outside=0.0, seed=seed)
        assert said({}, shown) is None


def test_few_electrons_tell_a_center_that_is_off():
    for seed in range(8):
        shown = draw_disk((24, 24), RADIUS, shape=SHAPE[2:], counts=1.0, outside=0.0, seed=seed)
        assert said({}, shown) is None
        assert "Give center=" in said({"center": (26.8, 24.0)}, shown)


def test_hot_pixels_masks_and_scattering_are_not_told():
    pattern = draw_disk((24, 24), RADIUS, shape=SHAPE[2:], scattered=0.6)
    pattern[3, 5], pattern[10:12, 40], pattern[24, 30] = 1e6, 1e5, np.nan
    assert said({}, pattern) is None
    usable = np.ones(SHAPE[2:], bool)
    usable[20:28, :30] = False
    pattern[~usable] = 0
    assert said({"bf_mask": usable}, pattern) is None


@pytest.mark.filterwarnings("ignore:the detector cuts off", "ignore:shifts")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"angular_sampling": (0.2, 0.2)},
            "row 24.1, column 24.0 with a radius of 12 pixels; the parameters say 24, 24 and 30. "
            "With semiangle_cutoff=6 mrad, the disk means angular_sampling=(0.49",
        ),
        ({"angular_sampling": (5e-4, 5e-4)}, "the parameters say 24, 24 and 1.2e+04"),
        ({"semiangle_cutoff": 4.0}, "the parameters say 24, 24 and 8. With"),
        (
            {"angular_sampling": None, "reciprocal_sampling": (0.5, 0.5)},
            "the disk means reciprocal_sampling=(0.02",
        ),
        (
            {"center": (27.0, 20.0)},
            "row 24.1, column 24.0 with a radius of 12 pixels; the parameters say 27, 20 and 12. "
            "Give center=(24.1, 24.0) if",
        ),
        ({"center": (22.1, 24.0)}, "Give center=(24.1, 24.0) if"),
        ({"center": (25.5, 25.4)}, "Give center=(24.1, 24.0) if"),
    ],
)
def test_what_differs_is_told(changes, message):
    pattern = draw_disk((24.1, 24.0), RADIUS, shape=SHAPE[2:], counts=100.0, outside=2.0)
    assert message in said(changes, pattern)


@pytest.mark.filterwarnings("ignore:the detector cuts off")
def test_oblong_pixels_have_two_radii():
    pattern = draw_disk((24, 24), 6.0, shape=SHAPE[2:], pixel=(0.5, 0.8))
    assert said({"angular_sampling": (0.5, 0.8)}, pattern) is None
    assert "radius of 12 x 7.49 pixels" in said({"angular_sampling": (0.25, 0.4)}, pattern)


def test_frames_to_compare_are_few_and_spread():
    for ny, nx in [(24, 24), (72, 72), (2048, 2048), (1, 5000), (5000, 1), (600, 2)]:
        chosen = positions_to_compare((ny, nx), 500)
        assert 1 <= len(chosen) <= min(64, ny * nx / 32)
        assert (np.diff(chosen) > 0).all()
        assert chosen[0] < nx  # live, it is told early
        assert chosen[-1] < ny * nx
    assert len(positions_to_compare((15, 30), 500)) == 0
    assert len(positions_to_compare((1, 1), 500)) == 0
    # Four of each of four rows have enough electrons of a large disk.
    assert [len(positions_to_compare((99, 99), m)) for m in (1, 3000, 10**6)] == [64, 20, 16]


@pytest.fixture(scope="module")
def frames():
    mean = draw_disk((24, 24), RADIUS, shape=SHAPE[2:], counts=3e4, outside=300.0) / 1e4
    return np.random.default_rng(1).poisson(mean, SHAPE).astype(np.uint8)


def warned(ctx, ds, roi=None, **changes):
    """What a run warns of; the UDF says nothing when it is made."""
    udf = ParallaxUDF.from_parameters(ds.shape, **{**PARAMETERS, **changes})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ctx.run_udf(ds, udf, roi=roi)
    return [str(warning.message) for warning in caught if "the " in str(warning.message)]


def test_runs_tell_it_once(inline, frames):
    ds = inline.load("memory", data=frames, sig_dims=2, num_partitions=7)
    assert warned(inline, ds) == []
    (message,) = warned(inline, ds, angular_sampling=(0.3, 0.3))
    assert "radius of 12 pixels; the parameters say 24, 24 and 20" in message


def test_regions_offsets_and_parts_of_frames(inline, frames, tmp_path):
    path = tmp_path / "scan.raw"
    frames.tofile(path)
    raw = {"dtype": "uint8", "nav_shape": SHAPE[:2], "sig_shape": SHAPE[2:]}
    roi = np.zeros(SHAPE[:2], bool)
    roi[10:30, 3:30] = True
    tiled = inline.load("memory", data=frames, sig_dims=2, tileshape=(3, 16, 48), num_partitions=3)
    late = inline.load("raw", path=str(path), sync_offset=-40, **raw)
    for ds, region in [(tiled, None), (tiled, roi), (late, None)]:
        assert warned(inline, ds, region) == []
        assert len(warned(inline, ds, region, center=(27.0, 20.0))) == 1


def test_events_are_compared_as_well(inline, frames, tmp_path):
    events = csr_array(frames.reshape(SHAPE[0] * SHAPE[1], -1))
    ds = inline.load("raw_csr", path=str(write_events(tmp_path, SHAPE[:2], SHAPE[2:], events)))
    assert warned(inline, ds) == []
    (message,) = warned(inline, ds, center=(27.0, 20.0))
    assert "row 24.0, column 24.0" in message


@pytest.mark.parametrize("axes", [(2, 3, 0, 1), (0, 2, 1, 3), (2, 1, 0, 3), (0, 3, 1, 2)])
def test_axes_in_another_order_are_told(inline, frames, axes):
    swapped = np.ascontiguousarray(frames.transpose(axes))
    ds = inline.load("memory", data=swapped, sig_dims=2, num_partitions=2)
    (message,) = warned(inline, ds, angular_sampling=(0.6, 0.6))
    assert "order of their axes" in message


COMMAND = (
    "--scan-sampling 4 4 --energy 300e3 --semiangle-cutoff 6 --angular-sampling 0.5 0.5 "
    "--aberration C10=-2000 -o image.npy"
)


def test_strict_makes_errors_of_warnings(run: Run, frames, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with h5py.File("scan.h5", "w") as file:
        file["frames"] = frames
    succeeded(run(f"reconstruct scan.h5 {COMMAND} --strict"))
    Path("image.npy").unlink()

    # What was meant for a raw file reads the header as frames, and all else from the wrong byte on.
    raw = "--load type=raw --load dtype=uint8 --load 'nav_shape=[32,32]' --load 'sig_shape=[48,48]'"
    for wrong in (raw, "--center 27 20", "--angular-sampling 0.3 0.3"):
        result = succeeded(run(f"reconstruct scan.h5 {COMMAND} {wrong}"))
        assert "Warning: the " in result.stderr
        assert "disk" in result.stderr
        Path("image.npy").unlink()

        result = run(f"reconstruct scan.h5 {COMMAND} {wrong} --strict")
        assert result.exit_code == 1
        assert "an error with --strict" in result.stderr
        assert not Path("image.npy").exists()


@pytest.mark.parametrize("radius", [1.6, 4.0, 12.0])
def test_nothing_is_fitted_where_the_frames_agree(radius):
    """It would take longer than many scans."""
    sampling = PARAMETERS["semiangle_cutoff"] / radius
    parameters = {**PARAMETERS, "angular_sampling": (sampling, sampling)}
    geometry = Geometry.from_parameters(SHAPE, **parameters)
    pattern = draw_disk((24, 24), radius, shape=SHAPE[2:], counts=50.0)
    assert not seems_to_differ(geometry, pattern)


@pytest.mark.parametrize(
    ("center", "radius", "mean", "fits", "told"),
    [
        (24.0, RADIUS, 1.0, 0, 0),
        (24.0, 14.0, 1.0, 0, 0),  # no harm
        (25.2, 10.0, 1.0, 1, 0),  # differs, and is no harm
        (26.0, 6.0, 1.0, 1, 1),
        (24.0, 100.0, 1.0, 1, 1),  # bright everywhere
        (24.0, 100.0, 1e-3, 0, 0),  # a few electrons anywhere
    ],
)
def test_a_disk_is_fitted_once_in_a_run_at_most(
    inline, center, radius, mean, fits, told, monkeypatch
):
    """A detector that fills its buffer meanwhile would not wait."""
    fitted = []

    def counted(*arguments, **options):
        fitted.append(arguments)
        # Where cores are busy, many threads take longer than one.
        assert all(pool["num_threads"] == 1 for pool in threadpool_info())
        return find_disk(*arguments, **options)

    monkeypatch.setattr("libertem_parallax.contradictions.find_disk", counted)
    y, x = np.indices(SHAPE[2:])
    disk = np.hypot(y - center, x - 24) < radius
    frames = np.random.default_rng(0).poisson(mean * (disk + 0.01), SHAPE).astype(np.uint8)
    ds = inline.load("memory", data=frames, sig_dims=2, num_partitions=128)
    with threadpool_limits(2):
        assert len(warned(inline, ds)) == told
    assert len(fitted) == fits


@pytest.mark.parametrize("center", [(90.2, 171.4), (101.0, 149.0)], ids=["off", "near"])
def test_large_detectors_are_compared_by_a_coarse_copy(center):
    """Whatever parts of the frames come, with masked pixels that hold anything."""
    rows, columns, radius = 203, 300, 40.0
    mask = np.ones((rows, columns), bool)
    mask[80:84, 100:103] = False
    geometry = Geometry.from_parameters(
        (32, 32, rows, columns),
        **{**PARAMETERS, "angular_sampling": (0.15, 0.15), "bf_mask": mask},
    )
    shown = draw_disk(center, radius, shape=(rows, columns), counts=20.0)
    shown[~mask] = np.nan
    pattern = np.zeros(pattern_shape(geometry))
    for top, bottom in ((0, 7), (7, 100), (100, rows)):
        for left, right in ((0, 131), (131, columns)):
            part = shown[None, top:bottom, left:right]
            add_frames(geometry, pattern, part, [0], (top, left))
    assert pattern.size < shown.size / 4
    factor = -(-rows // len(pattern))
    y, x = np.indices(shown.shape) // factor
    slow = np.zeros_like(pattern)
    np.add.at(slow, (y[mask], x[mask]), shown[mask])
    np.testing.assert_allclose(pattern, slow, rtol=1e-12)
    differs = seems_to_differ(geometry, pattern)
    assert differs == (center[0] < 91)
    if differs:
        told = contradiction(geometry, pattern)
        found = re.search(r"at row ([\d.]+), column ([\d.]+) with a radius of ([\d.]+)", told)
        np.testing.assert_allclose([float(n) for n in found.groups()], [*center, radius], atol=0.3)


@pytest.mark.parametrize("radius", [2.5, 4.0])
@pytest.mark.filterwarnings("ignore:the detector cuts off")
def test_small_disks_are_compared_as_well(radius):
    pattern = draw_disk((24, 24), radius, shape=SHAPE[2:], counts=200.0)
    assert "disk" in said({"angular_sampling": (1.0, 1.0), "semiangle_cutoff": 20.0}, pattern)
    sampling = PARAMETERS["semiangle_cutoff"] / radius
    changes = {"angular_sampling": (sampling, sampling), "center": (34.0, 14.0)}
    assert "Give center=(24.0, 24.0)" in said(changes, pattern)


def test_a_run_goes_on_with_another_sampling(inline):
    """Of a large disk, the pattern that is compared is coarser."""
    frame = draw_disk((70.0, 70.0), 12.0, shape=(140, 140), counts=30.0).astype(np.uint8)
    ds = inline.load("memory", data=np.tile(frame, (32, 32, 1, 1)), sig_dims=2, num_partitions=4)
    udf = ParallaxUDF.from_parameters(ds.shape, **PARAMETERS)
    fine = udf.params.geometry.replace(angular_sampling=(0.1, 0.1))
    assert pattern_shape(fine) != pattern_shape(udf.params.geometry)
    results = inline.run_udf_iter(ds, udf)
    next(results)
    results.update_parameters_experimental([{"geometry": fine}])
    for _ in results:
        pass
    S = udf.results.get_buffer("S").raw_data
    assert np.count_nonzero(S) == 3 * 256


@pytest.mark.parametrize("value", [1e300, -np.inf, np.nan, 1e99, 1e-300])
@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (19, 16)])
@pytest.mark.filterwarnings("ignore:the detector cuts off")
def test_whatever_pixels_hold_no_run_ends_by_it(value, shape):
    """Pixels that are not in use may hold anything, and numbers may come to nothing."""
    rng = np.random.default_rng(0)
    geometry = Geometry.from_parameters((32, 32, *shape), **PARAMETERS)
    with np.errstate(all="raise"):
        for share in (0.02, 0.3, 1.0):
            pattern = rng.poisson(3.0, shape).astype(float)
            pattern[rng.random(shape) < share] = value
            for given in (pattern, pattern - 5):
                seems_to_differ(geometry, given)
                contradiction(geometry, given)
