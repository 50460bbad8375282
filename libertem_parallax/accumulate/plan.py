"""Where the counts of every bright-field pixel go: index arithmetic, no physics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Plan", "check_pixels"]


@dataclass(frozen=True, eq=False)
class Plan:
    """Pixels to read, and where on the image their counts are added.

    Pixel ``pixels[m]`` of the frame at scan position ``r`` is added at ``u r + shifts[m]`` modulo
    the image shape ``u * scan_shape``, ``u = upsampling_factor``; or not at all if that is beyond
    the image and `wraps` is False.

    The accumulator holds the image as ``u * u`` interleaved sub-grids, because all scan positions
    are multiples of ``u``: a pixel always lands in the same sub-grid, and the targets of successive
    scan positions lie side by side. A halo as wide as the span of the shifts spares the engines the
    modulo; `fold` wraps it at the end.

    Parameters
    ----------
    scan_shape
        Scan positions ``(Ny, Nx)``.
    detector_shape
        Detector rows and columns.
    upsampling_factor
        ``u``.
    pixels : (M, 2) int64
        Rows and columns on the detector, in row-major order, none twice.
    shifts : (M, 2) int64
        Rows and columns on the image.
    wraps
        Whether what leaves the image on one side comes back on the other.

    Raises
    ------
    ValueError
        If there is no pixel, one is off the detector, or they are not in order.
    """

    scan_shape: tuple[int, int]
    detector_shape: tuple[int, int]
    upsampling_factor: int
    pixels: NDArray[np.int64]
    shifts: NDArray[np.int64]
    wraps: bool = True

    def __post_init__(self) -> None:
        """Refuse what would make an engine read or write out of bounds."""
        check_pixels(self.pixels, self.detector_shape)
        if self.shifts.shape != self.pixels.shape:
            raise ValueError(
                f"shifts: expected the shape of pixels {self.pixels.shape}, "
                f"got {self.shifts.shape}."
            )

    @property
    def image_shape(self) -> tuple[int, int]:
        """Shape of the image, ``u * scan_shape``."""
        u, (ny, nx) = self.upsampling_factor, self.scan_shape
        return u * ny, u * nx

    @cached_property
    def _steps(self) -> NDArray[np.int64]:
        """Shifts in whole scan positions; wrapped where the halo would exceed the scan."""
        steps = self.shifts // self.upsampling_factor
        for axis, n in enumerate(self.scan_shape):
            if self.wraps and np.ptp(steps[:, axis]) >= n:
                steps[:, axis] %= n
        return steps

    @cached_property
    def _lowest(self) -> tuple[int, int]:
        """Least of the steps along both axes."""
        y, x = self._steps.min(axis=0)
        return int(y), int(x)

    @cached_property
    def accumulator_shape(self) -> tuple[int, int, int, int]:
        """Shape of the accumulator: sub-grid row and column, scan row and column with halo."""
        u, (ny, nx), lowest = self.upsampling_factor, self.scan_shape, self._lowest
        halo_y, halo_x = self._steps.max(axis=0) - lowest
        return u, u, ny + int(halo_y), nx + int(halo_x)

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Flat index into the accumulator at which each pixel of the first frame is added, (M,).

        For the frame at scan position ``(y, x)``, ``y * accumulator_shape[3] + x`` is to be added.
        """
        where = np.hstack([self.shifts % self.upsampling_factor, self._steps - self._lowest])
        targets: NDArray[np.int64] = np.ravel_multi_index(tuple(where.T), self.accumulator_shape)
        return targets

    @cached_property
    def lookup(self) -> NDArray[np.int32] | NDArray[np.int64]:
        """Entry of `targets` for every pixel of the detector; negative for those not in use.

        These have ``~`` of any entry: who adds zero for them, to be spared a branch, then finds
        places that are spread. Of the detector's shape; of 32 bits where these suffice, since it
        should fit the cache.
        """
        size = int(np.prod(self.accumulator_shape))
        dtype = np.int32 if size <= np.iinfo(np.int32).max else np.int64
        lookup = ~np.resize(self.targets.astype(dtype), self.detector_shape)
        lookup[tuple(self.pixels.T)] = self.targets
        return lookup

    @property
    def histogram(self) -> NDArray[np.int64]:
        """Number of pixels by shift modulo the image, in sub-grids, (u, u, Ny, Nx)."""
        u = self.upsampling_factor
        histogram = np.zeros(self.folded_shape, dtype=np.int64)
        where = np.hstack([self.shifts % u, self.shifts // u % self.scan_shape])
        np.add.at(histogram, tuple(where.T), 1)
        return histogram

    def spread(self, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[int, int]]:
        """Sum weights of pixels by shift, where nothing wraps.

        Parameters
        ----------
        weights : (M,) float64
            One for each pixel.

        Returns
        -------
        (u, u, rows, columns) float64
            In sub-grids.
        tuple of int
            Shift of the first entry in steps of the scan.
        """
        u, (ny, nx) = self.upsampling_factor, self.scan_shape
        rows, cols = self.accumulator_shape[2:]
        spread = np.zeros((u, u, rows - ny + 1, cols - nx + 1))
        where = np.hstack([self.shifts % u, self._steps - self._lowest])
        np.add.at(spread, tuple(where.T), weights)
        return spread, self._lowest

    @property
    def folded_shape(self) -> tuple[int, int, int, int]:
        """Shape of the image as sub-grids: sub-grid row and column, scan row and column."""
        return self.upsampling_factor, self.upsampling_factor, *self.scan_shape

    @cached_property
    def digest(self) -> int:
        """Number that is the same for equal plans, in all processes, and for no others: 63 bits.

        What was added under one plan must not be taken for what was added under another.
        """
        digest = blake2b(digest_size=8)
        digest.update(
            repr(
                (self.scan_shape, self.detector_shape, self.upsampling_factor, self.wraps)
            ).encode()
        )
        for values in (self.pixels, self.shifts):
            digest.update(np.ascontiguousarray(values, dtype="<i8").tobytes())
        # Zero is left for what was added under no plan.
        return int.from_bytes(digest.digest(), "little") >> 1 or 1

    def fold(
        self,
        A: NDArray[Any],
        out: NDArray[Any] | None = None,
        frames: NDArray[np.int64] | None = None,
    ) -> NDArray[Any]:
        """Wrap the halo of an accumulator, or cut it off.

        Parameters
        ----------
        A : accumulator_shape
            The accumulator.
        out : folded_shape, or (u, u, count, Nx) with the `count` of `part`
            Where to write it. Default: a new array.
        frames
            If only some were added: their scan positions, for `part`. Default: all of them.

        Returns
        -------
        like `out`
            Of the same dtype as `A`; ``(a, b, y, x)`` is pixel ``(u y + a, u x + b)`` of the image.
        """
        ny, nx = self.scan_shape
        first, count = (0, ny) if frames is None else self.part(frames)
        u, (lowest_y, lowest_x) = self.upsampling_factor, self._lowest
        if self.wraps:
            along_x = _wrap(A.shape[3], lowest_x, nx)
            if count < ny:
                along_y = [(self._reach(first, count), slice(0, count))]
            else:
                along_y = _wrap(A.shape[2], lowest_y, ny)
        else:
            along_y = [_overlap(A.shape[2], lowest_y - first, count)]
            along_x = [_overlap(A.shape[3], lowest_x, nx)]
        # Nearly always, the first piece covers all: to copy it is quicker than to add it to zeros.
        (_, to_rows), (_, to_cols) = along_y[0], along_x[0]
        whole = to_rows.stop - to_rows.start == count and to_cols.stop - to_cols.start == nx
        if out is None:
            out = np.empty((u, u, count, nx), A.dtype)
        if not whole:
            out[:] = 0
        for rows, to_rows in along_y:
            for cols, to_cols in along_x:
                to, piece = out[:, :, to_rows, to_cols], A[:, :, rows, cols]
                if whole:
                    to[:], whole = piece, False
                else:
                    to += piece
        return out

    def part(self, frames: NDArray[np.int64]) -> tuple[int, int]:
        """Tell to which rows of the folded accumulator some frames are added.

        Parameters
        ----------
        frames : (F,) int64
            Their scan positions ``y * Nx + x``, ascending.

        Returns
        -------
        first, count
            Rows from `first` on, modulo ``Ny``; ``0, Ny`` if these are all.
        """
        ny, nx = self.scan_shape
        lowest, highest = (int(frames[0]) // nx, int(frames[-1]) // nx) if len(frames) else (0, 0)
        count = highest - lowest + self.accumulator_shape[2] - ny + 1
        if not self.wraps:
            first = min(max(lowest + self._lowest[0], 0), ny - 1)
            return first, min(max(lowest + self._lowest[0] + count, first + 1), ny) - first
        return ((lowest + self._lowest[0]) % ny, count) if count < ny else (0, ny)

    def reach(self, frames: NDArray[np.int64]) -> slice:
        """Tell which rows of the accumulator `fold` reads for some frames.

        Parameters
        ----------
        frames : (F,) int64
            Their scan positions, as for `part`.

        Returns
        -------
        slice
            Other rows may hold anything.
        """
        return self._reach(*self.part(frames))

    def _reach(self, first: int, count: int) -> slice:
        length, ny = self.accumulator_shape[2], self.scan_shape[0]
        if not self.wraps:
            return _overlap(length, self._lowest[0] - first, count)[0]
        if count == ny:
            return slice(0, length)
        start = (first - self._lowest[0]) % ny
        return slice(start, start + count)

    def add_part(self, part: NDArray[Any], first: int, folded: NDArray[Any]) -> None:
        """Add rows of a folded accumulator, from `first` on, to the whole of it."""
        for rows, wrapped_rows in _wrap(part.shape[2], first, self.scan_shape[0]):
            folded[:, :, wrapped_rows] += part[:, :, rows]


def check_pixels(pixels: NDArray[np.int64], detector_shape: tuple[int, int]) -> None:
    """Refuse what is no list of pixels of a detector.

    Parameters
    ----------
    pixels : (M, 2) int64
        Their rows and columns.
    detector_shape
        Rows and columns of the detector.

    Raises
    ------
    ValueError
        If there is no pixel, one is off the detector, or they are not in row-major order.
    """
    if pixels.ndim != 2 or pixels.shape[1:] != (2,) or not len(pixels):
        raise ValueError(f"pixels: expected shape (M, 2) with M > 0, got {pixels.shape}.")
    if (pixels < 0).any() or (pixels >= detector_shape).any():
        raise ValueError(f"pixels: all must lie on the detector {detector_shape}.")
    flat = pixels[:, 0] * detector_shape[1] + pixels[:, 1]
    if (np.diff(flat) <= 0).any():
        raise ValueError("pixels: expected row-major order without duplicates.")


def _wrap(length: int, lowest: int, n: int) -> list[tuple[slice, slice]]:
    """Cut positions ``lowest ... lowest + length`` where they wrap modulo `n`; longest first."""
    start, pieces = 0, []
    while start < length:
        wrapped = (start + lowest) % n
        stop = min(length, start + n - wrapped)
        pieces.append((slice(start, stop), slice(wrapped, wrapped + stop - start)))
        start = stop
    return sorted(pieces, key=lambda piece: piece[0].start - piece[0].stop)


def _overlap(length: int, start: int, count: int) -> tuple[slice, slice]:
    """Where positions ``start ... start + length`` and ``0 ... count`` overlap, in both."""
    low, high = max(start, 0), max(min(start + length, count), max(start, 0))
    return slice(low - start, high - start), slice(low, high)
