"""``calibrate``: the parameters that nobody knows, from the data themselves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..names import claim
from .messages import messages_only
from .options import parameter_option
from .parameters import check_required, read_parameters
from .reconstruct import open_dataset, region_of
from .run import by, default_gpu, has_terminal, report

if TYPE_CHECKING:
    from ..calibration import Alternative, Calibration
    from ..parameters import Parameters

_EXAMPLES = """\b
Examples:
  libertem-parallax calibrate scan.h5 --energy 300e3 --scan-sampling 3.556 3.556 \\
      --semiangle-cutoff 4 -o params.toml
  libertem-parallax calibrate scan.h5 --params known.toml --search C21,C23,C30 \\
      --defocus-between 5000 20000 --picture sheet.png -o params.toml
"""

#: What data cannot tell.
NEEDED = ("energy", "scan_sampling", "semiangle_cutoff")

#: What may be known, or is needed to open the data.
_GIVEN = (
    "energy", "scan_sampling", "semiangle_cutoff", "angular_sampling", "reciprocal_sampling",
    "center", "rotation_angle", "aberration_coefs", "detector_flip_cols", "detector_flip_rows",
    "detector_transpose", "bf_mask", "load",
)  # fmt: skip


#: Of these, what is found.
FOUND = (
    "angular_sampling", "reciprocal_sampling", "center", "rotation_angle", "aberration_coefs",
    "detector_flip_cols",
)  # fmt: skip


def _known_options(command: Callable[..., None]) -> Callable[..., None]:
    for name in reversed(_GIVEN):
        need = "default: it is found" if name in FOUND else None
        command = parameter_option(name, need)(command)
    return command


def _names(_ctx: click.Context, _param: click.Parameter, text: str | None) -> tuple[str, ...]:
    from ..calibration import check_search

    try:
        return check_search([name.strip() for name in text.split(",")] if text else ())
    except ValueError as error:
        raise click.BadParameter(str(error).removeprefix("search: ")) from error


def _angle(_ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    from .. import checks

    if text is None:
        return None
    try:
        return checks.angle(param.name or "", text if text.endswith("deg") else float(text))
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither a number in rad nor one in degrees like -15deg."
        ) from None


def hint_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say what to find, and what is known without being exact."""
    for option in (
        click.option(
            "--rotation-near",
            callback=_angle,
            metavar="ANGLE",
            help="Rotation as far as it is known, to 90° at least: decides between the twins.",
        ),
        click.option(
            "--underfocus/--overfocus",
            default=None,
            help="Whether the defocus is positive (C10 < 0): decides between the twins.",
        ),
        click.option(
            "--defocus-between",
            type=(float, float),
            metavar="LOW HIGH",
            help="Lowest and highest defocus in Å; underfocus is positive.",
        ),
        click.option(
            "--search",
            callback=_names,
            metavar="NAMES",
            help="What to find in addition, separated by commas: higher aberrations such as "
            "C21,C23,C30, or what is given and may not be right.",
        ),
    ):
        command = option(command)
    return command


@click.command(short_help="Find the parameters of a data set from the data.", epilog=_EXAMPLES)
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PARAMS.toml",
    help="Where to write the parameters.  [default: DATA's name with .toml, in the current folder]",
)
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="SHEET.png",
    help="Also draw a sheet to look at.",
)
@click.option(
    "--roi",
    type=(int, int, int, int),
    metavar="TOP LEFT BOTTOM RIGHT",
    help="Use this part of the scan only: rows from TOP up to BOTTOM and columns from LEFT up to "
    "RIGHT, which are not in it. They count from 0.",
)
@hint_options
@_known_options
@click.option(
    "--params",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file with parameters that are known. Options override it.",
)
def calibrate(
    data: Path,
    output: Path | None,
    params: Path | None,
    picture: Path | None,
    overwrite: bool,
    roi: tuple[int, int, int, int] | None,
    search: tuple[str, ...],
    defocus_between: tuple[float, float] | None,
    underfocus: bool | None,
    rotation_near: float | None,
    **options: Any,
) -> None:
    """Find beam center, angular sampling, rotation, defocus and astigmatism of DATA.

    What is given is kept, what is not is found. The energy, the step of the scan and the semiangle
    are needed. What is found goes to a file of parameters, for --params of other commands.
    """
    start = time.perf_counter()
    known = read_parameters(params, options)
    check_required(known, *NEEDED)
    # Masks stay the files that they come from; what images to make, calibration does not ask.
    given: dict[str, Any] = {**known, **known.settings, **known.files}
    if known["image"] == ("parallax",):
        given.pop("image")
    output = output or Path(f"{data.stem}.toml")
    inputs = [data, *([params] if params else []), *known.files.values()]
    if picture is not None and picture.resolve() == output.resolve():
        raise click.UsageError(f"--picture {picture}: that is --output; choose another name.")
    for name, path in (("--output", output), ("--picture", picture)):
        if path is not None:
            check_file(name, path, inputs, overwrite=overwrite)

    import numpy as np
    from libertem.api import Context

    from ..files import replacing
    from ..udf import calibrate as run

    with messages_only(), Context.make_with("threads") as ctx:
        dataset = open_dataset(ctx, data, known.settings.get("load", {}))
        scan = tuple(dataset.shape)[:2]
        region, part = region_of(roi, scan), None
        if region is not None:
            part = np.zeros(scan, bool)
            part[region] = True
        calibration = run(
            ctx,
            dataset,
            roi=part,
            search=search,
            defocus_between=defocus_between,
            underfocus=underfocus,
            rotation_near=rotation_near,
            progress=has_terminal(),
            device=default_gpu(),
            **given,
        )

    def draw(path: Path) -> None:
        with replacing(path, new=not overwrite) as file:
            calibration.plot().savefig(file, format="png")

    report(*described(calibration, known, scan), ("Time", f"{time.perf_counter() - start:.1f} s"))
    problems = []
    paths: tuple[Path, ...] = (output,) if picture is None else (output, picture)
    writers: list[Callable[[Path], None]] = [partial(calibration.save, overwrite=overwrite), draw]
    for write in writers[: len(paths)]:
        path, *others = paths
        try:
            with messages_only():  # names may have been taken since they were looked at
                (path, *others), _ = claim(write, *paths, first=paths)
            click.echo(f"{'Written to':<15}{path}")
        except click.ClickException as error:  # what was found is told nevertheless
            problems.append(f"cannot write {path}: {error.message.removesuffix('.')}.")
        paths = tuple(others)
    if problems:
        raise click.ClickException(" ".join((*problems, "What was found is above.")))


def described(
    calibration: Calibration, known: Parameters, scan: tuple[int, ...]
) -> list[tuple[str, str]]:
    """Tell what was found, in rows for `report`."""
    from ..show.digits import plus_minus

    p, u = calibration.parameters, calibration.uncertainties
    coefs = p["aberration_coefs"]
    rows: list[tuple[str, str]] = []
    used = calibration.stack.scan_shape
    count = int(calibration.stack.scanned.sum())
    part = "all of it" if count == math.prod(scan) else f"{by(used)} of it"
    rows.append(("Scan", f"{by(scan)}, {part} was used"))
    if "center" in u:
        rows.append(("Center", plus_minus(p["center"], u["center"], "pixels")))
    if "angular_sampling" in u:
        value = plus_minus(p["angular_sampling"], u["angular_sampling"], "mrad")
        rows.append(("Sampling", f"{value} by noise; half a percent by the shape of the edge"))
    if "C10" in u:
        side = "underfocus" if coefs["C10"] < 0 else "overfocus"
        value = plus_minus((-coefs["C10"] / 10,), (u["C10"] / 10,), "nm")
        rows.append(("Defocus", f"{value}: {side}"))
    for name in coefs:
        if name in u and name != "C10" and name.startswith("C"):
            text = plus_minus((coefs[name] / 10,), (u[name] / 10,), "nm")
            if (azimuth := f"phi{name[1:]}") in u:
                at = plus_minus(_degrees(coefs[azimuth]), _degrees(u[azimuth]), "°")
                text += f" at {at}"
            rows.append(("Astigmatism" if name == "C12" else name, text))
    if "rotation_angle" in u:
        rows.append(
            (
                "Rotation",
                plus_minus(_degrees(p["rotation_angle"]), _degrees(u["rotation_angle"]), "°"),
            )
        )
    if "detector_flip_cols" not in known:
        flips = p["detector_flip_cols"]
        rows.append(("Columns", "reversed: detector_flip_cols" if flips else "as stored"))
    rows.append(("Signal", calibration.signal))
    if calibration.decided:
        if calibration.decided != "given parameters":
            rows.append(("Sign", f"decided by {calibration.decided}"))
    else:
        rows.append(("Sign", "not known: this is underfocus; its twin is as likely"))
    rows += [("Or", _other(other)) for other in calibration.alternatives[:3]]
    rows += [("Note", note) for note in calibration.notes]
    return rows


def _other(other: Alternative) -> str:
    """Tell an alternative in units of the screen."""
    p = other.parameters
    coefs = p["aberration_coefs"]
    words = [f"defocus {-coefs['C10'] / 10:.5g} nm"]
    for name, value in coefs.items():
        if name.startswith("C") and name != "C10" and value:
            azimuth = coefs.get(f"phi{name[1:]}")
            at = "" if azimuth is None else f" at {math.degrees(azimuth):.3g}°"
            called = "astigmatism" if name == "C12" else name
            words.append(f"{called} {value / 10:.4g} nm{at}")
    words.append(f"rotation {math.degrees(p['rotation_angle']):.2f}°")
    if p["detector_flip_cols"]:
        words.append("columns reversed")
    return f"{', '.join(words)}: {other.why}"


def _degrees(angle: float) -> tuple[float]:
    return (math.degrees(angle),)


def check_file(option: str, path: Path, inputs: list[Path], *, overwrite: bool) -> None:
    """Refuse, before the work, a file that could not be written or is not to be replaced."""
    from ..files import try_to_write

    problem = None
    if not path.parent.is_dir():
        problem = f"there is no folder {path.parent}; create it first"
    elif path.exists() and any(p.exists() and path.samefile(p) for p in inputs):
        problem = "that is an input, which would be overwritten; choose another name"
    elif path.exists() and not overwrite:
        problem = "that exists; choose another name, or --overwrite"
    else:
        try:
            try_to_write(path)
        except OSError as error:
            problem = f"cannot write there: {error}; choose another place"
    if problem:
        raise click.UsageError(f"{option} {path}: {problem}.")
