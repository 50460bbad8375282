"""Parameters of a file and of options: one over the other, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..parameters import PARAMETERS, Parameters, load_parameters


def option_name(name: str) -> str:
    """Name the option for a parameter."""
    return "--aberration" if name == "aberration_coefs" else f"--{name.lower().replace('_', '-')}"


def read_parameters(
    path: Path | None, options: Mapping[str, Any], defaults: Parameters | None = None
) -> Parameters:
    """Take what is given by options, what is not from a file, if any, and the rest from defaults.

    There is always an ``image`` then.
    """
    parameters = defaults or Parameters()
    try:
        if path is not None:
            file = load_parameters(path)
            parameters = _merge(parameters, {**file, **file.settings, **file.files})
        parameters = _merge(parameters, options)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    return parameters if "image" in parameters else parameters.replace(image="parallax")


def _merge(parameters: Parameters, changes: Mapping[str, Any]) -> Parameters:
    """Replace what is given anew; of tables single entries, the others stay."""
    given = {name: value for name, value in changes.items() if value is not None}
    old = {**parameters, **parameters.settings}
    for name, value in given.items():
        if isinstance(value, dict):
            given[name] = {**old.get(name, {}), **PARAMETERS[name].check(value)}
    return parameters.replace(**given)


def check_required(parameters: Parameters, *names: str) -> None:
    """Refuse to go on without parameters, by default those that every image needs."""
    if missing := parameters.missing(*names):
        lines = [
            f"  {option_name(p.name)}: {p.meaning}"
            + (f" Or {option_name(p.instead)}." if p.instead else "")
            for p in missing
        ]
        raise click.UsageError(
            "\n".join(
                [
                    "parameters are missing:",
                    *lines,
                    "Give them as options or as keys of the file for --params: "
                    f"{missing[0].name} = ...",
                ]
            )
        )
