"""Adding frames to an accumulator: one contract, several engines.

`Plan` says which pixels go where, `Engine` what is promised, `ENGINES` who keeps the promise;
`Stack` keeps frames to be added again.
Nothing here knows of physics or of LiberTEM.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .compiled import CompiledEngine
from .cuda import CudaEngine, CudaError, CudaStack
from .dtypes import LARGEST, accumulator_dtype, all_small, native_dtype
from .engine import Engine
from .fill import Fill
from .kept import add_kept, holds
from .latest import Latest, Window, can_slide
from .plain import PlainEngine
from .plan import Plan
from .stack import Blocks, Stack, check_stack, mask_pixels

__all__ = [
    "ENGINES",
    "LARGEST",
    "Blocks",
    "CudaError",
    "CudaStack",
    "Engine",
    "Fill",
    "Latest",
    "Plan",
    "Stack",
    "Window",
    "accumulator_dtype",
    "add_kept",
    "all_small",
    "can_slide",
    "check_stack",
    "fallen_back",
    "holds",
    "make_engine",
    "mask_pixels",
    "native_dtype",
    "place_stack",
]

#: Engines by the name that users give.
ENGINES: Mapping[str, type[Engine]] = MappingProxyType(
    {"cuda": CudaEngine, "numba": CompiledEngine, "numpy": PlainEngine}
)

#: Plans for which a GPU could not be used. Partitions that come later do not try again.
fallen_back: weakref.WeakSet[Plan] = weakref.WeakSet()
_lock = threading.Lock()


def make_engine(
    name: str,
    plan: Plan,
    dtype: DTypeLike,
    index: NDArray[np.int64],
    A: NDArray[Any],
    S: NDArray[Any],
    device: int | None = None,
    *,
    events: bool = False,
) -> Engine:
    """Make an engine by name, or the best one that works.

    Parameters
    ----------
    name
        A key of `ENGINES`; or ``"auto"``: CUDA where there is a GPU, else Numba.
    plan, dtype, index, A, S
        See `Engine`.
    device
        Number of the GPU to use; None where there is none.
    events
        See `Engine`.

    Returns
    -------
    Engine
        For one stretch of the scan.

    Raises
    ------
    CudaError
        If the GPU cannot be used and `name` is ``"cuda"``.
    TypeError, ValueError
        See `Engine`.

    Warns
    -----
    RuntimeWarning
        Once for a plan, if the GPU cannot be used and `name` is ``"auto"``.
    """
    if name == "cuda" or (name == "auto" and device is not None and plan not in fallen_back):
        try:
            return CudaEngine(plan, dtype, index, A, S, device or 0, events=events)
        except CudaError as error:
            if name == "cuda":
                raise
            with _lock:
                known = plan in fallen_back
                fallen_back.add(plan)
            if not known:
                warnings.warn(
                    f"frames are added on the CPU, since the GPU cannot be used. {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
    engine = ENGINES["numba" if name == "auto" else name]
    return engine(plan, dtype, index, A, S, events=events)


def place_stack(stack: Stack, engine: str = "auto", device: int | None = None) -> Stack:
    """Put a stack where it is added fastest.

    Parameters
    ----------
    stack
        On the CPU. What is returned shares its frames.
    engine
        ``"auto"``: a GPU if there is one that works, else the CPU. ``"cuda"``: a GPU or an error.
        ``"numba"``: the CPU.
    device
        Number of the GPU to use; None where there is none.

    Returns
    -------
    Stack
        To be added by the same calls, with the same sums of integers.

    Raises
    ------
    CudaError
        If the GPU cannot be used, or has too little memory, and `engine` is ``"cuda"``.
    ValueError
        For another engine.

    Warns
    -----
    RuntimeWarning
        If the GPU cannot be used and `engine` is ``"auto"``; later, too.
    """
    names = ["auto", "cuda", "numba"]
    if engine not in names:
        raise ValueError(f"engine = {engine!r}: expected one of {', '.join(names)}.")
    if engine == "cuda":
        return CudaStack.of(stack, device or 0)
    if engine == "auto" and device is not None:
        try:
            return CudaStack.of(stack, device, fall_back=True)
        except CudaError as error:
            warnings.warn(
                f"the stack is added on the CPU, since the GPU cannot be used. {error}",
                RuntimeWarning,
                stacklevel=2,
            )
    return stack
