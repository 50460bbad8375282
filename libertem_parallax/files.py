"""Files: images for ImageJ, for NumPy, and to look at."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .names import claim
from .show.pictures import picture

__all__ = [
    "WRITERS",
    "About",
    "keep_frames",
    "replacing",
    "said",
    "save",
    "save_series",
    "save_somewhere",
    "try_to_write",
]

# The name of what our files say of themselves, in ImageJ's words and in those of PNG.
KEY = "libertem-parallax"
#: Bytes from which on TIFF needs longer pointers.
_BIG = 2**32 - 2**25


class About(NamedTuple):
    """What an image file says beside the pixels."""

    pixel_size: tuple[float, float]  #: height and width in Å
    unit: str = ""  #: of the values
    words: str = ""  #: what the image is, for people
    made: Mapping[str, Any] = MappingProxyType({})  #: how it was made: what JSON can hold

    def text(self) -> str:
        """Write all of it as JSON, in a single line of ASCII."""
        version = ""
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # not installed
            version = " " + importlib.metadata.version("libertem-parallax")
        about = {
            "software": f"libertem-parallax{version}",
            "pixel_size_in_angstrom": self.pixel_size,
            "unit": self.unit,
            **self.made,
        }
        return json.dumps(about, default=str)

    def texts(self) -> dict[str, str]:
        """Give it the name by which `said` knows a file."""
        return {KEY: self.text()}


def save(path: Path, image: NDArray[Any], about: About, *, new: bool = False) -> None:
    """Write an image in the format that the name's extension tells.

    Parameters
    ----------
    path
        Ends with one of `WRITERS`, in lower or upper case.
    image
        Rows and columns of real numbers.
    about
        What to say of it. The .npy format has no place for that.
    new
        See `replacing`.
    """
    with replacing(path, new=new) as file:
        WRITERS[path.suffix.lower()](file, image, about)


def save_somewhere(
    path: Path, image: NDArray[Any], about: About, *, new: bool = False
) -> tuple[Path, str | None]:
    """Write an image: where it should go, else to the current folder, else to the temporary one.

    Parameters
    ----------
    path, image, about, new
        See `save`.

    Returns
    -------
    path : pathlib.Path
        Where it is. Elsewhere, it has a new name if there is a file of this one.
    problem : str or None
        Why it is not where it should be.

    Raises
    ------
    FileExistsError
        If it was to be `new`, and there is a file of this name.
    OSError
        If it cannot be written anywhere; of the first place.
    ValueError
        If the format does not hold it.
    """
    try:
        save(path, image, about, new=new)
        return path, None
    except FileExistsError:
        raise
    except OSError as error:
        problem = error
    for folder in (Path.cwd, lambda: Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):  # there may be neither of them any more
            return _save_new(folder() / path.name, image, about), str(problem)
    raise problem


def keep_frames(path: Path, frames: NDArray[Any]) -> Path:
    """Write frames that would be lost, under a name that no file has yet.

    Parameters
    ----------
    path
        Where they should go, a name that ends with .npy; else it is the current folder, else the
        temporary one.
    frames : (Ny, Nx, rows, columns)
        In any dtype.

    Returns
    -------
    pathlib.Path
        Where they are.

    Raises
    ------
    OSError
        If they can be written nowhere; of the first place.
    """
    about = About((1.0, 1.0))
    try:
        return _save_new(path, frames, about)
    except OSError as error:
        problem = error
    for folder in (Path.cwd, lambda: Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            return _save_new(folder() / path.name, frames, about)
    raise problem


def _save_new(path: Path, image: NDArray[Any], about: About) -> Path:
    """Write an image under a name that no file has yet."""
    [new], _ = claim(lambda name: save(name, image, about, new=True), path)
    return new


def said(path: Path) -> dict[str, Any] | None:
    """Read what an image or a picture of this package says of itself: see `About`.

    Parameters
    ----------
    path
        Of a file. Those of NumPy do not say who made them. An empty file counts as ours.

    Returns
    -------
    dict or None
        None if it is by somebody else.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    if not path.stat().st_size:
        return {}
    # Whatever is no image has its own way to fail.
    with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
        if path.suffix.lower() == ".png":
            from PIL import Image

            with Image.open(path) as picture:
                return _read(picture.info[KEY])
        if path.suffix.lower() in (".tif", ".tiff"):
            import tifffile

            with tifffile.TiffFile(path) as tiff:
                return _read((tiff.imagej_metadata or {})[KEY])
    return None


def _read(text: Any) -> dict[str, Any]:
    """Read words in a file; those of curves, for instance, say no more than that it is ours."""
    with contextlib.suppress(ValueError, TypeError):
        return dict(json.loads(text))
    return {}


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
    with _told_of(path):
        part = _part(path)
        part.open("xb").close()
        part.unlink()


@contextlib.contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Let errors name the file that was asked for, not a temporary one of which nobody knows."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # of NumPy: "100 requested and 50 written"
            raise OSError(f"the disk is full, or does not take all of it: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error


def _part(path: Path) -> Path:
    """Where a file is written before it takes the place of an older one: where no file is."""
    target = Path(os.path.realpath(path))
    return target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.part")


@contextlib.contextmanager
def replacing(path: Path, *, new: bool = False) -> Iterator[Any]:
    """Write a file whole or not at all: what fails leaves an older one as it was.

    Symbolic links stay, and so do the permissions of an older file.

    Parameters
    ----------
    path
        Of the file.
    new
        Whether it may replace none, however late that came: ``FileExistsError`` then.
    """
    part, target = _part(path), Path(os.path.realpath(path))
    try:
        with _told_of(path):
            with part.open("xb") as file:
                yield file
                # A power cut leaves either the older file or the new one.
                file.flush()
                os.fsync(file.fileno())
            if new:
                _place(part, target)
                return
            with contextlib.suppress(OSError):  # there is none, or no permissions on this disk
                shutil.copymode(target, part)
            part.replace(target)
    finally:
        with contextlib.suppress(OSError):  # which would hide the reason: the disk has failed
            part.unlink(missing_ok=True)


def _place(part: Path, target: Path) -> None:
    """Give a file a name that no other one has: at once, so that no two of them get it."""
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError:  # a disk without links, such as a memory card
        target.open("xb").close()
        try:
            part.replace(target)
        except OSError:
            target.unlink()
            raise


def _save_tiff(file: Any, image: NDArray[Any], about: About) -> None:
    _write_tiff(file, image, about, "YX", {})


def _write_tiff(
    file: Any, image: NDArray[Any], about: About, axes: str, axis: Mapping[str, Any]
) -> None:
    """float32, with pixel size and unit as ImageJ reads them: pixels per nm, values as they are."""
    import tifffile

    height, width = about.pixel_size
    for size in (height, width):
        if not 2**-32 < 10 / size < 2**32:  # the ratio of two 32-bit integers
            raise ValueError(f"pixels of {size:g} Å are too small or large for the TIFF format")
    image = image.astype(np.float32, copy=False)
    values = {"cf": 0, "c0": 0.0, "c1": 1.0, "vunit": about.unit} if about.unit else {}
    with warnings.catch_warnings():
        # Larger ones are beyond ImageJ itself, but not beyond its plug-ins.
        warnings.filterwarnings("ignore", ".*nonconformant BigTIFF ImageJ")
        tifffile.imwrite(
            file,
            image,
            imagej=True,
            bigtiff=image.nbytes >= _BIG,
            resolution=(10 / width, 10 / height),  # pixels per nm, x first
            # Info is what ImageJ shows, the other one what is in the TIFF's description.
            metadata={
                "axes": axes, "unit": "nm", **axis, **values, **about.texts(), "Info": about.text()
            },
        )  # fmt: skip


def save_series(
    path: Path,
    images: NDArray[Any],
    about: About,
    depth: NDArray[np.float64],
    *,
    new: bool = False,
) -> None:
    """Write images of several depths as a stack for ImageJ.

    Parameters
    ----------
    path
        Of a .tif file.
    images
        Depths, rows and columns of real numbers.
    about
        What to say of them.
    depth
        Of each, in Å and at equal distances: ImageJ's third axis, in nm.
    new
        See `replacing`.
    """
    spacing = float(depth[1] - depth[0]) / 10 if len(depth) > 1 else 1.0
    axis = {
        "spacing": spacing,
        "zorigin": -float(depth[0]) / 10 / spacing,
        "Labels": [f"{value / 10:g} nm" for value in depth],
    }
    with replacing(path, new=new) as file:
        _write_tiff(file, images, about, "ZYX", axis)


def _save_npy(file: Any, image: NDArray[Any], about: About) -> None:  # noqa: ARG001
    np.save(file, image)


def _save_png(file: Any, image: NDArray[Any], about: About) -> None:
    """In gray, for the eye: the scale of the numbers is lost."""
    picture(file, image, about.pixel_size, about.words, about.unit, about.texts())


#: Who writes the format, by the extension of the name.
WRITERS: Mapping[str, Callable[[Any, NDArray[Any], About], None]] = MappingProxyType(
    {".tif": _save_tiff, ".tiff": _save_tiff, ".npy": _save_npy, ".png": _save_png}
)
