"""Keeping some pixels of some frames, beside whatever else a UDF does with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..accumulate import Fill, Stack, Window, can_slide

__all__ = ["Filling", "Kept", "Selection", "Some"]


class Selection(NamedTuple):
    """Which pixels of which frames are kept."""

    shape: tuple[int, int, int, int]  #: scan rows and columns, detector rows and columns
    dtype: np.dtype[Any]  #: in which they are kept
    pixels: NDArray[np.int64]  #: (M, 2) rows and columns, in row-major order
    region: tuple[slice, slice]  #: rows and columns of the scan
    most: int | None = None  #: frames that memory holds, of the whole scan; all, if it is None
    latest: bool = False  #: whether these are the latest, not the first ones

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        frames = math.prod(self.scan_shape) if self.most is None else self.most
        return frames * len(self.pixels) * int(self.dtype.itemsize)

    def within(self, limit: int, *, latest: bool = False) -> Self:
        """Keep no more frames of the scan than fit into so many bytes.

        Parameters
        ----------
        limit
            Bytes.
        latest
            Of frames that are too many, keep the latest, not the first ones.

        Raises
        ------
        ValueError
            If it is less than a frame takes.
        """
        if self.nbytes <= limit:
            return self
        frame = len(self.pixels) * int(self.dtype.itemsize)
        if limit < frame:
            raise ValueError(
                f"limit = {limit} bytes: a single frame of the stack takes {frame}. Give more "
                "memory, or keep fewer pixels."
            )
        return self._replace(most=limit // frame, latest=latest)

    @property
    def scan_shape(self) -> tuple[int, int]:
        """Rows and columns of the scan that are kept."""
        rows, cols = self.region
        return rows.stop - rows.start, cols.stop - cols.start

    @property
    def complete(self) -> bool:
        """Whether these are all frames of the scan."""
        return self.most is None and self.scan_shape == tuple(self.shape[:2])

    def places(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tell where some frames go in the stack, counted from 1; 0 for those that are not kept.

        Parameters
        ----------
        frames : (F,) int64
            Their scan positions ``y * Nx + x``.
        """
        y, x = np.divmod(frames, self.shape[1])
        rows, cols = self.region
        inside = (y >= rows.start) & (y < rows.stop) & (x >= cols.start) & (x < cols.stop)
        return np.where(inside, (y - rows.start) * self.scan_shape[1] + x - cols.start + 1, 0)


class Some:
    """Some frames of a partition.

    Parameters
    ----------
    which : (F,) bool
        Those that are meant.
    """

    def __init__(self, which: NDArray[np.bool_]) -> None:
        self.which = which
        # A list of numbers takes 20 ns a frame, and other threads wait meanwhile.
        self._before: Sequence[int] = (
            range(len(which) + 1) if which.all() else [0, *np.cumsum(which).tolist()]
        )

    def __len__(self) -> int:
        """How many they are."""
        return self._before[-1]

    def of(self, tile: Any, first: int) -> tuple[Any, int]:
        """Take those of a tile; and the number that the first of them has among all of them.

        Parameters
        ----------
        tile
            Of successive frames, dense or as events.
        first
            Number of the tile's first frame in the partition.
        """
        stop = first + tile.shape[0]
        start, count = self._before[first], self._before[stop] - self._before[first]
        return (tile if count == tile.shape[0] else tile[self.which[first:stop]]), start


class Filling:
    """Keeps pixels of a partition's frames, on a worker.

    Parameters
    ----------
    selection
        Which of them.
    index : (F,) int64
        Scan positions of the partition's frames.
    frames, places
        Where to write the pixels, of `buffer_shape`, and where they go in the stack: see
        `Selection.places`; 0 remains for frames that do not come, as with a sync offset.
    """

    def __init__(
        self,
        selection: Selection,
        index: NDArray[np.int64],
        frames: NDArray[Any],
        places: NDArray[np.int64],
    ) -> None:
        found = selection.places(index)
        self.inside = Some(found > 0)
        self._found, self._places = found[self.inside.which], places
        self.frames = frames[: len(self.inside)]
        shape, inside = selection.shape, index[self.inside.which]
        self._fill = Fill(self.frames, selection.pixels, shape[2:], inside, shape[1])

    @staticmethod
    def buffer_shape(selection: Selection, index: NDArray[np.int64]) -> tuple[int, int]:
        """Shape of what is sent of a partition; LiberTEM has no use for empty buffers."""
        return max(1, int(np.count_nonzero(selection.places(index)))), len(selection.pixels)

    def add(
        self, tile: Any, first: int, origin: tuple[int, int], events: tuple[int, int] | None
    ) -> None:
        """Copy out of a tile: any frames of the partition, any part of the detector.

        Parameters
        ----------
        tile
            The tile, with frames that are kept and such that are not.
        first
            Number of its first frame in the partition.
        origin
            Row and column of the detector at which it begins.
        events
            If it is of events: rows and columns of its part of the detector.

        Raises
        ------
        ValueError
            See `Fill.add` and `Fill.add_events`.
        """
        tile, first = self.inside.of(tile, first)
        if events is not None:
            self._fill.add_events(tile, events, origin, first)
        else:
            self._fill.add(tile, origin, first)
        part = slice(first, first + tile.shape[0])
        self._places[part] = self._found[part]


class Kept:
    """What was kept so far, on the main node.

    Parameters
    ----------
    selection
        Which pixels of which frames.
    """

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        #: If memory does not hold all of them: those that it holds.
        self.window: Window | None = None
        if selection.most is not None:
            scan, detector = selection.scan_shape, selection.shape[2:]
            self.window = Window(scan, detector, selection.pixels, selection.dtype, selection.most,
                                 slides=selection.latest and can_slide())  # fmt: skip
            return
        # Untouched, these take no memory.
        count = math.prod(selection.scan_shape)
        self._frames = np.zeros((count, len(selection.pixels)), selection.dtype)
        self._seen = np.zeros(count, bool)

    def merge(self, frames: NDArray[Any], places: NDArray[np.int64]) -> None:
        """Put what `Filling` has written where it belongs."""
        came = places > 0
        places = places[came] - 1
        if self.window is not None:
            self.window.put(places, frames if came.all() else frames[came])
        elif len(places) and places[-1] - places[0] + 1 == len(places) == len(came):
            part = slice(places[0], places[-1] + 1)
            self._frames[part], self._seen[part] = frames, True
        else:
            self._frames[places], self._seen[places] = frames[came], True

    @property
    def stack(self) -> Stack:
        """What there is so far; while the run goes on, its frames go on filling."""
        if self.window is not None:
            return self.window.stack
        scan_shape, detector = self._selection.scan_shape, self._selection.shape[2:]
        scanned = self._seen.reshape(scan_shape).copy()
        return Stack(self._frames, self._selection.pixels, scan_shape, detector, scanned)
