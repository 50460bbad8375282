"""The command line ``libertem-parallax``: a demo, files, detectors, what works.

What takes long to import (LiberTEM, Numba, Matplotlib) is imported by functions that use it.
"""

import click

from . import demo, info, live, reconstruct

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="libertem-parallax")
def main() -> None:
    """Parallax (tilt-corrected bright-field) images of 4D-STEM data with LiberTEM."""


main.add_command(demo.demo)
main.add_command(reconstruct.reconstruct)
main.add_command(live.live)
main.add_command(info.info)
