"""Pixels of frames as they come, as many frames as memory may hold; sums of those that left it."""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dtypes import accumulator_dtype
from .kept import add_kept
from .plan import Plan
from .stack import Stack

__all__ = ["Latest", "Window", "can_slide"]

#: Reserves addresses, no memory. Python names it since 3.13.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


def can_slide() -> bool:
    """Tell whether this system gives memory back in the middle of an array: Linux does."""
    return sys.platform == "linux"


class Window:
    """Some pixels of the frames of a scan as they come: as many frames as memory may hold.

    The first ones stay, and later ones are not taken; or it `slides`, and the latest stay. It may
    be read in one thread while frames are put into it in another.

    Parameters
    ----------
    scan_shape, detector_shape, pixels
        See `Stack`.
    dtype
        Of the frames, one that `native_dtype` returns.
    most
        How many frames to hold.
    slides
        Whether the latest stay; it may begin to later.

    Raises
    ------
    MemoryError
        If there are not even addresses for the whole scan.
    """

    def __init__(
        self,
        scan_shape: tuple[int, int],
        detector_shape: tuple[int, int],
        pixels: NDArray[np.int64],
        dtype: np.dtype[Any],
        most: int,
        *,
        slides: bool = False,
    ) -> None:
        self._shapes, self._pixels, self._most = (scan_shape, detector_shape), pixels, most
        count = math.prod(scan_shape)
        self._bytes = len(pixels) * dtype.itemsize  # of a frame
        # Addresses for all frames, so that each has its place. What is not touched takes no memory.
        if can_slide():
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
            try:
                self._memory = mmap.mmap(-1, count * self._bytes, flags=flags)
            except OSError as error:  # as with vm.overcommit_memory = 2
                raise MemoryError(
                    f"there are no addresses for {count:,} frames of {self._bytes:,} bytes, of "
                    f"which {most:,} are held: set vm.overcommit_memory to 0 or 1, or keep fewer "
                    "pixels."
                ) from error
            frames = np.frombuffer(self._memory, dtype)
        else:
            frames = np.zeros(count * len(pixels), dtype)
        self._frames = frames.reshape(count, len(pixels))
        self._seen = np.zeros(count, bool)
        self._first = self._held = self._readers = 0
        self._left: _Left | None = None
        self._lock = threading.Lock()
        #: Whether the latest frames stay, not the first ones.
        self.slides = slides
        #: Whether frames have come that are not held any more, or never were.
        self.outgrown = False

    def put(self, positions: NDArray[np.int64], frames: NDArray[Any]) -> None:
        """Take frames.

        Parameters
        ----------
        positions : (F,) int64
            Their scan positions ``y * Nx + x``, in ascending order.
        frames : (F, M)
            Of the dtype that the window has.
        """
        with self._lock:
            # What comes late is older than what has left already.
            late = int(np.searchsorted(positions, self._first))
            stop = len(positions)
            if not self.slides or self._readers:  # what is read has to stay where it is
                stop = late + max(0, min(stop - late, self._most - self._held))
            for part in (slice(0, late), slice(stop, None)):
                self._leave(positions[part], frames[part])
            if late < stop:
                taken = positions[late:stop]
                where: Any = taken
                if taken[-1] - taken[0] + 1 == len(taken):
                    where = slice(int(taken[0]), int(taken[-1]) + 1)
                self._frames[where], self._seen[where] = frames[late:stop], True
                self._held += len(taken)
                self._let_go()

    def _let_go(self) -> None:
        """Have the oldest frames leave that are too many."""
        start = stop = self._first
        while (more := self._held - self._most) > 0:
            seen = self._seen[stop : stop + more]
            count = int(np.count_nonzero(seen))
            self._held -= count
            # Where none is, none may be for long.
            stop += len(seen) if count else int(self._seen[stop:].argmax())
        if stop == start:
            return
        positions = start + np.flatnonzero(self._seen[start:stop])
        frames = self._frames[start:stop]
        self._leave(positions, frames if len(positions) == len(frames) else self._frames[positions])
        self._seen[start:stop], self._first = False, stop
        # The system takes pages, zeros where they lie; a part of one has to be made zero.
        begin, end = start * self._bytes, stop * self._bytes
        first, last = (at - at % mmap.PAGESIZE for at in (begin, end))
        if last > first:  # what lies before is gone already
            self._memory.madvise(mmap.MADV_DONTNEED, first, last - first)
        self._frames.reshape(-1).view(np.uint8)[max(begin, last) : end] = 0

    def _leave(self, positions: NDArray[np.int64], frames: NDArray[Any]) -> None:
        if not len(positions):
            return
        self.outgrown = True
        if self._left is not None and self.slides:
            self._left.put(positions, frames)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Stack]:
        """Have those stay that are held now, until they were read.

        If memory is full meanwhile, frames that come leave at once.
        """
        with self._lock:
            self._readers += 1
            stack = self._snapshot()
        try:
            yield stack
        finally:
            with self._lock:
                self._readers -= 1

    def _snapshot(self) -> Stack:
        (scan, detector), scanned = self._shapes, self._seen.copy()
        return Stack(self._frames, self._pixels, scan, detector, scanned.reshape(scan))

    def since(
        self, plan: Plan, threads: int | None
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
        """Add frames: see `Latest.since`."""
        with self._lock:
            if self._left is None or self._left.plan.digest != plan.digest:
                self._left = _Left(plan, self._pixels, self._frames.dtype)
            left = self._left
        with self.reading() as stack:  # none of these gets into `left` meanwhile
            A, S = stack.add(plan, threads)
            with self._lock:
                left.add_to(A, S)
                return A, S, stack.scanned | left.scanned

    @property
    def stack(self) -> Latest:
        """What is held now; its frames go on filling, and leaving."""
        with self._lock:
            now = self._snapshot()
        shapes = now.scan_shape, now.detector_shape
        return Latest(now.frames, now.pixels, *shapes, now.scanned, self)


@dataclass(frozen=True, eq=False)
class Latest(Stack):
    """A stack that holds the latest frames only.

    Whoever uses `frames` has to be `reading` it.

    Parameters
    ----------
    frames, pixels, scan_shape, detector_shape, scanned
        See `Stack`.
    window
        That they are in.
    """

    window: Window

    def reading(self) -> contextlib.AbstractContextManager[Stack]:
        """Have the frames that are there now stay, until they were read."""
        return self.window.reading()

    def add(self, plan: Plan, threads: int | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """Add the frames that are there now: see `Stack.add`."""
        with self.reading() as stack:
            return stack.add(plan, threads)

    def since(
        self, plan: Plan, threads: int | None = None
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
        """Add frames under a plan; with those that have left since it was first asked for.

        Parameters
        ----------
        plan, threads
            See `Stack.add`. Another plan is a new start, with the frames that are there.

        Returns
        -------
        A, S
            See `Stack.add`.
        scanned : (Ny, Nx) bool
            Scan positions that are in them.

        Raises
        ------
        ValueError
            See `Stack.add`; also if a value of a frame that has left cannot be added.
        """
        self._check(plan)
        self.columns(plan.pixels)
        return self.window.since(plan, threads)

    def select(self, mask: NDArray[np.bool_]) -> Stack:  # type: ignore[override]
        """Take some of the pixels, of the frames that are there now: see `Stack.select`."""
        with self.reading() as stack:
            return stack.select(mask)

    @property
    def on_host(self) -> Stack:
        """What is there now, as a stack that knows of no window."""
        with self.reading() as stack:
            return stack


class _Left:
    """Sums of frames that have left, under one plan."""

    def __init__(self, plan: Plan, pixels: NDArray[np.int64], dtype: np.dtype[Any]) -> None:
        self.plan, self._pixels = plan, pixels
        dtype = accumulator_dtype(dtype, len(plan.pixels))
        # Untouched, they take no memory.
        self._A, self._S = np.zeros(plan.accumulator_shape, dtype), np.zeros(plan.scan_shape, dtype)
        self.scanned = np.zeros(plan.scan_shape, bool)
        self._problem: Exception | None = None

    def put(self, positions: NDArray[np.int64], frames: NDArray[Any]) -> None:
        """Add frames. What is wrong with them is told to who asks for sums, not to who records."""
        S = np.zeros(len(positions), self._S.dtype)
        try:
            frames = np.ascontiguousarray(frames)
            add_kept(frames, self._pixels, self.plan, positions, self._A, S)
        except Exception as error:
            self._problem = error
        self._S.reshape(-1)[positions], self.scanned.reshape(-1)[positions] = S, True

    def add_to(self, A: NDArray[Any], S: NDArray[Any]) -> None:
        """Add the sums to others."""
        if self._problem is not None:
            raise self._problem
        if self.scanned.any():
            A += self.plan.fold(self._A)
            S += self._S
