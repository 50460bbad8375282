"""The simulated specimen of ``demo`` and ``live --simulate``: files, words, comparison."""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .outputs import replacing_problem
from .run import by

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..parameters import Parameters

_SUM = "# Written by libertem-parallax, and replaced while this is the sum of the rest: "


def check_folder(folder: Path, pictures: Iterable[str], overwrite: bool) -> None:
    """Make a folder, and refuse to replace what somebody changed in it, or put there.

    Parameters
    ----------
    folder
        Where `save_parameters` and `write_overview` will write.
    pictures
        Names of these.
    overwrite
        Whether everything may be replaced.

    Raises
    ------
    OSError
        If there can be no such folder.
    click.UsageError
        If there is something.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder / name for name in pictures):
        if problem := replacing_problem(path, overwrite):
            raise click.UsageError(f"{path}: {problem}.")
    params = folder / "params.toml"
    if params.exists() and not overwrite:
        first, _, rest = params.read_text(encoding="utf-8", errors="replace").partition("\n")
        if first != _first_line(rest):
            raise click.UsageError(f"{params}: that was changed; {_INSTEAD}.")


def save_parameters(parameters: Parameters, folder: Path) -> Path:
    """Write the parameters; `check_folder` knows the file again, unless it is changed."""
    with placing(folder, overwrite=True) as made:  # whole, and with its sum, or not at all
        path = made / "params.toml"
        parameters.save(path)
        text = path.read_text(encoding="utf-8")
        path.write_text(f"{_first_line(text)}\n{text}", encoding="utf-8")
    return folder / path.name


def _first_line(text: str) -> str:
    return _SUM + hashlib.sha256(text.encode()).hexdigest()[:16]


@contextlib.contextmanager
def placing(folder: Path, overwrite: bool) -> Iterator[Path]:
    """Give a folder for data that then go to another one, where they replace nothing but the same.

    Parameters
    ----------
    folder
        The other one.
    overwrite
        Whether they may replace anything.

    Raises
    ------
    click.UsageError
        If something else is there.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as made:
        yield Path(made)
        files = sorted(Path(made).iterdir())
        for file in files if not overwrite else ():
            path = folder / file.name
            if path.exists() and not filecmp.cmp(file, path, shallow=False):
                raise click.UsageError(
                    f"{path}: that is not what this version simulates; {_INSTEAD}."
                )
        for file in files:
            file.replace(folder / file.name)


_INSTEAD = "give it another name, or replace it with --overwrite"


def write_overview(
    path: Path, panels: list[tuple[str, str, NDArray[Any], tuple[float, float]]]
) -> None:
    """Write images of the specimen next to each other: see `pictures.overview`."""
    from .. import files
    from ..show import pictures

    with files.replacing(path) as file:
        pictures.overview(file, panels, files.About(panels[0][3]).texts())


def describe_simulation(
    parameters: Mapping[str, Any], plan: Any, dose: float
) -> list[tuple[str, str]]:
    """Tell what was simulated, in rows for `report`."""
    steps = zip(plan.scan_shape, parameters["scan_sampling"], strict=True)
    field = (n * size / 10 for n, size in steps)
    return [
        ("Simulated", f"apoferritin-like shells in ice, {by(f'{n:.1f}' for n in field)} nm"),
        (
            "",
            f"{by(plan.scan_shape)} scan, {by(plan.detector_shape)} detector, "
            f"binary counts, {dose:g} e/Å²",
        ),
        (
            "",
            f"{parameters['energy'] / 1e3:g} keV, {parameters['semiangle_cutoff']:g} mrad, "
            f"defocus {-parameters['aberration_coefs']['C10'] / 10:g} nm",
        ),
    ]


def resample(image: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Sample a periodic image at another number of points, with the same first point."""
    import scipy.signal

    for axis, count in enumerate(shape):
        image = scipy.signal.resample(image, count, axis=axis)
    return image


def correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Pearson's coefficient of correlation of two images of the same shape."""
    import numpy as np

    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
