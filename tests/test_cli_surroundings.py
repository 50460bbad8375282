"""Commands where their surroundings are bad: encodings, closed streams, variables."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from file_commands import BRIEF, Run, check_error, succeeded

from libertem_parallax.live.merlin import write_mib

pytestmark = pytest.mark.usefixtures("folder")
PROGRAM = [sys.executable, "-m", "libertem_parallax"]
HERE = str(Path(__file__).parents[1])


def started(arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    path = os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [*PROGRAM, *arguments.split()],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


@pytest.mark.parametrize("encoding", ["cp932", "cp1251"])
def test_other_encodings_get_letters_that_they_have(encoding: str) -> None:
    result = started("reconstruct --help", PYTHONIOENCODING=encoding)
    assert result.returncode == 0, result.stderr
    assert "in 1/A" in " ".join(result.stdout.decode(encoding).split())


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-"])
def test_closed_streams_do_not_stop_a_command(closed: str) -> None:
    """As under a service, or a shell that went away."""
    path = os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])
    command = " ".join([*PROGRAM, "reconstruct data/scan.npy", BRIEF, "-o image.npy", closed])
    result = subprocess.run(
        ["sh", "-c", command], check=False, env={**os.environ, "PYTHONPATH": path}
    )
    assert result.returncode == 0
    assert np.load("image.npy").any()


def test_an_empty_variable_is_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBERTEM_USE_CUDA", "")
    succeeded(run(f"reconstruct data/scan.npy {BRIEF} -o image.npy"))


@pytest.mark.parametrize("variable", ["LIBERTEM_USE_CUDA", "LIBERTEM_USE_CPU"])
def test_a_variable_that_is_no_number_is_told(
    run: Run, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "x")
    result = run(f"reconstruct data/scan.npy {BRIEF} -o image.npy")
    check_error(result, [f"{variable}=x", "number of a", "unset"])
    assert "data/scan.npy" not in result.output


def test_frames_on_which_libertem_fails_are_told() -> None:
    """Raw frames of 1 bit, in a number that its reader does not expect."""
    frames = np.random.default_rng(0).random((5, 7, 64, 64)) < 0.3
    write_mib(Path("bits.hdr"), frames, bits=1)
    # LiberTEM leaves files open then, which ends with the process.
    result = started(f"reconstruct bits.hdr {BRIEF} -o image.npy")
    assert result.returncode == 1
    assert b"Error: LiberTEM cannot read the frames" in result.stderr
    assert b"Traceback" not in result.stderr
