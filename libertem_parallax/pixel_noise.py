"""What the images of single pixels tell of their noise, without knowing the object."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ELECTRONS", "SOME", "every", "shared", "warn_of_mean"]

#: Frequencies whose noise stands for that of all.
SOME = 300

#: Electrons in all of the bright field whose mean stands out from their noise: a square root of
#: that is how far. No scan has less.
ELECTRONS = 9


def every(shape: tuple[int, int]) -> int:
    """Return the step between frequencies whose noise stands for that of all."""
    columns = shape[1] // 2 + 1
    step = math.ceil(shape[0] * columns / SOME)
    # All columns have some: a beam that flickers adds its noise to the first one.
    while math.gcd(step, columns) > 1:
        step += 1
    return step


def shared(G: NDArray[Any], pixels: NDArray[Any], along: tuple[int, int]) -> float:
    """Find how what pixels (M, 2) and the next ones see is correlated, at frequencies (Q, M)."""
    index = {(y, x): m for m, (y, x) in enumerate(pixels.tolist())}
    following = {m: index.get((y + along[0], x + along[1])) for (y, x), m in index.items()}
    pairs = [(m, n) for m, n in following.items() if n is not None]
    if not pairs or not len(G):
        return 1.0
    a, b = (G[:, part] for part in np.array(pairs).T)
    together, alone = (a * b.conj()).real.sum(axis=1), (np.abs(a) ** 2 + np.abs(b) ** 2).sum(axis=1)
    ratio = np.divide(2 * together, alone, out=np.ones_like(alone), where=alone > 0)
    return float(np.median(ratio))


def warn_of_mean(mean: float, power: NDArray[np.float64], pixels: int, frames: int) -> None:
    """Warn of values whose mean is hardly more than nothing, as where it was taken off.

    Parameters
    ----------
    mean
        Of a pixel of the bright field.
    power : (some,) float64
        Of all pixels' Fourier transforms, summed up, at frequencies of which most are noise.
    pixels, frames
        Number of each.
    """
    noise = math.sqrt(float(np.median(power))) if len(power) else 0.0  # of the sum of all values
    if noise > 0 and not mean * pixels * frames > math.sqrt(ELECTRONS) * noise:
        scatter = noise / math.sqrt(pixels * frames)
        warnings.warn(
            f"the phase by direct ptychography is zero or has no scale: pixels of the bright field "
            f"are {mean:.3g} on average, and scatter by {scatter:.3g}. Expected are values that "
            "are 0 without electrons and grow with them: give frames from which neither their mean "
            "nor more than the background was taken off.",
            stacklevel=4,
        )
