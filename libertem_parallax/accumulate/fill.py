"""Fills a stack: copies some detector pixels out of tiles, dense or of events."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np
from numba import uintp
from numpy.typing import NDArray

from .disk import keep_on_disk
from .dtypes import native_dtype, value_range
from .engine import check_tile, read_events
from .loops import locked

__all__ = ["Fill"]


class Fill:
    """Copies detector pixels of frames that come in tiles.

    Parameters
    ----------
    frames : (F, M)
        Where to write: of zeros. Any dtype will do that holds the values.
    pixels : (M, 2) int64
        Rows and columns on the detector, in row-major order.
    detector_shape
        Rows and columns of the detector.
    index : (F,) int64
        The frames' scan positions ``y * nx + x``, to name them in errors.
    nx
        Columns of the scan.
    """

    def __init__(
        self,
        frames: NDArray[Any],
        pixels: NDArray[np.int64],
        detector_shape: tuple[int, int],
        index: NDArray[np.int64],
        nx: int,
    ) -> None:
        self.pixels = pixels
        self.detector_shape = detector_shape
        self.frames = frames
        self.index = index
        self.nx = nx
        self._lookup, self._known = _places(
            np.asarray(pixels, np.int64).tobytes(), tuple(detector_shape)
        )

    def add(self, tile: NDArray[Any], origin: tuple[int, int] = (0, 0), first: int = 0) -> None:
        """Copy out of a tile of dense frames.

        Parameters
        ----------
        tile : (T, h, w)
            Any part of the detector of `T` successive frames.
        origin
            Row and column of the detector at which the tile begins.
        first
            Number of the first frame.

        Raises
        ------
        ValueError
            If the tile reaches beyond the frames or the detector, or a value does not fit.
        """
        check_tile(tile.shape, origin, first, len(self.frames), self.detector_shape)
        frames = self.frames[first : first + len(tile)]
        flat = tile.reshape(len(tile), math.prod(tile.shape[1:]))
        runs = self._runs(origin, tile.shape[1:])
        if flat.dtype == frames.dtype:
            _copy(locked(np.ascontiguousarray(flat)), runs, frames)
            return
        safe = np.can_cast(tile.dtype, frames.dtype)
        for start, first_place, count in runs:
            values = flat[:, start : start + count]
            part = frames[:, first_place : first_place + count]
            with np.errstate(over="ignore", invalid="ignore"):  # is looked for
                part[:] = values
            if not safe and (part != values).any():
                t, i = np.argwhere(part != values)[0]
                self._refuse(first + t, first_place + i, f"is {values[t, i]}")

    def _runs(self, origin: tuple[int, int], shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Find pixels side by side on a part of the detector: where there, in a frame, how many."""
        part = (*origin, *shape)
        if part not in self._known:  # detectors may send a few frames a tile
            places = self._lookup[self._part(origin, shape)].reshape(-1)
            inside = np.flatnonzero(places >= 0)
            places = places[inside]
            breaks = np.flatnonzero((np.diff(inside) != 1) | (np.diff(places) != 1)) + 1
            starts = np.append(0, breaks)[: len(inside)]
            counts = np.diff(np.append(starts, len(inside)))
            self._known[part] = np.column_stack([inside[starts], places[starts], counts])
        return self._known[part]

    def add_events(
        self, events: Any, shape: tuple[int, int], origin: tuple[int, int] = (0, 0), first: int = 0
    ) -> None:
        """Add up a tile's events: several of them may be from one pixel.

        Parameters
        ----------
        events : (T, h * w)
            See `Engine.add_events`.
        shape
            Rows and columns ``(h, w)`` of the tile's part of the detector.
        origin
            Row and column of the detector at which the part begins.
        first
            Number of the first frame.

        Raises
        ------
        ValueError
            If the tile reaches beyond the frames or the detector, an event lies outside the part,
            or a value or the sum of a pixel does not fit.
        """
        values, columns, bounds = read_events(events)
        count = len(bounds) - 1
        check_tile((count, *shape), origin, first, len(self.frames), self.detector_shape)
        values = values.astype(native_dtype(values.dtype), copy=False)
        frames = self.frames[first : first + count]
        lookup = np.ascontiguousarray(self._lookup[self._part(origin, shape)]).reshape(-1)
        # Of what can be added and what can be kept, in 64 bits.
        wide = float if "f" in values.dtype.kind + frames.dtype.kind else int
        limits = zip(value_range(values.dtype), value_range(frames.dtype), strict=True)
        (low, low_kept), (high, high_kept) = (map(wide, pair) for pair in limits)
        with np.errstate(over="ignore", invalid="ignore"):  # in plain Python
            t, event = _add_events(
                locked(values),
                locked(columns),
                bounds,
                locked(lookup),
                max(low, low_kept),
                min(high, high_kept),
                frames,
            )
        if event < 0:
            return
        column = int(columns[event])
        if not 0 <= column < len(lookup):
            raise ValueError(
                f"frame at scan position {self._position(first + t)} has an event at pixel "
                f"{column} of a part of the detector of {shape[0]} x {shape[1]}: check the "
                "detector's shape, or repair the data."
            )
        self._refuse(first + t, lookup[column], f"has an event of {values[event]} or many")

    def _part(self, origin: tuple[int, int], shape: tuple[int, ...]) -> tuple[slice, slice]:
        return slice(origin[0], origin[0] + shape[0]), slice(origin[1], origin[1] + shape[1])

    def _position(self, frame: int) -> tuple[int, int]:
        return divmod(int(self.index[frame]), self.nx)

    def _refuse(self, frame: int, place: int, what: str) -> NoReturn:
        row, col = self.pixels[place]
        raise ValueError(
            f"frame at scan position {self._position(frame)}, detector pixel ({row}, {col}) "
            f"{what}: a stack of {self.frames.dtype} does not hold that. Choose a wider dtype, "
            "leave out the pixel, or repair the data."
        )


@lru_cache(maxsize=4)
def _places(
    pixels: bytes, detector_shape: tuple[int, int]
) -> tuple[NDArray[np.int32], dict[tuple[int, ...], NDArray[np.int64]]]:
    """Where in a frame of the stack every pixel of the detector goes, or -1; and runs by part.

    Partitions share these: to find them anew would take as long as to copy hundreds of frames.
    """
    places = np.frombuffer(pixels, np.int64).reshape(-1, 2)
    lookup = np.full(detector_shape, -1, np.int32)
    lookup[tuple(places.T)] = np.arange(len(places))
    return lookup, {}


@keep_on_disk
def _copy(
    flat: Any,  # (T, pixels of the part)
    runs: Any,  # (R, 3): see `Fill._runs`
    frames: Any,  # (T, M) written to
) -> None:
    """Copy runs of pixels."""
    for t in range(len(frames)):
        for r in range(len(runs)):
            start, first, count = uintp(runs[r, 0]), uintp(runs[r, 1]), uintp(runs[r, 2])
            for i in range(count):
                frames[t, first + i] = flat[t, start + i]


@keep_on_disk
def _add_events(
    values: Any,  # (E,)
    columns: Any,  # (E,) pixels in the tile
    bounds: Any,  # (T + 1,) int64: events of each frame
    lookup: Any,  # (pixels in the tile,) where in a frame each goes; negative if nowhere
    low: Any,  # lowest and highest value of an event
    high: Any,
    frames: Any,  # (T, M) added to
) -> tuple[int, int]:
    """Add events; return frame and number of the first that is off the tile or does not fit."""
    of = frames.dtype.type
    for t in range(len(frames)):
        for e in range(bounds[t], bounds[t + 1]):
            column = uintp(columns[e])  # negative ones become large
            if column >= uintp(len(lookup)):
                return t, e
            if lookup[column] < 0:
                continue
            value, place = values[e], uintp(lookup[column])
            if not low <= value <= high or of(value) != value:
                return t, e
            before = frames[t, place]
            after = of(before + of(value))
            if (value >= 0) != (after >= before):
                return t, e
            frames[t, place] = after
    return -1, -1
