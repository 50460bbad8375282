"""Options that several commands have, and how their texts become values."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from ..parameters import PARAMETERS, Parameter
from .parameters import option_name

Command = Callable[..., None]


def _split_pairs(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise click.BadParameter(f"{text!r}: expected a name, = and a value.")
        yield name.strip(), value.strip()


def _pairs_option(
    parse: Callable[[str, str], Any],
) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], dict[str, Any] | None]:
    """Read NAME=VALUE, given any number of times; None if it is not given."""

    def read(
        _ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]
    ) -> dict[str, Any] | None:
        values: dict[str, Any] = {}
        for name, value in _split_pairs(texts):
            if name in values:
                raise click.BadParameter(f"{name} is given twice.")
            values[name] = parse(name, value)
        return values or None

    return read


def _parse_coefficient(name: str, text: str) -> float | str:
    """Read a number, or an angle in degrees, which is left to be checked."""
    try:
        return float(text)
    except ValueError:
        if text.endswith("deg"):
            return text
        raise click.BadParameter(
            f"{name}={text}: expected a number after =, such as C10=-1.5e4, or an angle in degrees "
            "for an azimuth, such as phi12=15deg."
        ) from None


def _angle_option(
    _ctx: click.Context, param: click.Parameter, text: str | None
) -> float | str | None:
    try:
        value = None if text is None else text if text.endswith("deg") else float(text)
        return PARAMETERS[param.name or ""].check(value) if isinstance(value, str) else value
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither a number in rad nor one in degrees like -15deg."
        ) from None


def _regularization_option(
    _ctx: click.Context, _param: click.Parameter, text: str | None
) -> float | str | None:
    try:
        return None if text is None else text if text == "auto" else float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither auto nor a number.") from None


def _parse_toml_value(_name: str, text: str) -> Any:
    """Read a value of TOML, or a plain text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        if text[0] in "[{\"'":
            raise click.BadParameter(f"{text[:60]} is no TOML: {error}.") from error
        return text


class _Number(click.ParamType):  # type: ignore[type-arg]
    """A number; where there is none, it says which is missing."""

    name = "number"

    def __init__(self, which: str) -> None:
        self._which = which

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Convert the text."""
        try:
            return float(value)
        except ValueError:
            follows = f"the number {self._which} is missing, {value} follows."
            wrong = f"{value!r} is no number: expected one {self._which}."
            self.fail(follows if value.startswith("-") else wrong, param, ctx)


class _ImageName(click.ParamType):  # type: ignore[type-arg]
    """One of `images.IMAGES`, which take a while to import."""

    name = "image"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        """Show the names as `click.Choice` does."""
        from ..images import IMAGES, STACK_IMAGES

        return f"[{'|'.join((*IMAGES, *STACK_IMAGES))}]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse other names."""
        from ..images import check_images

        try:
            return check_images(value, stacks=True)[0]
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _takes(declared: Parameter) -> dict[str, Any]:
    """Tell what the option for a parameter takes, as click wants to know it."""
    match declared.kind:
        case "number":
            return {"type": _Number(f"in {declared.unit}"), "metavar": declared.unit}
        case "pair":
            along = (f"along {axis} in {declared.unit}" for axis in ("rows", "columns"))
            return {"type": tuple(map(_Number, along)), "metavar": "Y X"}
        case "position":
            return {
                "type": (_Number("of the row"), _Number("of the column")),
                "metavar": "ROW COLUMN",
            }
        case "angle":
            return {"callback": _angle_option, "metavar": "ANGLE"}
        case "integer":
            return {"type": int}
        case "flag":
            return {"default": None}
        case "choice":
            return {"type": click.Choice(declared.choices)}
        case "regularization":
            return {"callback": _regularization_option, "metavar": "auto|NUMBER"}
        case "images":
            return {
                "type": _ImageName(),
                "multiple": True,
                "callback": lambda _ctx, _param, names: list(names) or None,
            }
        case "mask":
            file = click.Path(exists=True, dir_okay=False, path_type=Path)
            return {"type": file, "metavar": "FILE.npy"}
        case "coefficients":
            callback = _pairs_option(_parse_coefficient)
            return {"multiple": True, "callback": callback, "metavar": "NAME=VALUE"}
        case "table":
            callback = _pairs_option(_parse_toml_value)
            return {"multiple": True, "callback": callback, "metavar": "KEY=VALUE"}


def parameter_option(name: str, need: str | None = None) -> Callable[[Command], Command]:
    """Make the option for a parameter from its declaration; None if not given.

    Parameters
    ----------
    name
        Of the parameter.
    need
        Whether it is required, or what its default is, where that is not as it is declared.
    """
    declared = PARAMETERS[name]
    option = option_name(name)
    takes = _takes(declared)
    names = f"{option}/--no-{option[2:]}" if declared.kind == "flag" else option
    words = [declared.meaning]
    if takes.get("multiple"):
        words.append(f"Repeat {option} for more.")
    return click.option(names, name, help=f"{' '.join(words)}  [{need or declared.need}]", **takes)


def acquisition_options(command: Command) -> Command:
    """Add the options that describe an acquisition, and how to make its image."""
    for name in reversed([name for name, p in PARAMETERS.items() if p.kind != "table"]):
        command = parameter_option(name)(command)
    return click.option(
        "--params",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="TOML file with parameters. Its keys are the names of the options with _ for -: "
        "scan_sampling = [3.5, 3.5]; aberrations are a table [aberration_coefs]. Options override "
        "it.",
    )(command)


class Finite(click.FloatRange):
    """A number in a range, which is neither infinite nor none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Convert the text."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


def blur_option(text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make the option for blurring what is to be looked at; None if not given."""
    return click.option("--blur", type=Finite(min=0), metavar="Å", help=text)


def output_option(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make the option for the image; the default is told in words."""
    return click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        metavar="IMAGE",
        help="Where to write the image: .tif (float32, with the pixel size for ImageJ), .npy "
        f"(float32) or .png (with a scale bar, to look at).  [default: {default}]",
    )


overwrite_option = click.option(
    "--overwrite",
    is_flag=True,
    help="Replace files, too, that are no images of this program, are of a scan that was recorded, "
    "or were changed since they were written.",
)
