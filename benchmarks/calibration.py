"""Calibration: how wrong it is and how long it takes, next to peers."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from . import known
from .known import Known

__all__ = ["ask", "environments", "main", "table", "with_peers"]

_PEERS_PY = Path(__file__).with_name("peers.py")


def ask(python: str, path: str, one: Known, output: Path | None = None) -> dict[str, Any]:
    """Run one path in the environment of an interpreter; see `benchmarks.peers`."""
    question = {
        "path": path,
        "file": str(one.file),
        "parameters": one.parameters,
        "output": str(output),
    }
    # This package is wherever this process has it from; peers need not see it.
    root = _PEERS_PY.parent.parent
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r}); from benchmarks.peers import main; main()"
    )
    command = [python, "-c", code] if python == sys.executable else [python, str(_PEERS_PY)]
    done = subprocess.run(
        command, input=json.dumps(question), stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        return {"error": f"{path} ended with exit code {done.returncode}; see above."}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def table(one: Known, pythons: Mapping[str, str]) -> Iterator[str]:
    """Lines of a table: errors and seconds of every path.

    Parameters
    ----------
    one
        Set with known truth.
    pythons
        Interpreters by path.
    """
    yield one.name
    yield (
        f"  {'path':<16}{'shifts / px':>12}{'C10':>9}{'C12 / C10':>11}{'rotation':>10}"
        f"{'order':>7}{'seconds':>9}"
    )
    for path, python in pythons.items():
        answer = ask(python, path, one)
        if "error" in answer:
            yield f"  {path:<16}  {answer['error']}"
            continue
        found = answer["parameters"]
        defocus, astigmatism, rotation, order = errors(found, one)
        yield (
            f"  {path:<16}{known.shift_error(found, one):>12.3f}{defocus:>9.1%}"
            f"{astigmatism:>11.1%}{rotation:>9.2f}°{'right' if order else 'wrong':>7}"
            f"{answer['seconds']:>9.1f}"
        )
    yield ""


def errors(found: Mapping[str, Any], one: Known) -> tuple[float, float, float, bool]:
    """Compare parameters with the true ones; either twin is right.

    Returns
    -------
    tuple
        Error of C10 and of C12 (the distance of its components), both over C10; of the rotation in
        degrees; and whether the order of the columns is right.
    """
    true = one.parameters

    def parts(parameters: Mapping[str, Any]) -> tuple[float, complex, float, bool]:
        coefs = parameters["aberration_coefs"]
        return (
            coefs.get("C10", 0.0),
            coefs.get("C12", 0.0) * np.exp(2j * coefs.get("phi12", 0.0)),
            parameters.get("rotation_angle", true.get("rotation_angle", 0.0)),
            bool(parameters.get("detector_flip_cols", true.get("detector_flip_cols", False))),
        )

    (defocus, astigmatism, rotation, order), (defocus_0, astigmatism_0, rotation_0, order_0) = (
        parts(found),
        parts(true),
    )
    sign = 1.0 if np.cos(rotation - rotation_0) >= 0 else -1.0
    turned = (rotation - rotation_0 + np.pi / 2) % np.pi - np.pi / 2
    return (
        abs(sign * defocus - defocus_0) / abs(defocus_0),
        abs(sign * astigmatism - astigmatism_0) / abs(defocus_0),
        abs(float(np.rad2deg(turned))),
        order == order_0,
    )


def with_peers(command: Callable[..., None]) -> Callable[..., None]:
    """Add options that say where peers are, and where more sets."""
    for option in (
        click.option("--quantem", metavar="PYTHON", help="Of an environment with quantem."),
        click.option("--py4dstem", metavar="PYTHON", help="Of an environment with py4dstem."),
        click.option(
            "--data",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            metavar="DIR",
            help="Folder with sets of known truth: NAME.npy (frames), NAME.json (parameters) and "
            "NAME_phase.npy or NAME_potential.npy (one period of the specimen).",
        ),
    ):
        command = option(command)
    return command


def environments(ours: tuple[str, ...], peers: Mapping[str, str | None]) -> dict[str, str]:
    """Give interpreters by path; peers whose environment is not given are left out, and told."""
    for path, python in peers.items():
        if not python:
            option = path.split()[0].lower()
            click.echo(f"{path}: skipped. --{option} says in which environment it is.")
    return {
        **dict.fromkeys(ours, sys.executable),
        **{path: python for path, python in peers.items() if python},
    }


@click.command()
@with_peers
def main(quantem: str | None, py4dstem: str | None, data: Path | None) -> None:
    """Calibrate sets of known truth, with nothing told but energy, step and semiangle.

    quantEM is told center, angular sampling, order of the columns, the sign of the defocus and half
    of it, and the rotation to 20°; py4DSTEM the angular sampling. Shifts are the root of the mean
    square error of the bright field's shifts in scan pixels, whichever twin was found; seconds
    those of one core, from the file to the parameters, once all is compiled.
    """
    pythons = environments(("calibrate",), {"quantEM search": quantem, "py4DSTEM": py4dstem})
    more = [] if data is None else known.folder(data)
    with tempfile.TemporaryDirectory() as name:
        for one in [*known.demo(Path(name), [30.0]), *more]:
            for line in table(one, pythons):
                click.echo(line)


if __name__ == "__main__":
    main()
