"""The simulated specimen of ``demo`` and ``live --simulate``: told of, and compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .run import by

if TYPE_CHECKING:
    from numpy.typing import NDArray


def describe_simulation(
    parameters: Mapping[str, Any], plan: Any, dose: float
) -> list[tuple[str, str]]:
    """Tell what was simulated, in rows for `report`."""
    steps = zip(plan.scan_shape, parameters["scan_sampling"], strict=True)
    field = (n * size / 10 for n, size in steps)
    return [
        ("Simulated", f"apoferritin-like shells in ice, {by(f'{n:.1f}' for n in field)} nm"),
        (
            "",
            f"{by(plan.scan_shape)} scan, {by(plan.detector_shape)} detector, "
            f"binary counts, {dose:g} e/Å²",
        ),
        (
            "",
            f"{parameters['energy'] / 1e3:g} keV, {parameters['semiangle_cutoff']:g} mrad, "
            f"defocus {-parameters['aberration_coefs']['C10'] / 1e4:g} µm",
        ),
    ]


def resample(image: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Sample a periodic image at another number of points, with the same first point."""
    import scipy.signal

    for axis, count in enumerate(shape):
        image = scipy.signal.resample(image, count, axis=axis)
    return image


def correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Pearson's coefficient of correlation of two images of the same shape."""
    import numpy as np

    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
