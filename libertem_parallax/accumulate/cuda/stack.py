"""A stack on the device: uploaded once, then added again by a launch or two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..dtypes import accumulator_dtype, is_small
from ..plan import Plan
from ..stack import Blocks, Stack
from . import upload
from .device import (
    FRAMES,
    POSITIONS,
    gather_launch_shape,
    kernel,
    load_cupy,
    memory,
    to_device,
    turn_launch_shape,
)
from .upload import Resident

__all__ = ["CudaStack"]

_T = TypeVar("_T")

#: Scan positions, which kernels count with 32 bits, those of the last block included.
_MOST_POSITIONS = 2**31 - 1 - FRAMES * POSITIONS

#: Values of images that are worked on at once, and bytes that each of them takes then: itself, its
#: transform, what the library of transforms needs, and others of that size.
_BLOCK, _VALUE_BYTES = 1 << 24, 48


@dataclass(frozen=True, eq=False)
class CudaStack(Stack):
    """`Stack` that is also on a GPU, and is added there.

    Sums of integers are the same to the last bit.

    Parameters
    ----------
    frames, pixels, scan_shape, detector_shape, scanned
        See `Stack`. What is scanned is uploaded.
    device
        Number of the GPU.
    fall_back
        Whether the CPU goes on, with a warning, if the GPU fails later.

    Raises
    ------
    CudaError
        If the GPU cannot be used, or has too little memory.
    ValueError, TypeError
        See `Stack`.
    """

    device: int = 0
    fall_back: bool = False
    _resident: _Resident = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Upload what there is."""
        super().__post_init__()
        there = self.scanned
        resident = _Resident(self.frames, self.scan_shape, self.device)
        object.__setattr__(self, "_resident", resident)
        object.__setattr__(self, "scanned", np.zeros_like(there))
        resident.upload(self._fresh(there))
        self.scanned[...] = there

    @classmethod
    def of(cls, stack: Stack, device: int = 0, *, fall_back: bool = False) -> CudaStack:
        """Upload a stack, whose frames are shared; see `CudaStack`."""
        pixels, scan_shape, detector_shape = stack.pixels, stack.scan_shape, stack.detector_shape
        return cls(
            stack.frames, pixels, scan_shape, detector_shape, stack.scanned, device, fall_back
        )

    @property
    def works(self) -> bool:
        """Whether the GPU did not fail so far; if it did, the CPU adds, or nobody."""
        return not self._resident.failed

    def refresh(self, scanned: NDArray[np.bool_]) -> None:
        """Upload the frames that came in since: the GPU does not see them by itself.

        Parameters
        ----------
        scanned : scan_shape, bool
            Scan positions that are there by now.

        Raises
        ------
        CudaError
            If the GPU failed, unless the CPU goes on.
        """
        if fresh := self._fresh(scanned):
            self._on_gpu(lambda: self._resident.upload(fresh))
            self.scanned[...] |= scanned

    def add(self, plan: Plan, threads: int | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """Add all frames under a plan on the GPU, and copy the sums to the host.

        Parameters
        ----------
        plan
            See `Stack.add`.
        threads
            Where the CPU has to go on.

        Returns
        -------
        A, S
            See `Stack.add`.

        Raises
        ------
        CudaError
            If the GPU failed, unless the CPU goes on.
        ValueError
            See `Stack.add`.
        """
        sums = self._added(plan, self._resident.add_to_host)
        return super().add(plan, threads) if sums is None else sums

    def add_on_device(self, plan: Plan) -> tuple[Any, Any]:
        """Add all frames under a plan on the GPU, and leave the sums there.

        Parameters
        ----------
        plan
            See `Stack.add`.

        Returns
        -------
        A, S
            CuPy's arrays; complete.

        Raises
        ------
        CudaError
            If the GPU failed.
        ValueError
            See `Stack.add`; sums are not looked at.
        """
        self._check(plan)
        columns = self.columns(plan.pixels)
        if not self._resident.can_add(columns):
            super().add(plan)
        A, S = self._resident.add(plan, columns)
        return A.reshape(plan.folded_shape), S.reshape(self.scan_shape)

    def make(
        self, plan: Plan, function: Callable[[Any, Any], Any], threads: int | None = None
    ) -> Any:
        """Add all frames under a plan on the GPU, make something of the sums there, and copy that.

        Parameters
        ----------
        plan, function
            See `Stack.make`.
        threads
            Where the CPU has to go on.

        Returns
        -------
        array
            See `Stack.make`.

        Raises
        ------
        CudaError
            If the GPU failed, unless the CPU goes on.
        ValueError
            See `Stack.add`.
        """
        made = self._added(plan, partial(self._resident.make, function))
        return function(*super().add(plan, threads)) if made is None else made

    def with_images(self, columns: NDArray[np.int64], function: Callable[[Blocks], _T]) -> _T:
        """Make something of the images that some pixels see, on the GPU.

        Parameters
        ----------
        columns, function
            See `Stack.with_images`.

        Returns
        -------
        object
            What the function returned; arrays of CuPy's are complete.

        Raises
        ------
        CudaError
            If the GPU failed, or has too little memory, unless the CPU goes on.
        """
        made = self._on_gpu(lambda: (self._resident.with_images(columns, function),))
        return super().with_images(columns, function) if made is None else made[0]

    @property
    def on_host(self) -> Stack:
        """The same frames, to be used by the CPU only."""
        scanned = self.scanned.copy()
        return Stack(self.frames, self.pixels, self.scan_shape, self.detector_shape, scanned)

    def _fresh(self, scanned: NDArray[np.bool_]) -> list[tuple[int, int]]:
        """Find runs of scan positions that are to be uploaded."""
        edges = np.diff((scanned & ~self.scanned).reshape(-1).astype(np.int8), prepend=0, append=0)
        starts, stops = np.flatnonzero(edges > 0), np.flatnonzero(edges < 0)
        return list(zip(starts.tolist(), stops.tolist(), strict=True))

    def _added(self, plan: Plan, work: Callable[[Plan, NDArray[np.int64]], _T | None]) -> _T | None:
        """Add there, and more; None where the CPU has to: it tells what is wrong with a value."""
        self._check(plan)
        columns = self.columns(plan.pixels)
        if not plan.wraps or not self._resident.can_add(columns):
            return None
        return self._on_gpu(lambda: work(plan, columns))

    def _on_gpu(self, work: Callable[[], _T]) -> _T | None:
        """Do something there; None where the CPU has to go on."""
        return self._resident.or_none(work, "the stack is used", fall_back=self.fall_back)


class _Resident(Resident):
    """The stack's values on the device, one image for each pixel: see ``kernels/stack.cu``."""

    def __init__(self, frames: NDArray[Any], scan_shape: tuple[int, int], device: int) -> None:
        if len(frames) > _MOST_POSITIONS:
            raise ValueError(
                f"a stack of {len(frames)} frames: expected at most {_MOST_POSITIONS} on a GPU."
            )
        self.frames, self.scan_shape = frames, scan_shape
        self._turn = kernel(device, "turn", np.dtype(f"u{frames.itemsize}"))
        # Largest value of every pixel: of floats that are to be finite, of integers whose sum could
        # leave 64 bits.
        self._look = frames.dtype.kind == "f" or frames.itemsize == 8
        self._largest = np.zeros(frames.shape[1])
        self._S: tuple[NDArray[np.int64], Any] | None = None  # columns, and their sum
        doing = f", keeping a stack of {frames.nbytes / 2**30:.3g} GiB"
        size = max(upload.SLOT_BYTES, frames.shape[1] * frames.itemsize)
        super().__init__(device, frames.size, frames.dtype, doing, size)
        with self.working(doing):
            stream = self.slots[0].stream
            self.values.data.memset_async(0, frames.nbytes, stream)
            stream.synchronize()

    def upload(self, runs: list[tuple[int, int]]) -> None:
        """Upload frames from the first to before the second of each pair."""
        count = self.frames.shape[1]
        step = len(self.slots[0].host) // (count * self.frames.itemsize)
        with self.working(", uploading a stack", writing=True):
            self._S = None
            pieces = [
                slice(i, min(i + step, stop))
                for start, stop in runs
                for i in range(start, stop, step)
            ]
            for number, piece in enumerate(pieces):
                slot = self.slots[number % 2]
                slot.stream.synchronize()  # its last piece may be under way
                part = self.frames[piece]
                staged = slot.host[: part.nbytes].view(part.dtype).reshape(part.shape)
                staged[...] = part
                if self._look:  # while it is in the cache
                    largest = np.abs(staged.astype(np.float64)).max(axis=0)
                    np.maximum(self._largest, largest, out=self._largest)
                with slot.stream:
                    there = slot.copy(staged)
                    *shape, tiles = turn_launch_shape(len(part), count)
                    numbers = len(part), count, len(self.frames), piece.start, tiles
                    self._turn(*shape, (there, self.values, *map(np.int32, numbers)))
            for slot in self.slots:
                slot.stream.synchronize()

    def can_add(self, columns: NDArray[np.int64]) -> bool:
        """Tell whether these pixels are sure to have exact sums, or small floats only."""
        largest = self._largest[columns].max()
        if self.frames.dtype.kind == "f":
            return bool(is_small(largest))
        # With room for the rounding of the largest.
        return bool(largest < (1 - 1e-9) * np.iinfo(np.int64).max / len(columns))

    def add(self, plan: Plan, columns: NDArray[np.int64]) -> tuple[Any, Any]:
        """Add under a plan, and wait for it; the sums are flat."""
        cupy = load_cupy()
        u, positions = plan.upsampling_factor, len(self.frames)
        dtype = accumulator_dtype(self.frames.dtype, len(columns))
        with self.working(", adding a stack"):
            gather = kernel(self.device.id, "gather", self.frames.dtype, dtype)
            stream = self.slots[0].stream

            def gathered(shifts: NDArray[np.int64], u: int) -> Any:
                sums = cupy.empty(u * u * positions, dtype)
                table = [to_device(part) for part in _table(columns, shifts, u, self.scan_shape)]
                *shape, tiles = gather_launch_shape(u * u, positions)
                numbers = map(np.int32, (*self.scan_shape, tiles))
                with stream:
                    gather(*shape, (self.values, *table, sums, *numbers))
                stream.synchronize()
                return sums

            A = gathered(plan.shifts, u)
            if self._S is None or not np.array_equal(self._S[0], columns):
                # Sums of the frames are those of images that stay where they are.
                self._S = columns, gathered(np.zeros_like(plan.shifts), 1)
            return A, self._S[1]

    def add_to_host(
        self, plan: Plan, columns: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Add under a plan, and copy the sums; None where values are too large."""
        there = self.add(plan, columns)
        A, S = (np.zeros(shape, there[0].dtype) for shape in (plan.folded_shape, self.scan_shape))
        with self.working(", copying sums"):
            for sums, out in zip(there, (A, S), strict=True):
                self.slots[0].read(sums, out.reshape(-1))
        return (A, S) if S.dtype.kind != "f" or is_small(S).all() else None

    def make(
        self, function: Callable[[Any, Any], Any], plan: Plan, columns: NDArray[np.int64]
    ) -> NDArray[Any] | None:
        """Make something of the sums, and copy it; None where values are too large."""
        A, S = self.add(plan, columns)
        with self.working(", making an image of a stack"):
            if S.dtype.kind == "f" and not is_small(S).all():
                return None
            made = function(A.reshape(plan.folded_shape), S.reshape(self.scan_shape))
            image: NDArray[Any] = made if isinstance(made, np.ndarray) else made.get()
            return image

    def with_images(self, columns: NDArray[np.int64], function: Callable[[Blocks], _T]) -> _T:
        """Make something of the images of some pixels, and wait for it."""
        with self.working(", transforming the images of a stack"):
            made = function(self._blocks(columns))
            load_cupy().cuda.get_current_stream().synchronize()
            return made

    def _blocks(self, columns: NDArray[np.int64]) -> Iterator[tuple[slice, Any]]:
        images = self.values.reshape(-1, len(self.frames))
        most = min(_BLOCK, memory(self.device.id)[0] // _VALUE_BYTES)
        step = max(1, most // max(1, len(self.frames)))
        for start in range(0, len(columns), step):
            part = slice(start, min(start + step, len(columns)))
            taken = np.take(images, to_device(columns[part]), axis=0).astype(np.float32)
            yield part, taken.reshape(-1, *self.scan_shape)


def _table(
    columns: NDArray[np.int64], shifts: NDArray[np.int64], u: int, scan_shape: tuple[int, int]
) -> tuple[NDArray[np.int32], ...]:
    """Bounds, images and steps for `gather`, by sub-grid."""
    grid = (shifts % u) @ (u, 1)
    order = np.argsort(grid, kind="stable")
    bounds = np.searchsorted(grid[order], np.arange(u * u + 1))
    steps = (shifts // u % scan_shape)[order].reshape(-1)
    return tuple(part.astype(np.int32) for part in (bounds, columns[order], steps))
