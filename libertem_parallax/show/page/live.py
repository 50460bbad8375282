"""The page while a detector records: it is served beside, and follows frames as they come."""

from __future__ import annotations

import contextlib
import math
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ...accumulate import Stack, can_slide
from ...images import IMAGES
from ...parameters import Parameters
from ...udf import ParallaxUDF
from ...udf.keeping import Kept
from ..fill import live_selection
from ..maker import make_imaging
from ..screen import Growing
from ..tuning import Tuning
from .page import Page
from .server import Access, Background
from .thumbnails import Thumbnail, thumbnail

__all__ = ["LivePage", "Progress"]

#: Rows and columns of what is shown before an acquisition.
_NOTHING = (8, 8)

#: Acquisitions of which small pictures are kept.
_KEPT = 8

#: What calibration may find.
_FOUND = (
    "center",
    "angular_sampling",
    "rotation_angle",
    "detector_flip_cols",
    "aberration_coefs",
)


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

    For every acquisition, the recording calls `ready`, `begin`, `arrived`, `show` and `end`, in
    that order, or `fail` at any time; then `keep` and `wait`.

    Parameters
    ----------
    access
        Where pages are served.
    limit
        Bytes that the stack may take. Default: a quarter of the memory that is free.
    **page
        What pages are told.
    """

    #: Why an acquisition is not complete that was stopped here.
    STOPPED = "stopped on the page"

    def __init__(self, access: Access, limit: int | None = None, **page: Any) -> None:
        self._access, self._page = access, page
        self.limit = limit  #: bytes that the stack may take
        self._tuning: Tuning | None = None
        self._server: Background | None = None
        self._udf: ParallaxUDF | None = None
        self._first: float | None = None
        self._stop: Callable[[str], object] = lambda _: None
        self._next, self._stopped = threading.Event(), False
        self._asking = threading.Lock()  # for the next acquisition, while this one comes to its end
        #: Whether an acquisition is awaited, comes in, or has ended.
        self.stage: Literal["waiting", "recording", "ended"] = "waiting"
        self.progress = Progress("")
        #: With which the present acquisition is recorded, as they are on the page.
        self.parameters = Parameters()
        #: Of the last acquisitions.
        self.thumbnails: deque[Thumbnail] = deque(maxlen=_KEPT)
        #: Called with where it is, as soon as it is there.
        self.on_ready: Callable[[str], object] = lambda _: None

    @property
    def served(self) -> bool:
        """Whether there is a page yet."""
        return self._server is not None

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
        self,
        detector_shape: tuple[int, int],
        dtype: np.dtype[Any],
        parameters: Parameters,
        stop: Callable[[str], object] = lambda _: None,
    ) -> None:
        """Wait for an acquisition; before the first one, serve pages.

        Parameters
        ----------
        detector_shape, dtype
            Of frames to come.
        parameters
            Of the first acquisition.
        stop
            Ends the acquisition, or the wait for it; called with why.
        """
        self._stop, self.stage = stop, "waiting"
        self.progress = Progress("Waiting for an acquisition")
        if self._stopped:  # while the detector was being connected
            stop(self.STOPPED)
        if self._server is not None:
            return
        pixels = np.argwhere(np.ones(detector_shape, bool))
        frames = np.zeros((_NOTHING[0] * _NOTHING[1], len(pixels)), dtype)
        stack = Stack(frames, pixels, _NOTHING, detector_shape, np.zeros(_NOTHING, bool))
        self._tuning = Tuning(stack, parameters.replace(load=None))
        self.parameters = self._tuning.parameters
        with warnings.catch_warnings(action="ignore"):  # of a scan as small as that
            imaging = make_imaging(stack, self.parameters)
        for image in IMAGES.values():
            image.prepare(imaging)  # compiles what it needs, and not while frames come
        self._server = Background(self._make, self._access)
        self.on_ready(self.url)

    def _make(self) -> Page:
        return Page(self.tuning, recording=self, **self._page)

    def begin(self, acquisition: Any, udf: ParallaxUDF) -> ParallaxUDF:
        """Get ready for the frames of an acquisition; those of the one before are forgotten.

        Parameters
        ----------
        acquisition
            Of LiberTEM.
        udf
            Makes the image.

        Returns
        -------
        ParallaxUDF
            The same if it keeps frames, or else one that does: to be run.
        """
        self._udf = None
        if udf.params.keep is None:
            with warnings.catch_warnings(action="ignore"):  # come with the picture, or below
                keep = live_selection(acquisition, self.tuning.parameters, self.limit)
            udf = udf.keeping(keep)
        self._udf = udf
        self._first = None
        self.tuning.when_idle(None)  # it is of the scan before
        self.tuning.growing = True
        self.tuning.grow(Kept(udf.params.keep).stack, at_once=True)  # of nothing
        self.progress = Progress("Recording", 0, acquisition.shape.nav.size)
        self.stage = "recording"
        return udf

    @property
    def note(self) -> str:
        """What does not fit the memory, if so."""
        if self._udf is None or (most := self._udf.params.keep.most) is None:
            return ""
        window, total = self._udf.window, math.prod(self._udf.params.keep.shape[:2])
        if window is None or not window.outgrown:
            return (
                f"Memory holds {most:,} of {total:,} frames (--memory): when it is full, only the "
                "latest ones can be tuned."
            )
        if not window.slides:
            return (
                f"Memory holds the first {most:,} of {total:,} frames (--memory): what is tuned is "
                "made of these."
            )
        if not self.progress.running:
            return (
                f"Memory holds the latest {most:,} of {total:,} frames (--memory): whatever is "
                "tuned now shows these only."
            )
        return (
            "Memory is full: older frames are in the image of the recording only, re-tuning starts "
            f"from now, with the latest {most:,} frames (--memory)."
        )

    def arrived(self, frames: int) -> None:
        """Count frames."""
        now = time.perf_counter()
        self._first = self._first or now
        self.progress = self.progress._replace(
            frames=self.progress.frames + frames, seconds=now - self._first
        )

    def found(self, parameters: Parameters) -> None:
        """Show frames with parameters that calibration found in them."""
        self.tuning.change(**{name: parameters[name] for name in _FOUND if name in parameters})
        self.parameters = self.tuning.parameters
        if self._udf is not None and self._udf.window is not None:
            self._udf.window.slides = can_slide()  # the first frames have done their duty

    def show(self, *, at_once: bool = False) -> None:
        """Show the frames that came in; `at_once`: see `Tuning.grow`."""
        udf = self._udf
        assert udf is not None
        sums = None
        if udf.params.keep.most is not None:
            with contextlib.suppress(ValueError):  # too large: told of images of the stack, too
                sums = udf.sums
        self.tuning.grow(udf.stack, sums, at_once=at_once)

    def end(self, problem: str | None) -> None:
        """Show what there is in the end, and why it is not all."""
        words = "Recorded" if problem is None else f"Not complete: {problem}"
        self.progress = Progress(words)
        self.tuning.growing = False
        try:
            if self._udf is not None and self._udf.started:
                self.show(at_once=True)
        finally:
            self.stage = "ended"  # the next one can be asked for

    def fail(self, problem: str) -> None:
        """Tell why an acquisition came to nothing; what was shown before remains."""
        self.progress = Progress(f"Not recorded: {problem.removesuffix('.')}")
        self.tuning.growing = False
        with self._asking:
            if not self._next.is_set():  # or the next one was asked for after the end of this one
                self.stage = "ended"

    def add(self, sentence: str) -> None:
        """Tell something more of an acquisition that has ended."""
        self.progress = Progress(f"{self.progress.words}. {sentence}")

    def keep(self, path: Path, made: Growing, *, elsewhere: bool = False) -> None:
        """Keep a small picture of an image.

        Parameters
        ----------
        path
            Where it was written.
        made
            The image.
        elsewhere
            Whether that is not where it should go: the page says so.
        """
        if elsewhere:
            self.add(f"The image could not be written where it should go: it is {path}")
        steps = zip(self.tuning.parameters["scan_sampling"], made.scanned.shape, strict=True)
        height, width = (
            step * n / size for (step, n), size in zip(steps, made.image.shape, strict=True)
        )
        try:
            small = thumbnail(path, made, (height, width), self._page.get("sigma", 0.0))
        except (OSError, ValueError, MemoryError) as error:
            self.add(f"There is no small picture of it: {error}")
        else:
            self.thumbnails.append(small)

    def stop(self) -> None:
        """End the recording, or the wait for it."""
        if self.stage != "ended":
            self.progress = self.progress._replace(words="Stopping")
            self._stopped = True
            self._stop(self.STOPPED)

    def next(self) -> None:
        """Have the next acquisition recorded."""
        with self._asking:
            if self.stage == "ended":
                self.stage, self._stopped = "waiting", False
                self.progress = Progress("Connecting")
                self._next.set()

    def wait(self) -> bool:
        """Go on serving until the next acquisition is asked for, or else until Ctrl-C.

        Ctrl-C is a KeyboardInterrupt as ever.

        Returns
        -------
        bool
            False if the server has ended.
        """
        assert self._server is not None
        while not self._next.wait(0.5):
            if not self._server.thread.is_alive():
                return False
        self._next.clear()  # here, as the next acquisition may fail before it is `ready`
        self.parameters = self.tuning.parameters
        return True

    def close(self) -> None:
        """End everything."""
        if self._tuning is not None:  # first, as pages that listen have their server then
            self._tuning.close()
        if self._server is not None:
            self._server.close()
