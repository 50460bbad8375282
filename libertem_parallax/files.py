"""Files: images for ImageJ, for NumPy, and to look at; scans as events."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .show.pictures import gray_limits, write_gray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["WRITERS", "replacing", "save", "save_somewhere", "try_to_write", "write_events"]


def save(path: Path, image: NDArray[Any], pixel_size: tuple[float, float], unit: str = "") -> None:
    """Write an image in the format that the name's extension tells.

    Parameters
    ----------
    path
        Ends with one of `WRITERS`, in lower or upper case.
    image
        Rows and columns of real numbers.
    pixel_size
        Height and width of a pixel in Å.
    unit
        Of the values; only .tif says it.
    """
    with replacing(path) as file:
        WRITERS[path.suffix.lower()](file, image, pixel_size, unit)


def save_somewhere(
    path: Path, image: NDArray[Any], pixel_size: tuple[float, float], unit: str = ""
) -> tuple[Path, str | None]:
    """Write an image: where it should go, else to the current folder, else to the temporary one.

    Parameters
    ----------
    path, image, pixel_size, unit
        See `save`.

    Returns
    -------
    path : pathlib.Path
        Where it is. Elsewhere, it has a new name if there is a file of this one.
    problem : str or None
        Why it is not where it should be.

    Raises
    ------
    OSError
        If it cannot be written anywhere; of the first place.
    ValueError
        If the format does not hold it.
    """
    try:
        save(path, image, pixel_size, unit)
        return path, None
    except OSError as error:
        problem = error
    for folder in (Path.cwd, lambda: Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):  # there may be neither of them any more
            return _save_new(folder() / path.name, image, pixel_size, unit), str(problem)
    raise problem


def _save_new(path: Path, image: NDArray[Any], pixel_size: tuple[float, float], unit: str) -> Path:
    """Write an image under a name that no file has yet."""
    for number in itertools.count(1):
        new = path if number == 1 else path.with_stem(f"{path.stem}_{number}")
        try:
            new.open("xb").close()
        except FileExistsError:
            continue
        try:
            save(new, image, pixel_size, unit)
        except BaseException:
            new.unlink()
            raise
        return new
    raise AssertionError


def try_to_write(path: Path) -> None:
    """Find out whether an image can be written, as far as that can be known before.

    Parameters
    ----------
    path
        Of the image; nothing is changed there.

    Raises
    ------
    OSError
        If the file cannot be made that `save` makes first.
    """
    part = _part(path)
    part.open("wb").close()
    part.unlink()


def _part(path: Path) -> Path:
    """Where a file is written before it takes the place of an older one."""
    return path.with_name(path.name + ".part")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """Write a file whole or not at all: what fails leaves an older one as it was."""
    part = _part(path)
    try:
        with part.open("wb") as file:
            yield file
            # A power cut leaves either the older file or the new one.
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _save_tiff(file: Any, image: NDArray[Any], pixel_size: tuple[float, float], unit: str) -> None:
    """float32, with pixel size and unit as ImageJ reads them: pixels per nm, values as they are."""
    import tifffile

    height, width = pixel_size
    values = {"cf": 0, "c0": 0.0, "c1": 1.0, "vunit": unit} if unit else {}
    tifffile.imwrite(
        file,
        image.astype(np.float32),
        imagej=True,
        resolution=(10 / width, 10 / height),  # pixels per nm, x first
        metadata={"axes": "YX", "unit": "nm", **values},
    )


def _save_npy(file: Any, image: NDArray[Any], *_: Any) -> None:
    np.save(file, image)


def _save_png(file: Any, image: NDArray[Any], *_: Any) -> None:
    """Pixel for pixel in 8-bit gray, for the eye: the scale of the numbers is lost."""
    write_gray(file, image, gray_limits(image))


#: Who writes the format, by the extension of the name.
WRITERS: Mapping[str, Callable[[Any, NDArray[Any], tuple[float, float], str], None]] = (
    MappingProxyType(
        {".tif": _save_tiff, ".tiff": _save_tiff, ".npy": _save_npy, ".png": _save_png}
    )
)


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
    for name in ("data", "indices", "indptr"):
        array: NDArray[Any] = getattr(events, name)
        array.tofile(folder / f"{name}.raw")
        lines += [f'{name}_file = "{name}.raw"', f'{name}_dtype = "{array.dtype.str}"']
    path = folder / "events.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
