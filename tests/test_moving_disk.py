"""Direct ptychography of scans while which the disk moves on the detector."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import weak

import libertem_parallax as prlx
from libertem_parallax.accumulate import Stack
from libertem_parallax.geometry import Geometry
from libertem_parallax.images.fourier import slow
from libertem_parallax.moving_disk import steady
from libertem_parallax.weak_object import aperture

RNG = np.random.default_rng(0)


def moved(counts, along_rows, along_cols):
    """Frames whose pattern moves by so many detector pixels (row, column) along the scan."""
    ny, nx = counts.shape[:2]
    y, x = (np.linspace(-0.5, 0.5, n) for n in (ny, nx))
    frames = np.empty_like(counts)
    for i, j in np.ndindex(ny, nx):
        by = y[i] * np.array(along_rows) + x[j] * np.array(along_cols)
        frames[i, j] = scipy.ndimage.shift(counts[i, j], by, order=1, mode="nearest")
    return frames


@pytest.fixture(scope="module")
def scan():
    """Counts over those of a frame, the true phase, and parameters."""
    return weak.scan_of_object("0", (3, 3), size=0.05)


@pytest.mark.parametrize(
    ("along", "least"),
    [(((0.5, 0), (0, -0.4)), 0.7), (((0, 0), (0.2, 0)), 0.95), (((0, 0.2), (0, 0)), 0.95)],
)
def test_a_disk_that_moves_makes_little_difference(scan, along, least):
    """Who asks for the image is told."""
    counts, true, parameters = scan
    frames = RNG.poisson(moved(counts, *along) * 1e6)
    with pytest.warns(UserWarning, match="the disk seems to move") as told:
        image = prlx.direct_phase(Stack.from_array(frames), parameters)
    assert [warning.filename for warning in told] == [__file__]
    assert np.corrcoef(image.ravel(), true.ravel())[0, 1] > least


def images_of(frames, scanned, parameters):
    geometry = Geometry.from_parameters(**parameters)
    a = aperture(geometry.angles, parameters["semiangle_cutoff"] * 1e-3, geometry.soft_edge)
    values = np.where(scanned[..., None], frames[:, :, *geometry.plan.pixels.T], 0.0)
    values -= values.sum(axis=(0, 1)) / scanned.sum()
    values *= scanned[..., None] / a
    return values, a, geometry


def transformed(values):
    spectra = np.fft.rfft2(values, axes=(0, 1))
    return spectra.reshape(-1, values.shape[-1]).astype(np.complex64)


@pytest.mark.parametrize("rows", [20, 13])
@pytest.mark.parametrize("columns", [20, 19])
def test_polynomials_are_taken_off_the_images(scan, rows, columns):
    """Of the rim, as least squares find them, where there were frames, of even and odd numbers."""
    counts, _, parameters = scan
    frames = moved(counts, (0.6, 0.3), (0, 0.5))[:, :columns] * 1e6
    scanned = np.zeros(frames.shape[:2], bool)
    scanned[:rows] = True
    parameters = {**parameters, "shape": frames.shape}
    values, a, geometry = images_of(frames, scanned, parameters)
    y, x = np.argwhere(scanned).T / 20
    terms = np.stack([np.ones_like(y), y, x, y * y, y * x, x * x], axis=-1)
    expected = np.zeros_like(values)
    found = np.linalg.lstsq(terms, values[scanned], rcond=None)[0]
    expected[scanned] = values[scanned] - terms @ found
    images = transformed(values)
    assert steady(images, a, geometry, scanned, values.max())
    # By half of the motion and a pixel's width from the rim
    semiangle, width = parameters["semiangle_cutoff"], geometry.soft_edge * 1e3
    from_rim = abs(np.hypot(*geometry.angles.T) * 1e3 - semiangle) / width
    assert (from_rim > 1.6).any()
    expected[..., from_rim > 1.6] = values[..., from_rim > 1.6]
    wanted = transformed(expected)
    np.testing.assert_allclose(images, wanted, rtol=0, atol=1e-5 * abs(wanted).max())


@pytest.mark.parametrize(
    ("along", "electrons"), [((0, 0), 1e9), ((0, 0), 300), ((0, 0.1), 30), ((0, 0.02), 1e9)]
)
def test_a_disk_at_rest_is_left_alone(scan, along, electrons):
    """Also where few electrons make ramps, or all the motion is that of thin specimens."""
    counts, _, parameters = scan
    frames = RNG.poisson(moved(counts, along, (0, 0)) * electrons)
    scanned = np.ones(frames.shape[:2], bool)
    values, a, geometry = images_of(frames, scanned, parameters)
    images = transformed(values)
    before = images.copy()
    inside = frames[..., 4, 3].mean()
    assert not steady(images, a, geometry, scanned, inside)
    np.testing.assert_array_equal(images, before)
    assert not steady(images, a, geometry, scanned, 0.0)
    assert not steady(images, np.ones_like(a), geometry, scanned, inside)


@pytest.mark.parametrize("shape", ["hole", "band", "edge"])
def test_a_specimen_is_no_disk_that_moves(shape):
    """Though it deflects the beam at one side of the scan more than at the other."""
    y, x = np.indices((weak.N, weak.N))
    there = {"hole": np.hypot(y - 30, x - 30) > 14, "band": abs(x - 30) < 14, "edge": x < 15}
    phase = scipy.ndimage.gaussian_filter(0.8 * there[shape], 1, mode="wrap")
    counts, _, parameters = weak.scan_of(phase, "0", (3, 3))
    frames = counts[2:18, 2:18] * 1e6
    scanned = np.ones(frames.shape[:2], bool)
    values, a, geometry = images_of(frames, scanned, {**parameters, "shape": frames.shape})
    assert not steady(transformed(values), a, geometry, scanned, frames[..., 4, 3].mean())


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_polynomials_that_are_alike_are_none(rows):
    """As in a scan that was broken off in its first rows."""
    scanned = np.zeros((16, 16), bool)
    scanned[:rows] = True
    functions = slow(scanned, 6)
    assert not functions[:, ~scanned.ravel()].any()
    there = np.count_nonzero(functions.any(axis=1))
    assert there == {1: 7, 2: 9, 16: 14}[rows]
    np.testing.assert_allclose(np.sort(np.linalg.svd(functions)[1])[-there:], 1, atol=1e-5)
