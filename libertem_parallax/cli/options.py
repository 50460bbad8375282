"""Options that several commands have, and how their texts become values."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from .parameters import parse_angle

_ENGINES = ("auto", "cuda", "numba", "numpy")


def _angle_option(_ctx: click.Context, _param: click.Parameter, text: str | None) -> float | None:
    try:
        return None if text is None else parse_angle(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither a number in rad nor one in degrees like -15deg."
        ) from None


def _split_pairs(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise click.BadParameter(f"{text!r}: expected a name, = and a value.")
        yield name.strip(), value.strip()


def _aberration_option(
    _ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]
) -> dict[str, float]:
    coefs: dict[str, float] = {}
    for name, value in _split_pairs(texts):
        if name in coefs:
            raise click.BadParameter(f"{name} is given twice.")
        try:
            coefs[name] = float(value)
        except ValueError:
            raise click.BadParameter(
                f"{name}={value}: expected a number after =, such as C10=-1.5e4."
            ) from None
    return coefs


def load_option(
    _ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]
) -> dict[str, Any]:
    """Read KEY=VALUE, in which values are TOML, or plain text."""
    load: dict[str, Any] = {}
    for name, value in _split_pairs(texts):
        if name in load:
            raise click.BadParameter(f"{name} is given twice.")
        load[name] = _parse_toml_value(value)
    return load


def _parse_toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        if text[0] in "[{\"'":
            raise click.BadParameter(f"{text} is no TOML: {error}.") from error
        return text


class _ImageName(click.ParamType):  # type: ignore[type-arg]
    """One of `images.IMAGES`, which take a while to import."""

    name = "image"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        """Show the names as `click.Choice` does."""
        from ..images import IMAGES

        return f"[{'|'.join(IMAGES)}]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse other names."""
        from ..images import check_images

        try:
            return check_images(value)[0]
        except ValueError as error:
            self.fail(str(error), param, ctx)


#: Options that describe an acquisition, and how to make its image.
_ACQUISITION_OPTIONS = (
    click.option(
        "--params",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="TOML file with parameters. Its keys are the names of the options with _ for -: "
        "scan_sampling = [3.5, 3.5]; aberrations are a table [aberration_coefs]. Options override "
        "it.",
    ),
    click.option(
        "--image",
        type=_ImageName(),
        multiple=True,
        callback=lambda _ctx, _param, names: list(names) or None,
        help="What to make of the frames. Repeat it for several images in one pass; their names go "
        "into those of the files.  "
        "[default: parallax]",
    ),
    click.option(
        "--phase-flip/--no-phase-flip",
        default=None,
        help="Undo the contrast reversals by defocus: another word for --image phase_flip.",
    ),
    click.option(
        "--scan-sampling",
        type=(float, float),
        metavar="Y X",
        help="Step of the scan along rows and columns in Å.  [required]",
    ),
    click.option("--energy", type=float, help="Energy of the electrons in eV.  [required]"),
    click.option(
        "--semiangle-cutoff",
        type=float,
        help="Semiangle of the bright field in mrad; pixels up to it are used.  [required]",
    ),
    click.option(
        "--angular-sampling",
        type=(float, float),
        metavar="Y X",
        help="Size of a detector pixel along rows and columns in mrad.  "
        "[this or --reciprocal-sampling required]",
    ),
    click.option(
        "--reciprocal-sampling",
        type=(float, float),
        metavar="Y X",
        help="Size of a detector pixel along rows and columns in 1/Å.",
    ),
    click.option(
        "--aberration",
        "aberration_coefs",
        multiple=True,
        callback=_aberration_option,
        metavar="NAME=VALUE",
        help="Aberration coefficient in Å or azimuth in rad: C10, C12, phi12, ... phi56, or names "
        "such as defocus (= -C10), astigmatism, coma, Cs. Repeat it for more.",
    ),
    click.option(
        "--rotation-angle",
        callback=_angle_option,
        metavar="ANGLE",
        help="Rotation of the detector against the scan in rad, or in degrees as in -15deg.  "
        "[default: 0]",
    ),
    click.option(
        "--upsampling-factor", type=int, help="Pixels of the image per scan step.  [default: 1]"
    ),
    click.option(
        "--center",
        type=(float, float),
        metavar="ROW COLUMN",
        help="Beam center in detector pixels as stored, counted from 0, fractions allowed.  "
        "[default: the middle]",
    ),
    click.option(
        "--detector-flip-cols/--no-detector-flip-cols",
        default=None,
        help="Read the frames' columns from right to left.  [default: no]",
    ),
    click.option(
        "--bf-mask",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE.npy",
        help="Boolean array of the detector's shape: False for dead pixels and beam stops.",
    ),
    click.option(
        "--suppress-nyquist-noise/--no-suppress-nyquist-noise",
        "suppress_Nyquist_noise",
        default=None,
        help="Zero the Nyquist frequencies of the image where the rounding of shifts to pixels "
        "fills them with noise: of the parallax image if it is upsampled, of the phase-flipped one "
        "always.  [default: yes]",
    ),
    click.option(
        "--engine",
        type=click.Choice(_ENGINES),
        help="What adds the frames: a GPU, compiled code on the CPU, or slow code for comparison. "
        "All give the same.  [default: auto: the GPU where one works, else the CPU]",
    ),
)


def acquisition_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that describe an acquisition."""
    for option in reversed(_ACQUISITION_OPTIONS):
        command = option(command)
    return command


def _finite(_ctx: click.Context, _param: click.Parameter, number: float | None) -> float | None:
    if number is not None and not math.isfinite(number):
        raise click.BadParameter(f"{number} is no length in Å.")
    return number


def blur_option(text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make the option for blurring what is to be looked at; None if not given."""
    return click.option(
        "--blur", type=click.FloatRange(min=0), callback=_finite, metavar="Å", help=text
    )


def output_option(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make the option for the image; the default is told in words."""
    return click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        metavar="IMAGE",
        help="Where to write the image: .tif (float32, with the pixel size for ImageJ), .npy "
        f"(float32) or .png (8-bit gray, to look at).  [default: {default}]",
    )
