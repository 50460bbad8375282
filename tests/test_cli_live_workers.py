"""Several processes that add frames."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile
from live_commands import (
    Gate,
    Run,
    arguments,
    check_error,
    expected,
    simulators,
    when,
)
from numpy.typing import NDArray

from libertem_parallax.live import default_workers
from libertem_parallax.live.merlin import simulator

pytestmark = simulators


def kill_a_worker() -> None:
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
                return


@pytest.mark.parametrize("what", ["detector", "worker"])
def test_what_was_added_is_kept(
    run: Run, hdr: Path, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """When the detector fails, or a worker is gone; of what is lost, the number is told."""
    gate = Gate(monkeypatch, "wait" if what == "worker" else "return")
    gate.count = 90
    with simulator(hdr, dwelltime=5000) as merlin:  # µs

        def fail() -> None:
            kill_a_worker()
            gate.opened.set()

        failing = when(Path("image.tif").exists, fail if what == "worker" else lambda: None)
        # A worker that is killed is to be noticed before the detector is silent.
        silence = 0.5 if what == "detector" else 30
        result = run(arguments(merlin, f"--start --workers 2 --silence {silence}"))
        failing.join()
    message = {"detector": "no more frames came through", "worker": "could not be added"}
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
