"""What the frames say against the parameters of their acquisition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from .disk import find_disk
from .geometry import Geometry
from .rings import ENOUGH, INSIDE, OUTSIDE, SWAY, zones

__all__ = [
    "add_frames",
    "contradiction",
    "pattern_shape",
    "positions_to_compare",
    "seems_to_differ",
]

#: A disk may be as many times larger or smaller than the bright field: its inner part may be used.
_RATIO = 1.25

#: Its center may be off by this part of its radius, or by as many pixels; and by as many standard
#: errors more.
_OFF, _OFF_PIXELS, _SURE = 0.08, 1.5, 4.0

#: Larger values are no counts.
_LARGEST = 1e100

#: Standard errors. Noise stays below the first; a disk would be above the second. What a fit
#: decides need not be as sure.
_NOISE, _CLEAR, _SWAY_NOISE = 5.0, 30.0, 2.0

#: Pixels of which the scatter is not known.
_FEW = 10

#: A pattern has so many pixels along its longer side at least, and along the disk's radius.
_PATTERN, _PATTERN_RADIUS = 64, 12

#: So many pixels of bright fields in a row of the scan are enough, in four frames at least; and so
#: many of detectors, in one frame at least, where they are looked at in full.
_PIXELS, _ALL_PIXELS = 2**14, 2**21


@lru_cache(maxsize=16)
def positions_to_compare(scan_shape: tuple[int, int], pixels: int) -> NDArray[np.int64]:
    """Choose scan positions whose frames are added and compared.

    These are a few, so that it takes no time, and none of scans of less than 512. They are spread
    over four rows, so that the first is there early and few partitions have any.

    Parameters
    ----------
    scan_shape
        Scan positions ``(Ny, Nx)``.
    pixels
        Of the bright field. Where it has many, fewer frames have as many electrons.

    Returns
    -------
    (N,) int64
        Ascending positions ``y Nx + x``, up to 64.
    """
    ny, nx = scan_shape
    if nx * ny < 512:
        return np.empty(0, np.int64)
    count = min(16, max(4, _PIXELS // pixels), nx * ny // 128, nx)
    columns = (np.arange(count) * nx + nx // 2) // count
    rows = np.unique(np.arange(4) * ny // 4)
    positions: NDArray[np.int64] = (rows[:, None] * nx + columns).reshape(-1)
    return positions


class _Layout(NamedTuple):
    """What follows from a geometry for the pattern that is compared."""

    factor: int  # rows and columns of the detector that are one of the pattern
    counts: NDArray[np.float64] | None  # pixels of the detector that are one of it; None: one each
    usable: NDArray[np.bool_]  # where half of them are so
    axes: list[NDArray[np.float64]]  # rows and columns on the detector
    inside: NDArray[np.bool_]  # which are in the bright field
    zone: NDArray[np.int8]  # flat: seven rings in each of four quadrants, see `_rings`
    sizes: NDArray[np.float64]  # how many pixels each of these has, of those that are usable


_layouts: WeakKeyDictionary[Geometry, _Layout] = WeakKeyDictionary()


def _layout(geometry: Geometry) -> _Layout:
    """Take what was worked out before: it takes longer than a small scan's frames."""
    if geometry not in _layouts:
        _layouts[geometry] = _make_layout(geometry)
    return _layouts[geometry]


def _make_layout(geometry: Geometry) -> _Layout:
    cutoff: float = geometry.parameters["semiangle_cutoff"]
    detector = geometry.plan.detector_shape
    # Large detectors would take time.
    radius = cutoff / max(geometry.sampling)
    factor = max(1, int(min(max(detector) / _PATTERN, radius / _PATTERN_RADIUS)))
    shape = [-(-n // factor) for n in detector]
    mask = geometry.parameters.get("bf_mask")
    if mask is None:
        along = [np.bincount(np.arange(n) // factor) for n in detector]
        counts = np.outer(*along).astype(np.float64)
    else:
        counts = np.zeros(shape)
        _bin(counts, mask, (0, 0), factor)
    usable = 2 * counts >= factor**2
    axes = [np.arange(n) * np.float64(factor) + (factor - 1) / 2 for n in shape]
    distance, quadrant, ring = zones(geometry, axes)
    zone = (7 * quadrant + ring).astype(np.int8).reshape(-1)
    sizes = np.bincount(zone[usable.reshape(-1)], minlength=28).astype(np.float64)
    several = np.maximum(counts, 1) if factor > 1 else None
    return _Layout(factor, several, usable, axes, distance <= 1, zone, sizes)


def pattern_shape(geometry: Geometry) -> tuple[int, int]:
    """Tell the shape of the sum of frames that are compared: a coarse detector, if it is large.

    Parameters
    ----------
    geometry
        Of the acquisition.

    Returns
    -------
    (int, int)
        Rows and columns.
    """
    rows, columns = _layout(geometry).usable.shape
    return rows, columns


@np.errstate(all="ignore")  # pixels that are not in use may hold anything
def add_frames(
    geometry: Geometry,
    pattern: NDArray[np.float64],
    tile: NDArray[Any],
    frames: Sequence[int],
    origin: tuple[int, int],
) -> None:
    """Add frames to the pattern that is compared.

    Parameters
    ----------
    geometry
        Of the acquisition.
    pattern : pattern_shape, float64
        To be added to; masked pixels count 0.
    tile : (T, rows, columns)
        A part of the detector.
    frames
        Which frames of the tile to add, one at least; of large detectors, some of these are.
    origin
        Row and column of the detector at which the part begins.
    """
    most = max(1, _ALL_PIXELS // math.prod(geometry.plan.detector_shape))
    frames = frames[:: -(-len(frames) // most)]
    small = tile.dtype.kind in "bui" and tile.dtype.itemsize <= 2
    sums = tile[frames[0]].astype(np.int32 if small else np.float64)
    # NumPy's sum over frames, in another dtype than theirs, would copy them first.
    for frame in frames[1:]:
        sums += tile[frame]
    mask = geometry.parameters.get("bf_mask")
    if mask is not None:
        (row, column), (rows, columns) = origin, sums.shape
        sums[~mask[row : row + rows, column : column + columns]] = 0
    _bin(pattern, sums, origin, _layout(geometry).factor)


def _bin(
    to: NDArray[np.float64], values: NDArray[Any], origin: tuple[int, int], factor: int
) -> None:
    """Add the values of a part of the detector, at `origin`, to a coarse detector."""
    if factor == 1:
        (row, column), (rows, columns) = origin, values.shape
        to[row : row + rows, column : column + columns] += values
        return
    dtype = np.int64 if values.dtype.kind == "i" else np.float64
    cells: list[slice] = []
    # Columns first: they lie side by side.
    for axis, first, count in ((1, origin[1], values.shape[1]), (0, origin[0], values.shape[0])):
        cell = np.arange(first, first + count) // factor
        starts = np.flatnonzero(np.diff(cell, prepend=-1))
        values = np.add.reduceat(values, starts, axis=axis, dtype=dtype)
        cells.insert(0, slice(cell[0], cell[-1] + 1))
    to[tuple(cells)] += values


def _mean(
    layout: _Layout, pattern: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Mean of the pattern's pixels, and which of them are usable."""
    values = pattern if layout.counts is None else pattern / layout.counts
    small = np.abs(values) < _LARGEST  # of larger ones the squares overflow
    return values, layout.usable & small


@np.errstate(all="ignore")
def seems_to_differ(geometry: Geometry, pattern: NDArray[np.float64]) -> bool:
    """Tell whether frames clearly do not show the bright field as the parameters have it.

    That takes a millisecond, and no part of the time of a run. What differs, and whether it
    matters, tells `contradiction`, which fits a disk.

    Parameters
    ----------
    geometry
        Of the acquisition.
    pattern : pattern_shape, float64
        Sum of some frames: see `add_frames`.

    Returns
    -------
    bool
        False also where the frames hold too little to tell.
    """
    layout = _layout(geometry)
    pattern, usable = _mean(layout, pattern)
    rings = _rings(layout, pattern, usable)
    if rings.agree:
        return False
    if not pattern[usable].any():
        return False
    return rings.sways or _no_disk(layout, pattern, usable, rings)


def _no_disk(
    layout: _Layout, pattern: NDArray[np.float64], usable: NDArray[np.bool_], rings: _Rings
) -> bool:
    """Tell whether what is there is clearly not the disk of the parameters, off or not."""
    if rings.differ or _as_dark(pattern, usable, layout.inside):
        return True
    # A few pixels tell nothing, whatever all others do.
    few = np.count_nonzero(layout.inside) < _FEW
    return _uneven(pattern, usable & (layout.inside | few))


@np.errstate(all="ignore")
def contradiction(geometry: Geometry, pattern: NDArray[np.float64]) -> str | None:
    """Say how frames that seem to differ from the parameters do so.

    Parameters
    ----------
    geometry, pattern
        See `seems_to_differ`.

    Returns
    -------
    str or None
        What differs and what to check; None where the disk is near enough. That takes some tenths
        of a second.
    """
    center, sampling = geometry.center, geometry.sampling
    cutoff: float = geometry.parameters["semiangle_cutoff"]
    layout = _layout(geometry)
    values, usable = _mean(layout, pattern)
    axes, factor = layout.axes, layout.factor
    # Small matrices in many threads take ten times as long where all cores are busy.
    with threadpool_limits(1):
        disk = find_disk(values, usable, (sampling[0] * factor, sampling[1] * factor), rough=True)
    if disk is None:
        # Bright pixels on the edge may make it uneven.
        if not _no_disk(layout, values, usable, _rings(layout, values, usable)):
            return None
        return (
            f"the frames show no disk at row {center[0]:.4g}, column {center[1]:.4g} with a radius "
            f"of {_pixels(cutoff, sampling)} pixels, where the parameters say that it is. {_CHECK}"
        )
    found = [axis[0] + place * factor for axis, place in zip(axes, disk.center, strict=True)]
    # What noise may move it by is no reason to tell it.
    far = np.maximum(_OFF * disk.radius / np.asarray(sampling), _OFF_PIXELS)
    far += _SURE * factor * np.asarray(disk.center_error)
    off = math.hypot(*(np.subtract(found, center) / far))
    if off < 1 and 1 / _RATIO < disk.radius / cutoff < _RATIO:
        return None
    return (
        f"the disk is at row {found[0]:.1f}, column {found[1]:.1f} with a radius of "
        f"{_pixels(disk.radius, sampling)} pixels; the parameters say {center[0]:.4g}, "
        f"{center[1]:.4g} and {_pixels(cutoff, sampling)}. {_advice(found, disk.radius, geometry)}"
    )


class _Rings(NamedTuple):
    """How bright it is just inside and just outside the circle, in each quadrant."""

    agree: bool  # everywhere as it should be
    differ: bool  # somewhere clearly not; told where they do not agree only
    sways: bool  # clearly more at one side of the edge than at the other; likewise


def _rings(layout: _Layout, pattern: NDArray[np.float64], usable: NDArray[np.bool_]) -> _Rings:
    zone, values = layout.zone.astype(np.intp), pattern.reshape(-1)
    inside = layout.inside.reshape(-1)
    if usable.all():  # nearly always; picking takes longer than adding
        counts = layout.sizes.reshape(4, 7)
    else:
        chosen = usable.reshape(-1)
        zone, values, inside = zone[chosen], values[chosen], inside[chosen]
        counts = np.bincount(zone, minlength=28).reshape(4, 7).astype(np.float64)
    counts = np.maximum(counts, 1e-9)
    sums = np.bincount(zone, values, minlength=28).reshape(4, 7)
    means = sums / counts
    middle = sums[:, 0].sum() / counts[:, 0].sum()
    # How much too dark, or too bright.
    excess = np.stack([INSIDE * middle - means[:, 2], means[:, 4] - OUTSIDE * middle], axis=1)
    enough = counts[:, 2:5:2] >= ENOUGH
    # On the edge, opposite quadrants are as bright.
    lit = np.bincount(zone, inside, minlength=28).reshape(4, 7)
    edge = (means - lit / counts * middle)[:, 3]
    sways = np.abs(edge[1::2] - edge[::2]) - SWAY * middle
    known = counts[:, 3].reshape(2, 2).min(axis=1) >= ENOUGH
    if enough[:, 0].any():
        agree = not (enough & ~(excess < 0)).any() and not (known & ~(sways < 0)).any()
    else:  # a disk of a few pixels
        near, far = counts[:, :3].sum(), counts[:, 4:6].sum()
        agree = near >= 1 and far >= 1
        agree &= sums[:, :3].sum() / near > 2 * sums[:, 4:6].sum() / max(far, 1)
    if agree:
        return _Rings(agree=True, differ=False, sways=False)
    squares = np.bincount(zone, values**2, minlength=28).reshape(4, 7)
    square = squares[:, 0].sum() / counts[:, 0].sum()
    # A few pixels without any electron do not tell the noise, nor does the pattern's outside.
    variances = np.maximum(squares / counts - means**2, square - middle**2)
    errors = np.sqrt(np.maximum(variances, 0) / counts)
    differ = (enough & (excess > _NOISE * errors[:, 2:5:2])).any()
    # Pixels on the edge scatter by more than noise, which those in the middle tell.
    noise = max(square - middle**2, 0)
    known &= middle > _NOISE * math.sqrt(noise / counts[:, 0].sum())
    errors = np.sqrt(noise * (1 / counts[:, 3]).reshape(2, 2).sum(axis=1))
    sway = (known & (sways > _SWAY_NOISE * errors)).any()
    return _Rings(agree=False, differ=bool(differ), sways=bool(sway))


def _as_dark(
    pattern: NDArray[np.float64], usable: NDArray[np.bool_], bright_field: NDArray[np.bool_]
) -> bool:
    """Tell whether it is surely no brighter inside than outside."""
    inside, outside = pattern[usable & bright_field], pattern[usable & ~bright_field]
    if min(len(inside), len(outside)) < _FEW:
        return False
    # Of how far the means are known, the pixels' scatter tells.
    error = math.hypot(*(part.std() / math.sqrt(len(part)) for part in (inside, outside)))
    if_disk = (inside.sum() + outside.sum()) / len(inside)
    return bool(inside.mean() - outside.mean() < _NOISE * error and if_disk > _CLEAR * error)


def _uneven(pattern: NDArray[np.float64], chosen: NDArray[np.bool_]) -> bool:
    """Tell whether pixels surely differ from block to block, as where there is a smaller disk.

    By an analysis of variance between and within blocks, an eighth of the detector wide.
    """
    rows, columns = (np.arange(n) * 8 // n for n in pattern.shape)
    label = (8 * rows[:, None] + columns)[chosen]
    values = pattern[chosen]
    counts, sums, squares = (
        np.bincount(label, weights, minlength=64) for weights in (None, values, values**2)
    )
    used = counts > pattern.size // 128  # half of a block
    counts, sums, squares = counts[used], sums[used], squares[used]
    blocks, pixels = len(counts), counts.sum()
    if blocks < 4 or pixels < 2 * blocks:
        return False
    between = ((sums**2 / counts).sum() - sums.sum() ** 2 / pixels) / (blocks - 1)
    within = (squares.sum() - (sums**2 / counts).sum()) / (pixels - blocks)
    # What noise stays below, by Wilson and Hilferty's form of the chi-squared distribution.
    width = 2 / 9 / (blocks - 1)
    clear = between > (1 - width + _NOISE * math.sqrt(width)) ** 3 * within
    far = (between - within) * blocks / pixels > (0.5 * sums.sum() / pixels) ** 2
    return bool(clear and far)


_CHECK = (
    "Check center, semiangle_cutoff (mrad), the sampling, and how the data were loaded: type, "
    "dtype, shapes, the order of their axes (scan rows and columns, detector rows and columns)."
)


def _advice(center: Sequence[float], radius: float, geometry: Geometry) -> str:
    cutoff: float = geometry.parameters["semiangle_cutoff"]
    if 1 / _RATIO < radius / cutoff < _RATIO:
        return (
            f"Give center=({center[0]:.1f}, {center[1]:.1f}) if that is the beam in all of the "
            "scan; else check how the data were loaded, and the order of their axes."
        )
    name = "angular_sampling"
    factor = 1.0
    if name not in geometry.parameters:
        name, factor = "reciprocal_sampling", 1e-3 / geometry.wavelength
    fits = (f"{s * cutoff / radius * factor:.4g}" for s in geometry.sampling)
    return (
        f"With semiangle_cutoff={cutoff:g} mrad, the disk means {name}=({', '.join(fits)}). Check "
        "these, how the data were loaded, and the order of their axes."
    )


def _pixels(radius: float, sampling: tuple[float, float]) -> str:
    """Tell a radius in pixels, along rows and columns if these differ."""
    return " x ".join(dict.fromkeys(f"{radius / step:.3g}" for step in sampling))
