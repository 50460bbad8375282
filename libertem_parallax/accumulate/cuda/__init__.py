"""CUDA: the default on GPUs.

`engine` adds frames, `upload` brings them to the device, `stack` keeps them there, `device` is CuPy
and the kernels, and `messages` say what went wrong.

All that is done with CuPy is memory, streams and launches; none of its own kernels is needed, so it
does not compile any.
"""

from .device import describe
from .engine import CudaEngine
from .messages import CudaError
from .stack import CudaStack

__all__ = ["CudaEngine", "CudaError", "CudaStack", "describe"]
