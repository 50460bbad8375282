"""Whether a GPU adds as NumPy does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from ..dtypes import accumulator_dtype
from ..engine import Engine
from ..plain import PlainEngine
from ..plan import Plan
from ..stack import Blocks, Stack
from .engine import CudaEngine
from .stack import CudaStack

__all__ = ["check"]

_DETECTOR = 9, 11


def check(
    device: int = 0, dtypes: Iterable[str] = ("uint8",), scan_shape: tuple[int, int] = (5, 41)
) -> list[str]:
    """Add random frames, events and a stack on a GPU, transform images there, and do so by NumPy.

    Parameters
    ----------
    device
        Number of the GPU.
    dtypes
        Of the frames. Floating point numbers hold integers, so that their sums are exact, too.
    scan_shape
        Rows and columns of the scan.

    Returns
    -------
    list of str
        What differs; empty if the GPU works.

    Raises
    ------
    CudaError
        If the GPU cannot be used.
    """
    rng = np.random.default_rng(0)
    pixels = np.argwhere(rng.random(_DETECTOR) < 0.5)
    plan = Plan(scan_shape, _DETECTOR, 2, pixels, rng.integers(-9, 10, pixels.shape))
    shape = scan_shape[0] * scan_shape[1], *_DETECTOR
    wrong = []
    for dtype in dtypes:
        frames = rng.integers(0, 100, shape, dtype=np.int8).astype(dtype)
        expected = _add(PlainEngine, plan, frames)
        events = _add(CudaEngine, plan, frames, device, events=True)
        host = Stack.from_array(frames.reshape(*scan_shape, *_DETECTOR))
        stack = CudaStack.of(host, device)
        stacked = stack.add(plan)
        for name, sums in (
            ("frames", _add(CudaEngine, plan, frames, device)),
            ("events", events),
            ("a stack", stacked),
        ):
            if not all(map(np.array_equal, sums, expected)):
                wrong.append(f"sums of {name} of {dtype}")
    if not np.allclose(stack.make(plan, _transformed), stacked[1], rtol=0, atol=1e-6):
        wrong.append("Fourier transforms")
    one, other = (on.with_images(np.arange(9), _spectra) for on in (stack, host))
    if not np.allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max()):
        wrong.append("transforms of single pixels' images")
    return wrong


def _transformed(_: Any, S: Any) -> Any:
    """Transform sums of frames where they are, and back."""
    return np.fft.irfft2(np.fft.rfft2(S.astype(np.float64)), S.shape)


def _spectra(blocks: Blocks) -> NDArray[Any]:
    """Transform images where they are, and multiply them with each other."""
    [(_, images)] = blocks
    flat = images.reshape(len(images), -1)
    flat -= np.mean(flat, axis=1)[:, None]
    spectra = np.fft.rfft2((flat @ flat.T @ flat).reshape(images.shape))
    made = np.take(spectra.reshape(len(flat), -1), np.asarray([1, 5, 2], like=flat), axis=1)
    there: NDArray[Any] = made if isinstance(made, np.ndarray) else made.get()
    return there


def _add(
    kind: type[Engine], plan: Plan, frames: NDArray[Any], *device: int, events: bool = False
) -> tuple[NDArray[Any], NDArray[Any]]:
    A = np.zeros(plan.accumulator_shape, accumulator_dtype(frames.dtype, len(plan.pixels), events))
    S = np.zeros(len(frames), A.dtype)
    engine = kind(plan, frames.dtype, np.arange(len(frames)), A, S, *device, events=events)
    if events:
        engine.add_events(scipy.sparse.csr_array(frames.reshape(len(frames), -1)))
    else:
        engine.add(frames)
    engine.finish()
    return plan.fold(A), S.reshape(plan.scan_shape)
