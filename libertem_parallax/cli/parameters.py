"""What describes an acquisition: files of parameters, what they may contain, one over another."""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NUMBER = (int, float)

#: What a parameter file may contain: the TOML types of each key, and what is expected in words.
#: The keys that are also options have the option's name, with _ for -.
PARAMETERS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "scan_sampling": ((list,), "step of the scan along rows and columns, two numbers in Å"),
    "energy": (_NUMBER, "energy of the electrons, a number in eV"),
    "semiangle_cutoff": (_NUMBER, "semiangle of the bright field, a number in mrad"),
    "reciprocal_sampling": ((list,), "detector pixel along rows and columns, two numbers in 1/Å"),
    "angular_sampling": ((list,), "detector pixel along rows and columns, two numbers in mrad"),
    "aberration_coefs": ((dict,), "a table of aberration coefficients in Å and azimuths in rad"),
    "rotation_angle": (
        (*_NUMBER, str),
        'rotation of the detector, a number in rad or a text like "-15deg"',
    ),
    "upsampling_factor": ((int,), "pixels of the image per scan step, an integer"),
    "suppress_Nyquist_noise": ((bool,), "true or false"),
    "detector_flip_cols": ((bool,), "true or false"),
    "center": ((list,), "row and column of the beam, two numbers in detector pixels"),
    "bf_mask": ((str,), "name of a .npy file, relative to the parameter file"),
    "image": ((str, list), "name of an image, or a list of several: parallax, phase_flip"),
    "phase_flip": ((bool,), "true or false"),
    "engine": ((str,), 'a text: "auto", "cuda", "numba" or "numpy"'),
    "load": ((dict,), "a table of what to tell LiberTEM about the data"),
}

_REQUIRED = ("scan_sampling", "energy", "semiangle_cutoff")
_SAMPLINGS = ("angular_sampling", "reciprocal_sampling")


def read_parameters(path: Path) -> dict[str, Any]:
    """Read a parameter file and check names and types; values are checked by the library."""
    from ..aberrations import ALIASES, SYMBOLS

    try:
        parameters = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{path}: cannot be read as TOML: {error}") from error
    for key, value in parameters.items():
        if key not in PARAMETERS:
            near = difflib.get_close_matches(key, PARAMETERS, n=1)
            hint = f"; the nearest known one is {near[0]!r}" if near else ""
            if key in (*SYMBOLS, *ALIASES):
                hint = "; it belongs in the table [aberration_coefs]"
            raise click.ClickException(
                f"{path}: unknown key {key!r}{hint}. Known: {', '.join(PARAMETERS)}."
            )
        kinds, expected = PARAMETERS[key]
        # To Python, True is an int.
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise click.ClickException(f"{path}: {key} = {value!r}: expected {expected}.")
    if isinstance(angle := parameters.get("rotation_angle"), str):
        try:
            parameters["rotation_angle"] = parse_angle(angle)
        except ValueError:
            expected = PARAMETERS["rotation_angle"][1]
            raise click.ClickException(
                f"{path}: rotation_angle = {angle!r}: expected {expected}."
            ) from None
    if "bf_mask" in parameters:
        parameters["bf_mask"] = path.parent / parameters["bf_mask"]
    return parameters


def parse_angle(text: str) -> float:
    """Read an angle in rad, or in degrees as in -15deg, to rad; ValueError if it is neither."""
    number = text.strip()
    degrees = number.removesuffix("deg")
    return float(number) if degrees == number else math.radians(float(degrees))


def merge(parameters: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Combine parameters, as of a file, with those of the command line, which win."""
    from ..aberrations import ALIASES

    given = {name: value for name, value in changes.items() if value is not None}
    merged = {**parameters, **given}
    merged.pop("phase_flip", None)
    merged["image"] = _images(given, _images(parameters)) or ["parallax"]
    # Coefficients stay, except those given anew, by whatever name.
    coefs, new = (source.get("aberration_coefs", {}) for source in (parameters, given))
    anew = {ALIASES.get(name, name) for name in new}
    merged["aberration_coefs"] = {
        **{name: value for name, value in coefs.items() if ALIASES.get(name, name) not in anew},
        **new,
    }
    merged["load"] = {**parameters.get("load", {}), **given.get("load", {})}
    # One sampling describes the detector: what is given replaces whichever there was.
    if any(name in given for name in _SAMPLINGS):
        for name in set(_SAMPLINGS) - set(given):
            merged.pop(name, None)
    return merged


def _images(given: Mapping[str, Any], before: Iterable[str] = ()) -> list[str]:
    """Names of images: phase_flip = true is another word for one of them."""
    image = given.get("image") or []
    names = [image] if isinstance(image, str) else list(image)
    flip = given.get("phase_flip")
    if flip:
        names.append("phase_flip")
    elif flip is False and "phase_flip" in names:
        raise click.UsageError(
            "an image phase_flip and no phase flip are asked for: leave one out."
        )
    elif flip is False:
        before = [name for name in before if name != "phase_flip"]
    return names or list(before)


def check_required(parameters: Mapping[str, Any]) -> None:
    """Refuse to go on without what every acquisition has to be described with."""
    missing = [name for name in _REQUIRED if name not in parameters]
    if not any(name in parameters for name in _SAMPLINGS):
        missing += _SAMPLINGS
    if missing:
        lines = [
            f"  {'or ' if name == _SAMPLINGS[1] else ''}--{name.replace('_', '-')}: "
            f"{PARAMETERS[name][1]}"
            for name in missing
        ]
        raise click.UsageError(
            "\n".join(
                [
                    "parameters are missing:",
                    *lines,
                    f"Give them as options or as keys of the file for --params: {missing[0]} = ...",
                ]
            )
        )


def udf_arguments(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `ParallaxUDF.from_parameters`, but for the shape; reads the mask."""
    arguments = {name: value for name, value in parameters.items() if name != "load"}
    if "bf_mask" in arguments:
        arguments["bf_mask"] = _read_mask(arguments["bf_mask"])
    return arguments


def _read_mask(path: Path) -> NDArray[Any]:
    import numpy as np

    try:
        mask: NDArray[Any] = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise click.ClickException(
            f"bf_mask: {path} cannot be read as a .npy file: {error}"
        ) from error
    return mask


def to_toml(parameters: Mapping[str, Any]) -> str:
    """Write the parameters of an acquisition as a file for --params."""
    lines, tables = [], []
    for name, value in parameters.items():
        if name in ("shape", "load"):  # come with the data
            continue
        if isinstance(value, Mapping):
            tables += ["", f"[{name}]", *(f"{key} = {float(v)!r}" for key, v in value.items())]
        else:
            # Numbers, lists, true, false and texts are written in TOML as in JSON.
            text = json.dumps(
                str(value.absolute()) if isinstance(value, Path) else value, ensure_ascii=False
            )
            lines.append(f"{name} = {text}  # {PARAMETERS[name][1]}")
    return "\n".join([*lines, *tables, ""])
