"""What tests of `live --page` share: pages that nobody need look at, and what is done on them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from live_commands import SECONDS, interrupt, when
from numpy.typing import NDArray

pytest.importorskip("bokeh", reason="bokeh is missing, of which the page is made")

from libertem_parallax import Parameters
from libertem_parallax.show.page.live import LivePage

#: Of the detector of `small_scan`.
PARAMETERS = Parameters(
    scan_sampling=(4.0, 5.0), energy=200e3, semiangle_cutoff=4.0, angular_sampling=(1.0, 1.0)
)

PAGE = "--page --page-port 0 --no-browser"


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[LivePage]:
    """Of commands that are run, as soon as they are made."""
    made: list[LivePage] = []
    init = LivePage.__init__

    def keep(page: LivePage, *arguments: Any, **more: Any) -> None:
        init(page, *arguments, **more)
        made.append(page)

    monkeypatch.setattr(LivePage, "__init__", keep)
    return made


@contextmanager
def looking(
    pages: list[LivePage], *steps: tuple[Callable[[LivePage], Any], Callable[[LivePage], Any]]
) -> Iterator[None]:
    """Do something when it is time, one after the other; and Ctrl-C in the end."""

    def look() -> None:
        for ready, do in steps:
            done = threading.Event()
            when(
                lambda ready=ready: pages and pages[0].served and ready(pages[0]),
                lambda do=do, done=done: (do(pages[0]), done.set()),
            )
            done.wait(SECONDS)
        interrupt()

    thread = threading.Thread(target=look)
    thread.start()
    yield
    thread.join()


def recorded(count: int) -> Callable[[LivePage], bool]:
    """Whether so many acquisitions are complete."""
    return lambda page: page.stage == "ended" and len(page.thumbnails) == count


def small_scan() -> NDArray[np.uint8]:
    """A bright disk of 4 pixels' radius on a dark detector."""
    y, x = np.indices((12, 12)) - 6
    counts = np.where(np.hypot(y, x) <= 4, 3.0, 0.05)
    return np.random.default_rng(0).poisson(counts, (6, 8, 12, 12)).astype(np.uint8)
