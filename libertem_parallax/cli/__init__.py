"""The command line ``libertem-parallax``: a demo, files, detectors, what works.

What takes long to import (LiberTEM, Numba, Matplotlib) is imported by functions that use it.
"""

import codecs
import io
import os
import sys
import unicodedata
from typing import Any

import click

from ..parameters import PARAMETERS
from . import calibrate, demo, info, live, reconstruct, transfer, tune
from .parameters import option_name

__all__ = ["main"]


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Write A for Å and ? for what has no such form, where an encoding lacks a letter."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = unicodedata.normalize("NFKD", error.object[error.start : error.end])
    return letters.encode("ascii", "ignore").decode() or "?", error.end


codecs.register_error("plain", _plain)


def _make_streams_safe() -> None:
    """Let no encoding and no closed stream stop a command."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Never closed: it stands for a stream that lives as long as the process.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


class _Group(click.Group):
    """Tells of what an option should have, where that is missing."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        _make_streams_safe()
        return super().main(*args, **kwargs)

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
    # LiberTEM fails on these wherever it looks at them first, which is often the data.
    for name, what in (("CUDA", "the number of a GPU"), ("CPU", "the number of a CPU")):
        variable = f"LIBERTEM_USE_{name}"
        if not os.environ.get(variable, "0").strip():
            del os.environ[variable]
        elif not os.environ.get(variable, "0").strip().isdecimal():
            raise click.UsageError(
                f"the environment has {variable}={os.environ[variable]}: expected {what}. "
                f"Correct it, or leave it out: unset {variable}"
            )


main.add_command(demo.demo)
main.add_command(calibrate.calibrate)
main.add_command(reconstruct.reconstruct)
main.add_command(live.live)
main.add_command(tune.tune)
main.add_command(transfer.transfer)
main.add_command(info.info)
