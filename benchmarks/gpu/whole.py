"""What people wait for: a whole calibration, and a whole image by direct ptychography."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import scipy.fft
import scipy.ndimage

from libertem_parallax import Parameters, direct_phase
from libertem_parallax.accumulate import Stack, place_stack
from libertem_parallax.calibration import CalibrationError, calibrate_stack
from libertem_parallax.geometry import Geometry
from libertem_parallax.weak_object import aperture, frequencies, transfer, with_rim

from ..workloads import Workload
from .floors import seconds
from .rows import CORES, Row

__all__ = ["TOLD", "make_stack", "wholes"]

#: What a calibration is told: the rest is to be found.
TOLD = ("energy", "scan_sampling", "semiangle_cutoff", "angular_sampling")

#: Pixels whose images are made at once, and rounds of what takes long.
_PIXELS, _ROUNDS = 16, 3


def make_stack(workload: Workload) -> Stack:
    """Make the bright field, and its rim, of a weak phase object with as many counts as it says.

    Parameters
    ----------
    workload
        Whose shape, dtype, parameters and electrons are used.
    """
    rng = np.random.default_rng(0)
    geometry = with_rim(Geometry.from_parameters(shape=workload.shape, **workload.parameters))
    semiangle, edge = workload.parameters["semiangle_cutoff"] * 1e-3, geometry.soft_edge
    scan = workload.shape[:2]
    dots = (rng.random(scan) < 0.02).astype(float)
    phase = scipy.ndimage.gaussian_filter(dots, 1.2, mode="wrap")
    phase *= 0.1 / phase.std()
    spectrum, q = scipy.fft.rfft2(phase), frequencies(scan, geometry.scan_sampling)
    pixels = geometry.plan.pixels
    frames = np.empty((scan[0] * scan[1], len(pixels)), workload.dtype)
    for start in range(0, len(pixels), _PIXELS):
        part = slice(start, start + _PIXELS)
        at = geometry.angles[part]
        T = transfer(
            at, q.reshape(-1, 2), geometry.aberration_coefs, geometry.wavelength, semiangle, edge
        )
        change = scipy.fft.irfft2(T.T.reshape(-1, *spectrum.shape) * spectrum, scan)
        mean = aperture(at, semiangle, edge)[:, None] ** 2 + change.reshape(len(at), -1)
        frames[:, part] = rng.poisson(workload.electrons * np.maximum(mean, 0)).T
    return Stack(frames, pixels, scan, workload.shape[2:], np.ones(scan, bool))


def wholes(workload: Workload, told: tuple[str, ...]) -> Iterator[Row]:
    """Measure direct ptychography and a calibration, from a stack to the end, on GPU 0 and the CPU.

    Parameters
    ----------
    workload
        What was recorded.
    told
        Names of the parameters that the calibration is told, beside the beam's center.
    """
    stack = make_stack(workload)
    placed = place_stack(stack, "cuda", 0)
    name = f"{workload.name}, M = {len(stack.pixels)}"
    image, expected = (direct_phase(on, workload.parameters) for on in (placed, stack))
    error = float(np.abs(image - expected).max() / np.abs(expected).max())
    yield _row(
        f"direct ptychography, whole, of a stack that is there: {name}",
        f"differs by {error:.1g} of the largest phase",
        seconds(partial(direct_phase, placed, workload.parameters)),
        seconds(partial(direct_phase, stack, workload.parameters), _ROUNDS),
    )
    center = Geometry.from_parameters(shape=workload.shape, **workload.parameters).center
    known = Parameters(center=center, **{key: workload.parameters[key] for key in told})
    found: list[str] = []

    def calibrate(engine: str) -> None:
        found.append(_calibrated(stack, known.replace(engine=engine)))

    times = [seconds(partial(calibrate, engine), _ROUNDS) for engine in ("cuda", "numba")]
    words = " and ".join(dict.fromkeys(found))
    yield _row(f"calibration, whole, its upload included: {name}", words, *times)


def _row(what: str, words: str, on_gpu: float, on_cpu: float) -> Row:
    against = f"{on_cpu / on_gpu:.3g} x as fast as numba on {CORES} cores; {words}"
    return Row(what, f"{on_gpu:.3g} s", against)


def _calibrated(stack: Stack, known: Parameters) -> str:
    """Calibrate; what was found, or why nothing was."""
    try:
        found = calibrate_stack(stack, known, device=0)
    except CalibrationError as error:
        return str(error).partition(":")[0]
    return f"C10 = {found.parameters['aberration_coefs']['C10']:.5g} Å"
