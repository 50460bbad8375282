"""Every parameter of an acquisition, declared once.

From `PARAMETERS` the options of the command line and the keys of parameter files are made. The
signature and docstring of ``ParallaxUDF.from_parameters`` and the table in docs/parameters.md are
tested against it.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import aberrations, checks

__all__ = ["DEFAULTS", "ELSEWHERE", "PARAMETERS", "Parameter"]

#: What a value is. Decides how it is checked, and what its option takes.
Kind = Literal[
    "number", "pair", "position", "angle", "integer", "flag", "choice", "images", "coefficients",
    "mask", "regularization", "table",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """Declaration of a parameter.

    Parameters
    ----------
    name
        As argument and as key of files. Options have - for _.
    kind
        What its value is.
    words
        What it is; its unit follows.
    more
        Sentences that go on from there.
    unit
        Of a number.
    default
        If it is not given.
    otherwise
        The default in words, where its value says little.
    required
        Whether there is no image without it.
    instead
        Name of the parameter that does as well; not both may be given.
    limits
        Of a number or integer.
    choices
        What may be chosen.
    of
        What takes it: ``"acquisition"`` `geometry.Geometry`, ``"udf"`` only ``from_parameters`` of
        the UDF, ``"command"`` none of them.
    """

    name: str
    kind: Kind
    words: str
    more: str = ""
    unit: str = ""
    default: Any = None
    otherwise: str = ""
    required: bool = False
    instead: str = ""
    limits: tuple[float, float] = (-math.inf, math.inf)
    choices: tuple[str, ...] = ()
    of: Literal["acquisition", "udf", "command"] = "acquisition"

    def check(self, value: Any) -> Any:
        """Check a value and convert it to the form in which it is kept.

        Raises
        ------
        ValueError
            For a value out of range or of another kind; the message says what is expected.
        """
        return _CHECKS[self.kind](self, value)

    @property
    def meaning(self) -> str:
        """What it is, in whole sentences."""
        unit = f" in {self.unit}" if self.unit else ""
        return f"{self.words[0].upper()}{self.words[1:]}{unit}. {self.more}".rstrip()

    @property
    def need(self) -> str:
        """Whether it is required, or what its default is."""
        if self.required:
            return f"required, or {self.instead}" if self.instead else "required"
        default = self.otherwise or self.default
        return f"default: {('no', 'yes')[default] if isinstance(default, bool) else default}"


_SIZE = "size of a detector pixel along rows and columns"

#: All parameters by name.
PARAMETERS: Mapping[str, Parameter] = MappingProxyType(
    {
        parameter.name: parameter
        for parameter in (
            Parameter(
                name="scan_sampling",
                kind="pair",
                words="step of the scan along rows and columns",
                unit="Å",
                required=True,
            ),
            Parameter(
                name="energy",
                kind="number",
                words="energy of the electrons",
                unit="eV",
                required=True,
                limits=(10e3, 10e6),
            ),
            Parameter(
                name="semiangle_cutoff",
                kind="number",
                words="semiangle of the bright field",
                more="Pixels up to it are used.",
                unit="mrad",
                required=True,
            ),
            Parameter(
                name="reciprocal_sampling",
                kind="pair",
                words=_SIZE,
                unit="1/Å",
                required=True,
                instead="angular_sampling",
            ),
            Parameter(
                name="angular_sampling",
                kind="pair",
                words=_SIZE,
                unit="mrad",
                required=True,
                instead="reciprocal_sampling",
            ),
            Parameter(
                name="aberration_coefs",
                kind="coefficients",
                words="aberration coefficients in Å and azimuths in rad or degrees (15deg)",
                more="Names are those of abTEM, C10, C12, phi12 ... C56, phi56, or others such as "
                "defocus (= -C10), astigmatism, coma, Cs.",
                otherwise="none",
            ),
            Parameter(
                name="rotation_angle",
                kind="angle",
                words="rotation of the detector's directions against the scan in rad, or in "
                "degrees as in -15deg",
                default=0.0,
                otherwise="0",
            ),
            Parameter(
                name="upsampling_factor",
                kind="integer",
                words="pixels of the image per scan step",
                default=1,
                limits=(1, 1000),
            ),
            Parameter(
                name="suppress_Nyquist_noise",
                kind="flag",
                words="zero the Nyquist frequencies of the image where the rounding of shifts to "
                "pixels fills them with noise",
                more="These are those of the parallax image if it is upsampled, of the "
                "phase-flipped one always.",
                default=True,
                of="udf",
            ),
            Parameter(
                name="detector_flip_cols",
                kind="flag",
                words="read the frames' columns from right to left",
                default=False,
            ),
            Parameter(
                name="center",
                kind="position",
                words="row and column of the beam in detector pixels as stored",
                more="They count from 0, and fractions are allowed.",
                otherwise="the middle of the detector",
            ),
            Parameter(
                name="bf_mask",
                kind="mask",
                words="boolean array of the detector's shape, or a .npy file of one",
                more="It is False where a pixel as stored must not be used: dead pixels, beam "
                "stops.",
                otherwise="all pixels",
            ),
            Parameter(
                name="engine",
                kind="choice",
                words="what adds the frames",
                more="That is the GPU (cuda), compiled code on the CPU (numba), or slow code for "
                "comparison (numpy). All give the same.",
                default="auto",
                otherwise="auto: a GPU where LiberTEM assigned one, else the CPU",
                choices=("auto", "cuda", "numba", "numpy"),
                of="udf",
            ),
            Parameter(
                name="image",
                kind="images",
                words="what to make of the frames",
                more="That is the name of an image, such as phase_flip, or of several. They are "
                "made in one pass, each as a result of its name.",
                otherwise="parallax",
                of="udf",
            ),
            Parameter(
                name="detector_flip_rows",
                kind="flag",
                words="read the frames' rows from bottom to top",
                default=False,
            ),
            Parameter(
                name="detector_transpose",
                kind="flag",
                words="read the frames' rows as columns and columns as rows, after flipping",
                default=False,
            ),
            Parameter(
                name="regularization",
                kind="regularization",
                words="how the phase image weighs signal and noise at each spatial frequency",
                more="That is auto, which finds both in the data, or a number, the power of the "
                "signal over that of the noise where contrast is best. Larger ones show more "
                "detail and more noise.",
                default="auto",
                of="udf",
            ),
            Parameter(
                name="borders",
                kind="choice",
                words="what happens at the borders of the image",
                more="That is periodic, where what leaves it on one side comes back on the other, "
                "or coverage, where it is lost, and every position is divided by the number of "
                "pixels that it received. The image direct is always periodic.",
                default="periodic",
                choices=("periodic", "coverage"),
            ),
            Parameter(
                name="phase_flip",
                kind="flag",
                words="undo the contrast reversals by defocus",
                more="That is another word for the image phase_flip.",
                default=False,
                of="command",
            ),
            Parameter(
                name="load",
                kind="table",
                words="what to tell LiberTEM about the data",
                more="For raw files that is type=raw, dtype=uint16, nav_shape=[256, 256] and "
                "sig_shape=[64, 64].",
                otherwise="type=auto",
                of="command",
            ),
        )
    }
)

#: What some are called elsewhere, in small letters.
ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        other: name
        for name, others in {
            "energy": "voltage acceleration_voltage accelerating_voltage high_tension ht kv e0",
            "semiangle_cutoff": "semiangle convergence_angle convergence_semiangle alpha aperture",
            "scan_sampling": "step step_size scan_step pixel_size scan_pixel_size",
            "rotation_angle": "rotation scan_rotation theta",
            "upsampling_factor": "upsampling oversampling",
            "bf_mask": "mask",
        }.items()
        for other in others.split()
    }
)

#: What stands for parameters that are not given.
DEFAULTS: Mapping[str, Any] = MappingProxyType({p.name: p.default for p in PARAMETERS.values()})


def _read_mask(path: Path) -> NDArray[Any]:
    """Read an array from a .npy file.

    Raises
    ------
    ValueError
        If there is none.
    """
    try:
        with path.open("rb") as file:
            array = np.load(file)
            if not isinstance(array, np.ndarray):
                names = ", ".join(array.files)
                raise ValueError(f"it holds several arrays, {names}")
    # Damaged headers fail in many ways.
    except Exception as error:
        raise ValueError(f"bf_mask: {path} cannot be read as a .npy file: {error}") from error
    return array


def _check_choice(declared: Parameter, value: Any) -> str:
    choices = list(declared.choices)  # a list compares, where a set would hash what is given
    if value not in choices:
        expected = ", ".join(choices)
        raise ValueError(f"{declared.name} = {value!r}: expected one of {expected}.")
    return str(value)


def _check_position(declared: Parameter, value: Any) -> tuple[float, float]:
    try:
        return checks.pair(declared.name, value, declared.unit, positive=False)
    except ValueError:
        raise ValueError(
            f"{declared.name} = {value!r}: expected two numbers, {declared.words}."
        ) from None


def _check_mask(declared: Parameter, value: Any) -> NDArray[np.bool_]:
    read = isinstance(value, str | os.PathLike)
    mask = np.array(_read_mask(Path(value)) if read else value)
    if mask.dtype != bool or mask.ndim != 2:
        raise ValueError(
            f"{declared.name}{f' = {str(value)!r}' if read else ''}: expected a boolean array of "
            f"the detector's shape, True where a pixel may be used; got {mask.dtype} of shape "
            f"{mask.shape}."
        )
    mask.setflags(write=False)
    return mask


def _check_images(_: Parameter, value: Any) -> tuple[str, ...]:
    from .images import check_images  # made of what is declared here

    return check_images(value, stacks=True)


def _check_table(declared: Parameter, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{declared.name} = {value!r}: expected a table of names and values.")
    return copy.deepcopy(dict(value))


_CHECKS: Mapping[Kind, Callable[[Parameter, Any], Any]] = {
    "number": lambda p, v: checks.number(p.name, v, p.unit, limits=p.limits),
    "pair": lambda p, v: checks.pair(p.name, v, p.unit),
    "position": _check_position,
    "angle": lambda p, v: checks.angle(p.name, v),
    "integer": lambda p, v: checks.integer(p.name, v, p.limits),
    "flag": lambda p, v: checks.flag(p.name, v),
    "choice": _check_choice,
    "images": _check_images,
    "coefficients": lambda _, v: aberrations.canonical(v),
    "mask": _check_mask,
    "regularization": lambda p, v: checks.regularization(p.name, v),
    "table": _check_table,
}
