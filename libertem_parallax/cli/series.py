"""Files of one acquisition: LiberTEM takes all whose names begin alike."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click


class Opened(NamedTuple):
    """What to give to ``Context.load``."""

    kind: str
    path: Path
    arguments: dict[str, Any]


def only_named(data: Path, kind: str, arguments: Mapping[str, Any]) -> Opened:
    """Keep LiberTEM from taking files of another acquisition for parts of the named one.

    For ``scan_1.mib`` it takes ``scan_*.mib``, for ``scan_1.hdr`` ``scan_1*.mib``.

    Parameters
    ----------
    data
        File that was named.
    kind, arguments
        For ``Context.load``, as given.

    Raises
    ------
    click.ClickException
        If LiberTEM cannot be told to leave the others out.
    """
    given, suffix = Opened(kind, data, dict(arguments)), data.suffix.lower()
    if suffix in (".mib", ".hdr") and kind in ("auto", "mib") and "disable_glob" not in arguments:
        return _merlin(given)
    from libertem.io.dataset import frms6, k2is, tvips

    formats = {".frms6": frms6, ".hdr": frms6, ".bin": k2is, ".gtg": k2is, ".tvips": tvips}
    names = {frms6: "frms6", k2is: "k2is", tvips: "tvips"}
    if suffix in formats and kind in ("auto", names[formats[suffix]]):
        files = [Path(name) for name in _matching(formats[suffix], data)]
        stem = data.stem if suffix in (".hdr", ".gtg") else re.sub(r"[0-9]+$", "", data.stem)
        own = [file for file in files if re.fullmatch(r"_?[0-9]*", file.stem[len(stem) :])]
        if len(own) < len(files):
            raise _mixed(data, sorted(set(files) - set(own)))
    return given


def _matching(module: Any, data: Path) -> list[str]:
    try:
        return list(module.get_filenames(str(data)))
    except ValueError:  # names without the number that they should have
        return []


def _mixed(data: Path, others: list[Path]) -> click.ClickException:
    return click.ClickException(
        f"{data}: LiberTEM would take {others[0].name} for a part of it, and {len(others) - 1} "
        "other files. Move what belongs to other acquisitions to another folder."
    )


def _merlin(given: Opened) -> Opened:
    """Find out which of the files follow each other, by number and by their frames' numbers."""
    from libertem.io.dataset import mib

    data, named = given.path, given.path.suffix.lower() == ".mib"
    taken = {Path(name) for name in mib.get_filenames(str(data))}
    names = [str(name) for name in taken | ({data} if named else set())]
    heads = {Path(name): head for name, head in mib.MIBDataSet._preread_headers(names).items()}
    first = data if named else _first_of(data, heads)
    if first is None:
        if any(file.with_suffix(".hdr").exists() for file in heads):
            raise click.ClickException(f"{data}: there is no {data.stem}.mib beside it.")
        return given
    own = _followed(first, heads)
    if own == taken:
        return given
    if len(own) > 1:
        raise _mixed(data, sorted(set(heads) - own))
    arguments = {**given.arguments, "disable_glob": True}
    if "nav_shape" not in arguments and "scan_size" not in arguments:
        # As LiberTEM finds it out from all files.
        arguments["nav_shape"] = (
            tuple(map(int, mib.make_2D_square((heads[first]["num_images"],))))
            if named
            else mib.nav_shape_from_hdr(mib.read_hdr_file(str(data)))
        )
    return Opened("mib", first, arguments)


def _first_of(header: Path, heads: Mapping[Path, Mapping[str, Any]]) -> Path | None:
    """Find the first file that a header describes."""
    alone = header.with_suffix(".mib")
    if alone in heads:
        return alone
    # One that has a header of its own belongs to that.
    parts = [
        file
        for file in heads
        if re.fullmatch(r"_?[0-9]+", file.stem[len(header.stem) :])
        and not file.with_suffix(".hdr").exists()
    ]
    return min(parts, key=lambda file: int(heads[file]["sequence_first_image"]), default=None)


def _followed(first: Path, heads: Mapping[Path, Mapping[str, Any]]) -> set[Path]:
    """Files of an acquisition: the next number in the name goes on with the next frame."""
    by_number = {}
    stem = re.sub(r"[0-9]+$", "", first.stem)
    for file in heads:
        number = re.fullmatch(r"[0-9]+", file.stem[len(stem) :])
        if number and file.stem.startswith(stem):
            by_number[int(number[0])] = file
    own = {first}
    number = re.search(r"[0-9]+$", first.stem)
    for step in (1, -1) if number else ():
        here = int(number[0]) if number else 0
        while (other := by_number.get(here + step)) is not None:
            low, high = (by_number[here], other) if step > 0 else (other, by_number[here])
            end = heads[low]["sequence_first_image"] + heads[low]["num_images"]
            if end != heads[high]["sequence_first_image"]:
                break
            own.add(other)
            here += step
    return own
