"""Simulated 4D-STEM data of apoferritin-like particles in ice, with the truth.

The simulation is wave-optical: for every scan position a defocused probe passes the specimen, a
thin phase object, and the squared Fourier transform of the exit wave is what the detector sees.
Specimen and scan are periodic in a square field, so the simulated wave has no borders.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
import scipy.sparse
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from .aberrations import wavelength

# Acquisition. The wave is sampled at 1 Å, so lengths in Å are pixels and FIELD is both.
ENERGY = 300e3  # eV
FIELD = 256  # Å, one period of specimen and scan
SCAN = 72  # scan positions per period
SEMIANGLE = 4.0  # mrad
C10 = -1.5e4  # Å: the defocus is -C10, 1.5 µm
ROTATION = float(np.deg2rad(-15))  # rad
DETECTOR = 64  # pixels per side
BINNING = 4  # samples of the diffraction pattern, 1/FIELD apart, per detector pixel

# Specimen: apoferritin has 24 subunits of about 174 residues in a hollow shell.
PARTICLES = 4  # discs of this size: four fit into the field without overlap, five do not
OUTER_RADIUS = 60.0  # Å
INNER_RADIUS = 40.0  # Å
RESIDUES = 174  # per subunit
SUBUNIT_SPREAD = 0.25  # rad, seen from the center of the particle
RESIDUE_VOLUME = 134.0  # Å³: 110 Da at 1.22 Å³/Da
RESIDUE_WIDTH = 2.5  # Å, standard deviation of the Gaussian that stands for a residue

# The mean inner potential of protein, about 7 V, exceeds that of vitreous ice, about 4 V.
# Ice of even thickness adds a constant phase, which no detector sees. Along the inner rim of the
# shell, beams cross 90 Å of protein: 6.5e-4 rad/(V Å) · 3 V · 90 Å ≈ 0.18 rad, and more where
# subunits overlap in projection. That is a weak phase object.
INTERACTION_CONSTANT = 6.526e-4  # rad/(V Å) at 300 keV
POTENTIAL = 3.0  # V, protein minus ice


class Simulation(NamedTuple):
    """A simulated acquisition together with its specimen.

    Attributes
    ----------
    frames : numpy.ndarray
        Binary counts, shape (scan y, scan x, 64, 64), dtype uint8, values 0 and 1. Without
        counting (``dose=None``) the probability that an electron arrives in a pixel, dtype
        float32.
    truth : numpy.ndarray
        Phase shift of the specimen in rad, shape (256, 256), dtype float32, one pixel per Å, one
        period of the field. Scan position (i, j) is at (i, j) · 256/72 Å from pixel (0, 0).
    parameters : dict
        Keyword arguments of ``ParallaxUDF.from_parameters`` that describe the acquisition:
        lengths in Å, ``energy`` in eV, ``semiangle_cutoff`` and ``angular_sampling`` in mrad,
        ``rotation_angle`` in rad.
    """

    frames: NDArray[np.uint8 | np.float32]
    truth: NDArray[np.float32]
    parameters: dict[str, Any]


def simulate(
    scan_shape: tuple[int, int] = (SCAN, SCAN),
    dose: float | None = 30.0,
    seed: int = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
) -> Simulation:
    """Simulate a 4D-STEM scan of apoferritin-like particles.

    A probe of 300 keV, 4 mrad and 1.5 µm underfocus steps by 256/72 Å over a periodic field of
    256 Å. The detector of 64 x 64 pixels has the beam center at pixel (32, 32) and is rotated by
    -15° against the scan. It counts in 1-bit mode: a pixel hit more than once reports 1.

    Parameters
    ----------
    scan_shape : tuple of int
        Scan positions in y and x. The step stays the same, so that smaller scans see a part of
        the field with the same counts per frame; (72, 72) covers it once.
    dose : float, optional
        Electrons per Å². The default of 30 makes 379 electrons per frame, some of which share a
        pixel. None switches counting off and gives frames of probabilities.
    seed : int
        Seed of both specimen and noise. The specimen does not depend on the other arguments.
    progress : callable, optional
        Wraps the iterable of scan rows and yields them again, as ``tqdm.tqdm`` does.

    Returns
    -------
    Simulation
        Frames, true phase and the parameters of the acquisition.
    """
    # Separate streams: specimen and noise do not depend on how much the other one draws.
    specimen_rng, noise_rng = np.random.default_rng(seed).spawn(2)
    truth = _specimen_phase(specimen_rng)
    # Two periods, so that the specimen seen from any whole pixel is a plain slice.
    transmission = np.tile(np.exp(1j * truth), (2, 2))

    # A scan position is a whole pixel plus one of few fractions (ninths). The probe is shifted
    # by the fraction, exactly, and the specimen by the whole pixels. Integers keep this exact.
    wholes, remainders = np.divmod(np.arange(max(scan_shape)) * FIELD, SCAN)
    wholes %= FIELD
    distinct, fractions = np.unique(remainders, return_inverse=True)
    probes = _probes(distinct / SCAN)
    detector = _detector_operator()

    frames: NDArray[np.uint8 | np.float32] = np.empty(
        (*scan_shape, DETECTOR, DETECTOR), np.float32 if dose is None else np.uint8
    )
    waves = np.empty((scan_shape[1], FIELD, FIELD), np.complex64)
    probabilities = np.empty(frames.shape[1:], np.float32)
    rows: Iterable[int] = range(scan_shape[0])
    for i in rows if progress is None else progress(rows):
        y = wholes[i]
        for j, wave in enumerate(waves):
            x = wholes[j]
            specimen = transmission[y : y + FIELD, x : x + FIELD]
            np.multiply(probes[fractions[i], fractions[j]], specimen, out=wave)
        far_field = scipy.fft.fft2(waves, norm="ortho", overwrite_x=True, workers=-1)
        for probability, wave in zip(probabilities, far_field, strict=True):
            intensity = wave.real**2 + wave.imag**2
            probability[:] = (detector @ intensity.ravel()).reshape(probability.shape)
        if dose is None:
            frames[i] = probabilities
        else:
            # The number of electrons in a pixel follows the Poisson distribution, which is zero
            # with the probability exp(-mean). Any other number is reported as 1.
            electrons = dose * (FIELD / SCAN) ** 2
            chance = -np.expm1(-electrons * probabilities)
            frames[i] = noise_rng.random(chance.shape, dtype=np.float32) < chance

    angular_sampling = BINNING / FIELD * wavelength(ENERGY) * 1e3
    parameters = {
        "shape": frames.shape,
        "scan_sampling": (FIELD / SCAN, FIELD / SCAN),
        "angular_sampling": (angular_sampling, angular_sampling),
        "energy": ENERGY,
        "semiangle_cutoff": SEMIANGLE,
        "aberration_coefs": {"C10": C10},
        "rotation_angle": ROTATION,
        "upsampling_factor": 2,
    }
    return Simulation(frames, truth, parameters)


def _specimen_phase(rng: np.random.Generator) -> NDArray[np.float32]:
    """Phase shift in rad of randomly oriented particles in the periodic field, 1 Å per pixel."""
    particle = _particle(rng)
    orientations = Rotation.from_quat(rng.normal(size=(PARTICLES, 4)))
    pixels = np.arange(FIELD, dtype=np.float32)
    residues = np.zeros((FIELD, FIELD), np.float32)
    for orientation, center in zip(orientations, _particle_centers(rng), strict=True):
        positions = (orientation.apply(particle)[:, :2] + center).astype(np.float32)
        # On the periodic field, the distance to the nearest copy of a residue counts.
        distance = pixels[:, None] - positions.T[:, None, :]
        distance -= FIELD * np.rint(distance / FIELD)
        # The Gaussian of a residue is the product of a function of y and one of x, and the sum
        # of such products over all residues is a matrix product. Far from the residues,
        # subnormal numbers would slow this down.
        exponent = -0.5 * (distance / RESIDUE_WIDTH) ** 2
        gaussian_y, gaussian_x = np.exp(np.maximum(exponent, -30))
        residues += gaussian_y @ gaussian_x.T
    integral = INTERACTION_CONSTANT * POTENTIAL * RESIDUE_VOLUME  # rad Å²
    return residues * np.float32(integral / (2 * np.pi * RESIDUE_WIDTH**2))


def _particle(rng: np.random.Generator) -> NDArray[np.float64]:
    """Positions in Å, shape (24 * RESIDUES, 3), of the residues of one particle about its center.

    The particle has the 24 rotations of the cube as symmetry, as apoferritin has.
    """
    # The rotations of the cube take this direction to the vertices of a snub cube, which spread
    # the 24 subunits evenly over the sphere.
    direction = np.array([1.0, 0.5437, 1.8393])
    direction /= np.linalg.norm(direction)
    directions = direction + SUBUNIT_SPREAD * rng.normal(size=(RESIDUES, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    # Uniform in the cube of the radius is uniform in volume.
    radii = np.cbrt(rng.uniform(INNER_RADIUS**3, OUTER_RADIUS**3, size=(RESIDUES, 1)))
    subunit = radii * directions
    return np.concatenate([rotation.apply(subunit) for rotation in Rotation.create_group("O")])


def _particle_centers(rng: np.random.Generator) -> NDArray[np.float64]:
    """Positions (y, x) in Å, shape (PARTICLES, 2), at which particles do not overlap."""
    first, second = np.triu_indices(PARTICLES, k=1)
    while True:
        # The particles nearly fill the field: of a thousand arrangements about one succeeds.
        centers = rng.uniform(0, FIELD, size=(10000, PARTICLES, 2))
        offset = centers[:, first] - centers[:, second]
        offset -= FIELD * np.rint(offset / FIELD)
        fits = (np.linalg.norm(offset, axis=-1) > 2 * OUTER_RADIUS).all(axis=1)
        if fits.any():
            arrangement: NDArray[np.float64] = centers[np.argmax(fits)]
            return arrangement


def _probes(fractions: NDArray[np.float64]) -> NDArray[np.complex64]:
    """Probes at sub-pixel positions around pixel (0, 0), each of total intensity 1.

    Parameters
    ----------
    fractions : numpy.ndarray
        Positions in Å along either axis, shape (n,).

    Returns
    -------
    numpy.ndarray
        Wave functions, shape (n, n, FIELD, FIELD): position y, position x, y, x.
    """
    k = scipy.fft.fftfreq(FIELD)  # 1/Å
    k_squared = k[:, None] ** 2 + k**2
    alpha_squared = wavelength(ENERGY) ** 2 * k_squared  # rad²
    chi = np.pi / wavelength(ENERGY) * C10 * alpha_squared
    pupil = np.where(alpha_squared <= (SEMIANGLE * 1e-3) ** 2, np.exp(-1j * chi), 0)
    pupil /= np.linalg.norm(pupil)
    ramps = np.exp(-2j * np.pi * fractions[:, None] * k).astype(np.complex64)
    spectra = pupil.astype(np.complex64) * ramps[:, None, :, None] * ramps[None, :, None, :]
    return scipy.fft.ifft2(spectra, norm="ortho", overwrite_x=True, workers=-1)


def _detector_operator() -> scipy.sparse.csr_array:
    """Matrix that collects a diffraction pattern in the pixels of the rotated detector.

    It has the shape (DETECTOR², FIELD²) and acts on raveled patterns in the order of the FFT.

    Both samples of the pattern and detector pixels are squares of finite size, centered on their
    coordinates; a sample's intensity is shared among pixels according to the overlap of these
    squares. The overlap is found by cutting each sample in 4 x 4 parts. This keeps the beam
    center in the middle of pixel (32, 32) although the binning is even: without rotation, a pixel
    would collect five samples along each axis with weights 1/2, 1, 1, 1, 1/2. Electrons are
    conserved, except those that miss the detector: the corners of the pattern beyond 9.7 mrad.
    """
    parts = 4
    indices = np.arange(FIELD)
    frequencies = scipy.fft.fftfreq(FIELD, 1 / FIELD)  # in samples
    within = (np.arange(parts) + 0.5) / parts - 0.5
    k = (frequencies[:, None] + within).ravel()
    k_y, k_x = k[:, None], k
    # The frequency that belongs to a pixel is k = R(θ) · (pixel - center), so invert R.
    cos, sin = np.cos(ROTATION), np.sin(ROTATION)
    center = DETECTOR // 2
    row = np.rint((cos * k_y + sin * k_x) / BINNING).astype(int) + center
    column = np.rint((-sin * k_y + cos * k_x) / BINNING).astype(int) + center
    hit = (row >= 0) & (row < DETECTOR) & (column >= 0) & (column < DETECTOR)

    index = np.repeat(indices, parts)
    sample = index[:, None] * FIELD + index
    pixel = row * DETECTOR + column
    weights = np.full(np.count_nonzero(hit), 1 / parts**2, np.float32)
    return scipy.sparse.coo_array(
        (weights, (pixel[hit], sample[hit])), shape=(DETECTOR**2, FIELD**2)
    ).tocsr()
