"""Keeps some detector pixels of all frames, to be added again under any plan."""

from __future__ import annotations

import math
import warnings
from typing import Any, Self

import numpy as np
import psutil
from libertem.common.buffers import BufferWrapper
from numpy.typing import DTypeLike, NDArray

from ..accumulate import accumulator_dtype, mask_pixels, native_dtype
from .frames import FramesUDF
from .keeping import Selection

__all__ = ["StackUDF"]

#: Of the memory that is free: what a stack may take if nothing is said.
_SHARE = 1 / 4

#: For frames that are events, any number of which may hit a pixel.
_EVENTS_DTYPE = "uint16"


class StackUDF(FramesUDF):
    """Keeps some detector pixels of all frames as a `Stack`.

    Construct it with `for_dataset`, run it alone or beside others, and take `stack`, even while the
    run goes on.

    Parameters
    ----------
    shape
        Scan rows and columns, detector rows and columns of the data set.
    dtype
        Of the stack.
    pixels : (M, 2) int64
        Rows and columns of the pixels to keep, in row-major order.
    region
        Rows and columns of the scan to keep.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        dtype: np.dtype[Any],
        pixels: NDArray[np.int64],
        region: tuple[slice, slice],
    ) -> None:
        super().__init__(shape=shape, dtype=dtype, pixels=pixels, region=region)

    @classmethod
    def for_dataset(
        cls,
        dataset: Any,
        mask: NDArray[np.bool_] | None = None,
        *,
        dtype: DTypeLike | None = None,
        limit: int | None = None,
    ) -> Self:
        """Construct the UDF for a data set or an acquisition, within a limit of memory.

        Parameters
        ----------
        dataset
            LiberTEM's. Nothing is read.
        mask : (detector rows, columns) bool
            Pixels to keep. Default: all.
        dtype
            Of the stack. A value that it does not hold is an error. Default: that of the data; of
            events uint16, as any number of them may hit a pixel.
        limit
            Bytes that the stack may take. Default: a quarter of the memory that is free.

        Returns
        -------
        StackUDF
            `nbytes` says what its stack will take.

        Raises
        ------
        ValueError
            If the data set does not have four dimensions, the mask has another shape than the
            detector or is empty, or the limit is less than a frame takes.
        TypeError
            If values of this dtype cannot be added.

        Warns
        -----
        UserWarning
            If all frames take more than the limit: the stack is of a part of the scan.
        """
        shape = tuple(int(n) for n in dataset.shape)
        if len(shape) != 4:
            raise ValueError(
                f"the data set has shape {shape}: expected scan rows and columns, detector rows "
                "and columns. Give nav_shape when loading it."
            )
        pixels = mask_pixels(mask, shape[2:])
        if dtype is None:
            # The first one is that of the data, the others are what it can be made.
            dense = dataset.array_backends[0] in (cls.BACKEND_NUMPY, cls.BACKEND_CUDA)
            dtype = dataset.dtype if dense else _EVENTS_DTYPE
        dtype = native_dtype(dtype)
        accumulator_dtype(dtype, len(pixels))
        limit = int(psutil.virtual_memory().available * _SHARE) if limit is None else limit
        region = _part(shape[:2], len(pixels) * dtype.itemsize, limit)
        udf = cls(shape, dtype, pixels, region)
        if udf.roi is not None:
            rows, cols = udf.scan_shape
            warnings.warn(
                f"{shape[0]} x {shape[1]} frames with {len(pixels)} pixels of {dtype} are "
                f"{_gib(math.prod(shape[:2]) * len(pixels) * dtype.itemsize)}, more than the limit "
                f"of {_gib(limit)}: the stack is of the middle {rows} x {cols} frames, "
                f"{_gib(udf.nbytes)}. Give a higher limit, fewer pixels, or a smaller dtype.",
                stacklevel=2,
            )
        return udf

    @property
    def nbytes(self) -> int:
        """Memory that the stack takes."""
        return self.selection.nbytes

    @property
    def scan_shape(self) -> tuple[int, int]:
        """Rows and columns of the scan that are kept: the stack's `scan_shape`."""
        return self.selection.scan_shape

    @property
    def roi(self) -> NDArray[np.bool_] | None:
        """Region of interest for ``Context.run_udf``, with which no more is read than is kept.

        None if all frames are kept.
        """
        kept = np.zeros(self.params.shape[:2], bool)
        kept[self.params.region] = True
        return None if kept.all() else kept

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        shape: tuple[int, int, int, int] = self.params.shape
        return shape

    @property
    def selection(self) -> Selection:
        """What is kept: for `ParallaxUDF.keeping`, so that one UDF does both."""
        params = self.params
        return Selection(params.shape, params.dtype, params.pixels, params.region)

    @property
    def _selection(self) -> Selection:
        return self.selection

    def get_result_buffers(self) -> dict[str, BufferWrapper]:
        """Declare the stack's frames; workers send those of their partition.

        Raises
        ------
        ValueError
            If the data set has another shape than the UDF was made for.
        """
        self._check_shape()
        return self._keeping_buffers()

    def preprocess(self) -> None:
        """Get ready for a partition."""
        self._start_keeping()
        if not self._on_main:
            self._first = self.meta.slice.origin[0]

    def process_tile(self, tile: Any) -> None:
        """Copy out of a tile: any frames of the partition, any part of the detector."""
        assert self._filling is not None
        first, row, column = map(int, self.meta.slice.origin)
        part = tuple(self.meta.slice.shape.sig) if self._events else None
        self._filling.add(tile, first - self._first, (row, column), part)

    def merge(self, dest: Any, src: Any) -> None:  # noqa: ARG002
        """Put a partition's frames where they belong."""
        assert self._kept is not None
        self._kept.merge(src.frames, src.places)

    def get_results(self) -> dict[str, Any]:
        """Give LiberTEM nothing to show: the stack is no image.

        Raises
        ------
        ValueError
            With LiberTEM's executor "delayed".
        """
        self._refuse_delayed(self.results.get_buffer("frames").raw_data)
        return {}


def _part(scan_shape: Any, frame: int, limit: int) -> tuple[slice, slice]:
    """Middle of a scan that takes no more bytes than the limit, at so many a frame."""
    ny, nx = scan_shape
    share = min(1.0, limit / (ny * nx * frame))
    rows = max(1, math.floor(ny * math.sqrt(share)))
    cols = min(nx, limit // (rows * frame))
    if not cols:
        raise ValueError(f"limit = {limit} bytes: a single frame of the stack takes {frame}.")
    y, x = (ny - rows) // 2, (nx - cols) // 2
    return slice(y, y + rows), slice(x, x + cols)


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
