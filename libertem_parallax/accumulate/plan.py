"""Where the counts of every bright-field pixel go: index arithmetic, no physics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, NamedTuple

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

    def fold(self, A: NDArray[Any]) -> NDArray[Any]:
        """Wrap the halo of an accumulator, or cut it off.

        Parameters
        ----------
        A : accumulator_shape
            The accumulator.

        Returns
        -------
        folded_shape
            Of the same dtype as `A`; ``(a, b, y, x)`` is pixel ``(u y + a, u x + b)`` of the image.
        """
        folded = np.empty(self.folded_shape, A.dtype)
        # Nearly always, the first piece covers all: to copy it is quicker than to add it to zeros.
        (rows, columns), *others = self._pieces(A, 0)
        if folded[:, :, rows.to, columns.to].shape == folded.shape:
            folded[:] = A[:, :, rows.of, columns.of]
        else:
            folded[:], others = 0, [(rows, columns), *others]
        for rows, columns in others:
            folded[:, :, rows.to, columns.to] += A[:, :, rows.of, columns.of]
        return folded

    def reach(self, frames: NDArray[np.int64]) -> slice:
        """Tell to which rows of the accumulator some frames are added.

        Parameters
        ----------
        frames : (F,) int64
            Their scan positions ``y * Nx + x``, ascending.

        Returns
        -------
        slice
            One row, at least.
        """
        ny, nx = self.scan_shape
        lowest, highest = (int(frames[0]) // nx, int(frames[-1]) // nx) if len(frames) else (0, 0)
        return slice(lowest, highest + 1 + self.accumulator_shape[2] - ny)

    def add(self, rows: NDArray[Any], first: int, folded: NDArray[Any]) -> None:
        """Add some rows of an accumulator, from the `first` on, to a folded one.

        Parameters
        ----------
        rows : (u, u, count, columns of the accumulator)
            Such as `reach` tells.
        first
            Which row of the accumulator is the first of these.
        folded : folded_shape
            To be added to, as by `fold`.
        """
        for own, columns in self._pieces(rows, first):
            folded[:, :, own.to, columns.to] += rows[:, :, own.of, columns.of]

    def _pieces(self, A: NDArray[Any], first: int) -> list[tuple[_Piece, _Piece]]:
        """Cut rows of an accumulator, from the `first` on, where they wrap; the largest first."""
        cut = _wrap if self.wraps else _overlap
        along_y, along_x = (
            cut(length, lowest + begin, n)
            for length, lowest, begin, n in zip(
                A.shape[2:], self._lowest, (first, 0), self.scan_shape, strict=True
            )
        )
        return [(rows, columns) for rows in along_y for columns in along_x]


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


class _Piece(NamedTuple):
    """Successive rows or columns of an accumulator, and which they are when it is folded."""

    of: slice
    to: slice


def _wrap(length: int, start: int, n: int) -> list[_Piece]:
    """Cut positions ``start ... start + length`` where they wrap modulo `n`; longest first."""
    pieces, done = [], 0
    while done < length:
        wrapped = (done + start) % n
        stop = min(length, done + n - wrapped)
        pieces.append(_Piece(slice(done, stop), slice(wrapped, wrapped + stop - done)))
        done = stop
    return sorted(pieces, key=lambda piece: piece.of.start - piece.of.stop)


def _overlap(length: int, start: int, n: int) -> list[_Piece]:
    """Cut off of positions ``start ... start + length`` what is not among ``0 ... n``."""
    low, high = max(start, 0), max(min(start + length, n), max(start, 0))
    return [_Piece(slice(low - start, high - start), slice(low, high))]
