"""Names of files that nobody has taken yet, also where several look for one at the same time."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

__all__ = ["claim", "free", "numbered"]

T = TypeVar("T")


def free(*paths: Path) -> tuple[Path, ...]:
    """Choose names that no file has: as they are, or else with the first number that will do.

    Parameters
    ----------
    *paths
        Files that belong together: they get the same number, as ``image_2.tif`` and
        ``image_2.toml``.

    Returns
    -------
    tuple of pathlib.Path
        In that order. Somebody else may take one of them meanwhile: see `claim`.
    """
    return next(_free(paths))


def claim(
    write: Callable[[Path], T], *paths: Path, first: tuple[Path, ...] = ()
) -> tuple[tuple[Path, ...], T]:
    """Write a new file; where somebody else was quicker, under the next name that is free.

    Parameters
    ----------
    write
        Writes the first of the files, and raises ``FileExistsError`` rather than replace one.
    *paths
        See `free`.
    first
        Names to be tried before.

    Returns
    -------
    paths : tuple of pathlib.Path
        The names.
    result
        Whatever `write` returned.
    """
    for names in itertools.chain([first] if first else [], _free(paths)):
        try:
            return names, write(names[0])
        except FileExistsError:
            continue
    raise AssertionError  # numbers do not end


def numbered(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Names as they are, then with the number 2, and so on without an end."""
    yield paths
    for number in itertools.count(2):
        yield tuple(path.with_name(f"{path.stem}_{number}{path.suffix}") for path in paths)


def _free(paths: tuple[Path, ...]) -> Iterator[tuple[Path, ...]]:
    # Names that are too long for the disk are no files: whoever writes will tell.
    return (names for names in numbered(*paths) if not any(map(os.path.exists, names)))
