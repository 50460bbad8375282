"""Sets whose truth is known: the demo's specimen, and what a folder of the user's has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import scipy.ndimage
import scipy.signal
from numpy.typing import NDArray

from libertem_parallax.simulate import simulate

__all__ = ["Known", "correlation", "demo", "folder", "shift_error"]


@dataclass(frozen=True)
class Known:
    """Frames and what is true of them.

    Parameters
    ----------
    name
        What the table says.
    file
        ``.npy`` file of shape (scan y, scan x, detector y, detector x).
    parameters
        Of ``from_parameters``; the true ones.
    phase : (Ny, Nx) float
        The specimen's projected phase or potential at the positions of the scan.
    """

    name: str
    file: Path
    parameters: dict[str, Any]
    phase: NDArray[Any]


def _sample(truth: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Sample one period of the truth at the positions of the scan, without aliases."""
    for axis, count in enumerate(shape):
        truth = scipy.signal.resample(truth, count, axis=axis)
    return truth


def demo(output: Path, doses: Iterable[float]) -> Iterator[Known]:
    """Simulate the demo's specimen, and count all electrons of a pixel, not only the first.

    Parameters
    ----------
    output
        Folder for the frames.
    doses
        In e/Å².
    """
    simulation = simulate(dose=None, seed=1)
    parameters = {name: x for name, x in simulation.parameters.items() if name in _TAKEN}
    scan = simulation.frames.shape[:2]
    area = float(np.prod(parameters["scan_sampling"]))
    for dose in doses:
        counts = np.random.default_rng(1).poisson(simulation.frames * (dose * area))
        file = output / f"demo_{dose:g}.npy"
        np.save(file, counts.astype(np.uint8 if counts.max() < 256 else np.uint16))
        yield Known(f"demo, {dose:g} e/Å²", file, parameters, _sample(simulation.truth, scan))


def folder(path: Path) -> list[Known]:
    """Take all sets of a folder.

    Parameters
    ----------
    path
        Folder with ``NAME.npy`` (frames), ``NAME.json`` (parameters, ``rotation_angle_deg`` instead
        of ``rotation_angle``, if that is how it is known) and ``NAME_potential.npy`` or
        ``NAME_phase.npy`` (the truth, one period of the field of the scan).

    Raises
    ------
    click.ClickException
        If there is none.
    """
    sets = []
    for config in sorted(path.glob("*.json")):
        truths = [config.with_name(f"{config.stem}_{x}.npy") for x in ("phase", "potential")]
        truths = [file for file in truths if file.exists()]
        if not truths or not config.with_suffix(".npy").exists():
            continue
        known = json.loads(config.read_text())
        parameters = {name: known[name] for name in _TAKEN if name in known}
        if "rotation_angle_deg" in known:
            parameters["rotation_angle"] = float(np.deg2rad(known["rotation_angle_deg"]))
        phase = _sample(np.load(truths[0]), known["shape"][:2])
        sets.append(Known(config.stem, config.with_suffix(".npy"), parameters, phase))
    if not sets:
        raise click.ClickException(
            f"{path}: expected NAME.npy, NAME.json and NAME_phase.npy or NAME_potential.npy."
        )
    return sets


_TAKEN = (
    "scan_sampling", "angular_sampling", "energy", "semiangle_cutoff", "aberration_coefs",
    "rotation_angle", "center", "detector_flip_cols",
)  # fmt: skip


def correlation(image: NDArray[Any], phase: NDArray[Any]) -> float:
    """Correlate an image with the truth, which is blurred by 0.7 pixels."""
    truth = scipy.ndimage.gaussian_filter(phase, 0.7, mode="wrap")
    return float(np.corrcoef(image.ravel(), truth.ravel())[0, 1])


def shift_error(parameters: dict[str, Any], known: Known) -> float:
    """Find how far images of bright-field pixels are from where they should be.

    Defocus, astigmatism, rotation, order of the columns and angular sampling make a matrix of shift
    over pixel, which solution and twin have in common. A displacement of all is no error.

    Parameters
    ----------
    parameters
        To be judged; those of ``from_parameters`` with numbers only.
    known
        Has the true ones.

    Returns
    -------
    float
        Root of the mean square over the bright field, in scan pixels.
    """
    found, true = (_matrix({**known.parameters, **p}) for p in (parameters, known.parameters))
    radius = known.parameters["semiangle_cutoff"] / np.asarray(known.parameters["angular_sampling"])
    step = np.asarray(known.parameters["scan_sampling"])
    # The mean of x² over a disk of radius 1 is a quarter.
    return float(np.linalg.norm((found - true) / step[:, None] * radius) / 2)


def _matrix(parameters: dict[str, Any]) -> NDArray[np.float64]:
    """Shift in Å over detector pixels, (2, 2)."""
    coefs, rotation = parameters["aberration_coefs"], parameters.get("rotation_angle", 0.0)
    astigmatism = coefs.get("C12", 0.0) * np.exp(2j * coefs.get("phi12", 0.0))
    a, b = astigmatism.real, astigmatism.imag
    gradient = coefs.get("C10", 0.0) * np.eye(2) + np.array([[a, b], [b, -a]])
    cos, sin = np.cos(rotation), np.sin(rotation)
    flip = np.diag([1.0, -1.0 if parameters.get("detector_flip_cols") else 1.0])
    # Angles are k λ, and ∂χ/∂k / 2π is the gradient of χ λ / 2π by the angle.
    angles = np.asarray(parameters["angular_sampling"]) * 1e-3
    matrix: NDArray[np.float64] = gradient @ np.array([[cos, -sin], [sin, cos]]) @ flip * angles
    return matrix
