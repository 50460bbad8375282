"""Twins: two sets of parameters of the same likelihood, and what tells them apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from .fit import twin
from .model import Model

__all__ = ["GIVEN", "Hints", "choose"]

#: What decides where a parameter is given that the twin would change.
GIVEN = "given parameters"

#: Skewness of the phase image, in standard deviations of noise, that tells a twin.
_CLEAR = 4.0


@dataclass(frozen=True)
class Hints:
    """What is known without being exact.

    Parameters
    ----------
    defocus
        Lowest and highest in Å; the defocus is -C10, underfocus is positive.
    rotation
        In rad, to 90° at least.
    """

    defocus: tuple[float, float] = (-math.inf, math.inf)
    rotation: float | None = None

    def allow(self, C10: float, rotation: float) -> bool:
        """Tell whether parameters are what is known."""
        low, high = self.defocus
        return low <= -C10 <= high and (
            self.rotation is None or math.cos(rotation - self.rotation) > 0
        )


def choose(model: Model, x: NDArray[np.float64], hints: Hints) -> tuple[NDArray[np.float64], str]:
    """Choose between twins.

    Parameters
    ----------
    model
        Likelihood.
    x
        Parameters of one of them.
    hints
        What is known.

    Returns
    -------
    (parameters,) float64
        Of the one that is chosen.
    str
        What decided, in words; empty if nothing did, which leaves underfocus.
    """
    twins = x, twin(model, x)
    allowed = [hints.allow(model.coefs(y)["C10"], float(y[0])) for y in twins]
    if allowed[0] != allowed[1]:
        return twins[allowed.index(True)], "the hint"
    skewness = _skewness(model, x)
    if abs(skewness) > _CLEAR:
        words = f"skewness of the phase image, {abs(skewness):.0f} standard deviations"
        return twins[int(skewness < 0)], words
    return twins[int(model.coefs(x)["C10"] > 0)], ""


def _skewness(model: Model, x: NDArray[np.float64]) -> float:
    """Skewness of the phase image in standard deviations of noise.

    Specimens add phase, in some places much and nowhere less than nothing: there is a tail.
    """
    N, D = model.sums(x)
    spectra = model.spectra
    ny, nx = spectra.scan_shape
    phi = -1j * N * model.weights / np.maximum(D, 1e-3 * D.max())
    spectrum = np.zeros((ny, nx // 2 + 1), complex)
    rows, cols = spectra.index.T
    spectrum[rows, cols] = phi
    # Of column 0, both halves.
    zero = cols == 0
    spectrum[-rows[zero] % ny, 0] = phi[zero].conj()
    image = scipy.fft.irfft2(spectrum, (ny, nx))
    power = np.abs(phi) ** 2
    modes = 2 * float(power.sum() ** 2 / (power**2).sum()) if power.any() else 1.0
    skewness = float(((image / (image.std() or 1.0)) ** 3).mean())
    return skewness / math.sqrt(6 / modes)
