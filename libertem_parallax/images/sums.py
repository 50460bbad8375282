"""What images are made of, and what an image is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..accumulate import LARGEST, all_small
from ..geometry import Geometry

__all__ = ["Image", "Imaging", "Sums", "here"]

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class _Once:
    """Keeps what functions make of it."""

    _made: dict[Callable[..., Any], Any] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def once(self, function: Callable[[Self], _T]) -> _T:
        """Return ``function(self)``, which is computed the first time and then kept.

        Parameters
        ----------
        function
            Of this object and nothing else. What it returns is shared: do not write to it.
        """
        if function not in self._made:
            self._made[function] = function(self)
        value: _T = self._made[function]
        return value


@dataclass(frozen=True, eq=False)
class Imaging(_Once):
    """A geometry and how its images are made: what they depend on beside the counts.

    An image's constants, such as a filter, are functions of this: ``imaging.once(_filter)``
    computes them once, for all images to come.

    Parameters
    ----------
    geometry
        Of the acquisition.
    suppress_Nyquist_noise
        Zero the Nyquist frequencies, which rounding the shifts to pixels fills with noise: of the
        parallax image if it is upsampled, of the phase flip always. Axes of odd length have none.
    regularization
        Of the phase: ``"auto"``, or the signal-to-noise ratio of the frequency that is carried
        best, in power, for a phase with equal power at all frequencies.
    """

    geometry: Geometry
    suppress_Nyquist_noise: bool = True  # noqa: N815 - as users know it
    regularization: float | str = "auto"

    @property
    def arguments(self) -> tuple[Geometry, bool, float | str]:
        """What this was made of."""
        return self.geometry, self.suppress_Nyquist_noise, self.regularization

    _copies: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def copied(self, function: Callable[[Self], NDArray[Any]], like: Any) -> Any:
        """Copy ``once(function)`` to the GPU on which an array is, the first time."""
        key = function, like.device.id
        if key not in self._copies:
            self._copies[key] = np.asarray(self.once(function), like=like)
        return self._copies[key]


@dataclass(frozen=True, eq=False)
class Sums(_Once):
    """What was added up, and all that an image is made of.

    ``sums.once(parallax)`` makes an image, and makes it once where others are made of it.

    Parameters
    ----------
    imaging
        Geometry under which the frames were added, and options.
    A : plan.folded_shape
        Sum of the shifted frames, as `Plan.fold` returns it.
    S : (Ny, Nx)
        Bright-field sum of each frame; 0 where there was none. Both may be CuPy's arrays: then the
        image is made on the GPU, and stays there.
    scanned : (Ny, Nx) bool
        The positions whose frames were added.

    Raises
    ------
    ValueError
        If sums of floating point numbers are too large for images in single precision.
    """

    imaging: Imaging
    A: NDArray[Any]
    S: NDArray[Any]
    scanned: NDArray[np.bool_]

    def __post_init__(self) -> None:
        """Refuse what would overflow, and then spread over the whole image."""
        # Engines name the frame, but for values that cancel out in its sum.
        if self.A.dtype.kind == "f" and not all_small(self.A):
            raise ValueError(
                f"sums of frames reach from {float(self.A.min()):.3g} to "
                f"{float(self.A.max()):.3g}: expected no more than {LARGEST:g}. Repair the data."
            )

    def constant(self, function: Callable[[Imaging], NDArray[Any]]) -> NDArray[Any]:
        """Return ``imaging.once(function)`` where the sums are, and keep it there."""
        value = self.imaging.once(function)
        if isinstance(self.A, np.ndarray):
            return value
        return self.imaging.copied(function, self.A)


def here(values: NDArray[Any]) -> NDArray[Any]:
    """Copy an array of CuPy's to the host; those that are there stay as they are."""
    if isinstance(values, np.ndarray):
        return values
    copy: NDArray[Any] = values.get()
    return copy


def _none(_: Any) -> None:
    return None


@dataclass(frozen=True)
class Image:
    """An image: how it is made of sums, and what people are told of it.

    Parameters
    ----------
    make : (Sums) -> (u Ny, u Nx) float32
        Makes it.
    words
        What it is called in texts.
    unit
        Of its values.
    problem
        Says why a geometry gives no image worth having, or None.
    prepare
        Computes what takes long and does not depend on counts.
    memory
        Bytes for each of its pixels while it is made, with the sums of which it is made.
    """

    make: Callable[[Sums], NDArray[np.float32]]
    words: str
    unit: str = "counts"
    problem: Callable[[Geometry], str | None] = _none
    prepare: Callable[[Imaging], Any] = _none
    memory: int = 66
