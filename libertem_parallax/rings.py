"""Whether the bright field is where the parameters say, by a few sums of each frame.

Frames agree where the middle of the disk is hardly brighter than what is just inside of its edge,
and clearly brighter than what is just outside, in all quadrants, and where opposite quadrants are
as bright at the edge, so that the disk is in the middle. If that holds for some frames, it
holds for their sum, too. So these need no closer look, which is in `contradictions.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from .geometry import Geometry

__all__ = ["COUNT", "ENOUGH", "INSIDE", "OUTSIDE", "SWAY", "add_rings", "rings_agree", "zones"]

#: Sums of `add_rings`: the middle, four quadrants inside of the edge, four outside, and four on it.
COUNT = 13

#: What is seen inside of the edge at least, and outside at most, where it is 1 in the middle.
INSIDE, OUTSIDE = 0.7, 0.5

#: By how much opposite quadrants on the edge differ at most, in the same unit. A disk that is off
#: by a part of its radius makes five times that.
SWAY = 0.3

#: A quadrant of a ring with fewer pixels tells nothing.
ENOUGH = 5

#: What bounds the rings, in radii of the bright field.
_EDGES = 0.5, 0.7, 0.85, 1.2, 1.4, 3.0

#: So many rows along the radius are enough.
_ROWS = 12


def zones(
    geometry: Geometry, axes: Sequence[NDArray[Any]]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Tell where pixels are in the bright field and around it.

    Parameters
    ----------
    geometry
        Of the acquisition.
    axes
        Rows and columns of the pixels on the detector.

    Returns
    -------
    distance : (rows, columns) float64
        From the center, in radii of the bright field.
    quadrant : (rows, columns) int64
        0 to 3. They lie around the axes: what is not a disk but the scan's axis shows along one.
    ring : (rows, columns) int64
        0 to 6, from the middle to what is far away.
    """
    cutoff: float = geometry.parameters["semiangle_cutoff"]
    with np.errstate(all="ignore"):
        y, x = (
            (axis - c) * step / cutoff
            for axis, c, step in zip(axes, geometry.center, geometry.sampling, strict=True)
        )
        distance = np.hypot(y[:, None], x)
        upright = np.abs(y)[:, None] > np.abs(x)
    quadrant = 2 * upright + np.where(upright, (y >= 0)[:, None], x >= 0)
    return distance, quadrant, np.digitize(distance, _EDGES)


class _Near(NamedTuple):
    """Pixels that are summed."""

    rows: range  # of the detector, all or at even distances
    columns: range
    pixels: NDArray[np.int64]  # flat indices into these, one sum after the other
    starts: NDArray[np.int64]  # where each sum begins
    which: NDArray[np.int64]  # of the sums there are it is
    agree: NDArray[np.float64]  # (conditions, COUNT) what is positive, times sums, if they agree


_nears: WeakKeyDictionary[Geometry, _Near] = WeakKeyDictionary()


def _near(geometry: Geometry) -> _Near:
    """Take what was worked out before: it takes longer than adding."""
    if geometry not in _nears:
        _nears[geometry] = _make_near(geometry)
    return _nears[geometry]


def _make_near(geometry: Geometry) -> _Near:
    rows, columns = _box(geometry, _EDGES[4])
    distance, quadrant, ring = zones(geometry, [np.asarray(axis) for axis in (rows, columns)])
    sums = np.select([ring == 0, ring == 2, ring == 4], [0, 1 + quadrant, 5 + quadrant], -1)
    sums[ring == 3] = 9 + quadrant[ring == 3]
    least = ENOUGH
    if max(np.count_nonzero(sums == inside) for inside in range(1, 5)) < ENOUGH:
        # A disk of a few pixels: all of it, and all around.
        rows, columns = _box(geometry, _EDGES[5])
        distance, _, ring = zones(geometry, [np.asarray(axis) for axis in (rows, columns)])
        sums = np.select([ring < 3, (ring == 4) | (ring == 5)], [0, 5], -1)
        least = 1
    mask = geometry.parameters.get("bf_mask")
    if mask is not None:
        sums[~mask[np.ix_(rows, columns)]] = -1
    flat = sums.reshape(-1)
    sizes = np.bincount(flat + 1, minlength=COUNT + 1)[1:]
    pixels = np.flatnonzero((flat >= 0) & (sizes >= least)[flat])
    pixels = pixels[np.argsort(flat[pixels], kind="stable")]
    which, starts = np.unique(flat[pixels], return_index=True)
    lit = np.bincount(flat + 1, distance.reshape(-1) <= 1, COUNT + 1)[1:] / np.maximum(sizes, 1)
    return _Near(rows, columns, pixels, starts, which, _conditions(which, sizes, lit))


def _conditions(
    which: NDArray[np.int64], sizes: NDArray[np.int64], lit: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Factors of sums that differences of means have, of which all are positive: see `_Near`.

    `lit` says which part of a sum's pixels the disk covers, where the parameters are right.
    """
    if not len(which) or which[0] != 0:
        return np.zeros((0, COUNT))
    means = np.diag(1 / np.maximum(sizes, 1))
    inside = [means[k] - INSIDE * means[0] for k in which if 1 <= k < 5]
    outside = [OUTSIDE * means[0] - means[k] for k in which if 5 <= k < 9]
    excess = means - lit[:, None] * means[0]
    sways = [excess[k] - excess[k + 1] for k in (9, 11) if {k, k + 1} <= {*which.tolist()}]
    even = [SWAY * means[0] + side * sway for sway in sways for side in (1, -1)]
    return np.reshape(inside + outside + even, (-1, COUNT))


def _box(geometry: Geometry, reach: float) -> tuple[range, range]:
    """Rows and columns around the center, up to so many radii."""
    radii = [geometry.parameters["semiangle_cutoff"] / step for step in geometry.sampling]
    bounds = [
        (max(0, math.floor(c - reach * radius)), min(n - 1, math.ceil(c + reach * radius)))
        for c, radius, n in zip(geometry.center, radii, geometry.plan.detector_shape, strict=True)
    ]
    rows, columns = (range(first, last + 1) for first, last in bounds)
    return rows[:: max(1, int(min(radii) / _ROWS))], columns


def _overlap(axis: range, first: int, count: int) -> tuple[slice, slice]:
    """Tell which of some rows or columns are among `count` from `first` on; and where there."""
    start, stop = (-(-(bound - axis.start) // axis.step) for bound in (first, first + count))
    start = max(0, start)
    which = slice(start, max(start, min(stop, len(axis))))
    own = axis[which]
    return which, slice(own.start - first, own.stop - first, own.step)


@np.errstate(all="ignore")  # pixels that are not in use may hold anything
def add_rings(
    geometry: Geometry,
    sums: NDArray[np.float64],
    tile: NDArray[Any],
    frames: Sequence[int],
    origin: tuple[int, int],
) -> bool:
    """Add frames to the sums of the rings.

    Parameters
    ----------
    geometry
        Of the acquisition.
    sums : (COUNT,) float64
        To be added to.
    tile : (T, rows, columns)
        A part of the detector.
    frames
        Which frames of the tile to add.
    origin
        Row and column of the detector at which the part begins.

    Returns
    -------
    bool
        Whether the rings of these frames are all there, and agree.
    """
    near = _near(geometry)
    # Plain integers: with code that is not in the caches, NumPy's took a third of the time.
    (whose_rows, rows), (whose_columns, columns) = (
        _overlap(axis, int(first), count)
        for axis, first, count in zip(near[:2], origin, tile.shape[1:], strict=True)
    )
    if not near.rows[whose_rows] or not near.columns[whose_columns] or not len(near.which):
        return False
    box = tile[frames, rows, columns]
    dtype = np.int32 if tile.dtype.kind in "bui" and tile.dtype.itemsize <= 2 else np.float64
    total = np.add.reduce(box, axis=0, dtype=dtype)
    whole = total.shape == (len(near.rows), len(near.columns))
    if not whole:
        part, total = total, np.zeros((len(near.rows), len(near.columns)))
        total[whose_rows, whose_columns] = part
    own = np.zeros(COUNT)
    picked = total.reshape(-1)[near.pixels]
    own[near.which] = np.add.reduceat(picked, near.starts, dtype=np.float64)
    sums += own
    return whole and rings_agree(geometry, own)


@np.errstate(all="ignore")
def rings_agree(geometry: Geometry, sums: NDArray[np.float64]) -> bool:
    """Tell whether the bright field is where the parameters say.

    Parameters
    ----------
    geometry
        Of the acquisition.
    sums : (COUNT,) float64
        Of any frames, by `add_rings`.

    Returns
    -------
    bool
        False also where there is too little to tell.
    """
    conditions = _near(geometry).agree @ sums
    return len(conditions) > 0 and bool((conditions > 0).all())
