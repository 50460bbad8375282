"""What is known of an acquisition: parameters, and files of them."""

from __future__ import annotations

import copy
import datetime
import json
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from . import aberrations, checks
from .declarations import DEFAULTS, ELSEWHERE, PARAMETERS, Parameter

__all__ = ["DEFAULTS", "PARAMETERS", "Parameter", "Parameters", "load_parameters"]


class Parameters(Mapping[str, Any]):
    """What is known of an acquisition: some parameters, or all.

    A mapping of those that are given and that ``ParallaxUDF.from_parameters`` takes, so that
    ``from_parameters(shape=dataset.shape, **parameters)`` works. It does not change.

    Parameters
    ----------
    **given
        Any names of `PARAMETERS`; None counts as not given. ``phase_flip`` becomes ``image``, for
        which it is another word.

    Raises
    ------
    ValueError
        For an unknown name, or a value out of its range; the message says what is expected.
    """

    def __init__(self, /, **given: Any) -> None:
        self._values: dict[str, Any] = {}
        self._files: dict[str, Path] = {}
        for name, value in _with_images(given).items():
            if name not in PARAMETERS:
                raise ValueError(
                    f"unknown parameter {name!r}{_hint(name)}. Known: {', '.join(PARAMETERS)}."
                )
            if value is not None:
                self._values[name] = PARAMETERS[name].check(value)
                if PARAMETERS[name].kind == "mask" and isinstance(value, str | os.PathLike):
                    self._files[name] = Path(value)
        for name in self._values:
            if (instead := PARAMETERS[name].instead) in self._values:
                raise ValueError(f"{name} and {instead} are both given: expected one of them.")

    def __getitem__(self, name: str) -> Any:
        """Get a parameter that is given."""
        if name in self._values and PARAMETERS[name].of != "command":
            value = self._values[name]
            return copy.deepcopy(value) if isinstance(value, dict) else value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of those that are given."""
        return (name for name in self._values if PARAMETERS[name].of != "command")

    def __len__(self) -> int:
        """Count those that are given."""
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        """Show all that is given."""
        values = ", ".join(f"{name}={value!r}" for name, value in self._values.items())
        return f"{type(self).__name__}({values})"

    @property
    def settings(self) -> dict[str, Any]:
        """Those that ``from_parameters`` does not take: ``load``."""
        return copy.deepcopy(
            {k: v for k, v in self._values.items() if PARAMETERS[k].of == "command"}
        )

    @property
    def files(self) -> dict[str, Path]:
        """Files that values were read from."""
        return dict(self._files)

    def missing(self, *names: str) -> list[Parameter]:
        """Find out what is not given.

        Parameters
        ----------
        *names
            Of what is needed. Default: all without which there is no image.

        Returns
        -------
        list
            Declarations; those that stand for each other are all there if none is given.
        """
        needed = names or [name for name, declared in PARAMETERS.items() if declared.required]
        return [
            PARAMETERS[name]
            for name in needed
            if name not in self._values and PARAMETERS[name].instead not in self._values
        ]

    def replace(self, /, **changes: Any) -> Self:
        """Make a copy with other values; None takes one out.

        What does as well as one that is given anew is taken out, too: one sampling replaces the
        other.

        Raises
        ------
        ValueError
            As for the class.
        """
        changes = _with_images(changes, self.get("image", ()))
        given = {name: value for name, value in changes.items() if value is not None}
        kept = {
            name: value
            for name, value in self._values.items()
            if name not in changes and PARAMETERS[name].instead not in given
        }
        new = type(self)(**{**kept, **given})
        new._files |= {name: file for name, file in self._files.items() if name in kept}
        return new

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        comments: Mapping[str, str] | None = None,
        header: str = "",
        overwrite: bool = False,
    ) -> None:
        """Write them as a TOML file, for `load_parameters` and for ``--params``.

        A mask that came from a file is named. Another is written beside, as ``..._bf_mask.npy``.

        Parameters
        ----------
        path
            Of the file.
        comments
            What else to say of parameters and of single aberrations, by their names.
        header
            What to say above all; may have several lines.
        overwrite
            Whether to replace an existing file.

        Raises
        ------
        FileExistsError
            If there is such a file, and `overwrite` is not set.
        OSError, ValueError
            If it cannot be written, or TOML has no such values.
        """
        path = Path(path)
        files = {name: str(file.absolute()) for name, file in self._files.items()}
        arrays = {
            name: path.with_name(f"{path.stem}_{name}.npy")
            for name, value in self._values.items()
            if isinstance(value, np.ndarray) and name not in files
        }
        for file in (path, *arrays.values()):
            if file.exists() and not overwrite:
                raise FileExistsError(f"{file} exists: give another name, or overwrite=True.")
        from .files import replacing

        names = files | {name: file.name for name, file in arrays.items()}
        text = _to_toml({**self._values, **names}, comments or {}, header).encode()
        for name, file in arrays.items():
            with replacing(file, new=not overwrite) as array:
                np.save(array, self._values[name])
        with replacing(path, new=not overwrite) as out:
            out.write(text)


def load_parameters(path: str | os.PathLike[str]) -> Parameters:
    """Read a file of parameters, as ``--params`` takes it.

    Parameters
    ----------
    path
        Of a TOML file: keys of `PARAMETERS`, aberrations as the table ``[aberration_coefs]``. Files
        that it names are relative to it.

    Returns
    -------
    libertem_parallax.Parameters
        Whatever is in the file; need not be all.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If its contents are not as expected; the message names the file.
    """
    path = Path(path)
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as TOML: {error}") from error
    try:
        for name, value in given.items():
            if name in PARAMETERS and PARAMETERS[name].kind == "mask" and isinstance(value, str):
                given[name] = path.parent / value
            if isinstance(value, dict):
                for key in set(value) & set(PARAMETERS):
                    raise ValueError(
                        f"{key!r} stands below [{name}], where it counts as a part of that table: "
                        "move it above the table."
                    )
        return Parameters(**given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _with_images(given: Mapping[str, Any], before: Iterable[str] = ()) -> dict[str, Any]:
    """Replace ``phase_flip`` by ``image``; `before` are images that there were."""
    given = dict(given)
    flip = given.pop("phase_flip", None)
    if flip is None:
        return given
    PARAMETERS["phase_flip"].check(flip)
    image = given.get("image")
    names = () if image is None else PARAMETERS["image"].check(image)
    if flip:
        given["image"] = (*names, "phase_flip")
    elif "phase_flip" in names:
        raise ValueError("an image phase_flip and no phase flip are asked for: leave one out.")
    else:
        others = tuple(name for name in before if name != "phase_flip")
        given["image"] = names or others or ("parallax",)
    return given


def _hint(name: str) -> str:
    """Tell what an unknown name may have meant."""
    coefs = (*aberrations.SYMBOLS, *aberrations.ALIASES)
    near = checks.nearest(name, [*PARAMETERS, *coefs], {**ELSEWHERE, **aberrations.ELSEWHERE})
    if near is None:
        return ""
    if near == name:
        return "; it belongs in aberration_coefs"
    unit = aberrations.unit(near) if near in coefs else PARAMETERS[near].unit
    where = ", in aberration_coefs" if near in coefs else ""
    return f"; the nearest known one is {near!r}{f' in {unit}' if unit else ''}{where}"


def _to_toml(values: Mapping[str, Any], comments: Mapping[str, str], header: str) -> str:
    """Write values in the order of their declarations, tables last, with words beside them."""

    def line(key: str, value: Any, *words: str) -> str:
        # A line break would end the comment.
        said = " ".join("; ".join([word for word in words if word]).split())
        return f"{key} = {_toml(value)}" + (f"  # {said}" if said else "")

    lines, tables = [f"# {text}".rstrip() for text in header.splitlines()], []
    for name, declared in PARAMETERS.items():
        if name not in values:
            continue
        value = values[name]
        if isinstance(value, dict):
            tables += ["", f"[{name}]  # {declared.words}"]
            tables += [line(_toml_key(k), v, comments.get(k, "")) for k, v in value.items()]
        else:
            unit = f" in {declared.unit}" if declared.unit else ""
            lines.append(line(name, value, declared.words + unit, comments.get(name, "")))
    return "\n".join([*lines, *tables, ""])


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # Texts are written in TOML as in JSON, but for one character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_toml_key(k)} = {_toml(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(v) for v in value)}]"
    if isinstance(value, int | float):
        return repr(float(value) if isinstance(value, float) else int(value))
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise ValueError(f"{value!r} cannot be written as TOML.")


def _toml_key(key: str) -> str:
    return key if key.isidentifier() and key.isascii() else _toml(key)
