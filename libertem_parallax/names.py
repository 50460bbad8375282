"""Names of files that nobody has taken yet, also where several look for one at the same time."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

__all__ = ["claim", "frames_of", "free", "numbered"]

T = TypeVar("T")


def claim(
    write: Callable[[Path], T], *paths: Path, first: tuple[Path, ...] = ()
) -> tuple[tuple[Path, ...], T]:
    """Write a new file; where somebody else was quicker, under the next name that is free.

    Parameters
    ----------
    write
        Writes the first of the files, and raises ``FileExistsError`` rather than replace one.
    *paths
        Files that belong together, that one first: they get the same number, as ``image_2.tif`` and
        ``image_2.toml``.
    first
        Names to be tried before.

    Returns
    -------
    paths : tuple of pathlib.Path
        The names.
    result
        Whatever `write` returned.
    """
    for names in itertools.chain([first] if first else [], free(*paths)):
        try:
            return names, write(names[0])
        except FileExistsError:
            continue
    raise AssertionError  # numbers do not end


def free(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Numbered names that no file has, nor frames that an earlier acquisition has left.

    Names that are too long for the disk are no files: whoever writes will tell.
    """
    for names in numbered(*paths):
        if not any(map(os.path.exists, (*names, frames_of(names[0])))):
            yield names


def numbered(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Names as they are, then with the number 2, and so on without an end."""
    yield paths
    for number in itertools.count(2):
        yield tuple(path.with_name(f"{path.stem}_{number}{path.suffix}") for path in paths)


def frames_of(output: Path) -> Path:
    """Name of frames of which no image could be made that would have gone to `output`."""
    return output.with_name(f"{output.stem}_frames.npy")
