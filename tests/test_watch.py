"""Waits that have an end, in the main thread and outside it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from libertem_parallax.live import watch as module
from libertem_parallax.live.watch import DetectorError, Watch

SECONDS = 30.0  # for what should take far less


@pytest.fixture(params=["main", "another"])
def call(request: pytest.FixtureRequest) -> Iterator[Callable[[Callable[[], object]], object]]:
    """Call a function in the main thread, or in another one."""
    if request.param == "main":
        yield lambda function: function()
        return
    with ThreadPoolExecutor(1) as pool:
        yield lambda function: pool.submit(function).result()


def test_a_wait_ends_in_time(call: Callable[[Callable[[], object]], object]) -> None:
    released = threading.Event()

    def silent() -> None:
        while not released.wait(0.02):
            pass

    def wait() -> None:
        with Watch() as watch:
            assert watch.wait(lambda: 3, SECONDS, "late") == 3
            try:
                watch.wait(silent, 0.2, "nothing came")
            finally:
                released.set()

    start = time.monotonic()
    with pytest.raises(DetectorError, match="nothing came"):
        call(wait)
    assert 0.2 <= time.monotonic() - start < SECONDS


def test_what_fails_is_told(call: Callable[[Callable[[], object]], object]) -> None:
    def wait() -> None:
        with Watch() as watch:
            watch.wait(lambda: 1 // 0, SECONDS, "late")

    with pytest.raises(DetectorError, match=r"the connection to the detector failed: .* by zero"):
        call(wait)


def test_another_thread_ends_all_waits(call: Callable[[Callable[[], object]], object]) -> None:
    released = threading.Event()

    def silent() -> None:
        while not released.wait(0.02):
            pass

    def wait() -> None:
        with Watch() as watch:
            threading.Timer(0.2, watch.stop, ["somebody gave up"]).start()
            try:
                with pytest.raises(DetectorError, match="somebody gave up"):
                    watch.wait(silent, SECONDS, "late")
            finally:
                released.set()
            watch.wait(lambda: 3, SECONDS, "late")

    with pytest.raises(DetectorError, match="somebody gave up"):
        call(wait)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_once_more_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not a wait goes on after the first one, and a burst counts as one."""
    monkeypatch.setattr(module, "_BURST", 0.6)  # as long as a busy machine may take for one

    def again() -> None:
        interrupt()
        time.sleep(SECONDS)

    with Watch() as watch:
        for _ in range(3):
            interrupt()
        assert watch.problem == "interrupted"
        time.sleep(2 * module._BURST)
        with pytest.raises(KeyboardInterrupt):
            again()


@pytest.mark.parametrize("waiting", [False, True])
def test_a_late_signal_of_the_watch_ends_nothing(waiting: bool) -> None:
    """It was sent for a wait that came to its end, perhaps in a later one."""
    with Watch() as watch:
        assert watch.wait(lambda: 3, 0.0, "late") == 3

        def late() -> int:
            watch._own = True
            interrupt()
            return 4

        assert (watch.wait(late, SECONDS, "late") if waiting else late()) == 4
        assert watch.problem is None
        assert watch.wait(lambda: 5, SECONDS, "late") == 5
