"""Scans as files of events, which LiberTEM calls ``raw_csr``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["event_files", "write_events"]


def event_files(path: Path) -> list[Path]:
    """Find out which files a description of events names, if it is one: see `write_events`."""
    if path.suffix.lower() != ".toml":
        return []
    try:
        described = tomllib.loads(path.read_text(encoding="utf-8"))["raw_csr"]
        return [path.parent / described[f"{name}_file"] for name in _ARRAYS]
    except (OSError, ValueError, LookupError, TypeError):
        return []  # no such description, or a damaged one


_ARRAYS = ("data", "indices", "indptr")


def write_events(
    folder: Path,
    scan_shape: tuple[int, int],
    detector_shape: tuple[int, int],
    events: csr_array,
) -> Path:
    """Write a scan as events that LiberTEM reads, which it calls ``raw_csr``.

    Parameters
    ----------
    folder
        Where to write ``events.toml`` and three files that it names.
    scan_shape, detector_shape
        Rows and columns.
    events : (scan positions, detector pixels) scipy.sparse.csr_array
        Counts.

    Returns
    -------
    pathlib.Path
        Of ``events.toml``.
    """
    lines = ["[params]", 'filetype = "raw_csr"', f"nav_shape = {list(scan_shape)}"]
    lines += [f"sig_shape = {list(detector_shape)}", "[raw_csr]"]
    for name in _ARRAYS:
        array: NDArray[Any] = getattr(events, name)
        array.tofile(folder / f"{name}.raw")
        lines += [f'{name}_file = "{name}.raw"', f'{name}_dtype = "{array.dtype.str}"']
    path = folder / "events.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
