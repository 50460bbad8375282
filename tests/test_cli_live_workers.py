"""Several processes that add frames."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile
from libertem_live.detectors.merlin import sim
from live_commands import (
    SECONDS,
    Gate,
    Run,
    arguments,
    check_error,
    expected,
    simulators,
    when,
)
from numpy.typing import NDArray

from libertem_parallax.live import default_workers, pipelined
from libertem_parallax.live.merlin import simulator

pytestmark = simulators


def kill_a_worker() -> None:
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
                return


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let the detector wait, after two thirds of the frames, until workers have added these.

    They may take their time to start, and LiberTEM takes what they have when frames arrive. What a
    worker has that is killed never comes: when the event is set, the detector goes on.
    """
    killed = threading.Event()
    executors: list[Any] = []

    class Counted(pipelined.Pipelined):
        taken = 0

        def run_tasks(self, *arguments: Any) -> Iterator[Any]:
            self.taken = 0
            executors[:] = [self]
            for answer in super().run_tasks(*arguments):
                self.taken += 1
                yield answer

    def answers() -> int:
        return sum(e.taken + e._pool.response_queue.size() for e in executors)

    chunks = sim.DataSocketSimulator.get_chunks

    def patiently(camera: Any) -> Iterator[Any]:
        for number, chunk in enumerate(chunks(camera)):  # two for each frame
            while number == 2 * 70 and answers() < 64 / 8 and not camera.is_stopped():
                if killed.wait(0.01):
                    break
            yield chunk

    monkeypatch.setattr(pipelined, "Pipelined", Counted)
    monkeypatch.setattr(sim.DataSocketSimulator, "get_chunks", patiently)
    return killed


@pytest.mark.parametrize("what", ["detector", "worker"])
def test_what_was_added_is_kept(
    run: Run,
    hdr: Path,
    frames: NDArray[Any],
    monkeypatch: pytest.MonkeyPatch,
    killed: threading.Event,
    what: str,
) -> None:
    """When the detector fails, or a worker is gone; of what is lost, the number is told."""
    gate = Gate(monkeypatch, "wait" if what == "worker" else "disconnect")
    gate.count = 90
    with simulator(hdr) as merlin:

        def fail() -> None:
            kill_a_worker()
            killed.set()
            gate.opened.set()

        failing = when(Path("image.tif").exists, fail if what == "worker" else lambda: None)
        result = run(arguments(merlin, f"--start --workers 2 --silence {SECONDS}"))
        failing.join()
    message = {"detector": "the connection to the detector failed", "worker": "could not be added"}
    check_error(result, message[what], "It was written to image.tif")
    told = re.search(r"(\d+) of 96 frames .* Another (\d+) had arrived", result.stderr)
    assert told
    assert "Starting 2 workers" in result.stderr
    assert ", by 2 workers" in result.stdout
    count = int(told[1])
    if what == "detector":
        assert (count, told[2]) == (80, "0")
        np.testing.assert_array_equal(tifffile.imread("image.tif"), expected(frames, 80))
    assert count > 0


def test_defaults() -> None:
    """By the detector's rate, and a core to receive."""
    frame = 192 * 192 * 2
    assert default_workers(None, frame, 16) == 1
    assert default_workers(1000, frame, 16) == 1
    assert default_workers(120_000, frame, 16) == 6
    assert default_workers(120_000, frame, 4) == 3
    assert default_workers(120_000, frame, 1) == 1


def test_workers_end_with_their_parent() -> None:
    """When that is killed, nobody tells them to end, and they would wait for frames for ever."""
    code = (
        "import multiprocessing, time; from libertem_parallax.live import pipelined\n"
        "def work(): pipelined._set_up(); time.sleep(1000)\n"
        "worker = multiprocessing.get_context('fork').Process(target=work); worker.start()\n"
        "print(worker.pid, flush=True); time.sleep(1000)"
    )
    command = [sys.executable, "-c", code]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    try:
        worker.wait(SECONDS)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()
