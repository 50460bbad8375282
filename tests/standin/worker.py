"""The stand-in in processes of their own: LiberTEM's workers call `use` when they start."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
from libertem.common.backend import get_use_cuda

from libertem_parallax import ParallaxUDF
from libertem_parallax.accumulate.cuda import device

from .cupy import CuPy

#: Of this process, once `use` was called.
cupy: CuPy | None = None


def use() -> None:
    """Let the package find CuPy, and the devices that CUDA_VISIBLE_DEVICES names; else two."""
    global cupy
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1")
    cupy = CuPy(devices=len([number for number in visible.split(",") if number]))
    device.importlib = SimpleNamespace(import_module=lambda _: cupy)
    device._kernels = {}


class TellingUDF(ParallaxUDF):
    """Also tells, by frame, who added it.

    ``process``: its number. ``gpu``: LiberTEM's number of the GPU, -1 without. ``launches``: on
    devices of that process so far. ``events``: whether the frame came as events.
    """

    def get_result_buffers(self):
        """One number for each frame."""
        names = ("process", "gpu", "launches", "events")
        told = {name: self.buffer("nav", dtype=np.int64) for name in names}
        return {**super().get_result_buffers(), **told}

    def postprocess(self):
        """Note where this is, when all frames of the partition have been added."""
        super().postprocess()
        gpu = get_use_cuda()
        self.results.process[:] = os.getpid()
        self.results.gpu[:] = -1 if gpu is None else gpu
        self.results.launches[:] = cupy.launches
        self.results.events[:] = self._events

    def merge(self, dest, src):
        """Keep what is told."""
        super().merge(dest, src)
        for name in ("process", "gpu", "launches", "events"):
            getattr(dest, name)[:] = getattr(src, name)
