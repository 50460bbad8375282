"""How well the images of bright-field pixels agree with a weak phase object: one contract, engines.

`Engine` is what is promised, `ENGINES` who keeps the promise. Nothing here knows of physics beyond
the interference of three beams, or of LiberTEM.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..accumulate import CudaError
from .compiled import CompiledEngine
from .cuda import CudaEngine
from .engine import Engine, Interference, Sums, monomials
from .plain import PlainEngine

__all__ = ["ENGINES", "Engine", "Interference", "Sums", "make_engine", "monomials"]

#: Engines by the name that users give.
ENGINES: Mapping[str, type[Engine]] = MappingProxyType(
    {"cuda": CudaEngine, "numba": CompiledEngine, "numpy": PlainEngine}
)


def make_engine(
    name: str,
    images: Any,
    positions: ArrayLike,
    edge: float,
    device: int | None = None,
    again: Callable[[], NDArray[np.complex64]] | None = None,
) -> Engine:
    """Make an engine by name, or the best one that works.

    Parameters
    ----------
    name
        A key of `ENGINES`; or ``"auto"``: CUDA where there is a GPU, else Numba.
    images, positions, edge
        See `Engine`. The images may be CuPy's array on that GPU, which stays where it is.
    device
        Number of the GPU to use; None where there is none.
    again
        Makes the images for the CPU, where those on the GPU are CuPy's.

    Returns
    -------
    Engine
        For these images.

    Raises
    ------
    CudaError
        If the GPU cannot be used, or has too little memory, and `name` is ``"cuda"``.
    ValueError
        For another name; and see `Engine`.

    Warns
    -----
    RuntimeWarning
        If the GPU cannot be used and `name` is ``"auto"``; later, too. The CPU goes on.
    """
    names = ["auto", *ENGINES]  # a list compares, where a mapping would hash what is given
    if name not in names:
        raise ValueError(f"engine = {name!r}: expected one of {', '.join(names)}.")
    if name == "cuda":
        return CudaEngine(images, positions, edge, device or 0)
    if name == "auto" and device is not None:
        try:
            return CudaEngine(images, positions, edge, device, fall_back=True, again=again)
        except CudaError as error:
            warnings.warn(
                f"the likelihood is summed on the CPU, since the GPU cannot be used. {error}",
                RuntimeWarning,
                stacklevel=2,
            )
    if again is not None and not isinstance(images, np.ndarray):
        images = again()
    return ENGINES["numba" if name == "auto" else name](images, positions, edge)
