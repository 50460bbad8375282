"""From a stack of bright-field pixels to rotation, hand and aberrations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..accumulate import Stack
from ..likelihood import make_engine
from .failure import CalibrationError
from .fit import ascend, covariance, decompose, frequency_weights, significance, twin
from .model import Model, Optics
from .search import Peak, search
from .spectra import Spectra, independent, transform
from .twins import GIVEN, Hints, choose

__all__ = ["Estimate", "estimate"]

#: Highest frequency of the fit, in semiangles.
_HIGHEST = 0.7

#: Bands of the fit grow by this factor from that in which a peak was found.
_GROWTH = 1.75

#: Fewer frequencies than that say nothing about four parameters.
_FEW = 24

#: Spectral values of the fit at most: 64 MiB.
_VALUES = 1 << 23

#: Starts of a band that are climbed from, up to this part of all frequencies.
_STARTS, _COMMON = 4, 0.5

#: Of those, how many are followed to all frequencies: such as come close to the best.
_FINALISTS, _CLOSE = 3, 0.7

#: A maximum needs no others to be looked for if it stands out so far, in standard deviations, and
#: explains so much of the frequencies in which there is much.
_CLEAR_PEAK, _ENOUGH = 25.0, 0.3

#: Standard deviations by which a likelihood may be lower by chance.
_AS_LIKELY = 4.0

#: Rotations and defoci, in turns at the semiangle, that are tried where the search sees nothing.
_ROTATIONS, _TURNS = 24, (0.0, 0.1, 0.3, 0.6, 1.0)


class Solution(NamedTuple):
    """Parameters, and how likely they are."""

    model: Model
    x: NDArray[np.float64]
    value: float  # mean explained power
    mirrored: bool  # columns are read from right to left
    share: float = 1.0  # explained power without noise, over that of the best


@dataclass(frozen=True, eq=False)
class Estimate:
    """What the likelihood says.

    Parameters
    ----------
    best
        What is most likely, of twins the one that was decided for.
    covariance
        Of its parameters.
    free
        Which of them were found.
    decided
        What decided between the twins, in words; empty if nothing did.
    others
        Other maxima, the most likely first; not the twin.
    significance
        How far the likelihood lies above that of other rotations, in standard deviations.
    """

    best: Solution
    covariance: NDArray[np.float64]
    free: tuple[int, ...]
    decided: str
    others: list[Solution]
    significance: float


def estimate(
    stack: Stack,
    scan_sampling: tuple[float, float],
    optics: Optics,
    layouts: Mapping[bool, NDArray[np.float64]],
    orders: Sequence[tuple[int, int]],
    fixed: Mapping[str, float],
    hints: Hints,
    progress: Callable[[float, str], None] = lambda *_: None,
    engine: str = "auto",
) -> Estimate:
    """Find the most likely rotation, hand and aberrations.

    Parameters
    ----------
    stack
        Bright-field pixels.
    scan_sampling
        Step of the scan along rows and columns in Å.
    optics
        Of the microscope.
    layouts
        Ways to read the detector: see `Model`; by whether columns are read from right to left.
    orders
        (n, m) of the aberrations.
    fixed
        Parameters that are known: ``rotation_angle``, C10 ...; azimuths with their coefficients.
    hints
        What else is known.
    progress
        Called with the fraction that is done, and what is being done.
    engine
        See `libertem_parallax.likelihood.make_engine`. The GPU is that on which the stack is.

    Returns
    -------
    Estimate
        Whether it is more than noise, `significance` says.

    Raises
    ------
    CalibrationError
        If the scan is too small for such optics, or nothing is found with what is known.
    """
    highest = _HIGHEST * optics.semiangle / optics.wavelength
    index = independent(stack.scan_shape, scan_sampling, highest)
    if not len(index):
        raise CalibrationError(
            f"a semiangle of {optics.semiangle * 1e3:g} mrad shows no detail that is smaller than "
            "the scan: check semiangle_cutoff (mrad), scan_sampling (Å) and energy (eV)."
        )
    index = _thinned(index, max(_FEW, _VALUES // len(stack.pixels)))
    spectra = transform(stack, scan_sampling, index, lambda f: progress(0.2 * f, "transforms"))
    extent = max(n * step for n, step in zip(stack.scan_shape, scan_sampling, strict=True))
    finder = _Finder(spectra, optics, layouts, orders, fixed, hints, engine)
    solutions = finder.solve(
        search(spectra, optics, extent), lambda f: progress(0.2 + 0.75 * f, "search")
    )
    best, others = solutions[0], solutions[1:]
    model = best.model
    free = finder.free(model)
    C = covariance(model, best.x, free)
    other = twin(model, best.x)
    known = not np.allclose(finder.with_fixed(model, other), other, atol=1e-6)
    x, decided = (best.x, GIVEN) if known else choose(model, best.x, hints)
    progress(1.0, "fit")
    stands_out = significance(model, x)
    return Estimate(best._replace(x=x), C, tuple(free), decided, others, stands_out)


def _thinned(index: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Take no more frequencies than that: the lowest, and some of the others."""
    if len(index) <= count:
        return index
    low = count // 2
    rest = np.random.default_rng(0).choice(len(index) - low, count - low, replace=False) + low
    kept: NDArray[np.int64] = index[np.concatenate([np.arange(low), np.sort(rest)])]
    return kept


class _Finder:
    """Climbs from where the search points to."""

    def __init__(
        self,
        spectra: Spectra,
        optics: Optics,
        layouts: Mapping[bool, NDArray[np.float64]],
        orders: Sequence[tuple[int, int]],
        fixed: Mapping[str, float],
        hints: Hints,
        engine: str,
    ) -> None:
        self.spectra, self.optics, self.layouts = spectra, optics, layouts
        self.engine = engine
        self.orders, self.fixed, self.hints = orders, fixed, hints
        self.radius = np.hypot(*spectra.q.T)
        self._models: dict[int, Model] = {}

    def model(self, mirrored: bool, highest: float) -> Model:
        """Model of a band of frequencies."""
        count = int(np.searchsorted(self.radius, highest, side="right"))
        count = min(len(self.radius), max(count, 2 * _FEW))
        layout = self.layouts[mirrored]
        if count not in self._models:
            spectra, optics = self.spectra, self.optics
            if count < len(self.radius):
                spectra = spectra.take(slice(0, count))
            engine = make_engine(
                self.engine,
                spectra.images if spectra.there is None else spectra.there,
                optics.positions(spectra.pixels),
                optics.edge,
                None if spectra.there is None else spectra.there.device.id,
                again=lambda: spectra.images,
            )
            self._models[count] = Model(spectra, optics, layout, self.orders, engine=engine)
        return self._models[count].replace(layout=layout)

    def free(self, model: Model) -> list[int]:
        """Tell which parameters are to be found."""
        return [j for j, name in enumerate(model.names) if name not in self.fixed]

    def with_fixed(self, model: Model, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Replace what is known."""
        known = model.vector(self.fixed, self.fixed.get("rotation_angle", 0.0))
        return np.where([name in self.fixed for name in model.names], known, x)

    def solve(
        self, peaks: Iterable[Sequence[Peak]], progress: Callable[[float], None]
    ) -> list[Solution]:
        """Find maxima of the likelihood, the highest first, twins once.

        Parameters
        ----------
        peaks
            Of the search, band by band. The next one is not asked for where one has told enough.
        progress
            Called with the fraction that is done.
        """
        climbed: list[Solution] = []
        for done, found in enumerate(peaks):
            self._climb(climbed, [(peak.band, self._from_peak(peak)) for peak in found])
            progress(min(0.6, 0.15 * (done + 1)))
            if climbed and _clear(climbed[0]) and self._allowed_or_twin(*climbed[0][:2]):
                break
        else:
            self._climb(climbed, self._grid())
        progress(0.7)
        climbed = [s for s in climbed if self._allowed_or_twin(s.model, s.x)]
        if not climbed:
            low, high = self.hints.defocus
            raise CalibrationError(
                f"nothing is found with a defocus between {low:g} and {high:g} Å (underfocus is "
                "positive) and the parameters that were given: check both."
            )
        # All were climbed with the same frequencies, so that they can be compared.
        excess = climbed[0].value - 1
        climbed = [s._replace(share=(s.value - 1) / excess if excess > 0 else 1.0) for s in climbed]
        finalists = [s for s in climbed if s.share > _CLOSE]
        refined: list[Solution] = []
        for s in finalists[:_FINALISTS]:
            refined.append(self._refined(s))
            progress(0.7 + 0.3 * len(refined) / len(finalists[:_FINALISTS]))
        refined.sort(key=lambda s: -s.value)
        refined = _plausible_first(refined)
        distinct: list[Solution] = []
        for s in [*refined, *climbed]:
            if not any(_same(d, s.mirrored, s.x, self.fixed) for d in distinct):
                distinct.append(s)
        return distinct

    def _from_peak(self, peak: Peak) -> Callable[[bool], list[tuple[dict[str, float], float]]]:
        return lambda mirrored: [
            decompose(peak.shifts, self.layouts[mirrored], self.optics.semiangle)
        ]

    def _grid(
        self,
    ) -> list[tuple[float, Callable[[bool], list[tuple[dict[str, float], float]]]]]:
        """All rotations at small defoci, of which the search sees nothing, or at the known one."""
        unit = self.optics.wavelength / self.optics.semiangle**2
        C10s = [self.fixed["C10"]] if "C10" in self.fixed else [unit * t for t in _TURNS]
        tried = [
            ({"C10": C10}, 2 * math.pi * n / _ROTATIONS) for C10 in C10s for n in range(_ROTATIONS)
        ]
        return [(0.5 * float(self.radius[-1]), lambda _: tried)]

    def _climb(
        self,
        climbed: list[Solution],
        points: Sequence[tuple[float, Callable[[bool], list[tuple[dict[str, float], float]]]]],
    ) -> None:
        """Climb from the best of some points, and put new maxima among those that were found."""
        rated = []
        for band, coefs_and_rotations in points:
            for mirrored in self.layouts:
                model = self.model(mirrored, band)
                for coefs, rotation in coefs_and_rotations(mirrored):
                    x = self.with_fixed(model, model.vector(coefs, rotation))
                    other = self.with_fixed(model, twin(model, x))
                    both = self.fixed or not self._allowed(model, x)
                    for y in (x, other) if both else (x,):
                        if self._allowed(model, y):
                            explained = model.explained(y)
                            # Of bands of all sizes, noise has an excess of about 1.
                            excess = float((explained - 1).sum()) / math.sqrt(len(explained))
                            rated.append((excess, mirrored, band, y))
        rated.sort(key=lambda entry: -entry[0])
        starts: list[tuple[bool, NDArray[np.float64]]] = []
        for _, mirrored, band, x in rated:
            if len(starts) == _STARTS:
                break
            if any(m == mirrored and _near(x, y, self.fixed) for m, y in starts):
                continue
            starts.append((mirrored, x))
            while True:
                model = self.model(mirrored, band)
                x = ascend(model, x, self.free(model), iterations=15)
                if band >= _COMMON * self.radius[-1]:
                    break
                band = min(band * _GROWTH, _COMMON * float(self.radius[-1]))
            if not any(_same(s, mirrored, x, self.fixed) for s in climbed):
                model = self.model(mirrored, float(self.radius[-1]))
                climbed.append(Solution(model, x, model.value(x), mirrored))
        climbed.sort(key=lambda s: -s.value)

    def _allowed_or_twin(self, model: Model, x: NDArray[np.float64]) -> bool:
        other = twin(model, x)
        fixed = not np.allclose(self.with_fixed(model, other), other, atol=1e-6)
        return self._allowed(model, x) or (not fixed and self._allowed(model, other))

    def _allowed(self, model: Model, x: NDArray[np.float64]) -> bool:
        C10 = model.coefs(x)["C10"]
        low, high = self.hints.defocus
        # The search is coarse.
        margin = 0.05 * abs(C10)
        return low - margin <= -C10 <= high + margin

    def _refined(self, s: Solution) -> Solution:
        """Climb on with all frequencies, weighted by how much they tell."""
        mirrored, x = s.mirrored, s.x
        model = self.model(mirrored, float(self.radius[-1]))
        free = self.free(model)
        for _ in range(2):
            model = model.replace(weights=frequency_weights(self.radius, model.explained(x)))
            x = ascend(model, x, free)
        x = x.copy()
        x[0] = math.remainder(x[0], 2 * math.pi)
        return s._replace(model=model, x=x, value=float(model.explained(x).mean()))


def _plausible_first(solutions: list[Solution]) -> list[Solution]:
    """Put first what is about as likely as the first, but has less astigmatism than defocus.

    The shifts of a mirrored detector with much astigmatism are those of one that is not, with
    little: only contrast tells them apart.
    """
    if not solutions or not _astigmatic(solutions[0]):
        return solutions
    first = solutions[0]
    for s in solutions[1:]:
        if not _astigmatic(s):
            w = (first.model.weights + s.model.weights) / 2
            difference = w * (first.model.explained(first.x) - s.model.explained(s.x))
            if difference.sum() < _AS_LIKELY * math.sqrt(float((difference**2).sum())):
                return [s, *(other for other in solutions if other is not s)]
    return solutions


def _astigmatic(s: Solution) -> bool:
    coefs = s.model.coefs(s.x)
    return coefs["C12"] > abs(coefs["C10"])


def _clear(s: Solution) -> bool:
    """Tell whether a maximum needs no others to be looked for."""
    spectra, strong = s.model.spectra, s.model.spectra.strong
    explained = s.model.explained(s.x)
    there = float((1 - 1 / spectra.power[strong]).sum())
    if explained[strong].sum() / len(spectra.pixels) < _ENOUGH * there:
        return False
    weights = frequency_weights(np.hypot(*spectra.q.T), explained)
    return significance(s.model.replace(weights=weights), s.x) > _CLEAR_PEAK


def _near(x: NDArray[np.float64], y: NDArray[np.float64], fixed: Mapping[str, float]) -> bool:
    """Tell whether parameters, or one's twin, are those of the same maximum."""

    def near(x: NDArray[np.float64]) -> bool:
        turned = abs(math.remainder(x[0] - y[0], 2 * math.pi))
        size = max(float(np.abs(y[1:]).max()), 0.1)
        return turned * size < 0.3 and bool((np.abs(x[1:] - y[1:]) < 0.3).all())

    flipped = np.concatenate([[x[0] + math.pi], -x[1:]])
    return near(x) or ("C10" not in fixed and "rotation_angle" not in fixed and near(flipped))


def _same(s: Solution, mirrored: bool, x: NDArray[np.float64], fixed: Mapping[str, float]) -> bool:
    return s.mirrored == mirrored and _near(s.x, x, fixed)
