"""The command line behind a simulated DECTRIS detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from detectors import dectris_simulator
from libertem_live.detectors.dectris.connection import DectrisDetectorConnection
from live_commands import (
    OPTIONS,
    Run,
    check_complete,
    check_error,
    check_partial,
    simulators,
)
from numpy.typing import NDArray

pytestmark = simulators


def dectris(simulator: Any, options: str = "") -> str:
    ports = f"--port {simulator.port} --data-port {simulator.zmqport}"
    return f"live dectris {ports} {OPTIONS} -o image.tif {options}"


@pytest.mark.parametrize("start", [True, False])
def test_dectris(
    run: Run, frames: NDArray[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bool
) -> None:
    wait = DectrisDetectorConnection.wait_for_acquisition

    def start_and_wait(conn: Any, timeout: float | None = None) -> Any:
        conn.get_api_client().sendDetectorCommand("arm")
        return wait(conn, timeout)

    with dectris_simulator(tmp_path, frames) as simulator:
        if start:
            result = run(dectris(simulator, "--start"))
            check_error(result, "96 frames, but not the shape", "--nav-shape")
        else:
            monkeypatch.setattr(DectrisDetectorConnection, "wait_for_acquisition", start_and_wait)
        result = run(dectris(simulator, "--nav-shape 8 12" + " --start" * start))
    check_complete(result, frames)
    assert "8 x 12 scan, 256 x 256 detector, uint16" in result.stdout


def test_dectris_fails_and_works_again(run: Run, frames: NDArray[Any], tmp_path: Path) -> None:
    options = "--start --nav-shape 8 12 --silence 2"
    with dectris_simulator(tmp_path, frames, dies_after=50) as simulator:
        result = run(dectris(simulator, options))
    assert check_partial(result, frames, "no more frames came through for 2 s") == 48
    with dectris_simulator(tmp_path, frames) as simulator:
        check_complete(run(dectris(simulator, options)), frames)


def test_it_is_started_and_sends_no_frame(run: Run, frames: NDArray[Any], tmp_path: Path) -> None:
    """The scan is announced and never begins. A Merlin announces it with the first frame only."""
    with dectris_simulator(tmp_path, frames, triggered=False) as simulator:
        result = run(dectris(simulator, "--start --timeout 3 --nav-shape 8 12"))
    check_error(
        result,
        "none of 96 frames is in the image, which was not written: no frames came "
        "through within 3 s after the start",
    )
    assert not Path("image.tif").exists()
