"""From peaks of the search to the parameters of highest likelihood."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

from .model import Model, curvature

__all__ = ["ascend", "covariance", "decompose", "frequency_weights", "significance", "twin"]


#: Degrees to rotations that are as wrong as any.
_OTHERS = (-130.0, -90.0, -50.0, 50.0, 90.0, 130.0)

#: Median of the absolute difference of an exponential distribution from its mean of 1.
_MEDIAN = 0.6


def decompose(
    shifts: NDArray[np.float64], layout: NDArray[np.float64], semiangle: float
) -> tuple[dict[str, float], float]:
    """Find the defocus, astigmatism and rotation that shift images so.

    Parameters
    ----------
    shifts : (2, 2) float
        From directions along the detector's axes as stored, in semiangles, to shifts in Å.
    layout : (2, 2) float
        See `Model`.
    semiangle
        In rad.

    Returns
    -------
    coefs : dict
        C10, C12 and phi12 in Å and rad. C12 exceeds C10 where the layout's hand is not that of the
        shifts.
    rotation : float
        In rad. The other solution is the twin.
    """
    N = shifts @ np.linalg.inv(layout) / semiangle
    U, s, Vt = np.linalg.svd(N)
    D = np.diag([1.0, np.sign(np.linalg.det(N)) or 1.0])
    R, H = U @ D @ Vt, U @ np.diag(s) @ D @ U.T
    C12 = complex((H[0, 0] - H[1, 1]) / 2, H[0, 1])
    coefs = {"C10": float(np.trace(H) / 2), "C12": abs(C12), "phi12": float(np.angle(C12)) / 2}
    return coefs, float(np.arctan2(R[1, 0], R[0, 0]))


def ascend(
    model: Model,
    x: NDArray[np.float64],
    free: Sequence[int],
    iterations: int = 60,
    tolerance: float = 0.03,
) -> NDArray[np.float64]:
    """Climb to the next maximum.

    Parameters
    ----------
    model
        Likelihood.
    x
        Where to start, see `Model`.
    free
        Which parameters may change.
    iterations
        At most.
    tolerance
        Slope at which it is done, about in standard errors.

    Returns
    -------
    (parameters,) float64
        At the maximum.
    """
    free = list(free)
    if not free:
        return x
    # Slopes of single frequencies scatter in the directions in which the likelihood is steep. In
    # their units it is about as curved in all.
    slopes = (model.weights[:, None] * model.gradients(x)[1])[:, free]
    F = slopes.T @ slopes
    F += np.diag(1e-2 * np.diag(F) + (1e-3 / _scale(model, x)[free]) ** 2)
    unit = np.linalg.inv(np.linalg.cholesky(F)).T

    def negative(u: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        y = x.copy()
        y[free] += unit @ u
        value, gradient = model.value_and_gradient(y)
        total = float(model.weights.sum())
        return -total * value, -total * (unit.T @ gradient[free])

    result = scipy.optimize.minimize(
        negative,
        np.zeros(len(free)),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "ftol": 1e-9, "gtol": tolerance},
    )
    y = x.copy()
    y[free] += unit @ result.x
    return y


def _scale(model: Model, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Find steps of the parameters that change the phases in the disk about alike."""
    reach = float(np.quantile(np.hypot(*model.spectra.q.T), 0.7))
    eta = reach * model.optics.wavelength / model.optics.semiangle
    # Turns at the rim times η are turns between its opposite sides.
    shift = max(float(np.abs(x[1:]).max()), 0.1)
    return np.array([1 / shift, *np.ones(model.size - 1)]) / (2 * np.pi * max(eta, 1e-3))


def frequency_weights(
    radius: NDArray[np.float64], explained: NDArray[np.float64], shells: int = 12
) -> NDArray[np.float64]:
    """Weigh frequencies by how much of their explained power is signal.

    Parameters
    ----------
    radius : (Q,) float
        Absolute value of each.
    explained : (Q,) float
        Explained power; of noise it is 1.
    shells
        In which the signal is averaged.

    Returns
    -------
    (Q,) float64
        Signal over signal and noise, which is what makes the estimate best; little more than 0
        where there is none.
    """
    order = np.argsort(radius, kind="stable")
    weights = np.empty(len(radius))
    for part in np.array_split(order, min(shells, max(1, len(order) // 20))):
        signal = max(float(explained[part].mean()) - 1, 0.02)
        weights[part] = signal / (1 + signal)
    return weights


def covariance(model: Model, x: NDArray[np.float64], free: Sequence[int]) -> NDArray[np.float64]:
    """Estimate the covariance of parameters at the maximum.

    The scatter V of the slopes of single frequencies, which are independent of each other, says how
    far chance pushes, the curvature H how far that moves the maximum: H⁻¹ V H⁻¹. Unlike H alone,
    this holds for frequencies of any weight, and for noise that is stronger than was taken for
    granted.

    Parameters
    ----------
    model
        Likelihood.
    x
        Its maximum.
    free
        Which parameters may change.

    Returns
    -------
    (parameters, parameters) float64
        0 for those that may not.
    """
    free = list(free)
    C = np.zeros((model.size, model.size))
    if not free:
        return C
    H = curvature(model, x, _scale(model, x) * 0.03)[np.ix_(free, free)]
    slopes = (model.weights[:, None] * model.gradients(x)[1])[:, free]
    inverse = np.linalg.pinv(H)
    C[np.ix_(free, free)] = inverse @ (slopes.T @ slopes) @ inverse
    return C


def twin(model: Model, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the parameters of the same likelihood under which contrast is inverted.

    Rotated by half a turn, with all aberrations opposite along the detector's axes, the beams
    change places: γ becomes -γ.
    """
    other = x.copy()
    other[0] += np.pi if x[0] <= 0 else -np.pi
    odd = np.array([int(name[2]) % 2 == 1 for name in model.names[1:]])
    other[1:] *= np.where(odd, 1, -1)
    return other


def significance(model: Model, x: NDArray[np.float64]) -> float:
    """Tell how far the likelihood lies above that of other rotations, in standard deviations.

    Where there is nothing to see, no rotation is better than another: not in noise, and not if
    frames do not belong together, though their pixels do.
    """
    explained = model.explained(x)
    others = np.zeros_like(explained)
    for angle in _OTHERS:
        other = x.copy()
        other[0] += np.deg2rad(angle)
        others += model.explained(other) / len(_OTHERS)
    difference = explained - others
    # Of noise, the median is that far from 0. It is what most frequencies have, also where some
    # few have all of the signal.
    deviation = max(float(np.median(np.abs(difference))) / _MEDIAN, 1.0)
    w = model.weights
    return float((w * difference).sum() / (deviation * np.sqrt((w**2).sum())))
