"""Detectors that fail, are not there, or are somebody else's; and Ctrl-C."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from libertem_live.detectors.merlin.connection import MerlinDetectorConnection
from live_commands import (
    OPTIONS,
    Gate,
    Run,
    arguments,
    check_complete,
    check_error,
    check_partial,
    interrupt,
    simulators,
    when,
    written_to,
)
from numpy.typing import NDArray

from libertem_parallax import ParallaxUDF
from libertem_parallax.live import detector
from libertem_parallax.live.merlin import Simulator

pytestmark = simulators


def test_interrupted(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Gate(monkeypatch)
    interrupting = when(Path("live.png").exists, interrupt)
    result = run(arguments(merlin, "--start"))
    interrupting.join()
    check_partial(result, frames, "interrupted")


def test_interrupted_while_frames_are_added(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(udf: ParallaxUDF, dest: Any, src: Any) -> None:
        digest, row, _ = src.told["part"][0].tolist()
        udf.params.geometry.plan.add(src.A, row, dest.A)
        if Path("live.png").exists():
            interrupt()
        dest.S[:] += src.S
        dest.told["part"][0, 0] = digest

    Gate(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(ParallaxUDF, "merge", interrupted)
        result = run(arguments(merlin, "--start"))
    assert check_partial(result, frames, "interrupted") == 16


def test_interrupted_while_it_waits(run: Run, merlin: Simulator, operator: list[str]) -> None:
    operator.clear()
    wait = MerlinDetectorConnection.wait_for_acquisition
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            MerlinDetectorConnection,
            "wait_for_acquisition",
            lambda *args: (threading.Timer(0.2, interrupt).start(), wait(*args))[1],
        )
        check_error(run(arguments(merlin)), "interrupted")
    assert not Path("image.tif").exists()


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("disconnect", "the connection to the detector failed"),
        ("return", "no more frames came through for 0.5 s"),
    ],
)
def test_the_detector_fails_and_works_again(
    run: Run,
    merlin: Simulator,
    frames: NDArray[Any],
    monkeypatch: pytest.MonkeyPatch,
    then: str,
    message: str,
) -> None:
    gate = Gate(monkeypatch, then)
    check_partial(run(arguments(merlin, "--start --silence 0.5")), frames, message)
    first = Path("image.tif").read_bytes()
    gate.opened.set()
    result = run(arguments(merlin, "--start --silence 5"))
    check_complete(result, frames)
    assert written_to(result) == "image_2.tif"
    assert Path("image.tif").read_bytes() == first  # that scan cannot be repeated


def test_the_detector_is_killed(run: Run, hdr: Path, frames: NDArray[Any]) -> None:
    code = (
        "import sys; from pathlib import Path; from libertem_parallax.live import merlin\n"
        "with merlin.simulator(Path(sys.argv[1]), dwelltime=50_000) as where:\n"
        "    print(where.api_port, where.data_port, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(hdr)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout
            ports = [int(port) for port in process.stdout.readline().split()]
            killing = when(Path("live.png").exists, process.kill)
            result = run(arguments(Simulator("", ports[0], "", ports[1]), "--start"))
            killing.join()
        finally:
            process.kill()
    check_partial(result, frames, "the connection to the detector failed")


@pytest.mark.parametrize("commands", [[], ["STARTACQUISITION"]])
def test_nothing_comes(
    run: Run, merlin: Simulator, frames: NDArray[Any], operator: list[str], commands: list[str]
) -> None:
    operator[:] = commands
    result = run(arguments(merlin, "--timeout 0.5"))
    check_error(result, "no acquisition was started within 0.5 s")
    assert not Path("image.tif").exists()
    if not commands:
        operator[:] = ["STARTACQUISITION", "SOFTTRIGGER"]
        check_complete(run(arguments(merlin)), frames)


def test_frames_that_do_not_fill_a_buffer(
    run: Run, merlin: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were sent, and it is not said that they were not."""
    Gate(monkeypatch).count = 10
    # What comes first is awaited as long, and must come in time where cores are busy.
    result = run(arguments(merlin, "--start --timeout 3"))
    check_error(result, "none of 96 frames", "no frames came through within 3 s", "fill a buffer")


def test_frames_that_get_lost(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cannot be told from others, so it is told what may be wrong."""
    Gate(monkeypatch, "return")
    result = run(arguments(merlin, "--start --silence 0.5"))
    check_partial(result, frames, "If frames were lost on the way, all that came after them are in")


def test_no_frame_is_complete(run: Run, merlin: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    Gate(monkeypatch, "return").count = 20
    result = run(arguments(merlin, "--start --silence 0.5 --frames-per-partition 48"))
    check_error(result, "none of 96 frames", "not written", "no more frames came through for 0.5 s")
    assert re.search(r"\. [1-9]\d* had arrived: only whole partitions count", result.stderr)
    assert not Path("image.tif").exists()


@pytest.mark.parametrize("shape", ["6 6", "12 8"])
@pytest.mark.parametrize("start", ["", "--start"])
def test_another_scan_is_refused(
    run: Run, merlin: Simulator, request: pytest.FixtureRequest, shape: str, start: str
) -> None:
    if not start:
        request.getfixturevalue("operator")
    result = run(arguments(merlin, f"--nav-shape {shape} {start}"))
    check_error(result, "96 frames, a scan of 8 x 12", f"--nav-shape {shape.replace(' ', ' x ')}")
    assert not Path("image.tif").exists()


@pytest.mark.parametrize("detector", ["merlin", "dectris", "asi_tpx3"])
def test_nobody_is_there(run: Run, closed: int, detector: str) -> None:
    result = run(f"live {detector} --port {closed} {OPTIONS}")
    check_error(result, f"no answer from {detector} at 127.0.0.1", str(closed), "Is the detector's")


@pytest.mark.parametrize("wrong", ["control", "data"])
def test_somebody_else_is_there(
    run: Run,
    merlin: Simulator,
    silent: int,
    closed: int,
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
) -> None:
    monkeypatch.setattr(detector, "ANSWER", 3)  # to connect must not take as long
    if wrong == "control":
        result = run(arguments(merlin, f"--port {silent}"))
        check_error(result, "did not tell the shape of its frames within 3 s")
    else:
        result = run(arguments(merlin, f"--data-port {closed}"))
        check_error(result, f"no answer from merlin at 127.0.0.1, ports {merlin.api_port}")


def test_somebody_else_receives_the_frames(
    run: Run, merlin: Simulator, frames: NDArray[Any]
) -> None:
    """A Merlin sends to one program only."""
    with socket.create_connection((merlin.data_host, merlin.data_port)):
        result = run(arguments(merlin, "--start --timeout 0.5"))
    check_error(result, "no acquisition was started within 0.5 s", "other program")
    check_complete(run(arguments(merlin, "--start")), frames)
