"""CUDA: the default on GPUs, in float32. Images are there, or are uploaded once, and stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..accumulate.cuda import upload
from ..accumulate.cuda.device import kernel, likelihood_launch_shape, load_cupy, to_device
from .compiled import CompiledEngine
from .engine import Engine, Interference, Sums, degree, monomials
from .plain import PlainEngine

__all__ = ["CudaEngine", "check"]


class CudaEngine(Engine):
    """`Engine` on a GPU, for one thread of any number that may share it.

    Parameters
    ----------
    images, positions, edge
        See `Engine`. The images may be CuPy's array on that GPU, C-contiguous and complete.
    device
        Number of the GPU.
    fall_back
        Whether the CPU goes on, with a warning, if the GPU fails later.
    again
        Makes the images for the CPU to go on with. Default: they are NumPy's.

    Raises
    ------
    CudaError
        If the GPU cannot be used, or has too little memory; from `sums` and `gradients`, if it
        failed, unless the CPU goes on.
    ValueError
        See `Engine`.
    """

    def __init__(
        self,
        images: Any,
        positions: ArrayLike,
        edge: float,
        device: int = 0,
        *,
        fall_back: bool = False,
        again: Callable[[], NDArray[np.complex64]] | None = None,
    ) -> None:
        super().__init__(images, positions, edge)
        self.device, self.fall_back, self._again = device, fall_back, again
        self._instead: CompiledEngine | None = None
        self._resident = _Resident(self.images, self.positions, device)

    def _sums(self, interference: Interference) -> Sums:
        return self._run(interference, derivatives=False)[0]

    def _gradients(self, interference: Interference) -> tuple[Sums, Interference]:
        return self._run(interference, derivatives=True)

    def _run(self, interference: Interference, *, derivatives: bool) -> tuple[Sums, Interference]:
        done = self._resident.or_none(
            lambda: self._resident.run(interference, self.edge, derivatives=derivatives),
            "the likelihood is summed",
            fall_back=self.fall_back,
        )
        if done is not None:
            return done
        if self._instead is None:
            images = self.images if self._again is None else self._again()
            self._instead = CompiledEngine(images, self.positions, self.edge)
        return self._instead._run(interference, derivatives=derivatives)


class _Resident(upload.Resident):
    """Images and positions on the device."""

    def __init__(self, images: Any, positions: NDArray[np.float64], device: int) -> None:
        self.shape = images.shape
        kernel(device, "likelihood", 1, 0)  # or say what the GPU lacks
        doing = f", keeping images of {images.nbytes / 2**30:.3g} GiB"
        row = max(1, images.shape[1] * images.dtype.itemsize)
        size, uploaded = max(upload.SLOT_BYTES, row), isinstance(images, np.ndarray)
        values = images.size if uploaded else images.reshape(-1)
        super().__init__(device, values, images.dtype, doing, size)
        with self.working(", uploading images", writing=True):
            self._positions = to_device(positions.T.astype(np.float32).reshape(-1))
            if not uploaded:
                return
            rows = size // row
            for number, start in enumerate(range(0, len(images), rows)):
                slot, part = self.slots[number % 2], images[start : start + rows]
                slot.stream.synchronize()  # its last piece may be under way
                staged = slot.host[: part.nbytes].view(part.dtype).reshape(part.shape)
                staged[...] = part
                slot.copy_on(staged, self.values[start * images.shape[1] :])
            for slot in self.slots:
                slot.stream.synchronize()

    def run(
        self, interference: Interference, edge: float, *, derivatives: bool
    ) -> tuple[Sums, Interference]:
        """Sum, and wait for the sums."""
        count, terms = interference.minus.shape
        sums = np.zeros((count, 3), np.float32)
        gradients = np.zeros((count if derivatives else 0, 2 * terms + 2), np.float32)
        with self.working(", summing a likelihood"):
            if self.values.size:
                run = kernel(self.device.id, "likelihood", degree(terms), derivatives)
                self._launch(run, np.hstack(interference), edge, sums, gradients)
        N = sums[:, :2].astype(np.float64).view(np.complex128)[:, 0]
        parts = np.split(gradients.astype(np.float64), [terms, 2 * terms], axis=1)
        return Sums(N, sums[:, 2].astype(np.float64)), Interference(*parts)

    def _launch(
        self,
        run: Any,
        beams: NDArray[np.float64],
        edge: float,
        sums: NDArray[np.float32],
        gradients: NDArray[np.float32],
    ) -> None:
        cupy, slot = load_cupy(), self.slots[0]
        # Not zero, as CuPy and the device take no arrays of that size.
        there = [cupy.empty(max(1, out.size), out.dtype) for out in (sums, gradients)]
        arguments = self.values, self._positions, to_device(beams.astype(np.float32).reshape(-1))
        numbers = np.float32(edge), *map(np.int32, self.shape)
        with slot.stream:
            run(*likelihood_launch_shape(self.shape[0]), (*arguments, *there, *numbers))
        slot.stream.synchronize()
        for values, out in zip(there, (sums, gradients), strict=True):
            slot.read(values, out.reshape(-1))


def check(device: int = 0) -> list[str]:
    """Sum a small likelihood on a GPU, and by NumPy.

    Parameters
    ----------
    device
        Number of the GPU.

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
    count, pixels, terms = 9, 70, len(monomials(3))
    images = rng.normal(size=(count, pixels, 2)).astype(np.float32).view(np.complex64)[..., 0]
    positions = rng.uniform(-0.9, 0.9, (pixels, 2))
    parts = rng.uniform(-0.5, 0.5, (count, 2 * terms + 2))
    interference = Interference(*np.split(parts, [terms, 2 * terms], axis=1))
    actual, expected = (
        [part for values in engine.gradients(interference) for part in values]
        for engine in (
            CudaEngine(images, positions, 0.3, device),
            PlainEngine(images, positions, 0.3),
        )
    )
    names = ["N", "D", *(f"derivatives by {part}" for part in Interference._fields)]
    return [
        f"{name} of a likelihood"
        for name, one, other in zip(names, actual, expected, strict=True)
        if not np.allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())
    ]
