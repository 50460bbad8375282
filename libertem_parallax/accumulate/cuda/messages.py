"""What to tell people when CUDA cannot be used."""

from __future__ import annotations

from typing import Any

__all__ = ["INSTALL", "CudaError", "reason", "say", "version"]

INSTALL = "Install libertem-parallax[cuda12] or libertem-parallax[cuda13]"


class CudaError(RuntimeError):
    """The GPU cannot be used, or failed: the message says why, and what to do."""


def reason(cupy: Any, error: Exception) -> str:
    """Say what an error of CuPy means, and what to do.

    Parameters
    ----------
    cupy
        The module, which knows its exceptions and versions.
    error
        What it raised.

    Returns
    -------
    str
        One or two sentences.
    """
    name, _, text = str(error).partition(":")
    if name == "cudaErrorInsufficientDriver":
        driver, needed = (
            cupy.cuda.runtime.driverGetVersion(),
            cupy.cuda.runtime.runtimeGetVersion(),
        )
        if not driver:
            return "there is no NVIDIA driver. Install it, or let the container see the GPU."
        return (
            f"the driver is for CUDA {version(driver)}, CuPy for {version(needed)}. Update the "
            f"driver, or take the other CuPy: {INSTALL}."
        )
    if name in ("cudaErrorNoDevice", "cudaErrorInvalidDevice"):
        return f"there is no such GPU ({text.strip()}). Check nvidia-smi and CUDA_VISIBLE_DEVICES."
    memory = ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY")
    if isinstance(error, MemoryError) or name in memory:
        return (
            f"out of memory ({error}). Close what else uses the GPU, have fewer workers share it, "
            "lower upsampling_factor, or keep fewer pixels in a stack."
        )
    if "--gpu-architecture" in str(error):
        return f"this GPU is too old for this CUDA: libertem-parallax[cuda12] may do ({error})."
    if isinstance(error, cupy.cuda.compiler.CompileException):
        return f"the kernel does not compile: {error}"
    if "nvrtc" in str(error).lower() or "CUDA headers" in str(error):
        return f"the compiler of kernels, NVRTC, does not work ({error}). {INSTALL}."
    if "Failure finding" in str(error):
        return f"a library of CUDA is missing ({error}). {INSTALL}."
    if name.startswith(("cuda", "CUDA_ERROR")):
        return f"{error}. If this goes on, restart Python: after some errors a GPU needs that."
    return say(error)


def say(error: Exception) -> str:
    """Tell an error nothing is known of."""
    return f"{type(error).__name__}: {error}".rstrip(".: ") + "."


def version(number: int) -> str:
    """Read CUDA's way to number its versions."""
    return f"{number // 1000}.{number % 1000 // 10}"
