"""What UDFs of this package share: their frames, the workers they run on, what they keep."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from libertem.common.backend import get_use_cuda
from libertem.common.buffers import BufferWrapper
from libertem.common.sparse import to_dense
from libertem.udf import UDF
from numpy.typing import NDArray

from ..accumulate import Stack, Window
from .keeping import Filling, Kept, Selection

__all__ = ["Buffer", "FramesUDF", "Unset"]


class Buffer(BufferWrapper):
    """Buffer in ordinary memory, which is touched where something is written only.

    LiberTEM's lie in shared memory and are filled with zeros: 2.5 us for every 4 KiB.
    """

    def allocate(self, lib: Any = None) -> None:  # noqa: ARG002
        """Make it, on the host, where engines put what they add."""
        self.replace_array(np.zeros(self.shape, self.dtype))


class Unset(BufferWrapper):
    """Buffer that has no memory until `postprocess` puts an array in its place."""

    def allocate(self, lib: Any = None) -> None:
        """Make nothing."""


class FramesUDF(UDF):
    """Takes the frames of one acquisition, dense or as events, wherever they are processed.

    It may keep some of their pixels, as a `Stack`.
    """

    _kept: Kept | None = None  # on the main node
    _filling: Filling | None = None  # of the partition

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        """Scan rows and columns, detector rows and columns that the UDF was made for."""
        raise NotImplementedError

    @property
    def _selection(self) -> Selection | None:
        """What is kept, if anything."""
        raise NotImplementedError

    @property
    def started(self) -> bool:
        """Whether the run has begun, and there is a stack."""
        return self._kept is not None

    @property
    def window(self) -> Window | None:
        """What of the frames memory holds, if not all; None before the run, too."""
        return None if self._kept is None else self._kept.window

    @property
    def stack(self) -> Stack:
        """What was kept so far; while the run goes on, its frames go on filling.

        Raises
        ------
        ValueError
            If the UDF has not been run, or keeps nothing.
        """
        if self._kept is None:
            none = "the UDF keeps no frames" if self._selection is None else "run the UDF first"
            raise ValueError(f"there is no stack yet: {none}.")
        return self._kept.stack

    def _keeping_buffers(self) -> dict[str, BufferWrapper]:
        """Declare what is sent of frames that are kept."""
        selection = self._selection
        if selection is None:
            return {}
        # On the main node, `Kept` has them all.
        index = np.empty(0, np.int64) if self._on_main else self._frames
        shape = Filling.buffer_shape(selection, index)
        return {
            "frames": Buffer("single", shape, selection.dtype, use="private"),
            "places": Buffer("single", shape[:1], np.int64, use="private"),
        }

    def _start_keeping(self) -> None:
        """Get ready to keep frames of a partition, or on the main node those of all."""
        selection = self._selection
        if selection is None:
            return
        if self._on_main:
            self._kept = Kept(selection)
            return
        own = [self.results.get_buffer(name).raw_data for name in ("frames", "places")]
        self._filling = Filling(selection, self._frames, *own)

    def _refuse_delayed(self, buffer: Any) -> None:
        """Refuse LiberTEM's executor "delayed", by a buffer: results are made when asked for."""
        if not isinstance(buffer, np.ndarray):
            raise ValueError(
                'LiberTEM\'s executor "delayed" takes no frames before results are asked for, so '
                "there would be no stack. Use another one, as in "
                'Context.make_with("threads").'
            )

    def _check_shape(self) -> None:
        """Refuse a data set of another shape than the UDF was made for."""
        shape = tuple(self.meta.dataset_shape)
        if shape != self._shape:
            raise ValueError(
                f"the data set has shape {shape}, the UDF was made for {self._shape}: construct it "
                "with shape=dataset.shape."
            )

    def get_backends(self) -> tuple[str, ...]:
        """Take arrays on the host on all workers: events as they are, else dense frames.

        Engines upload what they need themselves. So workers with a GPU name none of LiberTEM's
        backends for GPUs. With CUDA it would make dense frames of events; with CuPy's sparse arrays
        floats of integers, which are larger, exact only up to 53 bits, and copied while all waits.
        The main node names CUDA, or workers with a GPU would be given nothing to do, whether it has
        a GPU itself or not.
        """
        on_host = (self.BACKEND_SCIPY_CSR, self.BACKEND_SCIPY_CSR_ARRAY, self.BACKEND_NUMPY)
        # Workers ask before they say what the UDF is given.
        on_main = hasattr(self, "meta") and self._on_main
        on_gpu = not on_main and self._assigned
        return on_host if on_gpu else (*on_host, self.BACKEND_CUDA)

    @cached_property
    def _assigned(self) -> bool:
        """Whether LiberTEM assigned a GPU to this worker; it asks for backends ten times."""
        return get_use_cuda() is not None

    def get_preferred_input_dtype(self) -> Any:
        """Take frames in the data set's own dtype: integer sums are exact and less is read."""
        return self.USE_NATIVE_DTYPE

    def set_contiguous_views_for_tile(self, partition: Any, tile: Any) -> None:
        """Set no views of the buffers, which are not used: for all, a tile costs 8 us more."""

    @property
    def _on_main(self) -> bool:
        """Whether this is the main node, where the backend is not known."""
        return self.meta.array_backend is None

    @property
    def _events(self) -> bool:
        """Whether this worker gets events."""
        return self.meta.array_backend in (self.BACKEND_SCIPY_CSR, self.BACKEND_SCIPY_CSR_ARRAY)

    @property
    def _frames(self) -> NDArray[np.int64]:
        """Scan positions of the partition's frames."""
        first = self.meta.slice.origin[0]
        frames = np.arange(first, first + self.meta.slice.shape[0])
        # LiberTEM counts the frames within the region of interest.
        roi = self._roi
        return frames if roi is None else np.flatnonzero(roi)[frames]

    @property
    def _roi(self) -> NDArray[np.bool_] | None:
        """Region of interest as an array; LiberTEM hands on sparse ones, and lists as such."""
        if self.meta.roi is None:
            return None
        roi: NDArray[np.bool_] = to_dense(self.meta.roi)
        return roi.reshape(self._shape[:2])

    def _by_position(self, values: NDArray[Any]) -> NDArray[Any]:
        """Arrange one value for each frame as the scan, (Ny, Nx); 0 outside the region."""
        roi = self._roi
        if roi is None:
            return values.reshape(self._shape[:2])
        scan = np.zeros(self._shape[:2], dtype=values.dtype)
        scan[roi] = values
        return scan
