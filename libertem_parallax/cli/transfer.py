"""``transfer``: which spatial frequencies an acquisition will show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .messages import messages_only
from .options import acquisition_options, overwrite_option
from .outputs import replacing_problem
from .parameters import check_required, read_parameters

#: Lines of the table.
_LINES = 16


@click.command(short_help="Show which details an acquisition will show, before it is recorded.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PICTURE",
    help="Where to draw the curves, as .png, .svg or .pdf.  [default: a table only]",
)
@overwrite_option
@acquisition_options
def transfer(params: Path | None, output: Path | None, overwrite: bool, **options: Any) -> None:
    """Show how much contrast details of each size will have, before anything is recorded.

    That is of a thin specimen. Parameters come from options, from a TOML file, or both. No
    data are needed.
    """
    parameters = read_parameters(params, options)
    check_required(parameters)
    if output is not None and output.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise click.UsageError(f"--output {output}: expected a name with .png, .svg or .pdf.")
    if output is not None and (problem := replacing_problem(output, overwrite)):
        raise click.UsageError(f"--output {output}: {problem}.")
    from .. import files
    from ..curves import SNR
    from ..curves import transfer as compute
    from ..show.curves import transfer_figure

    with messages_only():
        curves = compute(parameters)
    click.echo("Details of a size (period) show with this contrast, where 1 is the most:\n")
    click.echo(f"{'nm':>8}{'sin χ':>9}{'parallax':>10}{'phase flip':>12}{'phase':>8}")
    step = max(1, len(curves.frequency) // _LINES)
    for i in range(step // 2, len(curves.frequency), step):
        click.echo(
            f"{0.1 / curves.frequency[i]:8.3g}{curves.sin_chi[i]:9.2f}{curves.parallax[i]:10.2f}"
            f"{curves.phase_flip[i]:12.2f}{curves.phase[i]:8.2f}"
        )
    click.echo(
        f"\nThe semiangle corresponds to {0.1 / curves.semiangle:.3g} nm, and the scan tells "
        f"{0.1 / curves.nyquist:.3g} nm apart."
    )
    snr = parameters.get("regularization", "auto")
    click.echo(
        "Dose is not in it: the phase is that of a signal "
        f"{SNR if snr == 'auto' else snr:g} times as strong as the noise where contrast is best."
    )
    if output is not None:
        try:
            kind = output.suffix.lower()[1:]
            # By which the program knows its own pictures; others hold no words of that name.
            metadata = {files.KEY: "contrast transfer"} if kind == "png" else None
            with files.replacing(output) as file:
                transfer_figure(curves).savefig(file, dpi=120, format=kind, metadata=metadata)
        except OSError as error:
            raise click.ClickException(f"cannot write {output}: {error}") from error
        click.echo(f"The curves are drawn in {output}.")
