"""What every engine promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .dtypes import LARGEST, accumulator_dtype, all_small, is_small, native_dtype, value_range
from .plan import Plan

__all__ = ["Engine", "Events", "check_tile", "read_events"]


class Events(NamedTuple):
    """Events of a tile; who adds them checks where they lie."""

    values: NDArray[Any]  # (E,) of the engine's `native_dtype`
    columns: NDArray[Any]  # (E,) integers: pixel of the tile
    bounds: NDArray[np.int64]  # (T + 1,) where those of a frame begin; ascending, up to E


def read_events(events: Any) -> Events:
    """Take events as SciPy holds them.

    Parameters
    ----------
    events
        See `Engine.add_events`.

    Returns
    -------
    Events
        Values in the dtype that they have, which may be of another byte order.

    Raises
    ------
    ValueError
        If there are not as many indices as values, or the bounds do not ascend within them.
    """
    values, columns = np.asarray(events.data), np.asarray(events.indices)
    bounds = np.asarray(events.indptr, np.int64)
    if (
        not len(bounds)
        or values.shape != columns.shape
        or columns.dtype.kind not in "iu"
        or bounds[0] < 0
        or bounds[-1] > len(values)
        or (bounds[1:] < bounds[:-1]).any()  # differences may wrap
    ):
        raise ValueError(
            f"events with {len(values)} values, {len(columns)} indices of dtype "
            f"{columns.dtype} and indptr {bounds}: expected as many indices as values, of "
            "integers, and indptr to ascend within them."
        )
    return Events(values, columns.astype(columns.dtype.newbyteorder("="), copy=False), bounds)


def check_tile(
    shape: tuple[int, ...],
    origin: tuple[int, int],
    first: int,
    frames: int,
    detector_shape: tuple[int, int],
) -> None:
    """Refuse a tile that is not of the frames.

    Parameters
    ----------
    shape, origin, first
        Of the tile: see `Engine.add`.
    frames, detector_shape
        How many there are, and how many rows and columns they have.

    Raises
    ------
    ValueError
        If the tile reaches beyond the frames or the detector.
    """
    rows, cols = detector_shape
    if (
        len(shape) != 3
        or min(*origin, first) < 0
        or origin[0] + shape[1] > rows
        or origin[1] + shape[2] > cols
        or first + shape[0] > frames
    ):
        raise ValueError(
            f"tile of shape {shape} at frame {first}, detector pixel {origin}: expected "
            f"(frames, rows, columns) within {frames} frames of {rows} x {cols}."
        )


class Engine(ABC):
    """Adds frames to an accumulator.

    One engine serves one stretch of the scan (a LiberTEM partition) in one thread: construct it,
    `add` whatever tiles come in whatever order, `finish`; or `add_events` where frames are lists of
    events. Then::

        A[target of m + y * A.shape[3] + x] += frame (y, x) at pixel m
        S[f]                                += sum over m of frame index[f] at pixel m

    for all pixels ``m`` of the plan. Integer sums are exact; so all engines, tilings and partial
    sums give the same bits.

    Parameters
    ----------
    plan
        Which pixels, and where to.
    dtype
        Of the frames: see `accumulator_dtype`.
    index : (F,) int64
        The frames' scan positions ``y * Nx + x``, ascending.
    A : plan.accumulator_shape
        Accumulator, C-contiguous; added to. Of the frames' `accumulator_dtype`, or int64 for any
        integers.
    S : (F,)
        Bright-field sums of the frames, of the same dtype; added to.
    events
        Whether frames come as events.

    Raises
    ------
    TypeError
        If frames of this dtype cannot be added.
    ValueError
        If shapes or dtypes do not fit together, or `index` leaves the scan.
    """

    def __init__(
        self,
        plan: Plan,
        dtype: DTypeLike,
        index: NDArray[np.int64],
        A: NDArray[Any],
        S: NDArray[Any],
        *,
        events: bool = False,
    ) -> None:
        dtype = np.dtype(dtype)
        needed = accumulator_dtype(dtype, len(plan.pixels), events)
        if not np.can_cast(needed, A.dtype) or needed.kind != A.dtype.kind:
            raise ValueError(
                f"{'events' if events else 'frames'} of dtype {dtype} need an accumulator of "
                f"{needed}, got {A.dtype}."
            )
        for name, sums, shape, of in (
            ("A", A, plan.accumulator_shape, A.dtype.newbyteorder("=")),
            ("S", S, index.shape, A.dtype),
        ):
            if sums.shape != shape or sums.dtype != of or not sums.flags.c_contiguous:
                raise ValueError(
                    f"{name}: expected a C-contiguous array of shape {shape} and dtype {of}, got "
                    f"{sums.shape} and {sums.dtype}, "
                    f"{'' if sums.flags.c_contiguous else 'not '}C-contiguous."
                )
        positions = plan.scan_shape[0] * plan.scan_shape[1]
        if index.dtype != np.int64 or (
            len(index)
            and (index[0] < 0 or index[-1] >= positions or (index[1:] <= index[:-1]).any())
        ):
            raise ValueError(
                f"index: expected ascending scan positions from 0 to {positions - 1}, of int64."
            )
        self.plan = plan
        self.events = events
        self.dtype = native_dtype(dtype)
        self._given = dtype.newbyteorder("=")
        self.index = index
        self.A = A
        self.S = S

    def add(self, frames: NDArray[Any], origin: tuple[int, int] = (0, 0), first: int = 0) -> None:
        """Add a tile.

        Parameters
        ----------
        frames : (T, h, w)
            Any part of the detector of `T` successive frames.
        origin
            Row and column of the detector at which the tile begins.
        first
            Position in `index` of the first frame.

        Raises
        ------
        ValueError
            If the tile reaches beyond the frames or the detector or has another dtype, or a pixel
            in use is not finite, or too large for exact sums of 64-bit integers or for images in
            single precision.
        """
        self._check(frames.shape, frames.dtype, origin, first, events=False)
        if frames.dtype.kind == "b":
            frames = frames.view(self.dtype)
        frames = np.asarray(frames, self.dtype)
        if frames.dtype.kind in "iu" and frames.dtype.itemsize == 8:
            self._check_range(frames, origin, first)
        self._add(frames, origin, first)
        # One non-finite value would spread over the whole image in the Fourier transform.
        if frames.dtype.kind == "f" and not all_small(self.S[first : first + len(frames)]):
            self._refuse_values(frames, origin, first)
            self._refuse_sums()

    @abstractmethod
    def _add(self, frames: NDArray[Any], origin: tuple[int, int], first: int) -> None:
        """Add a tile that has been checked, of the engine's `native_dtype`."""

    def add_events(
        self,
        events: Any,
        shape: tuple[int, int] | None = None,
        origin: tuple[int, int] = (0, 0),
        first: int = 0,
    ) -> None:
        """Add a tile of frames that are lists of events.

        Parameters
        ----------
        events : (T, h * w)
            Any part of the detector of `T` successive frames in compressed sparse rows (CSR), as
            SciPy makes them: ``data``, ``indices`` (``row * w + column``) and ``indptr``. Events of
            a frame may come in any order, and several of them from one pixel.
        shape
            Rows and columns ``(h, w)`` of the part. Default: the whole detector.
        origin
            Row and column of the detector at which the part begins.
        first
            Position in `index` of the first frame.

        Raises
        ------
        ValueError
            If the tile reaches beyond the frames or the detector or has another dtype, an event
            lies outside the part, or one in use is out of the `value_range`; from `finish` where
            that is found out later.
        """
        shape = self.plan.detector_shape if shape is None else shape
        given = read_events(events)
        self._check((len(given.bounds) - 1, *shape), given.values.dtype, origin, first, events=True)
        events = given._replace(values=given.values.astype(self.dtype, copy=False))
        self._add_events(events, shape, origin, first)
        if self.S.dtype.kind == "f":
            self._refuse_sums(first, first + len(events.bounds) - 1)

    @abstractmethod
    def _add_events(
        self, events: Events, shape: tuple[int, int], origin: tuple[int, int], first: int
    ) -> None:
        """Add a tile of events, of which only their number and dtype have been checked."""

    def _lookup(self, shape: tuple[int, int], origin: tuple[int, int]) -> NDArray[Any]:
        """`Plan.lookup` of a part of the detector, flat."""
        rows, cols = (slice(o, o + n) for o, n in zip(origin, shape, strict=True))
        return np.ascontiguousarray(self.plan.lookup[rows, cols]).reshape(-1)

    def finish(self) -> None:  # noqa: B027 - engines that add in place are done already
        """Complete `A` and `S`; nothing is added afterwards."""

    def _check(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        origin: tuple[int, int],
        first: int,
        *,
        events: bool,
    ) -> None:
        if events != self.events:
            raise ValueError(
                f"this engine takes {'events' if self.events else 'frames'}: make one with "
                f"events={events}."
            )
        check_tile(shape, origin, first, len(self.index), self.plan.detector_shape)
        if dtype.newbyteorder("=") != self._given:
            raise ValueError(f"tile of dtype {dtype}: expected {self._given}.")

    def _check_range(self, frames: NDArray[Any], origin: tuple[int, int], first: int) -> None:
        largest = np.iinfo(np.int64).max // len(self.plan.pixels)
        rows, cols = self._pixels_within(frames, origin)
        if not len(frames) or not len(rows):
            return
        # Nearly always, the box around the bright field settles it without a copy.
        box = frames[:, rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
        if box.max() <= largest and box.min() >= -largest:
            return
        values = frames[:, rows, cols]
        bad = (values > largest) | (values < -largest)
        if bad.any():
            t, m = np.argwhere(bad)[0]
            raise ValueError(
                f"{self._place(origin, first, t, rows[m], cols[m])} is {values[t, m]}: expected at "
                f"most {largest} for exact sums of 64-bit integers. Exclude the pixel with "
                "`bf_mask` or repair the data."
            )

    def _refuse_values(self, frames: NDArray[Any], origin: tuple[int, int], first: int) -> None:
        """Raise if a value is not finite, or too large."""
        rows, cols = self._pixels_within(frames, origin)
        values = frames[:, rows, cols]
        bad = ~is_small(values)
        if bad.any():
            t, m = np.argwhere(bad)[0]
            raise ValueError(
                f"{self._place(origin, first, t, rows[m], cols[m])} is {values[t, m]}: expected "
                f"finite values up to {LARGEST:g}. Exclude the pixel with `bf_mask` or repair the "
                "data."
            )

    def _refuse_outside(self, frame: int) -> NoReturn:
        """Say that a frame has an event off the detector."""
        raise ValueError(
            f"frame at scan position {self._position(frame)} has an event off the detector, "
            f"{self.plan.detector_shape}, or the part of it that the tile is of: check the "
            "detector's shape, or repair the data."
        )

    def _refuse_value(self, frame: int) -> NoReturn:
        """Say that a frame has an event of a value that cannot be added."""
        low, high = value_range(self.dtype)
        raise ValueError(
            f"frame at scan position {self._position(frame)} has an event in the bright field "
            f"whose value is not from {low} to {high}. Exclude the pixel with `bf_mask` or repair "
            "the data."
        )

    def _refuse_sums(self, first: int = 0, stop: int | None = None) -> None:
        """Raise if the values were small enough, but the sum of one of the frames is not."""
        small = is_small(self.S[first:stop])
        if not small.all():
            frame = first + int(np.argmin(small))
            raise ValueError(
                f"the bright-field sum of the frame at scan position {self._position(frame)} is "
                f"{self.S[frame]:.3g}: expected at most {LARGEST:g}. Repair the data."
            )

    def _pixels_within(
        self, frames: NDArray[Any], origin: tuple[int, int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of a tile's pixels in use, counted from its origin."""
        pixels = self.plan.pixels - np.asarray(origin)
        rows, cols = pixels[((pixels >= 0) & (pixels < frames.shape[1:])).all(axis=1)].T
        return rows, cols

    def _place(self, origin: tuple[int, int], first: int, t: int, row: int, col: int) -> str:
        row, col = row + origin[0], col + origin[1]
        return f"frame at scan position {self._position(first + t)}, detector pixel ({row}, {col})"

    def _position(self, frame: int) -> tuple[int, int]:
        return divmod(int(self.index[frame]), self.plan.scan_shape[1])
