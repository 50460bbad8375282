"""A window in a process of its own: it shows the image, and may die, or freeze."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from live_commands import (
    SECONDS,
    Gate,
    Run,
    arguments,
    check_complete,
    check_partial,
    expected,
    interrupt,
    simulators,
    when,
)
from numpy.typing import NDArray

from libertem_parallax.live.merlin import Simulator
from libertem_parallax.show.window import open_window

pytestmark = simulators

WINDOW = Path("window.npy")


@pytest.fixture(autouse=True)
def display(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let windows be files."""
    monkeypatch.setenv("MPLBACKEND", "module://file_window")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def shown() -> NDArray[Any]:
    image: NDArray[Any] = np.load(WINDOW) if WINDOW.exists() else np.zeros(0)
    return image


def windows() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [child for child in children if "libertem_parallax.show.window" in child.cmdline()]


def test_it_shows_the_image_until_it_is_closed(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    whole = expected(frames)
    seen: list[NDArray[Any]] = []

    def look() -> None:
        seen.append(shown())
        gate.opened.set()

    looking = when(lambda: shown().size, look)
    closing = when(lambda: np.array_equal(shown(), whole), WINDOW.unlink)
    result = run(arguments(merlin, "--start"))
    looking.join()
    closing.join()
    check_complete(result, frames)
    assert seen[0].shape == whole.shape
    assert (seen[0] != whole).any()
    assert "Close the window to end" in result.stdout
    assert not Path("live.png").exists()


def test_it_dies(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)

    def kill() -> None:
        (window,) = windows()
        window.kill()
        window.wait()
        gate.opened.set()

    killing = when(lambda: shown().size, kill)
    result = run(arguments(merlin, "--start"))
    killing.join()
    check_complete(result, frames)
    assert "Warning: the window: it was closed, or its display is gone" in result.stderr


def test_it_closes_when_the_recording_is_broken_off(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Gate(monkeypatch)
    interrupting = when(lambda: shown().size, interrupt)
    result = run(arguments(merlin, "--start"))
    interrupting.join()
    check_partial(result, frames, "interrupted")
    assert not windows()


def test_nothing_waits_for_one_that_is_frozen() -> None:
    window = open_window("frozen")
    assert window is not None
    (process,) = windows()
    process.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    for _ in range(20):
        window.show(np.zeros((1000, 1000)), (0.0, 1.0))
    window.close()
    assert time.monotonic() - begin < SECONDS
    assert not windows()


def test_there_is_none_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for backend in ("agg", "", "nonsense"):
        monkeypatch.setenv("MPLBACKEND", backend)
        assert open_window("nowhere") is None
    assert not windows()
