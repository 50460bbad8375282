"""Which numbers are added: dtypes of frames and sums, and values that are no mistakes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["LARGEST", "accumulator_dtype", "all_small", "is_small", "native_dtype", "value_range"]

#: Of floating point numbers. Larger ones are mistakes, with which images in single precision would
#: overflow.
LARGEST = 1e30


@lru_cache(maxsize=64)  # every partition asks, several times
def accumulator_dtype(dtype: DTypeLike, pixels: int, events: bool = False) -> np.dtype[Any]:
    """Dtype in which the counts of all frames are summed without loss.

    Parameters
    ----------
    dtype
        Of the frames: boolean, an integer, or a floating point number of up to 64 bits.
    pixels
        Number of bright-field pixels, ``M``. A position of the image receives at most one value of
        each.
    events
        Whether frames come as events, of which any number may hit a pixel.

    Returns
    -------
    numpy.dtype
        int32 where ``M`` times the largest value of the dtype fits, int64 for other integers and
        for events, float64 for floating point numbers.

    Raises
    ------
    TypeError
        For any other dtype.
    """
    dtype = np.dtype(dtype)
    if dtype.kind == "f" and dtype.itemsize <= 8:
        return np.dtype(np.float64)
    if dtype.kind not in "bui":
        raise TypeError(
            f"frames of dtype {dtype}: expected integers or floating point numbers of up to "
            "64 bits. Convert the data first."
        )
    largest = 1 if dtype.kind == "b" else -int(np.iinfo(dtype).min) or int(np.iinfo(dtype).max)
    fits = pixels * largest <= np.iinfo(np.int32).max and not events
    return np.dtype(np.int32 if fits else np.int64)


def native_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Dtype in which engines get frames.

    Parameters
    ----------
    dtype
        Of the frames: see `accumulator_dtype`.

    Returns
    -------
    numpy.dtype
        The same in native byte order; uint8 for booleans, float32 for half precision.
    """
    dtype = np.dtype(dtype)
    return np.dtype({"?": "uint8", "e": "float32"}.get(dtype.char, dtype.newbyteorder("=")))


def value_range(dtype: DTypeLike) -> tuple[Any, Any]:
    """Lowest and highest value that an event may have.

    Parameters
    ----------
    dtype
        Of the values, native: see `native_dtype`.

    Returns
    -------
    tuple
        Two scalars of the dtype: of floating point numbers up to `LARGEST`; of integers of 64 bits
        only what fits 32, as the sum of 2³¹ of them fits 64.
    """
    dtype = np.dtype(dtype)
    limits: tuple[Any, Any] = -LARGEST, LARGEST
    if dtype.kind != "f":
        integers = np.iinfo(dtype if dtype.itemsize < 8 else f"{dtype.kind}4")
        limits = integers.min, integers.max
    return dtype.type(limits[0]), dtype.type(limits[1])


def all_small(values: NDArray[Any]) -> bool:
    """Tell whether floating point numbers are all finite and no larger than `LARGEST`."""
    # Two passes without any temporaries; what is not a number is no less than anything.
    return not values.size or bool(values.max() <= LARGEST and values.min() >= -LARGEST)


def is_small(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which floating point numbers are finite and no larger than `LARGEST`."""
    small: NDArray[np.bool_] = np.abs(values) <= LARGEST
    return small
