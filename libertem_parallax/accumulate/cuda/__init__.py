"""CUDA: the default on GPUs.

`engine` adds frames, `upload` brings them to the device, `stack` keeps them there, `device` is CuPy
and the kernels, `messages` say what went wrong, and `check` whether all is right.

All that is done with CuPy here is memory, streams and launches; none of its own kernels is needed,
so it does not compile any to add frames. For images it does, and takes CUDA's libraries of
transforms and products: see `CudaStack.make` and `CudaStack.with_images`.
"""

from .check import check
from .device import describe, memory
from .engine import CudaEngine
from .messages import CudaError
from .stack import CudaStack

__all__ = ["CudaEngine", "CudaError", "CudaStack", "check", "describe", "memory"]
