"""A stack added by sums of patches in shared memory, to compare with how the package does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from libertem_parallax.accumulate import Plan
from libertem_parallax.accumulate.cuda.device import C_TYPES, load_cupy, to_device

__all__ = ["make_patches"]

#: See ``patch.cu``: with these, a block has 14 KB of sums.
_LANES, _WARPS, _ROWS, _HALO = 32, 8, 8, 20


def make_patches(plan: Plan, images: NDArray[Any]) -> tuple[Callable[[], None], Any] | None:
    """Make what adds images that are on GPU 0, under a plan whose pixels are all of theirs.

    Parameters
    ----------
    plan
        Which shifts.
    images : (M, Ny Nx)
        One for each pixel; CuPy's array. Their sums fit 32 bits.

    Returns
    -------
    tuple or None
        What to call, and the sums that it writes, as `Plan.fold` arranges them: CuPy's array of
        int32. None where images shift further than a patch has room for.
    """
    cupy, u = load_cupy(), plan.upsampling_factor
    (rows, columns), steps = plan.scan_shape, plan.shifts // u
    if np.abs(steps).max() > _HALO:
        return None
    which = (plan.shifts % u) @ (u, 1)
    order = np.argsort(which, kind="stable")
    bounds = np.searchsorted(which[order], np.arange(u * u + 1))
    table = [to_device(part.astype(np.int32)) for part in (bounds, order, steps[order].reshape(-1))]
    name = f"patch<{C_TYPES[images.dtype.name]}, {_LANES}, {_WARPS}, {_ROWS}, {_HALO}>"
    text = Path(__file__).with_name("patch.cu").read_text(encoding="utf-8")
    module = cupy.RawModule(code=text, options=("-std=c++17",), name_expressions=(name,))
    function = module.get_function(name)
    A, stream = cupy.empty(plan.folded_shape, np.int32), cupy.cuda.Stream(non_blocking=True)
    shape = -(-columns // _LANES), -(-rows // _ROWS), u * u

    def add() -> None:
        with stream:
            A.data.memset_async(0, A.nbytes, stream)
            arguments = images, *table, A, np.int32(rows), np.int32(columns)
            function(shape, (_LANES, _WARPS), arguments)
        stream.synchronize()

    return add, A
