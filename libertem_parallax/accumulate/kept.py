"""Adds frames of which some pixels were kept, side by side."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from .compiled import CompiledEngine
from .engine import Engine
from .plan import Plan

__all__ = ["add_kept", "columns_of", "holds", "kept_engine"]

# What partitions of a scan share: to make it anew would take as long as tens of frames.
_plans: WeakKeyDictionary[Plan, tuple[NDArray[np.int64], Plan | None]] = WeakKeyDictionary()


def holds(pixels: NDArray[np.int64], plan: Plan) -> bool:
    """Tell whether all pixels of a plan are among those that were kept.

    Parameters
    ----------
    pixels : (M, 2) int64
        That were kept, in row-major order.
    plan
        For frames of the same detector.
    """
    return _flat(plan, pixels) is not None


def add_kept(
    frames: NDArray[Any],
    pixels: NDArray[np.int64],
    plan: Plan,
    index: NDArray[np.int64],
    A: NDArray[Any],
    S: NDArray[Any],
) -> None:
    """Add frames of which some pixels were kept.

    Parameters
    ----------
    frames : (F, M)
        C-contiguous, of a dtype that `native_dtype` returns.
    pixels : (M, 2) int64
        Their rows and columns on the detector, in row-major order. They must have those of the
        plan: see `holds`.
    plan, index, A, S
        See `Engine`.

    Raises
    ------
    TypeError, ValueError
        See `Engine`.
    """
    engine = kept_engine(frames.dtype, pixels, plan, index, A, S)
    engine.add(frames[:, None])
    engine.finish()


def kept_engine(
    dtype: np.dtype[Any],
    pixels: NDArray[np.int64],
    plan: Plan,
    index: NDArray[np.int64],
    A: NDArray[Any],
    S: NDArray[Any],
) -> Engine:
    """Make what adds frames of which some pixels were kept.

    Parameters
    ----------
    dtype
        Of the frames.
    pixels, plan, index, A, S
        See `add_kept`.

    Returns
    -------
    Engine
        Takes them as frames of one row, (T, 1, M).

    Raises
    ------
    TypeError, ValueError
        See `Engine`.
    """
    flat = _flat(plan, pixels)
    assert flat is not None
    engine = _Engine(flat, dtype, index, A, S)
    engine.pixels = pixels
    return engine


def _flat(plan: Plan, pixels: NDArray[np.int64]) -> Plan | None:
    """Plan for frames of one row, which an engine takes kept pixels for; None if some lack."""
    known = _plans.get(plan)
    if known is None or not (known[0] is pixels or np.array_equal(known[0], pixels)):
        columns, missing = columns_of(pixels, plan.pixels)
        flat = None
        if not missing.any():
            flat = Plan(
                plan.scan_shape,
                (1, len(pixels)),
                plan.upsampling_factor,
                np.column_stack([np.zeros_like(columns), columns]),
                plan.shifts,
                plan.wraps,
            )
        known = _plans[plan] = pixels, flat
    return known[1]


def columns_of(
    own: NDArray[np.int64], wanted: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Tell where some pixels are among others, and which are not there.

    Parameters
    ----------
    own : (M, 2) int64
        Rows and columns of those that are there, in row-major order.
    wanted : (m, 2) int64
        Of those that are looked for.

    Returns
    -------
    columns : (m,) int64
        Number of each in `own`.
    missing : (m,) bool
        Those that are not there; their numbers mean nothing.
    """
    width = 1 + max(int(own[:, 1].max()), int(wanted[:, 1].max()))
    at, sought = (pixels[:, 0] * width + pixels[:, 1] for pixels in (own, wanted))
    columns = np.searchsorted(at, sought)
    return columns, at[np.minimum(columns, len(at) - 1)] != sought


class _Engine(CompiledEngine):
    """Calls pixels what they are on the detector."""

    pixels: NDArray[np.int64]

    def _place(self, origin: tuple[int, int], first: int, t: int, row: int, col: int) -> str:
        row, col = self.pixels[col]
        return super()._place(origin, first, t, row, col)
