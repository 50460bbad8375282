"""Phase images: how right they are and how long they take, next to a peer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import numpy as np

from . import known
from .calibration import ask, environments, with_peers
from .known import Known

__all__ = ["DOSES", "main", "table"]

#: Of the demo's specimen, in e/Å².
DOSES = 10.0, 30.0, 300.0

OURS = "phase flip", "phase", "direct"


def table(one: Known, pythons: Mapping[str, str]) -> Iterator[str]:
    """Lines of a table: correlation with the truth and seconds of every path.

    Parameters
    ----------
    one
        Set with known truth.
    pythons
        Interpreters by path.
    """
    yield one.name
    yield f"  {'path':<16}{'correlation':>12}{'seconds':>9}"
    for path, python in pythons.items():
        with tempfile.TemporaryDirectory() as name:
            output = Path(name) / "image.npy"
            answer = ask(python, path, one, output)
            if "error" in answer:
                yield f"  {path:<16}  {answer['error']}"
                continue
            value = known.correlation(np.load(output), one.phase)
        yield f"  {path:<16}{value:>12.3f}{answer['seconds']:>9.2f}"
    yield ""


@click.command()
@with_peers
def main(quantem: str | None, py4dstem: str | None, data: Path | None) -> None:
    """Make images of sets of known truth at the true parameters, one pixel for a scan step.

    The truth is blurred by 0.7 pixels, images are not. Seconds are those of one core, from the file
    to the image, once all is compiled. py4DSTEM makes no such image and is not asked.
    """
    del py4dstem
    pythons = environments(OURS, {"quantEM Wiener": quantem})
    more = [] if data is None else known.folder(data)
    with tempfile.TemporaryDirectory() as name:
        for one in [*known.demo(Path(name), DOSES), *more]:
            for line in table(one, pythons):
                click.echo(line)


if __name__ == "__main__":
    main()
