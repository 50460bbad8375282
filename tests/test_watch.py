"""Waits that have an end, in the main thread and outside it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

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
