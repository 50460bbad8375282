"""Who asks a recording to end, or takes its terminal away, gets the image so far."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from live_commands import (
    SECONDS,
    Gate,
    Run,
    arguments,
    check_partial,
    expected,
    simulators,
    when,
)
from numpy.typing import NDArray

from libertem_parallax import files
from libertem_parallax.cli import main
from libertem_parallax.live import watch
from libertem_parallax.live.merlin import Simulator

pytestmark = simulators


PROGRAM = [sys.executable, "-c", "from libertem_parallax.cli import main; main()"]


@pytest.mark.parametrize(("module", "work"), [("live", "report"), ("record", "make_direct")])
def test_interrupted_once_the_image_is_written(
    run: Run, merlin: Simulator, monkeypatch: pytest.MonkeyPatch, module: str, work: str
) -> None:
    """As by whoever presses Ctrl-C twice."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        importlib.import_module(f"libertem_parallax.cli.{module}"), work, interrupted
    )
    result = run(arguments(merlin, "--start --image phase --image direct -o image.tif"))
    assert result.exit_code == 1
    assert re.search(r"\nInterrupted[:.] .*image_phase\.tif", result.stderr)
    assert Path("image_phase.tif").exists()


def give(*numbers: int) -> None:
    """Give this process a burst of signals, not all of which it would notice without a pause."""
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([signal.SIGTERM], "interrupted by SIGTERM"),
        ([signal.SIGHUP], "interrupted by SIGHUP"),
        ([signal.SIGINT] * 5, "interrupted"),
        ([signal.SIGHUP, signal.SIGTERM, signal.SIGHUP], "interrupted by SIGHUP"),
    ],
)
def test_signals(
    run: Run,
    merlin: Simulator,
    frames: NDArray[Any],
    monkeypatch: pytest.MonkeyPatch,
    numbers: list[int],
    message: str,
) -> None:
    handlers = [signal.getsignal(number) for number in numbers]
    monkeypatch.setattr(watch, "_BURST", 0.6)  # as long as a busy machine may take for one
    Gate(monkeypatch)
    giving = when(Path("live.png").exists, lambda: give(*numbers))
    result = run(arguments(merlin, "--start"))
    giving.join()
    check_partial(result, frames, f"are in the image: {message}. Another")
    assert [signal.getsignal(number) for number in numbers] == handlers


def test_a_signal_that_is_ignored_stays_so(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nohup has it; what follows then is the other signal's."""
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        Gate(monkeypatch)
        numbers = signal.SIGHUP, signal.SIGTERM
        giving = when(Path("live.png").exists, lambda: give(*numbers))
        result = run(arguments(merlin, "--start"))
        giving.join()
        check_partial(result, frames, "interrupted by SIGTERM")
    finally:
        signal.signal(signal.SIGHUP, handler)


def test_nobody_reads_what_it_says(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipe is broken when half of the frames have come; the others come as well."""
    gate = Gate(monkeypatch)
    reading, writing = os.pipe()

    def close() -> None:
        os.close(reading)
        gate.opened.set()

    closing = when(Path("live.png").exists, close)
    pipe = os.fdopen(writing, "w", buffering=1)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", pipe)
        main(shlex.split(arguments(merlin, "--start")), standalone_mode=False)
    closing.join()
    with contextlib.suppress(BrokenPipeError):
        pipe.close()
    np.testing.assert_array_equal(tifffile.imread("image.tif"), expected(frames))


def test_it_is_killed(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image of before is there, of whole partitions of 8 frames."""
    Gate(monkeypatch)
    with subprocess.Popen(
        [*PROGRAM, *shlex.split(arguments(merlin, "--start"))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        killing = when(Path("image.tif").exists, process.kill)
        process.wait(SECONDS)
        killing.join()
    assert process.returncode == -signal.SIGKILL
    image = tifffile.imread("image.tif")
    assert any(np.array_equal(image, expected(frames, count)) for count in range(8, 49, 8))


def test_ctrl_c_again_ends_at_once(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes too long to write the image after the first one: it is told where the last is."""
    saving, ended = threading.Event(), threading.Event()

    def slowly(*_: Any, **__: Any) -> None:
        saving.set()
        try:
            time.sleep(SECONDS)
        finally:
            ended.set()

    def insist() -> None:
        while not ended.wait(0.3):  # what comes in a burst counts as one
            give(signal.SIGINT)

    Gate(monkeypatch)
    monkeypatch.setattr(files, "save_somewhere", slowly)
    first = when(Path("image.tif").exists, lambda: give(signal.SIGINT))
    second = when(saving.is_set, insist)
    result = run(arguments(merlin, "--start"))
    first.join()
    second.join()
    assert result.exit_code == 1
    told = re.search(r"the image of (\d+) frames that was written last is image.tif", result.stderr)
    assert told, result.stderr
    np.testing.assert_array_equal(tifffile.imread("image.tif"), expected(frames, int(told[1])))
