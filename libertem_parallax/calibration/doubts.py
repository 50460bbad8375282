"""Doubts about a fit: whether something that was taken for granted explains the data worse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .failure import CalibrationError
from .fit import ascend
from .model import Model

__all__ = ["doubts"]

#: Frequencies that are asked.
_FREQUENCIES = 700

#: Weighted power that chance does not explain, and part of what was explained that is told.
_CHANCE, _TOLD = 30.0, 0.03

#: Semiangles that are tried, over the given one; what the right one explains more.
_FACTORS, _WRONG = [1.12**n for n in range(-6, 7) if n], 0.1


def doubts(model: Model, x: NDArray[np.float64], free: list[int]) -> list[str]:
    """Ask whether higher aberrations or another semiangle would explain clearly more.

    Parameters
    ----------
    model
        Likelihood with its weights.
    x
        Its maximum.
    free
        Which parameters were found.

    Returns
    -------
    list
        What people should be told.

    Raises
    ------
    CalibrationError
        If another semiangle does.
    """
    if len(free) < 2:
        return []
    strongest = np.sort(np.argsort(-model.weights, kind="stable")[:_FREQUENCIES])
    weights = model.weights[strongest]
    asked = Model(
        model.spectra.take(strongest), model.optics, model.layout, model.orders, weights=weights
    )
    explained = float(weights @ (asked.explained(x) - 1))
    if not explained > 0:
        return []

    def gain(other: Model, start: NDArray[np.float64], free: list[int]) -> float:
        y = ascend(other, start, free, iterations=8)
        return float(weights @ (other.explained(y) - 1)) - explained

    gains = {}
    for factor in _FACTORS:
        optics = replace(
            model.optics,
            semiangle=model.optics.semiangle * factor,
            sampling=(model.optics.sampling[0] * factor, model.optics.sampling[1] * factor),
        )
        other = Model(
            asked.spectra, optics, model.layout, model.orders, weights=weights, engine=asked.engine
        )
        # The same shifts.
        start = np.concatenate([x[:1], x[1:] * factor])
        gains[factor] = gain(other, start, free)
    best = max(gains, key=lambda factor: gains[factor])
    if gains[best] > max(_CHANCE, _WRONG * explained):
        raise CalibrationError(
            f"semiangle_cutoff = {model.optics.semiangle * 1e3:.4g} mrad does not fit: "
            f"{model.optics.semiangle * best * 1e3:.2g} mrad explain "
            f"{100 * gains[best] / explained:.0f} % more. Check semiangle_cutoff, scan_sampling "
            "and energy."
        )
    higher = [order for order in ((2, 1), (2, 3), (3, 0)) if order not in model.orders]
    if len(higher) == 3:
        wider = Model(
            asked.spectra, model.optics, model.layout, sorted({*model.orders, *higher}),
            weights=weights, engine=asked.engine,
        )  # fmt: skip
        start = wider.vector(model.coefs(x), float(x[0]))
        new = [j for j, name in enumerate(wider.names) if name in ("C21", "C23", "C30")]
        more = gain(wider, start, [*free, *new])
        if more > max(_CHANCE, _TOLD * explained):
            return [
                f"higher aberrations explain {100 * more / explained:.0f} % more, and change the "
                "others: search for C21, C23 and C30, too."
            ]
    return []
