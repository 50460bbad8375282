"""Direct ptychography of a stack: known objects, formulas, the command line."""

from __future__ import annotations

import contextlib
import re
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import weak
from click.testing import CliRunner
from helpers import PARAMETERS, make_scan

import libertem_parallax as prlx
from libertem_parallax import direct
from libertem_parallax.accumulate import Stack
from libertem_parallax.cli import main
from libertem_parallax.direct import Direct
from libertem_parallax.geometry import Geometry
from libertem_parallax.weak_object import transfer, with_rim


@pytest.mark.parametrize("steps", [(3, 3), (2, 5)], ids=["square", "oblong"])
@pytest.mark.parametrize("detector", ["0", "36.9"])
def test_without_noise_it_is_the_phase(detector, steps):
    counts, true, parameters = weak.scan_of_object(detector, steps)
    stack = Stack.from_array(counts * 1e12)
    image = prlx.direct_phase(stack, parameters)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, true, atol=0.02 * true.std())


def test_absorption_and_phase_are_told_apart():
    """An object that absorbs where another one shifts the phase."""
    phase, absorption = (
        weak.scan_of_object("0", (3, 3), seed=seed, absorbs=seed == 2) for seed in (1, 2)
    )
    counts = phase[0] + absorption[0] - phase[0].mean(axis=(0, 1))
    wave = prlx.direct_phase(Stack.from_array(counts * 1e12), phase[2], amplitude=True)
    assert wave.dtype == np.complex64
    np.testing.assert_allclose(np.angle(wave), phase[1], atol=0.03 * phase[1].std())
    np.testing.assert_allclose(-np.log(abs(wave)), absorption[1], atol=0.03 * absorption[1].std())


def test_in_overfocus_low_frequencies_are_kept():
    """Of atoms that diffract much: see `test_phase`."""
    counts, true, parameters = weak.scan_of(weak.atoms(1), "0", (2, 2))
    frames = np.random.default_rng(0).poisson(counts * 1e5)
    image = prlx.direct_phase(Stack.from_array(frames), parameters)
    expected, found = np.fft.fft2(true), np.fft.fft2(image)
    q = np.fft.fftfreq(len(true), 2)
    low = np.hypot(q[:, None], q) < 0.1
    error = (abs(found - expected)[low] ** 2).sum() / (abs(expected)[low] ** 2).sum()
    assert error < 0.03


@pytest.mark.parametrize("unit", [1e-12, 1e-6, 1e5])
def test_units_do_not_matter(unit):
    """Values may be anything in proportion to electrons."""
    counts, _, parameters = weak.scan_of_object("0", (3, 3), size=0.1)
    frames = np.random.default_rng(0).poisson(counts * 1e4).astype(np.float32)
    stack, other = Stack.from_array(frames), Stack.from_array(frames * np.float32(unit))
    expected = prlx.direct_phase(stack, parameters)
    image = prlx.direct_phase(other, parameters)
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-4 * abs(expected).max())
    geometry = Geometry.from_parameters(**parameters)
    expected, found = (Direct.of(one, geometry).agreement(geometry) for one in (stack, other))
    assert found == pytest.approx(expected, rel=1e-4)


def test_more_than_the_background_is_taken_off():
    """So that the rim is darker than nothing. What is left shows the same, with more contrast."""
    counts, _, parameters = weak.scan_of_object("0", (3, 3), size=0.1)
    frames = np.random.default_rng(0).poisson(counts * 1e4).astype(np.float32)
    less = Stack.from_array(frames - np.float32(0.6) * frames[..., 4, 3].mean())
    expected = prlx.direct_phase(Stack.from_array(frames), parameters) / 0.4
    image = prlx.direct_phase(less, parameters)
    np.testing.assert_allclose(image, expected, rtol=0, atol=0.1 * abs(expected).max())
    geometry = Geometry.from_parameters(**parameters)
    assert Direct.of(less, geometry).agreement(geometry) > 1


def test_a_broken_frame_makes_no_infinite_intensity():
    _, _, parameters = weak.scan_of_object("0", (3, 3))
    frames = np.random.default_rng(0).poisson(7, (40, 40, 9, 9)).astype(np.uint32)
    frames[4, 4] *= 100_000
    given = {**parameters, "shape": frames.shape}
    with pytest.warns(UserWarning, match="the frames show no disk"):
        wave = prlx.direct_phase(Stack.from_array(frames), given, amplitude=True)
    assert np.isfinite(np.abs(wave) ** 2).all()


def test_noise_agrees_with_nothing():
    """Power that is explained is as that of the noise where there is no object."""
    _, _, parameters = weak.scan_of_object("0", (3, 3))
    frames = np.random.default_rng(0).poisson(7, (40, 40, 9, 9)) * np.float32(2.5)
    geometry = Geometry.from_parameters(**{**parameters, "shape": frames.shape})
    direct = Direct.of(Stack.from_array(frames), geometry)
    # The mean over so many frequencies has an error of a twentieth.
    assert direct.agreement(geometry) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize(("share", "known"), [(0.0, direct._SURE), (0.2, direct._UNSURE)])
def test_pixels_that_share_electrons_are_noticed(share, known, axis):
    """Their noise is more than what single pixels show, so that is not relied on."""
    counts, _, parameters = weak.scan_of_object("0", (3, 3))
    rng = np.random.default_rng(0)
    frames = rng.poisson(counts * 500)
    frames += np.roll(rng.binomial(frames, share), 1, axis)
    made = Direct.of(
        Stack.from_array(frames.astype(np.uint16)), Geometry.from_parameters(**parameters)
    )
    assert made._known == known


@pytest.mark.parametrize("shape", [(300, 16), (40, 40)])
def test_a_beam_that_flickers_is_not_taken_for_noise_of_pixels(shape):
    """All pixels share it, at frequencies across the rows."""
    rng, (_, _, parameters) = np.random.default_rng(0), weak.scan_of_object("0", (3, 3))
    brightness = rng.uniform(0.5, 1.5, (shape[0], 1, 1, 1)) * np.ones((*shape, 9, 9))
    geometry = Geometry.from_parameters(**{**parameters, "shape": brightness.shape})
    made = Direct.of(Stack.from_array(rng.poisson(20 * brightness)), geometry)
    assert made._known == direct._SURE


def test_equals_the_formula():
    """All pixels' images times their transfer, over the power of that, written out.

    Pixels are those of which the aperture lights a quarter or more.
    """
    frames = make_scan(PARAMETERS["shape"], "uint8").astype("uint16")
    mask = np.random.default_rng(1).random(frames.shape[2:]) < 0.7
    parameters = {**PARAMETERS, "bf_mask": mask, "upsampling_factor": 1}
    wide = 4 + np.sqrt(0.41 * 0.37) / 4
    geometry = Geometry.from_parameters(**{**parameters, "semiangle_cutoff": wide})
    assert len(geometry.plan.pixels) > len(Geometry.from_parameters(**parameters).plan.pixels)
    snr = 25.0
    image = prlx.direct_phase(Stack.from_array(frames), parameters, regularization=snr)
    semiangle, edge = 4e-3, np.sqrt(0.41 * 0.37) * 1e-3
    a = np.clip((semiangle - np.hypot(*geometry.angles.T)) / edge + 0.5, 0, 1)
    images = np.fft.fft2(frames[:, :, *geometry.plan.pixels.T], axes=(0, 1))
    q = np.stack(np.meshgrid(np.fft.fftfreq(8, 4.1), np.fft.fftfreq(9, 3.9), indexing="ij"), -1)
    T = transfer(
        geometry.angles,
        q.reshape(-1, 2),
        geometry.aberration_coefs,
        geometry.wavelength,
        semiangle,
        edge,
    ).reshape(images.shape)
    assert a.min() > 0.25
    inside = images[0, 0].real[a == 1].mean() / 72
    # Each pixel counts by its noise, a².
    D = (abs(T) ** 2 / a**2).sum(axis=-1)
    D[4] = D[0, 0] = 0
    N = (T.conj() * images / a**2).sum(axis=-1) / inside
    N[4] = N[0, 0] = 0
    expected = np.fft.ifft2(N / (D + D.max() / snr)).real
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-4 * abs(expected).max())


def test_the_rim_is_used_where_it_is_there():
    frames = make_scan(PARAMETERS["shape"], "uint8")
    stack = Stack.from_array(frames)
    geometry = Geometry.from_parameters(**PARAMETERS)
    bright, wide = np.zeros((2, *frames.shape[2:]), bool)
    bright[tuple(geometry.plan.pixels.T)] = True
    wide[tuple(with_rim(geometry).plan.pixels.T)] = True
    whole = prlx.direct_phase(stack, PARAMETERS)
    np.testing.assert_array_equal(prlx.direct_phase(stack.select(wide), PARAMETERS), whole)
    assert (prlx.direct_phase(stack.select(bright), PARAMETERS) != whole).any()


def test_a_part_of_a_scan_shows_a_part_of_the_object():
    counts, true, parameters = weak.scan_of_object("0", (3, 3))
    stack = Stack.from_array(counts * 1e12)
    stack.scanned[12:] = False
    stack.frames.reshape(20, 20, -1)[12:] = 0
    image = prlx.direct_phase(stack, parameters)
    assert np.corrcoef(image[2:10].ravel(), true[2:10].ravel())[0, 1] > 0.7
    empty = Stack(stack.frames * 0, stack.pixels, (20, 20), (9, 9), stack.scanned & False)
    assert not prlx.direct_phase(empty, parameters).any()


@pytest.mark.parametrize(("factor", "warns"), [(-1, True), (1e-35, False), (0, False)])
def test_what_counts_nothing_has_no_phase(factor, warns):
    stack = Stack.from_array(make_scan(PARAMETERS["shape"], "float32") * np.float32(factor))
    told = pytest.warns(UserWarning, match="zero or has no") if warns else contextlib.nullcontext()
    with told:
        assert not prlx.direct_phase(stack, PARAMETERS).any()
    with told:
        np.testing.assert_array_equal(prlx.direct_phase(stack, PARAMETERS, amplitude=True), 1)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e6])
def test_values_without_a_mean_are_told(unit):
    """As they are after it was taken off; few electrons have one, and a part of it is enough."""
    counts, _, parameters = weak.scan_of_object("0", (3, 3), size=0.1)
    rng = np.random.default_rng(0)
    frames = (rng.poisson(counts * 1e4) * unit).astype(np.float32)
    mean = frames.mean(axis=(0, 1))
    with pytest.warns(UserWarning, match="no scale: .* taken off") as told:
        prlx.direct_phase(Stack.from_array(frames - mean), parameters)
    scatter = float(re.findall(r"scatter by (\S+)\.", str(told[0].message))[0])
    assert scatter == pytest.approx((frames - mean)[..., 4, 4].std(), rel=0.2)
    few = (rng.poisson(counts * (300 / counts.sum())) * unit).astype(np.float32)
    for values in (frames - np.float32(0.8) * mean, few):
        prlx.direct_phase(Stack.from_array(values), parameters)  # a warning is an error


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
def test_values_that_are_not_finite_are_refused_with_their_place(value):
    frames = make_scan(PARAMETERS["shape"], "float64")
    frames[3, 4, 12, 11] = value
    with pytest.raises(ValueError, match=r"scan position \(3, 4\), detector pixel \(12, 11\) is"):
        prlx.direct_phase(Stack.from_array(frames), PARAMETERS)


def test_refused():
    counts, _, parameters = weak.scan_of_object("0", (3, 3))
    stack = Stack.from_array(counts)
    for wrong, kind in ((counts, "ndarray"), ("scan.npy", "str")):
        for function in (prlx.direct_phase, lambda *of: prlx.defocus_series(*of, [1.0])):
            with pytest.raises(TypeError, match=f"stack of frames, got {kind}. Give the `stack`"):
                function(wrong, parameters)
    with pytest.raises(TypeError, match="as load_parameters returns; got str"):
        prlx.direct_phase(stack, "scan.toml")
    with pytest.warns(UserWarning, match="borders = 'coverage' is without meaning for direct"):
        prlx.direct_phase(stack, {**parameters, "borders": "coverage"})
    with pytest.raises(ValueError, match="energy is missing"):
        prlx.direct_phase(stack, {k: v for k, v in parameters.items() if k != "energy"})
    with pytest.raises(ValueError, match="regularization = 0: expected auto"):
        prlx.direct_phase(stack, parameters, regularization=0)
    with pytest.raises(ValueError, match="regularization = -1: expected auto"):
        prlx.direct_phase(stack, {**parameters, "regularization": -1})
    own = prlx.direct_phase(stack, {**parameters, "regularization": 5.0})
    np.testing.assert_array_equal(own, prlx.direct_phase(stack, parameters, regularization=5.0))
    mask = np.zeros((9, 9), bool)
    mask[4, 4] = True
    with pytest.raises(ValueError, match="does not have"):
        prlx.direct_phase(stack.select(mask), parameters)
    with pytest.raises(ValueError, match=r"direct is made of all frames .* direct_phase"):
        prlx.ParallaxUDF.from_parameters(**PARAMETERS, image="direct")


def test_transforms_that_memory_does_not_hold_are_refused(monkeypatch):
    """Before they are made: complex64 of half of the frequencies at every pixel."""
    stack, needed = Stack.from_array(make_scan(PARAMETERS["shape"], "uint8")), []
    ny, nx = stack.scan_shape

    def available():
        return SimpleNamespace(available=needed[0])

    geometry = prlx.ParallaxUDF.from_parameters(**PARAMETERS).params.geometry
    size = 8 * ny * (nx // 2 + 1) * len(with_rim(geometry).plan.pixels)
    monkeypatch.setattr("psutil.virtual_memory", available)
    needed[:] = [size - 1]
    with pytest.raises(ValueError, match=f"direct ptychography of {ny} x {nx} frames, .* bf_mask"):
        prlx.direct_phase(stack, PARAMETERS)
    needed[:] = [1 << 40]
    prlx.direct_phase(stack, PARAMETERS)


def test_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = make_scan(PARAMETERS["shape"], "uint8")
    np.save("scan.npy", frames)
    given = prlx.Parameters(**{name: v for name, v in PARAMETERS.items() if name != "shape"})
    given.save(tmp_path / "scan.toml")
    options = ["--image", "direct", "--image", "phase", "--params", "scan.toml", "-o", "a.tif"]
    result = CliRunner().invoke(main, ["reconstruct", "scan.npy", *options])
    assert result.exit_code == 0, result.output
    assert "direct ptychography" in result.output
    assert "frames/s, on the CPU\n" in result.output
    with tifffile.TiffFile("a_direct.tif") as file:
        assert (file.imagej_metadata or {})["vunit"] == "rad"
        image = file.asarray()
    np.testing.assert_array_equal(image, prlx.direct_phase(Stack.from_array(frames), given))
    # The others come from the same stack, and are no different.
    result = CliRunner().invoke(main, ["reconstruct", "scan.npy", *options[2:-1], "b.tif"])
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(tifffile.imread("a_phase.tif"), tifffile.imread("b.tif"))
