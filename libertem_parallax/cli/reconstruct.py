"""``reconstruct``: an image from a data set that LiberTEM opens."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from .. import checks
from .messages import messages_only
from .options import (
    acquisition_options,
    blur_option,
    output_option,
    overwrite_option,
    parameter_option,
)
from .outputs import about, check_output, image_paths, save_last
from .parameters import check_required, read_parameters
from .run import crop, described, make_udf, report, run
from .series import only_named
from .stacked import MOST, check_series, fill_stack, focused, make_images, write_series

_EXAMPLES = """\b
Examples:
  libertem-parallax reconstruct scan.h5 --params scan.toml -o image.tif
  libertem-parallax reconstruct scan.npy --energy 300e3 --semiangle-cutoff 4 \\
      --scan-sampling 3.5 3.5 --angular-sampling 0.3 0.3 --aberration C10=-1.5e4
"""


@click.command(short_help="Reconstruct an image from a 4D-STEM data set.", epilog=_EXAMPLES)
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@output_option("DATA's name with that of the image, as scan_parallax.tif, in the current folder")
@acquisition_options
@parameter_option("load")
@blur_option(
    "Blur a .png with a Gaussian of this standard deviation, to see through the noise of few "
    "electrons; other files hold the numbers as they are."
)
@click.option(
    "--roi",
    type=(int, int, int, int),
    metavar="TOP LEFT BOTTOM RIGHT",
    help="Reconstruct this part of the scan only, and write this part of the image: rows from TOP "
    "up to BOTTOM and columns from LEFT up to RIGHT, which are not in it. They count from 0.",
)
@click.option(
    "--defocus-series",
    "series",
    type=(float, float, int),
    metavar="FROM TO N",
    help=f"Make N images, 2 to {MOST:,}, from one pass over the data, at defoci (= -C10) between "
    "these two in Å. They go to a .tif with its third axis in nm, and a curve of their sharpness "
    "to a .png.",
)
@overwrite_option
@click.option(
    "--strict",
    is_flag=True,
    help="Make errors of warnings, so that an image is written only where there are none.",
)
def reconstruct(
    data: Path,
    params: Path | None,
    output: Path | None,
    blur: float | None,
    *,
    roi: tuple[int, int, int, int] | None,
    series: tuple[float, float, int] | None,
    overwrite: bool,
    strict: bool,
    **options: Any,
) -> None:
    """Reconstruct an image of DATA, any 4D-STEM data set that LiberTEM opens.

    Parameters come from options, from a TOML file, or both.
    """
    parameters = read_parameters(params, options)
    check_required(parameters)
    inputs = [data, *([params] if params else []), *parameters.files.values()]
    outputs = image_paths(output, data.stem, parameters["image"])
    if roi and (series or "direct" in outputs):
        of = "a --defocus-series" if series else "the image direct"
        raise click.UsageError(f"--roi: without meaning for {of}. Leave one of them out.")
    curve = check_series(series, outputs, overwrite=overwrite) if series else None
    for path in outputs.values():
        check_output(path, inputs, overwrite)
        if blur and path.suffix.lower() != ".png":
            raise click.UsageError(
                f"--blur: {path} holds the numbers as they are. Leave it out, or write a .png."
            )

    from libertem.api import Context

    from ..show import pictures

    with messages_only(strict), Context.make_with("threads") as ctx:
        dataset = open_dataset(ctx, data, parameters.settings.get("load", {}))
        region = region_of(roi, tuple(dataset.shape.nav))
        udf = make_udf(dataset.shape, focused(parameters, series[1]) if series else parameters)
        click.echo("Reconstructing", err=True)
        if series and curve:
            stack, speed = fill_stack(ctx, dataset, udf)
            [path] = outputs.values()
            rows = write_series(
                stack, udf, parameters, series, path, curve, overwrite=overwrite, data=str(data)
            )
            report(*described(udf, dataset.dtype, None, tuple(outputs)), ("Time", speed), *rows)
            return
        if "direct" in outputs:
            stack, speed = fill_stack(ctx, dataset, udf)
            results = make_images(stack, udf.params.geometry, parameters)
        else:
            results, speed = run(ctx, dataset, udf, region)
    problems: list[str] = []
    for name, path in outputs.items():
        image = results[name]
        said = about(udf, name, parameters, data=str(data), roi=roi, blur=blur)
        if blur:
            image = pictures.blur(image, said.pixel_size, blur)
            said = said._replace(words=f"{said.words}, blurred by {blur / 10:g} nm")
        image = crop(image, udf, region)
        outputs[name] = save_last(path, image, said, problems, overwrite=overwrite)
    report(
        *described(udf, dataset.dtype, region, tuple(outputs)),
        ("Time", speed),
        *zip(("Written to", *[""] * len(outputs)), map(str, outputs.values()), strict=False),
    )
    if problems:
        raise click.ClickException(" ".join((*problems, "See above where it is.")))


def region_of(
    roi: tuple[int, int, int, int] | None, scan_shape: tuple[int, int]
) -> tuple[slice, slice] | None:
    """Check a part of a scan; its rows and columns."""
    if roi is None:
        return None
    top, left, bottom, right = roi
    rows, cols = scan_shape
    if not (0 <= top < bottom <= rows and 0 <= left < right <= cols):
        raise click.UsageError(
            f"--roi {top} {left} {bottom} {right}: expected 0 <= TOP < BOTTOM <= {rows} and "
            f"0 <= LEFT < RIGHT <= {cols} for this scan of {rows} x {cols}."
        )
    return slice(top, bottom), slice(left, right)


def _check_load(load: Mapping[str, Any]) -> None:
    """Refuse numbers on which LiberTEM would fail later, or that it would take for others."""
    least = {"nav_shape": 1, "sig_shape": 1, "num_partitions": 1, "sync_offset": -math.inf}
    try:
        for key in least.keys() & load.keys():
            value = load[key]
            for number in value if isinstance(value, list) else [value]:
                checks.integer(f"load: {key}", number, (least[key], math.inf))
    except ValueError as error:
        raise click.ClickException(str(error)) from error


#: Bytes of events in a partition, which take a core some hundredths of a second.
_EVENTS = 2**27


def _partitions_of_events(path: Path) -> int | None:
    """Choose the number of partitions for a description of events; None for what is none.

    LiberTEM counts pixels, however few events there are: with 512 x 512, one in 500 of which has an
    electron, a run takes six times as long.
    """
    from ..accumulate.threads import cores
    from ..event_files import event_files

    try:
        size = sum(file.stat().st_size for file in event_files(path))
    except OSError:  # as LiberTEM will tell
        return None
    return cores() * max(1, size // (cores() * _EVENTS)) if size else None


def open_dataset(ctx: Any, data: Path, load: Mapping[str, Any]) -> Any:
    """Open data with LiberTEM, as they are described; tell people where that fails."""
    _check_load(load)
    arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in load.items()}
    kind = arguments.pop("type", "auto")
    if not isinstance(kind, str):
        raise click.ClickException(f"load: type = {kind!r}: expected a text, such as 'raw'.")
    try:
        # While LiberTEM finds the type out, it prints what the file is not.
        with contextlib.redirect_stdout(io.StringIO()):
            kind, path, arguments = only_named(data, kind, arguments)
            if partitions := _partitions_of_events(path):
                arguments = {"num_partitions": partitions, **arguments}
            dataset = ctx.load(kind, str(path), **arguments)
    except click.ClickException:
        raise
    # Every format has its own way to fail.
    except Exception as error:
        if isinstance(error, FileNotFoundError) and error.filename:
            raise click.ClickException(
                f"{data} names {error.filename}, which does not exist."
            ) from error
        told = ", ".join(f"{key} = {value!r}" for key, value in load.items())
        reason = str(error).rstrip(".")
        if isinstance(error, KeyError):  # which knows the key only, but for HDF5
            key = str(error.args[0])
            reason = f"{key!r} is missing" if key.isidentifier() else key
        raise click.ClickException(
            f"LiberTEM cannot open {data} with {told or 'type = auto'}: {reason}. "
            "Describe the data with --load KEY=VALUE or a table [load] in the parameter file, for "
            "instance type, nav_shape, sig_shape and dtype for raw files."
        ) from error
    if (dataset.shape.nav.dims, dataset.shape.sig.dims) != (2, 2):
        raise click.ClickException(
            f"{data} has the shape {tuple(dataset.shape)}: expected four axes, scan rows, scan "
            "columns, detector rows and detector columns. Give the missing shape with "
            "--load 'nav_shape=[ROWS, COLUMNS]' or sig_shape."
        )
    info, positions = dataset.get_sync_offset_info(), dataset.shape.nav.size
    missing = info["frames_inserted_start"] + info["frames_inserted_end"]
    if missing:
        warnings.warn(
            f"{data} has no frames for {missing:,} of {positions:,} scan positions. "
            "Check nav_shape, sig_shape, dtype and sync_offset.",
            stacklevel=2,
        )
    # An offset that is asked for moves frames beyond the end.
    if info["frames_ignored_end"] and not load.get("sync_offset"):
        warnings.warn(
            f"{data} has {info['frames_ignored_end']:,} frames more than the {positions:,} scan "
            "positions; they are left out. Check nav_shape, sig_shape and dtype.",
            stacklevel=2,
        )
    return dataset
