"""The bright field of all frames, kept in memory to be added again under any plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from .dtypes import accumulator_dtype, native_dtype
from .engine import Engine
from .fill import Fill
from .kept import columns_of, holds, kept_engine
from .plan import Plan, check_pixels
from .threads import cores, share

__all__ = ["Blocks", "Stack", "check_stack", "mask_pixels"]

_Made = TypeVar("_Made", bound=NDArray[Any])
_T = TypeVar("_T")

#: Images of some pixels: which of them, and (m, Ny, Nx) float32.
Blocks = Iterable[tuple[slice, Any]]

#: Values that a thread should have to add at least, or starting it takes longer.
_THREAD_VALUES = 1 << 21

#: Frames that are added at once where some are missing between them: those with a gap are copied.
_SPLIT = 512

#: Values of images that are worked on at once: they stay in the cache.
_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class Stack:
    """Some detector pixels of all frames of a scan.

    A plan that uses these pixels, or some of them, adds them as often as it is wanted, without the
    frames: a series, a search, a slider. What is not scanned yet is zero and adds nothing.

    Parameters
    ----------
    frames : (Ny Nx, M)
        Values by scan position in row-major order and by pixel; C-contiguous, of a dtype that
        `native_dtype` returns. Not copied: it may be filled while it is used.
    pixels : (M, 2) int64
        Their rows and columns on the detector, in row-major order, none twice.
    scan_shape, detector_shape
        Rows and columns of each.
    scanned : (Ny, Nx) bool
        Scan positions that are there. No others are added: those may come meanwhile.

    Raises
    ------
    ValueError
        If shapes do not fit together, a pixel is off the detector, or they are not in order.
    TypeError
        If values of this dtype cannot be added.
    """

    frames: NDArray[Any]
    pixels: NDArray[np.int64]
    scan_shape: tuple[int, int]
    detector_shape: tuple[int, int]
    scanned: NDArray[np.bool_]

    def __post_init__(self) -> None:
        """Refuse what would be added wrongly."""
        check_pixels(self.pixels, self.detector_shape)
        accumulator_dtype(self.frames.dtype, len(self.pixels))
        shape = self.scan_shape[0] * self.scan_shape[1], len(self.pixels)
        if (
            self.frames.shape != shape
            or self.frames.dtype != native_dtype(self.frames.dtype)
            or not self.frames.flags.c_contiguous
        ):
            raise ValueError(
                f"frames: expected a C-contiguous array of shape {shape} and dtype "
                f"{native_dtype(self.frames.dtype)}, got {self.frames.shape} and "
                f"{self.frames.dtype}, {'' if self.frames.flags.c_contiguous else 'not '}"
                "C-contiguous."
            )
        if self.scanned.shape != self.scan_shape or self.scanned.dtype != bool:
            raise ValueError(
                f"scanned: expected booleans of shape {self.scan_shape}, got "
                f"{self.scanned.dtype} of shape {self.scanned.shape}."
            )

    @classmethod
    def from_array(cls, data: Any, mask: NDArray[np.bool_] | None = None) -> Self:
        """Copy pixels out of a scan that is in memory, or mapped into it.

        Parameters
        ----------
        data : (Ny, Nx, rows, columns)
            The frames: booleans, integers, or floating point numbers of up to 64 bits.
        mask : (rows, columns) bool
            Pixels to take. Default: all.

        Returns
        -------
        Stack
            In the dtype of `data`: see `native_dtype`.

        Raises
        ------
        ValueError
            If shapes do not fit, or no pixel is taken.
        TypeError
            If values of this dtype cannot be added.
        """
        if len(data.shape) != 4:
            raise ValueError(
                f"data of shape {data.shape}: expected scan rows and columns, detector rows and "
                "columns. Reshape it."
            )
        ny, nx, *detector = data.shape
        shape = int(detector[0]), int(detector[1])
        pixels = mask_pixels(mask, shape)
        accumulator_dtype(data.dtype, len(pixels))
        frames = np.zeros((ny * nx, len(pixels)), native_dtype(data.dtype))
        fill = Fill(frames, pixels, shape, np.arange(ny * nx), nx)
        for y, row in enumerate(data):
            fill.add(np.asarray(row), first=y * nx)
        return cls(frames, pixels, (ny, nx), shape, np.ones((ny, nx), bool))

    def reading(self) -> AbstractContextManager[Stack]:
        """Use `frames` while they are sure to stay: those of some stacks come and go."""
        return nullcontext(self)

    def select(self, mask: NDArray[np.bool_]) -> Self:
        """Take some of the pixels.

        Parameters
        ----------
        mask : detector_shape, bool
            Pixels to take; True where the stack has none is no error.

        Returns
        -------
        Stack
            A copy.

        Raises
        ------
        ValueError
            If the mask has another shape, or no pixel is left.
        """
        taken = np.zeros(self.detector_shape, bool)
        taken[tuple(self.pixels.T)] = True
        pixels = mask_pixels(taken & _mask(mask, self.detector_shape), self.detector_shape)
        frames = np.ascontiguousarray(self.frames[:, self.columns(pixels)])
        return replace(self, frames=frames, pixels=pixels, scanned=self.scanned.copy())

    def add(self, plan: Plan, threads: int | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """Add all frames under a plan.

        Parameters
        ----------
        plan
            For this scan and detector. It may use some of the stack's pixels only.
        threads
            How many to use at most. Default: one for each core that this process may use. Sums of
            integers do not depend on it.

        Returns
        -------
        A : plan.folded_shape
            Sum of the shifted frames, as `Plan.fold` returns it.
        S : (Ny, Nx)
            Sum of each frame over the plan's pixels. Both of `accumulator_dtype`.

        Raises
        ------
        ValueError
            If the plan is for another scan or detector, or uses pixels that the stack does not
            have; or a value cannot be added: see `Engine.add`.
        """
        self._check(plan)
        if not holds(self.pixels, plan):
            self.columns(plan.pixels)  # raises
        dtype = accumulator_dtype(self.frames.dtype, len(plan.pixels))
        whole = bool(self.scanned.all())
        there = np.arange(self.scanned.size) if whole else np.flatnonzero(self.scanned)
        threads, values = cores() if threads is None else threads, len(there) * len(plan.pixels)
        count = max(1, min(threads, len(there), values // _THREAD_VALUES))
        # This thread begins first: it takes more, by what it adds meanwhile.
        lead = _THREAD_VALUES / 2 / len(plan.pixels) if count > 1 else 0.0
        cuts = [0, *(round(lead + (len(there) - lead) * i / count) for i in range(1, count + 1))]
        S = np.zeros(len(there), dtype)
        # Made before threads begin: their Python would hold up that of the others.
        engines = [
            kept_engine(
                self.frames.dtype,
                self.pixels,
                plan,
                there[start:stop],
                np.empty(plan.accumulator_shape, dtype),
                S[start:stop],
            )
            for start, stop in pairwise(cuts if len(there) else ())
        ]

        def add(engine: Engine) -> None:
            index, first = engine.index, 0
            engine.A[:, :, plan.reach(index)] = 0
            for some in _side_by_side(index):
                own: Any = slice(int(some[0]), int(some[-1]) + 1)
                if own.stop - own.start > len(some):
                    own = some
                engine.add(self.frames[own][:, None], first=first)
                first += len(some)
            engine.finish()

        share(add, engines, count)
        if count == 1 and whole:
            return plan.fold(engines[0].A), S.reshape(self.scan_shape)
        A = np.zeros(plan.folded_shape, dtype)
        for engine in engines:
            rows = plan.reach(engine.index)
            plan.add(engine.A[:, :, rows], rows.start, A)
        if not whole:
            given, S = S, np.zeros(self.scanned.size, dtype)
            S[there] = given
        return A, S.reshape(self.scan_shape)

    def make(
        self, plan: Plan, function: Callable[[Any, Any], _Made], threads: int | None = None
    ) -> _Made:
        """Add all frames under a plan, and make something of the sums where they are.

        Parameters
        ----------
        plan, threads
            See `add`.
        function
            Called with the sums A and S that `add` returns, or with CuPy's arrays of the same if
            the stack is on a GPU, of which NumPy's functions make others. Returns either.

        Returns
        -------
        array
            What the function returned, on the host.

        Raises
        ------
        ValueError
            See `add`.
        """
        return function(*self.add(plan, threads))

    def with_images(self, columns: NDArray[np.int64], function: Callable[[Blocks], _T]) -> _T:
        """Make something of the images that some pixels see, where they are.

        Parameters
        ----------
        columns : (M,) int64
            Of `frames`: see `columns`.
        function
            Called once, with blocks of images: which of the M they are, and the images (m, Ny, Nx)
            float32, which it may overwrite. They are CuPy's arrays if the stack is on a GPU, of
            which NumPy's functions make others. If the GPU fails, it is called again for the CPU.

        Returns
        -------
        object
            What the function returned; arrays may be CuPy's.
        """
        return function(self._blocks(columns))

    def _blocks(self, columns: NDArray[np.int64]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        step = max(1, _BLOCK // max(1, len(self.frames)))
        for start in range(0, len(columns), step):
            part = slice(start, min(start + step, len(columns)))
            images = np.ascontiguousarray(self.frames[:, columns[part]].T, dtype=np.float32)
            yield part, images.reshape(-1, *self.scan_shape)

    @property
    def on_host(self) -> Stack:
        """The same frames, to be used by the CPU only."""
        return self

    def _check(self, plan: Plan) -> None:
        for name, of, own in (
            ("scan", plan.scan_shape, self.scan_shape),
            ("detector", plan.detector_shape, self.detector_shape),
        ):
            if tuple(of) != tuple(own):
                raise ValueError(
                    f"the plan is for a {name} of {of[0]} x {of[1]}, the stack has "
                    f"{own[0]} x {own[1]}: make the plan with the stack's shape."
                )

    def columns(self, pixels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tell where in the stack some pixels are.

        Parameters
        ----------
        pixels : (M, 2) int64
            Their rows and columns on the detector.

        Returns
        -------
        (M,) int64
            Columns of `frames`.

        Raises
        ------
        ValueError
            If one is not there.
        """
        columns, missing = columns_of(self.pixels, pixels)
        if missing.any():
            row, col = pixels[np.argmax(missing)]
            raise ValueError(
                f"the stack does not have {missing.sum()} of the {len(pixels)} pixels that are "
                f"needed, such as ({row}, {col}): use others, or keep more of the detector."
            )
        return columns


def _side_by_side(index: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Split scan positions such that most parts have no gap, and the others are small."""
    if len(index) and index[-1] - index[0] + 1 == len(index):
        yield index
        return
    for start in range(0, len(index), _SPLIT):
        yield index[start : start + _SPLIT]


def check_stack(stack: Any) -> None:
    """Refuse what is no stack.

    Raises
    ------
    TypeError
        The message says how to make one.
    """
    if not isinstance(stack, Stack):
        raise TypeError(
            f"stack: expected a stack of frames, got {type(stack).__name__}. Give the `stack` of a "
            "StackUDF after its run, or make one of an array by "
            "libertem_parallax.accumulate.Stack.from_array."
        )


def mask_pixels(
    mask: NDArray[np.bool_] | None, detector_shape: tuple[int, int]
) -> NDArray[np.int64]:
    """List the pixels of a mask.

    Parameters
    ----------
    mask : detector_shape, bool
        Pixels to take. Default: all.
    detector_shape
        Rows and columns of the detector.

    Returns
    -------
    (M, 2) int64
        Rows and columns, in row-major order.

    Raises
    ------
    ValueError
        If the mask has another shape, or is empty.
    """
    pixels = np.argwhere(
        np.ones(detector_shape, bool) if mask is None else _mask(mask, detector_shape)
    )
    if not len(pixels):
        raise ValueError("the mask takes no pixel of the detector: set those to take to True.")
    return pixels


def _mask(mask: NDArray[np.bool_], detector_shape: Sequence[int]) -> NDArray[np.bool_]:
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != tuple(detector_shape):
        raise ValueError(
            f"mask: expected booleans of the detector's shape {tuple(detector_shape)}, True for "
            f"pixels to take; got {mask.dtype} of shape {mask.shape}."
        )
    return mask
