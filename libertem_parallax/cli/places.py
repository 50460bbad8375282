"""Where a recording goes: a scan cannot be repeated, so that none of before is replaced."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import click

from ..names import claim, frames_of, free
from . import messages
from .calibrate import check_file
from .outputs import check_output

__all__ = ["Places"]

T = TypeVar("T")


class Places:
    """Names for the images of a recording, and for parameters that it finds.

    Parameters
    ----------
    outputs
        Images that are asked for, by name; that which grows comes first.
    calibrate
        Whether parameters are found.
    overwrite
        Whether files of these names are replaced. Else all get a number with which there are none.
    """

    def __init__(self, outputs: Mapping[str, Path], *, calibrate: bool, overwrite: bool) -> None:
        self._images = [*outputs]
        paths = (*outputs.values(),)
        self._asked = (*paths, paths[0].with_suffix(".toml")) if calibrate else paths
        self._replaced = self.overwrite = overwrite
        self.paths = (
            self._asked if overwrite else next(free(*self._asked))
        )  #: the growing one first

    def check(self, inputs: list[Path]) -> None:
        """Refuse, before anything is recorded, what could not be written or would destroy a file.

        Parameters
        ----------
        inputs
            Files that images are made of.

        Raises
        ------
        click.UsageError
            With the reason.
        """
        count = len(self._images)
        for path in self.paths[:count]:
            check_output(path, inputs, self.overwrite)
        for path in self.paths[count:]:
            check_file("--output", path, inputs, overwrite=True)

    def tell(self) -> None:
        """Tell the user of names that were not asked for."""
        if self.paths != self._asked:
            taken = (*self._asked, frames_of(self._asked[0]))
            there = next(filter(os.path.exists, taken), self._asked[0])
            click.echo(f"There is {there} already. {self}", err=True)

    def __str__(self) -> str:
        """Tell where images go."""
        images = self.paths[: len(self._images)]
        return f"This acquisition goes to {' and '.join(map(str, images))}"

    @property
    def sheet(self) -> Path:
        """Of parameters that are found."""
        return self.paths[0].with_suffix(".toml")

    def of(self, name: str) -> Path:
        """Where an image goes."""
        return self.paths[self._images.index(name)]

    def write(self, write: Callable[[Path, bool], T]) -> T:
        """Write the image that grows; what it replaces, if anything, is an earlier state of it.

        Somebody else may have taken its name since it was chosen. Then all get another number.

        Parameters
        ----------
        write
            Called with the path and with whether a file of that name is to be replaced. Raises
            ``FileExistsError`` if there is one that is not.
        """
        if self._replaced:
            return write(self.paths[0], True)
        before = self.paths
        self.paths, result = claim(lambda path: write(path, False), *self._asked, first=before)
        self._replaced = True
        if self.paths != before:
            messages.tell(f"There is {before[0]} meanwhile, of something else. {self}")
        return result
