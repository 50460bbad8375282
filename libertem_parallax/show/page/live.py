"""The page while a detector records: it is served beside, and follows frames as they come."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...accumulate import Stack
from ...parameters import Parameters
from ..fill import stack_udf
from ..tuning import Tuning
from .page import Page
from .server import Access, Background

__all__ = ["LivePage", "Progress"]

#: Rows and columns of what is shown before an acquisition.
_NOTHING = (8, 8)


class Progress(NamedTuple):
    """How far a recording is."""

    words: str
    frames: int = 0
    total: int = 0
    seconds: float = 0.0

    @property
    def running(self) -> bool:
        """Whether frames come in."""
        return self.total > 0

    def __str__(self) -> str:
        """Tell it in words: rate, percent, time left."""
        if not self.running:
            return self.words
        text = f"{self.words} {self.frames / self.total:.0%} of {self.total:,} frames"
        if self.frames and self.seconds > 0.5:
            rate = self.frames / self.seconds
            text += f", {float(f'{rate:.2g}'):,.0f} frames/s"
            text += f", {(self.total - self.frames) / rate:.0f} s left"
        return text


class LivePage:
    """Serves pages from a thread, while another one records.

    The recording calls `ready`, `begin`, `arrived`, `show` and `end`, in that order.

    Parameters
    ----------
    access
        Where pages are served.
    limit
        Bytes that the stack may take. Default: a quarter of the memory that is free.
    **page
        What pages are told.
    """

    def __init__(self, access: Access, limit: int | None = None, **page: Any) -> None:
        self._access, self._limit, self._page = access, limit, page
        self._tuning: Tuning | None = None
        self._server: Background | None = None
        self._udf: Any = None
        self._note = ""
        self._first: float | None = None
        self.progress = Progress("")
        #: Called with where it is, as soon as it is there.
        self.on_ready: Callable[[str], object] = lambda _: None

    @property
    def url(self) -> str:
        """Where it is served."""
        assert self._server is not None
        return self._server.url

    @property
    def tuning(self) -> Tuning:
        """What is shown, once it is `ready`."""
        assert self._tuning is not None
        return self._tuning

    def ready(
        self, detector_shape: tuple[int, int], dtype: np.dtype[Any], parameters: Parameters
    ) -> None:
        """Serve pages, before there is anything to be seen.

        Parameters
        ----------
        detector_shape, dtype
            Of frames to come.
        parameters
            Of the acquisition.
        """
        pixels = np.argwhere(np.ones(detector_shape, bool))
        frames = np.zeros((_NOTHING[0] * _NOTHING[1], len(pixels)), dtype)
        stack = Stack(frames, pixels, _NOTHING, detector_shape, np.zeros(_NOTHING, bool))
        self._tuning = Tuning(stack, parameters.replace(load=None))
        self.progress = Progress("Waiting for an acquisition")
        self._server = Background(self._make, self._access)
        self.on_ready(self.url)

    def _make(self) -> Page:
        return Page(self.tuning, recording=self, **self._page)

    def begin(self, acquisition: Any) -> Any:
        """Get ready for the frames of an acquisition.

        Returns
        -------
        StackUDF
            To be run beside that which makes the image.
        """
        with warnings.catch_warnings(record=True, action="always") as caught:
            self._udf = stack_udf(acquisition, self.tuning.parameters, self._limit)
        self._note = next((str(w.message) for w in caught if "the stack is" in str(w.message)), "")
        self._first = None
        self.progress = Progress("Recording", 0, acquisition.shape.nav.size)
        udf = self._udf
        count = udf.scan_shape[0] * udf.scan_shape[1]
        frames = np.zeros((count, len(udf.params.pixels)), udf.params.dtype)
        scanned = np.zeros(udf.scan_shape, bool)
        self.tuning.grow(
            Stack(frames, udf.params.pixels, udf.scan_shape, udf.params.shape[2:], scanned)
        )
        return udf

    @property
    def note(self) -> str:
        """What does not fit the memory, if so."""
        return self._note

    def arrived(self, frames: int) -> None:
        """Count frames."""
        now = time.perf_counter()
        self._first = self._first or now
        self.progress = self.progress._replace(
            frames=self.progress.frames + frames, seconds=now - self._first
        )

    def show(self, *_: Any) -> None:
        """Show the frames that came in."""
        self.tuning.grow(self._udf.stack)

    def end(self, problem: str | None) -> None:
        """Show what there is in the end, and why it is not all."""
        words = "Recorded" if problem is None else f"Not complete: {problem}"
        self.progress = Progress(words)
        if self._udf is not None and "frames" in self._udf.results.keys():  # noqa: SIM118
            self.tuning.grow(self._udf.stack, complete=True)

    def stop(self) -> None:
        """End the recording, as Ctrl-C does."""
        os.kill(os.getpid(), signal.SIGINT)

    def wait(self) -> None:
        """Go on serving until Ctrl-C, which is a KeyboardInterrupt as ever."""
        assert self._server is not None
        while self._server.thread.is_alive():
            self._server.thread.join(0.5)

    def close(self) -> None:
        """End everything."""
        if self._server is not None:
            self._server.close()
        if self._tuning is not None:
            self._tuning.close()
