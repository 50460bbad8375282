"""Calibration of a data set that LiberTEM opened."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from libertem.common.backend import get_use_cuda
from libertem.udf.sum import SumUDF
from numpy.typing import NDArray

from .. import checks
from ..calibration import Calibration, Hints, calibrate_stack, check_search, find_beam, without
from ..parameters import Parameters
from .stack import StackUDF

__all__ = ["calibrate"]

#: Frames and bytes of a stack that is enough.
_FRAMES, _BYTES = 1 << 17, 1 << 29


def calibrate(
    ctx: Any,
    dataset: Any,
    *,
    roi: Any = None,
    search: Iterable[str] = (),
    defocus_between: tuple[float, float] | None = None,
    underfocus: bool | None = None,
    rotation_near: float | str | None = None,
    progress: bool | Callable[[float, str], None] = False,
    device: int | None = None,
    **parameters: Any,
) -> Calibration:
    """Find the parameters of an acquisition from its data.

    What is given is kept, what is not is found: beam center, angular sampling, rotation, whether
    columns are reversed, defocus and astigmatism. Pure phase objects cannot tell a solution from
    its twin, (-C10, rotation + 180°), which inverts the contrast. A hint decides, else the
    skewness of the phase image where it is clear, else underfocus comes first.

    Parameters
    ----------
    ctx
        LiberTEM's context.
    dataset
        LiberTEM's, with two scan and two detector axes.
    roi : (Ny, Nx) bool
        Part of the scan to use. Default: all of it, or its middle if it is large.
    search
        What to find in addition: names of aberrations such as C21, C23 and C30, or of what is
        given and may not be right.
    defocus_between
        Lowest and highest defocus in Å; underfocus is positive here, as defocus is -C10.
    underfocus
        True if C10 < 0, False if C10 > 0.
    rotation_near
        Rotation in rad, or in degrees as in "-15deg", that is known to 90° at least.
    progress
        Whether to show a bar; or a function that is called with the fraction that is done, and
        what is being done.
    device
        Number of the GPU to use for the likelihood, unless ``engine`` says otherwise. Default: the
        one that LiberTEM assigned to this process, if any.
    **parameters
        Those of `libertem_parallax.ParallaxUDF.from_parameters`: ``energy``, ``scan_sampling`` and
        ``semiangle_cutoff`` at least.

    Returns
    -------
    Calibration
        Parameters, uncertainties and alternatives.

    Raises
    ------
    CalibrationError
        If the data do not tell: no beam, or nothing stands out of the noise.
    ValueError
        For parameters or hints that are missing or out of their range.
    """
    known = check_known(Parameters(**parameters))
    search = check_search(search)
    hints = make_hints(defocus_between, underfocus, rotation_near)
    shape = checks.shape(dataset.shape)
    with _Bar(progress) as tell:
        tell(0.0, "reading")
        region, used = _region(shape[:2], roi, _FRAMES)
        sums = ctx.run_udf(dataset, SumUDF(), roi=used)
        pattern = np.asarray(sums["intensity"].data, np.float64)
        beam = find_beam(pattern / np.count_nonzero(used), without(known, search))
        tell(0.1, "reading")
        whole = StackUDF.for_dataset(dataset, beam.mask, limit=1 << 62)
        dtype, pixels = whole.params.dtype, whole.params.pixels
        most = max(1, _BYTES // (len(pixels) * dtype.itemsize))
        region, used = _region(shape[:2], roi, min(_FRAMES, most))
        udf = StackUDF(shape, dtype, pixels, region)
        ctx.run_udf(dataset, udf, roi=used)
        tell(0.25, "reading")
        return calibrate_stack(
            udf.stack,
            known,
            beam,
            search,
            hints,
            lambda f, text: tell(0.25 + 0.75 * f, text),
            get_use_cuda() if device is None else device,
        )


def check_known(parameters: Parameters) -> Parameters:
    """Refuse to go on without what data cannot tell.

    Raises
    ------
    ValueError
        If energy, step or semiangle are missing.
    """
    for declared in parameters.missing("energy", "scan_sampling", "semiangle_cutoff"):
        raise ValueError(f"{declared.name} is missing: expected the {declared.words}.")
    return parameters


def make_hints(
    defocus_between: tuple[float, float] | None,
    underfocus: bool | None,
    rotation_near: float | str | None,
) -> Hints:
    """Check hints and put them together.

    Raises
    ------
    ValueError
        If a range is empty, or two hints contradict each other.
    """
    low, high = (-math.inf, math.inf) if defocus_between is None else map(float, defocus_between)
    if not low < high:
        raise ValueError(
            f"defocus_between = {low:g}, {high:g}: expected the lowest and the highest defocus in "
            "Å; underfocus is positive."
        )
    if underfocus is not None:
        side = (0.0, math.inf) if underfocus else (-math.inf, 0.0)
        low, high = max(low, side[0]), min(high, side[1])
        if not low < high:
            raise ValueError(
                f"defocus_between = {defocus_between}: that is no "
                f"{'under' if underfocus else 'over'}focus. Underfocus is positive here, overfocus "
                "negative: give one of the two hints, or the other signs."
            )
    rotation = None if rotation_near is None else checks.angle("rotation_near", rotation_near)
    return Hints((low, high), rotation)


def _region(
    scan: tuple[int, ...], roi: Any, frames: int
) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Rectangle of the scan to keep, and which of its frames to read."""
    wanted = np.ones(scan, bool)
    if roi is not None:
        wanted = np.asarray(roi)
        if wanted.shape != scan or wanted.dtype != bool or not wanted.any():
            raise ValueError(
                f"roi: expected booleans of the scan's shape {scan}, True somewhere; got "
                f"{wanted.dtype} of shape {wanted.shape}."
            )
    parts = []
    for axis in (0, 1):
        inside = np.flatnonzero(wanted.any(axis=1 - axis))
        parts.append([int(inside[0]), int(inside[-1]) + 1])
    (top, bottom), (left, right) = parts
    share = min(1.0, math.sqrt(frames / ((bottom - top) * (right - left))))
    slices = []
    for start, stop in parts:
        keep = max(1, math.floor((stop - start) * share))
        first = start + (stop - start - keep) // 2
        slices.append(slice(first, first + keep))
    used = np.zeros(scan, bool)
    used[slices[0], slices[1]] = wanted[slices[0], slices[1]]
    return (slices[0], slices[1]), used


class _Bar:
    """Shows how far it is, or tells a function."""

    def __init__(self, progress: bool | Callable[[float, str], None]) -> None:
        self._progress = progress
        self._bar: Any = None

    def __enter__(self) -> Callable[[float, str], None]:
        if callable(self._progress):
            return self._progress
        if self._progress:
            from tqdm import tqdm

            self._bar = tqdm(total=100, bar_format="{desc:<12}{percentage:3.0f} %|{bar}| {elapsed}")
            return self._tell
        return lambda *_: None

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _tell(self, fraction: float, text: str) -> None:
        self._bar.set_description_str(text, refresh=False)
        self._bar.n = round(100 * fraction)
        self._bar.refresh()
