"""What is found, with uncertainties, and what else it could be."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import aberrations
from ..accumulate import CudaStack, Stack, place_stack
from ..parameters import Parameters
from .beam import Beam, find_beam
from .doubts import doubts, moves
from .estimate import Estimate, Solution, estimate
from .failure import CalibrationError
from .fit import twin
from .model import Model
from .reduce import binned, mean_pattern, scanned_part
from .twins import GIVEN, Hints

__all__ = ["Alternative", "Calibration", "calibrate_stack", "check_search"]

#: Significance that noise does not reach.
_STANDS_OUT = 10.0

#: Of the excess of explained power: solutions that explain as much are told.
_ALIKE = 0.7

#: Standard deviations within which a solution is no other one: climbing stopped on its way.
_SAME = 3.0


class Alternative(NamedTuple):
    """Other parameters that explain the data, too."""

    parameters: Parameters
    likelihood: float  # power it explains over that of what was found, without noise
    why: str


@dataclass(frozen=True, eq=False)
class Calibration:
    """Parameters as they were found.

    Parameters
    ----------
    parameters
        All that are known now, for ``from_parameters(shape=dataset.shape, **parameters)``.
    uncertainties
        One standard deviation of those that were found, by the same names and in the same units;
        aberrations by theirs.
    alternatives
        What else it could be, the most likely first. If nothing but a hint can tell, the first is
        the twin: (-C10, rotation + 180°), with contrast inverted.
    significance
        How far the likelihood lies above that of other rotations, in standard deviations of noise:
        whether there is a signal. It grows with dose and specimen. How exact the parameters are,
        `uncertainties` says.
    decided
        What decided between the twins, in words; empty if nothing did.
    notes
        What people should be told.
    """

    parameters: Parameters
    uncertainties: dict[str, Any]
    alternatives: tuple[Alternative, ...]
    significance: float
    decided: str
    notes: tuple[str, ...]
    beam: Beam = field(repr=False)
    estimate: Estimate = field(repr=False)
    stack: Stack = field(repr=False)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a file of parameters, with uncertainties and alternatives as comments.

        Parameters
        ----------
        path
            Of the TOML file.
        overwrite
            Whether to replace an existing file.

        Raises
        ------
        FileExistsError
            If there is such a file, and `overwrite` is not set.
        OSError
            If it cannot be written.
        """
        comments = {name: f"± {text}" for name, text in self._uncertain().items()}
        self.parameters.save(
            path, comments=comments, header="\n".join(self.summary()), overwrite=overwrite
        )

    @property
    def signal(self) -> str:
        """Say in words what `significance` is."""
        return (
            f"{self.significance:.0f} times the noise, where {_STANDS_OUT:g} are needed. It tells "
            "that there is something to see, not how exact the parameters are"
        )

    def summary(self) -> list[str]:
        """Tell in words how sure it is, and what else it could be; a line each."""
        rows, cols = self.stack.scan_shape
        lines = [f"Calibrated from {rows} x {cols} frames. Signal: {self.signal}."]
        for other in self.alternatives:
            coefs = other.parameters["aberration_coefs"]
            values = ", ".join(
                [f"C10 = {coefs['C10']:.6g} Å"]
                + [
                    f"{name} = {value:.4g} {aberrations.unit(name)}"
                    for name, value in coefs.items()
                    if name != "C10" and coefs.get(f"C{name[-2:]}")
                ]
                + [f"rotation_angle = {other.parameters['rotation_angle']:.4f} rad"]
                + (["columns reversed"] if other.parameters["detector_flip_cols"] else [])
            )
            lines.append(f"Or: {values}; {other.why}.")
        return [*lines, *self.notes]

    def _uncertain(self) -> dict[str, str]:
        """Uncertainties as texts."""
        return {
            name: ", ".join(f"{v:.2g}" for v in value)
            if isinstance(value, tuple)
            else f"{value:.2g}"
            for name, value in self.uncertainties.items()
        }

    def plot(self) -> Any:
        """Draw a sheet to look at.

        Returns
        -------
        matplotlib.figure.Figure
            Mean pattern with the circle, likelihood, shifts, the image before and after, and its
            Fourier transform.
        """
        from ..show.sheet import sheet

        return sheet(self)


def check_search(search: Iterable[str]) -> tuple[str, ...]:
    """Check names of parameters to be found.

    Parameters
    ----------
    search
        ``center``, ``angular_sampling``, ``rotation_angle``, ``detector_flip_cols``, and
        aberrations such as C21.

    Returns
    -------
    tuple
        The same; aberrations by the names of `aberrations.SYMBOLS`.

    Raises
    ------
    ValueError
        For other names.
    """
    coefs = [name for name in aberrations.SYMBOLS if name.startswith("C")]
    known = ["center", "angular_sampling", "rotation_angle", "detector_flip_cols", *coefs]
    names = []
    for given in search:
        name = aberrations.ALIASES.get(given, given)
        if name not in known:
            raise ValueError(f"search: {given!r}: expected some of {', '.join(known)}.")
        names.append(name)
    return tuple(dict.fromkeys(names))


def calibrate_stack(
    stack: Stack,
    parameters: Parameters,
    beam: Beam | None = None,
    search: Iterable[str] = (),
    hints: Hints | None = None,
    progress: Callable[[float, str], None] = lambda *_: None,
    device: int | None = None,
) -> Calibration:
    """Find rotation, hand and aberrations from a stack of bright-field pixels.

    Parameters
    ----------
    stack
        Pixels of the bright field, or more. It may be a part of the scan.
    parameters
        What is known: ``energy``, ``scan_sampling``, ``semiangle_cutoff``, and more. What is given
        is kept.
    beam
        As `find_beam` returns it. Default: what it finds in the mean of the stack.
    search
        What to find beside that which is not given: see `check_search`. Of given aberrations and
        rotations, these are not kept.
    hints
        What is known without being exact.
    progress
        Called with the fraction that is done, and what is being done.
    device
        Number of the GPU to use, unless the parameter ``engine`` says otherwise; None where there
        is none.

    Returns
    -------
    Calibration
        What was found.

    Raises
    ------
    CalibrationError
        If there is no beam, nothing stands out of the noise, or another semiangle fits clearly
        better.
    ValueError
        If `search` has other names.
    """
    search = check_search(search)
    parameters = without(parameters, search)
    given_stack, stack = stack, scanned_part(stack.on_host)
    beam = beam or find_beam(mean_pattern(stack), parameters)
    bright = np.zeros(stack.detector_shape, bool)
    bright[tuple(stack.pixels.T)] = True
    if not beam.mask[bright].all():
        stack = stack.select(beam.mask)
    given = dict(parameters.get("aberration_coefs", {}))
    orders = _orders([*given, *search])
    fixed = {name: value for name, value in given.items() if f"C{name[-2:]}" not in search}
    if "rotation_angle" in parameters and "rotation_angle" not in search:
        fixed["rotation_angle"] = parameters["rotation_angle"]
    coarse, optics = binned(stack, beam.optics)
    engine = parameters.get("engine", "auto")
    placed = given_stack  # where it is, if that is a GPU and all of it is used
    if coarse.frames is not given_stack.frames or not isinstance(placed, CudaStack):
        placed = place_stack(coarse, "numba" if engine == "numpy" else engine, device)
    elif engine not in ("auto", "cuda"):
        placed = coarse
    estimated = estimate(
        placed,
        parameters["scan_sampling"],
        optics,
        _layouts(parameters, search),
        orders,
        fixed,
        hints or Hints(),
        progress,
        engine,
    )
    if not estimated.significance > _STANDS_OUT:
        known = fixed or (hints is not None and hints != Hints())
        raise CalibrationError(
            "nothing stands out of the noise: with the best parameters, the signal is "
            f"{estimated.significance:.1f} times the noise, where {_STANDS_OUT:g} are needed. "
            "There may be no specimen or too few electrons, or semiangle_cutoff, scan_sampling, "
            "energy or the order of the frames are wrong"
            + (
                "; or what was given of defocus (in Å), aberrations or rotation is."
                if known
                else "."
            )
        )
    best = estimated.best
    notes = doubts(best.model, best.x, list(estimated.free))
    notes += moves(coarse, parameters["scan_sampling"], optics, best.model.coefs(best.x)["C10"])
    described = _describer(parameters, beam)
    return Calibration(
        described(best, best.x),
        _uncertainties(estimated, beam),
        tuple(_alternatives(estimated, described)),
        estimated.significance,
        estimated.decided,
        (*beam.notes, *notes),
        beam,
        estimated,
        stack,
    )


def without(parameters: Parameters, search: Iterable[str]) -> Parameters:
    """Take out center and sampling if they are to be found."""
    out = dict.fromkeys({"center", "angular_sampling"} & set(search))
    if "angular_sampling" in out:
        out["reciprocal_sampling"] = None
    return parameters.replace(**out)


def _orders(names: Iterable[str]) -> list[tuple[int, int]]:
    """Orders of defocus, astigmatism, and of what is given or searched."""
    known = [(int(name[-2]), int(name[-1])) for name in names if name[-2:].isdigit()]
    return sorted({(1, 0), (1, 2), *known})


def _layouts(parameters: Parameters, search: tuple[str, ...]) -> dict[bool, NDArray[np.float64]]:
    """Ways to read the detector, by whether columns are read from right to left."""
    rows = -1.0 if parameters.get("detector_flip_rows") else 1.0
    layouts = {}
    for flip in (False, True):
        layout = np.diag([rows, -1.0 if flip else 1.0])
        layouts[flip] = layout[::-1] if parameters.get("detector_transpose") else layout
    if "detector_flip_cols" in parameters and "detector_flip_cols" not in search:
        return {flip: layouts[flip] for flip in [bool(parameters["detector_flip_cols"])]}
    return layouts


def _describer(
    parameters: Parameters, beam: Beam
) -> Callable[[Solution, NDArray[np.float64]], Parameters]:
    def described(solution: Solution, x: NDArray[np.float64]) -> Parameters:
        found: dict[str, Any] = {
            "rotation_angle": math.remainder(float(x[0]), 2 * math.pi),
            "aberration_coefs": solution.model.coefs(x),
            "detector_flip_cols": solution.mirrored,
            "center": beam.optics.center,
        }
        if "sampling" in beam.errors:
            found["angular_sampling"] = tuple(step * 1e3 for step in beam.optics.sampling)
        return parameters.replace(**found)

    return described


def _uncertainties(estimated: Estimate, beam: Beam) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if "center" in beam.errors:
        out["center"] = beam.errors["center"]
    if "sampling" in beam.errors:
        out["angular_sampling"] = tuple(
            beam.errors["sampling"] * step * 1e3 for step in beam.optics.sampling
        )
    model: Model = estimated.best.model
    units = model.units()
    C = estimated.covariance * np.outer(units, units)
    x = estimated.best.x * units
    if 0 in estimated.free:
        out["rotation_angle"] = math.sqrt(C[0, 0])
    at = 1
    for n, m in model.orders:
        if at in estimated.free:
            if m:
                part = slice(at, at + 2)
                out |= _polar(f"{n}{m}", m, x[part], C[part, part])
            else:
                out[f"C{n}{m}"] = math.sqrt(C[at, at])
        at += 2 if m else 1
    return out


def _polar(order: str, m: int, z: NDArray[np.float64], C: NDArray[np.float64]) -> dict[str, float]:
    """Uncertainties of magnitude and azimuth from those of cosine and sine parts."""
    size = float(np.hypot(*z))
    unit = z / size if size else np.array([1.0, 0.0])
    along = math.sqrt(unit @ C @ unit)
    normal = np.array([-unit[1], unit[0]])
    across = math.sqrt(normal @ C @ normal)
    # Where it could be 0, all azimuths are as good.
    most = 2 * math.pi / m / math.sqrt(12)
    known = size > 2 * max(along, across)
    return {f"C{order}": along, f"phi{order}": min(most, across / (m * size)) if known else most}


def _alternatives(
    estimated: Estimate, described: Callable[[Solution, NDArray[np.float64]], Parameters]
) -> Iterable[Alternative]:
    best = estimated.best
    model = best.model
    if estimated.decided != GIVEN:
        why = "the twin, which inverts the contrast and is as likely"
        if estimated.decided:
            why = f"the twin, which inverts the contrast; {estimated.decided} decided against it"
        yield Alternative(described(best, twin(model, best.x)), 1.0, why)
    for other in estimated.others:
        if other.share > _ALIKE and not _within_errors(estimated, other):
            why = f"explains {100 * other.share:.0f} % as much"
            yield Alternative(described(other, other.x), other.share, why)


def _within_errors(estimated: Estimate, other: Solution) -> bool:
    """Tell whether a solution is the best one, or its twin, but for what is stated as error."""
    best, free = estimated.best, list(estimated.free)
    if other.mirrored != best.mirrored or not free:
        return False
    inverse = np.linalg.pinv(estimated.covariance[np.ix_(free, free)])
    for x in (best.x, twin(best.model, best.x)):
        off = other.x - x
        off[0] = math.remainder(off[0], 2 * math.pi)
        if off[free] @ inverse @ off[free] < _SAME**2:
            return True
    return False
