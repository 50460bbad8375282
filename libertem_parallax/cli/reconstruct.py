"""``reconstruct``: an image from a data set that LiberTEM opens."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from .options import acquisition_options, load_option, output_option
from .parameters import check_required, merge, read_parameters, split_parameters
from .run import COMPILES, check_output, described, make_udf, report, run, save, warn

_EXAMPLES = """\b
Examples:
  libertem-parallax reconstruct scan.h5 --params scan.toml -o image.tif
  libertem-parallax reconstruct scan.npy --energy 300e3 --semiangle-cutoff 4 \\
      --scan-sampling 3.5 3.5 --angular-sampling 0.3 0.3 --aberration C10=-1.5e4
"""


@click.command(short_help="Reconstruct an image from a 4D-STEM data set.", epilog=_EXAMPLES)
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@output_option("DATA's name with _parallax.tif, in the current folder")
@acquisition_options
@click.option(
    "--load",
    multiple=True,
    callback=load_option,
    metavar="KEY=VALUE",
    help="Tell LiberTEM about the data, such as type=raw, dtype=uint16, "
    "'nav_shape=[256, 256]', 'sig_shape=[64, 64]'; VALUE as in TOML, or plain text. "
    "Repeat it for more.  [default: type=auto]",
)
def reconstruct(data: Path, params: Path | None, output: Path | None, **options: Any) -> None:
    """Reconstruct the parallax image of DATA, any 4D-STEM data set that LiberTEM opens.

    Parameters come from options, from a TOML file, or both.
    """
    output = output or Path(f"{data.stem}_parallax.tif")
    parameters = merge({} if params is None else read_parameters(params), options)
    check_required(parameters)
    inputs = [data, params, parameters.get("bf_mask")]
    check_output(output, [path for path in inputs if path is not None])
    load = parameters["load"]
    phase_flip, parameters = split_parameters(parameters)

    from libertem.api import Context

    with Context.make_with("threads") as ctx:
        dataset = _load(ctx, data, load)
        udf = make_udf({**parameters, "shape": dataset.shape}, phase_flip=phase_flip)
        click.echo(f"Reconstructing{COMPILES}", err=True)
        results, speed = run(ctx, dataset, udf)
    save(output, results["reconstruction"], udf)
    report(
        *described(udf, dataset.dtype),
        ("Time", speed),
        ("Written to", str(output)),
    )


def _load(ctx: Any, data: Path, load: Mapping[str, Any]) -> Any:
    arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in load.items()}
    kind = arguments.pop("type", "auto")
    if not isinstance(kind, str):
        raise click.ClickException(f"load: type = {kind!r}: expected a text, such as 'raw'.")
    try:
        # While LiberTEM finds the type out, it prints what the file is not.
        with contextlib.redirect_stdout(io.StringIO()):
            dataset = ctx.load(kind, str(data), **arguments)
    # Every format has its own way to fail.
    except Exception as error:
        told = ", ".join(f"{key} = {value!r}" for key, value in load.items())
        raise click.ClickException(
            f"LiberTEM cannot open {data} with {told or 'type = auto'}: {error}. "
            "Describe the data with --load KEY=VALUE or a table [load] in the parameter file, for "
            "instance type, nav_shape, sig_shape and dtype for raw files."
        ) from error
    if (dataset.shape.nav.dims, dataset.shape.sig.dims) != (2, 2):
        raise click.ClickException(
            f"{data} has the shape {tuple(dataset.shape)}: expected four axes, scan rows, scan "
            "columns, detector rows and detector columns. Give the missing shape with "
            "--load 'nav_shape=[ROWS, COLUMNS]' or sig_shape."
        )
    missing = sum(
        count
        for name, count in dataset.get_sync_offset_info().items()
        if name.startswith("frames_inserted")
    )
    if missing:
        warn(
            f"{data} has no frames for {missing:,} of {dataset.shape.nav.size:,} scan positions. "
            "Check nav_shape, sig_shape, dtype and sync_offset."
        )
    return dataset
