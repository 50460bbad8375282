"""The phase image, its transfer and its filter, against the definition and known objects."""

from __future__ import annotations

import warnings

import definition
import numpy as np
import pytest
import scipy.optimize
import tifffile
import weak
from click.testing import CliRunner
from helpers import CASES, PARAMETERS, make_scan, run_udf

from libertem_parallax import ParallaxPhaseUDF, ParallaxUDF, Parameters
from libertem_parallax.cli import main
from libertem_parallax.cli.specimen import resample
from libertem_parallax.contrast import contrast
from libertem_parallax.geometry import Geometry
from libertem_parallax.images import phase
from libertem_parallax.images.fourier import rfft2
from libertem_parallax.images.wiener import Spectrum
from libertem_parallax.simulate import simulate

MORE = {
    "defocus": {"aberration_coefs": {"C10": -2500.0}},
    "astigmatic": {"aberration_coefs": {"C10": 900.0, "C12": 800.0, "phi12": 0.4}},
    "wide": {"scan_sampling": (1.6, 1.5)},
}  # fmt: skip


def waves(parameters, wavelength):
    """Shifts (M, 2), and what makes the transfer: pixels' angles, the wave at any angles."""
    p = {"rotation_angle": 0.0, **parameters}
    _, angles = definition.bright_field(
        p["shape"][2:],
        p["angular_sampling"],
        p["semiangle_cutoff"],
        rotation=p["rotation_angle"],
        center=p.get("center"),
        flip=p.get("detector_flip_cols", False),
        mask=p.get("bf_mask"),
    )
    edge = np.sqrt(p["angular_sampling"][0] * p["angular_sampling"][1])

    def wave(y, x):
        inside = np.clip((p["semiangle_cutoff"] - np.hypot(y, x) * 1e3) / edge + 0.5, 0, 1)
        return inside * np.exp(-1j * definition.chi(p["aberration_coefs"], y, x, wavelength))

    u = p["upsampling_factor"]
    return definition.shifts(p["aberration_coefs"], angles, p["scan_sampling"], u), angles, wave


def transfer(parameters, wavelength=definition.WAVELENGTH_300KEV):
    """P and the noise's power over all counts, on the whole spectrum, and Σ a²."""
    shifts, (ky, kx), wave = (
        part.T if i == 1 else part for i, part in enumerate(waves(parameters, wavelength))
    )
    u, (ny, nx) = parameters["upsampling_factor"], parameters["shape"][:2]
    qy, qx = (
        np.fft.fftfreq(u * n, step / u) * wavelength
        for n, step in zip((ny, nx), parameters["scan_sampling"], strict=True)
    )
    P, noise = np.zeros((u * ny, u * nx), complex), np.zeros((u * ny, u * nx))
    A = wave(ky, kx)
    for i in range(u * ny):
        for j in range(u * nx):
            T = 1j * (
                A.conj() * wave(ky - qy[i], kx - qx[j]) - A * wave(ky + qy[i], kx + qx[j]).conj()
            )
            # The frame's mean is taken off, which is added wherever a pixel is.
            moved = np.exp(
                -2j * np.pi * (i * shifts[:, 0] / (u * ny) + j * shifts[:, 1] / (u * nx))
            )
            P[i, j] = ((T - T.mean()) * moved).sum()
            noise[i, j] = (abs(moved - moved.mean()) ** 2).mean()
    for values in (P, noise):
        definition.zero_nyquist(values)
        # The mean of pixels that are not equally bright shows with the period of the scan.
        values[::ny, ::nx] = 0
    return P, noise, (abs(A) ** 2).sum()


@pytest.mark.parametrize("case", [*CASES, *MORE])
def test_equals_the_definition(inline, case):
    parameters = {**PARAMETERS, **CASES.get(case, {}), **MORE.get(case, {})}
    frames = make_scan(parameters["shape"], "uint16")
    P, noise, pixels = transfer(parameters)
    half = np.s_[:, : P.shape[1] // 2 + 1]
    made = contrast(Geometry.from_parameters(**parameters))
    np.testing.assert_allclose(made.P, P[half], rtol=0, atol=5e-6 * abs(P).max())
    np.testing.assert_allclose(made.noise, noise[half], rtol=0, atol=1e-6)
    assert made.pixels == pytest.approx(pixels)

    udf = ParallaxPhaseUDF.from_parameters(**parameters, regularization=30.0)
    results = run_udf(inline, frames, udf)
    assert results["phase"].dtype == np.float32
    image = run_udf(inline, frames, ParallaxUDF.from_parameters(**parameters))["reconstruction"]
    np.testing.assert_array_equal(results["parallax"], image)
    plan = udf.params.geometry.plan
    counts = frames[:, :, *plan.pixels.T].sum(dtype=float)
    inside = counts / pixels / image.size  # counts of a pixel in the aperture, where a probe was
    R = np.fft.fft2(image.astype(float)) / inside
    expected = np.fft.ifft2(R * P.conj() / (abs(P) ** 2 + (abs(P) ** 2).max() / 30)).real
    np.testing.assert_allclose(results["phase"], expected, rtol=0, atol=1e-5 * abs(expected).max())

    # The same with the signal and noise that are found in the image, whatever these are.
    step = np.asarray(parameters["scan_sampling"]) / plan.upsampling_factor
    q = np.meshgrid(*map(np.fft.fftfreq, image.shape, step), indexing="ij")
    power = made.P.real**2 + made.P.imag**2
    cycles = np.meshgrid(*map(np.fft.fftfreq, image.shape), indexing="ij")
    beyond = (np.abs(cycles) * plan.upsampling_factor > 0.5).any(axis=0)[half]
    spectrum = Spectrum(
        power.ravel(), made.noise.ravel(), np.hypot(*q)[half].ravel(), beyond.ravel()
    )

    def filtered(R):
        found = spectrum.fit((R.real**2 + R.imag**2).ravel(), counts / inside**2)
        S = found.S[spectrum.place]
        S[found.spots] = found.at_spots
        shown = (power.ravel() > 1e-6 * power.max()) & (made.noise.ravel() > 0)
        # What is of second order in the phase: 0.03 of its variance, of all the spectrum.
        missed = 0.03 * 2 * S[shown].sum() / image.size**2 * power.max()
        ratio = found.noise[beyond.astype(int)] * noise[half] / S.reshape(power.shape)
        ratio += missed * noise[half]
        by = P[half].conj() / np.maximum(abs(P[half]) ** 2 + ratio, 1e-30)
        return R * by, by * P[half], (S * shown).reshape(power.shape)

    # Where contrast is as in overfocus, what the straight beam lost is put back: φ²/2, as the rest
    # of a first image has it, over the part of its power that the filter leaves, and twice that.
    M = (rfft2(image) / np.float32(inside)).astype(complex)
    wavelength = definition.WAVELENGTH_300KEV
    chi = definition.chi(
        parameters["aberration_coefs"], *(k * wavelength for k in q), wavelength, even_only=True
    )
    opposed = (chi[half] > 0) & (chi[half] < np.pi / 2) & ~beyond
    assert opposed.any() == (case == "astigmatic")
    if opposed.any():
        first, share, S = filtered(M)
        rest = np.fft.irfft2(np.where(opposed, 0, first), image.shape)
        part = (share * S)[~opposed].real.sum() / S[~opposed].sum()
        lost = np.fft.rfft2(rest**2) * 2 / part
        M += np.where(opposed, np.cos(chi[half]) * pixels * noise[half] * lost, 0)
    expected = np.fft.irfft2(filtered(M)[0], image.shape)
    actual = run_udf(inline, frames, ParallaxPhaseUDF.from_parameters(**parameters))["phase"]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("u", [1, 3])
@pytest.mark.parametrize("steps", [(3, 3), (2, 5)], ids=["square", "oblong"])
@pytest.mark.parametrize("detector", ["0", "36.9"])
def test_without_noise_it_is_the_phase(inline, detector, steps, u):
    """Within 2 %, where a tenth of the contrast is transferred."""
    counts, true, parameters = weak.scan_of_object(detector, steps)
    # A finer image has frequencies without signal, which the filter takes for noise if it may.
    options = {"upsampling_factor": u, "regularization": "auto" if u == 1 else 1e9}
    udf = ParallaxPhaseUDF.from_parameters(**parameters, **options)
    image = run_udf(inline, counts * 1e12, udf)["phase"]
    expected, found = np.fft.fft2(true), np.fft.fft2(image) / u**2
    P, _, pixels = transfer({"upsampling_factor": u, **parameters}, weak.WAVELENGTH)
    # The frequencies of the scan, among those of the finer image.
    rows, cols = (np.rint(np.fft.fftfreq(n) * n).astype(int) for n in true.shape)
    P, found = P[np.ix_(rows, cols)], found[np.ix_(rows, cols)]
    carried = (abs(P) > 0.1 * pixels) & (abs(expected) > 1e-9)
    assert carried.mean() > 0.3
    error = abs(found - expected)[carried] / abs(expected)[carried]
    assert np.median(error) < 0.002
    assert error.max() < 0.02
    assert abs(image.mean()) < 1e-6 * image.std()


def test_noise_makes_no_bias(inline):
    """The average over many scans is the true phase, weighed as the filter is said to."""
    counts, true, parameters = weak.scan_of_object("0", (3, 3))
    snr, rng = 20.0, np.random.default_rng(2)
    udf = ParallaxPhaseUDF.from_parameters(**parameters, regularization=snr)
    images = [run_udf(inline, rng.poisson(counts * 2e7), udf)["phase"] for _ in range(12)]
    P, _, pixels = transfer({"upsampling_factor": 1, **parameters}, weak.WAVELENGTH)
    W = abs(P) ** 2 / (abs(P) ** 2 + (abs(P) ** 2).max() / snr)
    expected = np.fft.fft2(true)
    carried = (abs(P) > 0.1 * pixels) & (W > 0)
    # Frequencies count by what is known of them.
    weights = np.where(carried, abs(P) ** 2, 0)
    slopes = [
        (weights * np.fft.fft2(image) / np.where(carried, W, 1) * expected.conj()).real.sum()
        / (weights * abs(expected) ** 2).sum()
        for image in images
    ]
    error = np.std(slopes) / np.sqrt(len(slopes))
    assert error < 0.01
    assert abs(np.mean(slopes) - 1) < 3 * error


def test_in_overfocus_low_frequencies_are_kept(inline):
    """Of atoms that diffract much. What they take from the beam hides a fifth of the power."""
    counts, true, parameters = weak.scan_of(weak.atoms(1), "0", (2, 2))
    frames = np.random.default_rng(0).poisson(counts * 1e5)
    image = run_udf(inline, frames, ParallaxPhaseUDF.from_parameters(**parameters))["phase"]
    expected, found = np.fft.fft2(true), np.fft.fft2(image)
    q = np.fft.fftfreq(len(true), 2)
    low = np.hypot(q[:, None], q) < 0.1
    error = (abs(found - expected)[low] ** 2).sum() / (abs(expected)[low] ** 2).sum()
    assert error < 0.07


def draw_spectrum(signal, shape=(64, 64), gain=1.0):
    """Powers that are measured where contrast oscillates; what belongs to them."""
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])).ravel()
    power = 4 * np.sin(30 * frequency**2) ** 2 * (frequency < 0.45)
    noise = (frequency > 0).astype(float)
    S = signal * np.maximum(frequency, 0.01) ** -2.0
    mean = power * S + gain * noise
    measured = np.random.default_rng(3).exponential(size=mean.shape) * mean
    return frequency, power, noise, S, measured


@pytest.mark.parametrize("gain", [0.5, 1.0, 12.0])
def test_signal_and_noise_are_found(gain):
    frequency, power, noise, S, measured = draw_spectrum(0.1 * gain, (256, 256), gain)
    spectrum = Spectrum(power, noise, frequency, np.zeros(len(power), bool))
    found = spectrum.fit(measured, 1.0)
    assert found.noise[0] == pytest.approx(gain, rel=0.03)
    assert not len(found.spots)
    seen = (power * S > gain) & (frequency > 0.06)
    np.testing.assert_allclose(found.S[spectrum.place][seen], S[seen], rtol=0.25)
    ratio = found.noise[0] * noise / found.S[spectrum.place]
    np.testing.assert_allclose(spectrum.ratio(found), ratio, rtol=1e-5)


def test_known_noise_tells_what_looks_like_it():
    """Signal with the same power at all frequencies, where contrast is the same."""
    frequency = np.hypot(np.fft.fftfreq(96)[:, None], np.fft.rfftfreq(96)).ravel()
    power, noise = np.ones(frequency.size), (frequency > 0).astype(float)
    measured = np.random.default_rng(3).exponential(size=frequency.size) * 1.3
    spectrum = Spectrum(power, noise, frequency, np.zeros(power.size, bool), known=1e4)
    found = spectrum.fit(measured, 1.0)
    assert found.noise[0] == pytest.approx(1, abs=0.02)
    weights = np.bincount(spectrum.place, minlength=len(found.S))
    assert np.average(found.S, weights=weights) == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("scale", [1e-20, 1e-12, 1e6])
def test_units_of_the_values_do_not_matter(scale):
    """Frames may hold anything in proportion to electrons: it is a gain of the noise."""
    frequency, power, noise, _, measured = draw_spectrum(0.1, (256, 256))
    spectrum = Spectrum(power, noise, frequency, np.zeros(len(power), bool))
    expected, found = spectrum.fit(measured, 1.0), spectrum.fit(measured, 1 / scale)
    assert found.noise[0] == pytest.approx(expected.noise[0], rel=1e-3)
    seen = spectrum.place[power > 1e-3 * power.max()]
    np.testing.assert_allclose(found.S[seen], expected.S[seen], rtol=0.05)
    assert len(found.spots) == len(expected.spots) == 0


def test_they_are_the_most_likely_ones():
    """Against a general optimizer and all frequencies one by one."""
    frequency, power, noise, _, measured = draw_spectrum(0.05)
    spectrum = Spectrum(power, noise, frequency, np.zeros(len(power), bool))
    relative = power / power.max()
    used, dark = (noise > 0) & (relative > 1e-3), (noise > 0) & (relative < 1e-6)
    x = np.log(np.maximum(frequency, frequency[1]) / frequency[1])
    knots = np.linspace(0, x.max(), 24)
    law = -1.5 * np.log(np.exp(2 * knots) + 4)  # |q|^-3, and flat at the lowest frequencies

    def cost(theta):
        mean = np.exp(np.interp(x[used], knots, theta[:-1])) * power[used] + np.exp(theta[-1])
        left = theta[:-1] - law
        price = 3 * (np.diff(left) ** 2).sum() + 4 * (np.diff(left, 2) ** 2).sum()
        price += 0.05 * theta[-1] ** 2
        unseen = dark.sum() * theta[-1] + measured[dark].sum() / np.exp(theta[-1])
        return (np.log(mean) + measured[used] / mean).sum() + unseen + price / 2

    best = scipy.optimize.minimize(cost, np.append(law, 0), options={"maxiter": 500}).x
    expected = np.exp(np.interp(x, knots, best[:-1]))
    found = spectrum.fit(measured, 1.0)
    assert found.noise[0] == pytest.approx(np.exp(best[-1]), rel=0.01)
    np.testing.assert_allclose(found.S[spectrum.place][used], expected[used], rtol=0.1)


def test_spots_of_a_crystal_have_a_signal_of_their_own():
    frequency, power, noise, _, measured = draw_spectrum(0.001)
    spectrum = Spectrum(power, noise, frequency, np.zeros(len(power), bool))
    before = spectrum.fit(measured, 1.0)
    spots = np.flatnonzero((power > 2) & (frequency > 0.2))[::100]
    assert len(spots) > 5
    measured[spots] = 60.0
    found = spectrum.fit(measured, 1.0)
    np.testing.assert_array_equal(found.spots, spots)
    np.testing.assert_allclose(found.at_spots, (60 - found.noise[0]) / power[spots], rtol=1e-6)
    # They do not raise what is taken for signal elsewhere.
    np.testing.assert_allclose(found.S, before.S, rtol=0.1)
    np.testing.assert_allclose(
        spectrum.ratio(found)[spots], found.noise[0] / found.at_spots, rtol=1e-5
    )
    S = found.S[spectrum.place]
    S[spots] = found.at_spots
    shown = (power > 1e-6 * power.max()) & (noise > 0)
    assert spectrum.variance(found, 64 * 64) == pytest.approx(2 * S[shown].sum() / 64**4)


def test_what_is_strong_where_contrast_is_weak_is_noise():
    """Such as what a moving disk makes of the lowest frequencies."""
    frequency, power, noise, _, measured = draw_spectrum(0.05)
    spectrum = Spectrum(power, noise, frequency, np.zeros(len(power), bool))
    before = spectrum.fit(measured, 1.0)
    low = np.argsort(frequency)[1:6]
    assert (power[low] < 1e-2 * power.max()).all()
    measured[low] = 1e3
    found = spectrum.fit(measured, 1.0)
    np.testing.assert_array_equal(found.spots, np.sort(low))
    S = found.S[spectrum.place][low]
    np.testing.assert_allclose(found.S, before.S, rtol=0.2)
    # Noise over signal, both in the units of P φ, as P² S and the rest of what is measured
    expected = (1e3 - power[low] * S) / S
    np.testing.assert_allclose(spectrum.ratio(found)[low], expected, rtol=1e-4)
    # So that little of it is left: no more than the signal would be.
    image = measured[low] * power[low] / (power[low] + spectrum.ratio(found)[low]) ** 2
    assert (image < S).all()


def test_weak_object_is_summed_once_and_before_the_first_frame(inline, monkeypatch):
    udf = ParallaxPhaseUDF.from_parameters(**PARAMETERS)
    calls = []

    def watched(geometry):
        calls.append(udf._added)
        return contrast(geometry)

    monkeypatch.setattr(phase, "contrast", watched)
    frames = make_scan(PARAMETERS["shape"], "uint8")
    for _ in range(2):
        run_udf(inline, frames, udf)
    assert calls == [False]


def test_no_electrons_make_no_phase(inline):
    udf = ParallaxPhaseUDF.from_parameters(**PARAMETERS)
    frames = make_scan(PARAMETERS["shape"], "float64")
    for values in (
        np.zeros(PARAMETERS["shape"], "uint8"),
        -frames,
        frames * 1e-35,
        frames * 1e-200,
    ):
        phase = run_udf(inline, values, udf)["phase"]
        np.testing.assert_allclose(phase, 0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("regularization", ["auto", 1e6])
@pytest.mark.parametrize("pixel", [(12, 15), (9, 10), (13, 11)])
def test_a_single_pixel_has_no_phase(inline, pixel, regularization):
    """Whatever rounding leaves of its transfer and of its image, which are 0."""
    mask = np.zeros(PARAMETERS["shape"][2:], bool)
    mask[pixel] = True
    parameters = {**PARAMETERS, "bf_mask": mask, "upsampling_factor": 3}
    udf = ParallaxPhaseUDF.from_parameters(**parameters, regularization=regularization)
    assert not contrast(udf.params.geometry).P.any()
    with pytest.warns(UserWarning, match="(parallax|phase) image will be zero"):
        image = run_udf(inline, make_scan(PARAMETERS["shape"], "uint8"), udf)["phase"]
    assert not image.any()


@pytest.mark.parametrize("scan", [(2, 2), (1, 9), (9, 1), (2, 3)])
def test_the_smallest_scans_have_a_phase_or_none(inline, scan):
    parameters = {**PARAMETERS, "shape": (*scan, *PARAMETERS["shape"][2:]), "upsampling_factor": 1}
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # shifts are larger
        udf = ParallaxPhaseUDF.from_parameters(**parameters, regularization=1e3)
        auto = ParallaxPhaseUDF.from_parameters(**parameters)
    P, made = transfer(parameters)[0], contrast(udf.params.geometry).P
    expected = P[:, : scan[1] // 2 + 1]
    np.testing.assert_allclose(made, expected, rtol=0, atol=5e-6 * abs(P).max())
    frames = make_scan(parameters["shape"], "uint8")
    assert run_udf(inline, frames, udf)["phase"].any() == P.any() == (max(scan) > 2)
    assert np.isfinite(run_udf(inline, frames, auto)["phase"]).all()


@pytest.mark.parametrize("value", [0, -1, "much", True, float("nan"), None, [1]])
def test_other_regularizations_are_refused(value):
    with pytest.raises(ValueError, match=r"regularization = .*: expected auto, or a positive num"):
        ParallaxPhaseUDF.from_parameters(**PARAMETERS, regularization=value)


@pytest.mark.parametrize("value", ["auto", "12.5"])
def test_on_the_command_line(inline, tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    frames = make_scan(PARAMETERS["shape"], "uint8")
    np.save("scan.npy", frames)
    given = {name: v for name, v in PARAMETERS.items() if name != "shape"}
    Parameters(**given).save(tmp_path / "scan.toml")
    options = ["--image", "phase", "--regularization", value, "-o", "phase.tif"]
    result = CliRunner().invoke(
        main, ["reconstruct", "scan.npy", "--params", "scan.toml", *options]
    )
    assert result.exit_code == 0, result.output
    with tifffile.TiffFile("phase.tif") as file:
        assert (file.imagej_metadata or {})["vunit"] == "rad"
        image = file.asarray()
    regularization = value if value == "auto" else float(value)
    udf = ParallaxPhaseUDF.from_parameters(**PARAMETERS, regularization=regularization)
    np.testing.assert_array_equal(image, run_udf(inline, frames, udf)["phase"])


def test_it_shows_more_than_the_phase_flip(inline):
    """Of simulated protein, however few the electrons are."""
    simulation = simulate(scan_shape=(40, 40), dose=30.0)
    frames, rng = simulation.frames, np.random.default_rng(1)
    for share, least in ((1.0, 0.45), (1 / 3, 0.25)):
        given = {k: v for k, v in simulation.parameters.items() if k != "upsampling_factor"}
        udf = ParallaxUDF.from_parameters(**given, image=["phase", "phase_flip"])
        images = run_udf(inline, rng.binomial(frames, share).astype("uint8"), udf)
        true = resample(simulation.truth, (72, 72))[:40, :40]
        found = {
            name: np.corrcoef(image.ravel(), true.ravel())[0, 1] for name, image in images.items()
        }
        assert found["phase"] > max(least, 1.2 * found["phase_flip"])
