"""Doubts about a fit: whether something that was taken for granted explains the data worse."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..accumulate import Stack
from .failure import CalibrationError
from .fit import ascend, decompose
from .model import Model, Optics

__all__ = ["doubts", "moves"]

#: Frequencies that are asked.
_FREQUENCIES = 700

#: Weighted power that chance does not explain, and part of what was explained that is told.
_CHANCE, _TOLD = 30.0, 0.03

#: Semiangles that are tried, over the given one, of which a parabola tells the best: to 3 % where
#: specimens are strong.
_FACTORS = sorted([0.95, 1.0, 1.05, *(1.12**n for n in range(-6, 7) if n)])

#: What is told: a difference of so much that explains more by this part. One of so much that
#: explains so much is wrong.
_OFF, _MORE, _FAR, _WRONG = 0.04, 0.005, 0.08, 0.1

#: Stretch of the image by a disk that moves, and standard errors of that, from which on it is told.
_STRETCH, _SURE = 0.01, 6.0


def doubts(model: Model, x: NDArray[np.float64], free: list[int]) -> list[str]:
    """Ask whether another rotation, or semiangle, or higher aberrations explain clearly more.

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
    asked = model.replace(spectra=model.spectra.take(strongest), weights=weights)
    explained = float(weights @ (asked.explained(x) - 1))
    if not explained > 0:
        return []

    def gain(other: Model, start: NDArray[np.float64], free: list[int]) -> float:
        y = ascend(other, start, free, iterations=8)
        return float(weights @ (other.explained(y) - 1)) - explained

    def with_semiangle(factor: float) -> float:
        optics = replace(
            model.optics,
            semiangle=model.optics.semiangle * factor,
            sampling=(model.optics.sampling[0] * factor, model.optics.sampling[1] * factor),
        )
        # The same shifts.
        start = np.concatenate([x[:1], x[1:] * factor])
        return gain(asked.replace(optics=optics), start, free)

    turn = 0.0
    if 0 not in free:
        turn = max(gain(other, start, [0, *free]) for other, start in _turns(asked, x))
    if turn < max(_CHANCE, _MORE * explained):
        turn = 0.0
    more = 0.0
    higher = [order for order in ((2, 1), (2, 3), (3, 0)) if order not in model.orders]
    if len(higher) == 3:
        wider = asked.replace(orders=sorted({*model.orders, *higher}))
        start = wider.vector(model.coefs(x), float(x[0]))
        new = [j for j, name in enumerate(wider.names) if name in ("C21", "C23", "C30")]
        more = gain(wider, start, [*free, *new])
    if more < max(_CHANCE, _TOLD * explained):
        more = 0.0

    best, most = _highest([with_semiangle(factor) for factor in _FACTORS])
    off, notes = abs(math.log(best)), []
    if turn > more:
        notes.append(
            f"another rotation_angle explains {100 * turn / explained:.0f} % more, with other "
            "aberrations: search for it, too."
        )
    # What makes up for a part of one mistake is none itself.
    if off > _OFF and most > turn and most > max(_CHANCE, _MORE * explained):
        given, better = (model.optics.semiangle * 1e3 * factor for factor in (1, best))
        words = (
            f"{better:.3g} mrad explain {100 * most / explained:.0f} % more. Check "
            "semiangle_cutoff, scan_sampling and energy."
        )
        if off > _FAR and most > _WRONG * explained:
            raise CalibrationError(f"semiangle_cutoff = {given:.4g} mrad does not fit: {words}")
        if most > more:
            notes.append(f"semiangle_cutoff = {given:.4g} mrad may be wrong: {words}")
    if more > turn:
        notes.append(
            f"higher aberrations explain {100 * more / explained:.0f} % more, and change the "
            "others: search for C21, C23 and C30, too."
        )
    return notes


def _turns(model: Model, x: NDArray[np.float64]) -> list[tuple[Model, NDArray[np.float64]]]:
    """Models in which the rotation is asked, with parameters at which to start.

    Where astigmatism exceeds defocus, the same shifts are those of the other hand at another
    rotation, as a defocus that exceeds astigmatism.
    """
    coefs, models = model.coefs(x), [(model, x)]
    C10, C12 = coefs["C10"], coefs["C12"] * np.exp(2j * coefs["phi12"])
    if abs(C10) < abs(C12):
        matrix = np.array([[C10 + C12.real, C12.imag], [C12.imag, C10 - C12.real]])
        cos, sin = math.cos(x[0]), math.sin(x[0])
        mirrored = model.replace(layout=model.layout @ np.diag([1.0, -1.0]))
        shifts = matrix @ [[cos, -sin], [sin, cos]] @ model.layout
        coefs, rotation = decompose(shifts, mirrored.layout, 1.0)
        there = mirrored.vector(coefs, rotation)
        twin = mirrored.vector(coefs, rotation + math.pi)
        twin[1:] *= -1
        models += [(mirrored, there), (mirrored, twin)]
    return models


def _highest(gains: list[float]) -> tuple[float, float]:
    """Take the factor at which a parabola through the highest three is highest, and its height."""
    i = min(max(int(np.argmax(gains)), 1), len(gains) - 2)
    a, b, c = np.polyfit(np.log(_FACTORS[i - 1 : i + 2]), gains[i - 1 : i + 2], 2)
    if a >= 0 or int(np.argmax(gains)) != i:  # at one of the ends
        return _FACTORS[int(np.argmax(gains))], max(gains)
    return math.exp(-b / (2 * a)), float(c - b**2 / (4 * a))


def moves(
    stack: Stack, scan_sampling: tuple[float, float], optics: Optics, C10: float
) -> list[str]:
    """Ask whether the disk moves on the detector during the scan, so far that it matters.

    The likelihood cannot tell: a pixel then sees the specimen from directions that change along
    the scan, which stretches its image as astigmatism, defocus and rotation do.

    Parameters
    ----------
    stack
        Pixels of the bright field.
    scan_sampling
        Step of the scan along rows and columns in Å.
    optics
        Of these pixels.
    C10
        In Å.

    Returns
    -------
    list
        What people should be told.
    """
    ny, nx = stack.scan_shape
    frames = stack.frames.reshape(ny, nx, -1)
    halves = [(slice(None, n // 2), slice(n // 2, None)) for n in (ny, nx)]
    sums = np.array(
        [[frames[rows, cols].sum(axis=(0, 1), dtype=np.float64) for cols in halves[1]]
         for rows in halves[0]]
    )  # fmt: skip
    total = float(sums.sum())
    directions = optics.positions(stack.pixels) * optics.semiangle
    extent = np.multiply(stack.scan_shape, scan_sampling)
    rates = []
    for axis in (0, 1):
        parts = sums.sum(axis=1 - axis)
        if not parts.any(axis=1).all():
            return []
        first, second = (part @ directions / part.sum() for part in parts)
        # Halves are half a scan apart. Of what moves out of the bright field, these pixels see
        # the one side only.
        rates.append(4 * float(np.hypot(*(second - first))) / extent[axis])
    stretch, distance = abs(C10) * max(rates), max(np.multiply(rates, extent))
    error = 4 * optics.semiangle / math.sqrt(total) / min(extent) * abs(C10)
    if stretch < max(_STRETCH, _SURE * error):
        return []
    return [
        f"the disk moves by about {distance * 1e3:.2g} mrad on the detector during the scan. That "
        f"changes astigmatism, defocus and rotation by up to {100 * stretch:.2g} % of the defocus "
        "beyond the stated errors. Align the descan, or shift the frames back."
    ]
