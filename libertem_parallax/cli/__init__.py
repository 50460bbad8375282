"""The command line ``libertem-parallax``: a demo, files, detectors, what works.

What takes long to import (LiberTEM, Numba, Matplotlib) is imported by functions that use it.
"""

from typing import Any

import click

from ..parameters import PARAMETERS
from . import calibrate, demo, info, live, reconstruct, transfer, tune
from .parameters import option_name

__all__ = ["main"]


class _Group(click.Group):
    """Tells of what an option should have, where that is missing."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except click.BadOptionUsage as error:
            meanings = {option_name(name): p.meaning for name, p in PARAMETERS.items()}
            name = error.option_name
            message = f"{error.message} {meanings.get(name, '')}".rstrip()
            raise click.BadOptionUsage(name, message, error.ctx) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="libertem-parallax")
def main() -> None:
    """Parallax (tilt-corrected bright-field) images of 4D-STEM data with LiberTEM."""


main.add_command(demo.demo)
main.add_command(calibrate.calibrate)
main.add_command(reconstruct.reconstruct)
main.add_command(live.live)
main.add_command(tune.tune)
main.add_command(transfer.transfer)
main.add_command(info.info)
