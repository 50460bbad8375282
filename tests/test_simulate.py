"""Simulated data, checked against what the acquisition's parameters say about them."""

from collections.abc import Iterable

import numpy as np
import pytest
from numpy.typing import NDArray

from libertem_parallax.simulate import Simulation, _probes, simulate

# Stated here once more, independently of the module.
WAVELENGTH = 0.0196875  # Å, electrons of 300 keV
STEP = 256 / 72  # Å
PIXEL = 1 / 64  # 1/Å
C10 = -1.5e4  # Å
ROTATION = np.deg2rad(-15)
ELECTRONS = 30 * STEP**2  # per frame

Frames = NDArray[np.uint8 | np.float32]
Floats = NDArray[np.floating]


@pytest.fixture(scope="module")
def probabilities() -> Simulation:
    return simulate((28, 28), dose=None)


@pytest.fixture(scope="module")
def counts() -> Simulation:
    return simulate((6, 10))


def test_shapes_types_and_parameters(counts: Simulation) -> None:
    assert counts.frames.shape == (6, 10, 64, 64)
    assert counts.frames.dtype == np.uint8
    assert counts.truth.shape == (256, 256)
    assert counts.truth.dtype == np.float32
    assert set(np.unique(counts.frames)) == {0, 1}
    parameters = counts.parameters
    assert parameters["shape"] == (6, 10, 64, 64)
    assert parameters["scan_sampling"] == pytest.approx((STEP, STEP))
    assert parameters["angular_sampling"] == pytest.approx((0.307617, 0.307617), abs=1e-6)
    assert parameters["energy"] == 300e3
    assert parameters["semiangle_cutoff"] == 4.0
    assert parameters["aberration_coefs"] == {"C10": C10}
    assert parameters["rotation_angle"] == pytest.approx(ROTATION)
    assert parameters["upsampling_factor"] == 2


def test_specimen_is_a_weak_phase_object_of_hollow_particles(counts: Simulation) -> None:
    truth = counts.truth
    assert truth.min() >= 0
    assert 0.1 < truth.max() < 0.3
    # Four discs of 120 Å diameter that do not overlap, among empty ice. A tenth of the
    # peak phase marks their rims.
    discs = 4 * np.pi * 60**2
    assert np.count_nonzero(truth > 0.02) == pytest.approx(discs, rel=0.04)
    # 24 subunits of 174 residues, 134 Å³ each, fill shells of 60 Å outer and 40 Å inner radius
    # to 88 %; the phase is the volume times 3 V times 6.526e-4 rad/(V Å).
    shell = 4 / 3 * np.pi * (60**3 - 40**3)
    assert truth.sum() == pytest.approx(4 * 0.88 * shell * 3 * 6.526e-4, rel=0.01)


def test_electrons_are_conserved(probabilities: Simulation) -> None:
    assert probabilities.frames.dtype == np.float32
    assert probabilities.frames.min() >= 0
    totals = probabilities.frames.sum(axis=(2, 3), dtype=float)
    np.testing.assert_allclose(totals, 1, atol=1e-5)


def test_counts_are_clipped_poisson_counts_of_the_dose(
    counts: Simulation, probabilities: Simulation
) -> None:
    # Most pixels see at most one electron at a tenth of the dose.
    sparse = simulate((6, 10), dose=3.0)
    for dose, frames in ((30, counts.frames), (3, sparse.frames)):
        mean = dose * STEP**2 * probabilities.frames[:6, :10].astype(float)
        hit = 1 - np.exp(-mean)
        deviation = np.sqrt((hit * (1 - hit)).sum())
        assert abs(frames.sum() - hit.sum()) < 4 * deviation
    per_frame = sparse.frames.sum() / 60
    assert 0.93 * ELECTRONS / 10 < per_frame < ELECTRONS / 10
    # At the full dose, the bright field of 531 pixels shares 379 electrons.
    area = np.pi * 13**2
    expected = area * (1 - np.exp(-ELECTRONS / area))
    assert counts.frames.sum() / 60 == pytest.approx(expected, rel=0.02)


def test_same_seed_same_data_and_progress_sees_every_row(counts: Simulation) -> None:
    seen: list[int] = []

    def progress(rows: Iterable[int]) -> Iterable[int]:
        for row in rows:
            yield row
            seen.append(row)

    same = simulate((6, 10), progress=progress)
    assert seen == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(counts.frames, same.frames)
    np.testing.assert_array_equal(counts.truth, same.truth)

    other = simulate((1, 2), seed=1)
    assert (counts.truth != other.truth).any()
    assert (counts.frames[:1, :2] != other.frames).any()


def test_scan_is_periodic_and_specimen_does_not_depend_on_it(probabilities: Simulation) -> None:
    long = simulate((1, 74), dose=None)
    np.testing.assert_array_equal(long.truth, probabilities.truth)
    np.testing.assert_allclose(long.frames[0, :28], probabilities.frames[0], atol=1e-8)
    np.testing.assert_allclose(long.frames[0, 72:], long.frames[0, :2], atol=1e-8)


def test_beam_is_centered_and_fills_the_aperture(
    counts: Simulation, probabilities: Simulation
) -> None:
    rows, columns = np.indices((64, 64))
    for simulation, tolerance in ((probabilities, 0.005), (counts, 0.25)):
        frame = simulation.frames.mean(axis=(0, 1), dtype=float)
        center = np.array([(frame * rows).sum(), (frame * columns).sum()]) / frame.sum()
        np.testing.assert_allclose(center, (32, 32), atol=tolerance)

    frame = probabilities.frames.mean(axis=(0, 1), dtype=float)
    angle = np.hypot(rows - 32, columns - 32) * PIXEL * WAVELENGTH * 1e3  # mrad
    # Pixels are 0.31 mrad wide, so those within 0.25 mrad of the edge may be cut by it.
    inside, outside = frame[angle < 3.75], frame[angle > 4.25]
    assert inside.mean() == pytest.approx(1 / (np.pi * 13**2), rel=0.01)
    assert inside.std() < 0.02 * inside.mean()
    assert outside.mean() < 1e-4 * inside.mean()


def test_probes_are_shifted_by_fractions_of_a_pixel() -> None:
    probes = _probes(np.array([0.0, 4 / 9]))
    # The center of mass on a periodic field, from the phase of the lowest frequency.
    spectra = np.fft.fft2(np.abs(probes) ** 2)
    center_y = -np.angle(spectra[:, :, 1, 0]) * 256 / (2 * np.pi)
    center_x = -np.angle(spectra[:, :, 0, 1]) * 256 / (2 * np.pi)
    np.testing.assert_allclose(center_y, [[0.0, 0.0], [4 / 9, 4 / 9]], atol=1e-3)
    np.testing.assert_allclose(center_x, [[0.0, 4 / 9], [0.0, 4 / 9]], atol=1e-3)
    # Underfocus of 1.5 µm times 4 mrad is a radius of 60 Å, blurred by diffraction.
    distance = np.hypot(*np.meshgrid(np.fft.fftfreq(256, 1 / 256), np.fft.fftfreq(256, 1 / 256)))
    assert (np.abs(probes[0, 0]) ** 2)[distance < 70].sum() > 0.95
    assert (np.abs(probes[0, 0]) ** 2)[distance < 50].sum() < 0.8


def reconstruct(frames: Frames, C10: float, rotation: float) -> Floats:
    """Add up the displaced images of all bright-field pixels, to the nearest scan position."""
    height, width = frames.shape[:2]
    border = 20
    total = np.zeros((height + 2 * border, width + 2 * border))
    images = np.zeros_like(total)
    for row in range(64):
        for column in range(64):
            offset = PIXEL * np.array([row - 32, column - 32])
            if np.hypot(*offset) * WAVELENGTH > 4e-3:
                continue
            k_y = np.cos(rotation) * offset[0] - np.sin(rotation) * offset[1]
            k_x = np.sin(rotation) * offset[0] + np.cos(rotation) * offset[1]
            # The gradient of chi = π λ C10 k², divided by 2π.
            y = border + round(WAVELENGTH * C10 * k_y / STEP)
            x = border + round(WAVELENGTH * C10 * k_x / STEP)
            image = frames[:, :, row, column]
            total[y : y + height, x : x + width] += image - image.mean()
            images[y : y + height, x : x + width] += 1
    inner = (slice(border, border + height), slice(border, border + width))
    return total[inner] / images[inner]


def contrast_at_scan(truth: Floats, height: int, width: int) -> Floats:
    """Bright-field contrast of a weak phase object, at the scan positions."""
    k = np.fft.fftfreq(256)
    chi = np.pi * WAVELENGTH * C10 * (k[:, None] ** 2 + k**2)
    spectrum = np.fft.fft2(truth) * 2 * np.sin(chi)
    # The Fourier series at positions between the pixels.
    at_y = np.exp(2j * np.pi * np.outer(STEP * np.arange(height), k)) / 256
    at_x = np.exp(2j * np.pi * np.outer(STEP * np.arange(width), k)) / 256
    return (at_y @ spectrum @ at_x.T).real


def test_only_the_right_signs_reconstruct_the_specimen(probabilities: Simulation) -> None:
    expected = contrast_at_scan(probabilities.truth, 28, 28)

    def correlation(C10: float, rotation: float) -> float:
        image = reconstruct(probabilities.frames, C10, rotation)
        return float(np.corrcoef(image.ravel(), expected.ravel())[0, 1])

    right = correlation(C10, ROTATION)
    assert right > 0.85
    for wrong in (
        (-C10, ROTATION),
        (C10, -ROTATION),
        (-C10, -ROTATION),
        (C10, 0.0),
        (0.0, ROTATION),
        (C10, ROTATION + np.pi / 2),
    ):
        assert correlation(*wrong) < right - 0.2


def test_rotation_is_that_of_the_parameters(probabilities: Simulation) -> None:
    expected = contrast_at_scan(probabilities.truth, 28, 28)
    angles = np.deg2rad([-21, -18, -15, -12, -9])
    correlations = [
        np.corrcoef(reconstruct(probabilities.frames, C10, a).ravel(), expected.ravel())[0, 1]
        for a in angles
    ]
    assert np.argmax(correlations) == 2
