"""The disk of the bright field in a mean diffraction pattern: where its center is, and its radius.

It is found in two steps. Circles of all sizes and places are tried on a coarse copy of the pattern:
that one counts which parts it best in bright and dark. From there, the edge is fitted. Near it, the
pattern is one plane inside and another one outside, which may rise or fall towards the edge, too.
So it does not matter that a specimen scatters next to the disk, nor that a background slopes.
Pixels that do not fit, such as hot ones, lose their weight.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
import scipy.ndimage
import scipy.optimize
import scipy.special
from numpy.typing import ArrayLike, NDArray

__all__ = ["Disk", "find_disk", "hot_pixel"]

#: Pixels of the coarse copy along its longer side; steps between the radii that are tried there.
_COARSE, _RADIUS_STEP = 64, 1.12

#: Of the fit: how far from the edge pixels count, in radii and in pixels at least.
_NEAR, _NEAR_PIXELS = 0.35, 4.0

#: How often weights are made anew, and where a pixel has none, in standard deviations.
_ROUNDS, _OUTLIER = 5, 5.0

#: What a pixel on the edge may deviate from the model, for its own shape, as part of the step.
_ROUGH = 0.1

#: Larger values, of which the squares overflow, are no counts.
_LARGEST = 1e100

#: A step of the edge that chance would not make, in standard errors. Many circles were tried.
_SIGNIFICANT = 8.0

#: A hot pixel is so many times as bright as others of the bright field.
_HOT = 10


class Disk(NamedTuple):
    """A disk as `find_disk` finds it."""

    #: Row and column in pixels, from 0.
    center: tuple[float, float]
    #: In the unit of the pixel's size.
    radius: float
    #: Standard errors of the center's row and column by noise, in pixels.
    center_error: tuple[float, float]
    #: Standard error of the radius by noise.
    radius_error: float
    #: Standard deviation of the edge, as if a Gaussian had blurred it, in the radius's unit.
    edge: float
    #: Mean next to the edge, inside and outside.
    inside: float
    outside: float


@np.errstate(all="ignore")  # what comes to nothing is none
def find_disk(
    pattern: ArrayLike,
    usable: NDArray[np.bool_] | None = None,
    pixel: tuple[float, float] = (1.0, 1.0),
    *,
    rough: bool = False,
) -> Disk | None:
    """Find the bright-field disk.

    Parameters
    ----------
    pattern : (rows, columns)
        Mean or sum of frames, in any unit. Pixels that are not finite are not used.
    usable : (rows, columns) bool
        False where there is a beam stop or a pixel is known to be bad. Default: all are used.
    pixel
        Height and width of a pixel in any unit: angular sampling if it is known, so that the disk
        is round.
    rough
        Whether a copy of 64 pixels is enough, in which pixels are binned. That takes the same time
        for patterns of any size.

    Returns
    -------
    Disk or None
        None where the pattern shows none: noise, or no edge on the detector.

    Raises
    ------
    ValueError
        If shapes or sizes are none.
    """
    values = np.asarray(pattern, np.float64)
    values = np.where(np.abs(values) < _LARGEST, values, np.nan)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"pattern of shape {values.shape}: expected rows and columns.")
    if usable is not None and usable.shape != values.shape:
        raise ValueError(f"usable has shape {usable.shape}: expected the pattern's {values.shape}.")
    height, width = pixel
    if not (height > 0 and width > 0 and math.isfinite(height * width)):
        raise ValueError(f"pixel = {pixel!r}: expected a positive height and width.")
    known = np.isfinite(values)
    if usable is not None:
        known &= usable
    if not known.any() or np.ptp(values[known]) == 0:
        return None
    unit = math.sqrt(height * width)
    shape = height / unit, width / unit

    factor = math.ceil(max(values.shape) / _COARSE)
    coarse_values, coarse_known = _binned(values, known, factor)
    even, _ = _binned(_without_outliers(values, known), known, factor)
    row, column, radius = _coarse_disk(even, coarse_known, shape)
    offset = (factor - 1) / 2
    start = [row * factor + offset, column * factor + offset, radius * factor]
    blur = float(factor)
    parameters = np.array([*start, blur, 0.0, blur])
    near = max(_NEAR_PIXELS * factor, _NEAR * radius * factor)
    fit = _fit_or_not(coarse_values, coarse_known, factor, parameters, near, shape)
    if fit is not None and factor > 1 and not rough:  # large patterns in full next to the edge only
        near = _NEAR_PIXELS + 3 * fit.edge
        fit = _fit_or_not(values, known, 1, fit.parameters, near, shape)
    if fit is None or not np.isfinite([*fit.parameters, *fit.errors]).all():
        return None
    if fit.edge > fit.parameters[2] / 2 or fit.errors[2] > fit.parameters[2] / 10:
        return None
    return fit.disk(unit)


def _fit_or_not(
    values: NDArray[np.float64], known: NDArray[np.bool_], *arguments: Any
) -> _Fit | None:
    """Fit as `_fit`; None where numbers come to nothing."""
    try:
        return _fit(values, known, *arguments)
    except (ValueError, np.linalg.LinAlgError):
        return None


def _binned(
    values: NDArray[np.float64], known: NDArray[np.bool_], factor: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Take means of `factor` x `factor` pixels, of those that are known; and where there is one."""
    if factor == 1:
        return values, known
    margins = [(0, -n % factor) for n in values.shape]
    rows, columns = (-(-n // factor) for n in values.shape)
    blocks = rows, factor, columns, factor
    sums = np.pad(np.where(known, values, 0), margins).reshape(blocks).sum(axis=(1, 3))
    counts = np.pad(known, margins).reshape(blocks).sum(axis=(1, 3))
    return sums / np.maximum(counts, 1), counts > factor**2 // 2


def _without_outliers(values: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Replace pixels by the median of their neighborhood; unknown ones count as the lowest."""
    return scipy.ndimage.median_filter(np.where(known, values, values[known].min()), 3)


def _coarse_disk(
    values: NDArray[np.float64], known: NDArray[np.bool_], pixel: tuple[float, float]
) -> tuple[float, float, float]:
    """Find the circle that parts a pattern best in bright and dark: row, column, radius.

    What it explains of the variance is (s - n mean)² / (n (1 - n / N)), with the sum s of n pixels
    inside and N in all. For all centers at once, these are correlations.
    """
    # Roots make the noise of counts even, and the disk even beside a bright spot.
    low = np.percentile(values[known], 5)
    roots = np.where(known, np.sqrt(np.maximum(values - low, 0)), 0)
    total = np.count_nonzero(known)
    roots[known] -= roots[known].mean()
    # Beyond the detector there is room for a quarter of it, and for radii of three quarters.
    sizes = [2 * n for n in values.shape]
    spectrum_values, spectrum_known = (
        scipy.fft.rfft2(a, sizes) for a in (roots, known.astype(float))
    )
    y, x = (scipy.fft.fftfreq(n, 1 / n) * step for n, step in zip(sizes, pixel, strict=True))
    distance = np.hypot(y[:, None], x)
    centers = [np.arange(-(n // 4), n + n // 4) for n in values.shape]
    largest = 0.75 * min(n * step for n, step in zip(values.shape, pixel, strict=True))
    count = max(1, math.ceil(math.log(max(largest, 1.5) / 1.2) / math.log(_RADIUS_STEP)))
    best = (0.0, 0.0, 0.0, 1.2)
    for radius in 1.2 * _RADIUS_STEP ** np.arange(count):
        circle = scipy.fft.rfft2((distance <= radius).astype(float))
        s, n = (
            scipy.fft.irfft2(spectrum * circle, sizes)[np.ix_(*centers)]
            for spectrum in (spectrum_values, spectrum_known)
        )
        n = np.rint(n)
        valid = (s > 0) & (n > 0) & (n < total)
        gain = np.where(valid, s, 0) ** 2 / np.where(valid, n * (1 - n / total), 1)
        i, j = np.unravel_index(np.argmax(gain), gain.shape)
        if gain[i, j] > best[0]:
            best = (float(gain[i, j]), float(centers[0][i]), float(centers[1][j]), float(radius))
    return best[1:]


class _Fit(NamedTuple):
    """Fit of an edge, lengths in pixels of the pattern."""

    parameters: NDArray[
        np.float64
    ]  # center's row and column, radius, root of the blur's covariance
    errors: NDArray[np.float64]  # by all that the model does not describe
    noise_errors: NDArray[np.float64]
    inside: float
    outside: float

    @property
    def edge(self) -> float:
        """Standard deviation of the blur where it is largest."""
        return float(np.linalg.norm(_root(self.parameters), 2))

    def disk(self, unit: float) -> Disk:
        row, column, radius = map(float, self.parameters[:3])
        row_error, column_error, radius_error = map(float, self.noise_errors[:3])
        return Disk(
            (row, column),
            radius * unit,
            (row_error, column_error),
            radius_error * unit,
            self.edge * unit,
            self.inside,
            self.outside,
        )


def _fit(
    values: NDArray[np.float64],
    known: NDArray[np.bool_],
    factor: int,
    start: NDArray[np.float64],
    near: float,
    pixel: tuple[float, float],
) -> _Fit | None:
    """Fit an edge to a pattern that was binned by `factor`; lengths as before binning.

    What is linear in the model, two planes with a slope across the edge, is solved for; the rest,
    center, radius and edge, is iterated.
    """
    rows, columns = np.nonzero(known)
    y, x = (index * factor + (factor - 1) / 2 for index in (rows, columns))
    given = values[rows, columns]
    parameters = start
    weights = None
    for _ in range(_ROUNDS):
        distance = np.hypot((y - parameters[0]) * pixel[0], (x - parameters[1]) * pixel[1])
        # All of the edge, and as much again beside it.
        near = max(near, 3 * float(np.linalg.norm(_root(parameters), 2)))
        chosen = np.abs(distance - parameters[2]) < near
        if np.count_nonzero(chosen) < 16 or np.ptp(given[chosen]) == 0:
            return None
        here = _Edge(y[chosen], x[chosen], given[chosen], near, pixel, factor)
        weights, _ = here.weights(parameters)
        solved = scipy.optimize.least_squares(
            here.residuals, parameters, args=(weights,), max_nfev=30
        )
        parameters = solved.x
        if not 0.5 <= parameters[2] <= 2 * max(values.shape) * factor:
            return None
    return here.judge(parameters, np.asarray(solved.jac))


def _root(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
    """Square root of the covariance of what blurs the edge, (2, 2)."""
    a, b, c = parameters[3:]
    return np.array([[a, 0.0], [b, c]])


class _Edge:
    """Pixels near an edge, and what a disk would make of them."""

    def __init__(
        self,
        y: NDArray[np.float64],
        x: NDArray[np.float64],
        values: NDArray[np.float64],
        near: float,
        pixel: tuple[float, float],
        factor: int,
    ) -> None:
        self._y, self._x, self._values = y, x, values
        self._near, self._pixel, self._factor = near, pixel, factor

    def _model(
        self, parameters: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Share of each pixel that is inside, (N,), and the functions to be added, (N, 8)."""
        row, column, radius = parameters[:3]
        y, x = (self._y - row) * self._pixel[0], (self._x - column) * self._pixel[1]
        distance = np.maximum(np.hypot(y, x), 1e-9)
        # What blurs the edge has this variance across and along it; a pixel's own is a square's.
        square = self._factor**2 / 12
        across = np.stack([y, x], axis=-1) / distance[:, None] @ _root(parameters)
        variance = (across**2).sum(axis=1)
        along = (_root(parameters) ** 2).sum() - variance + square
        width = np.sqrt(variance + square)
        # Where a circle is blurred along itself, it becomes smaller.
        across = distance - radius + along / (2 * radius)
        inside = scipy.special.ndtr(-across / width)
        plane = np.stack([np.ones_like(y), across / self._near, y / radius, x / radius], axis=-1)
        return inside, np.hstack([inside[:, None] * plane, (1 - inside)[:, None] * plane])

    def _solve(
        self, parameters: NDArray[np.float64], weights: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        inside, functions = self._model(parameters)
        # A little of each coefficient's square keeps what pixels do not tell at zero.
        weighted = functions * weights[:, None]
        normal = weighted.T @ weighted
        normal[np.diag_indices(8)] += 1e-6 * np.trace(normal) / 8
        products = weighted.T @ (weights * self._values)
        coefficients = np.asarray(np.linalg.solve(normal, products), np.float64)
        return inside, self._values - functions @ coefficients, coefficients

    def residuals(
        self, parameters: NDArray[np.float64], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Weighted differences between pattern and model."""
        return self._solve(parameters, weights)[1] * weights

    def weights(
        self, parameters: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """One over what pixels deviate by, less where they do not fit; and variances by noise.

        Noise differs inside and outside. On the edge, the shape of pixels is added to it.
        """
        weights = np.ones_like(self._values)
        exact = 1e-6 * float(np.ptp(self._values))
        for _ in range(3):
            inside, differences, coefficients = self._solve(parameters, weights)
            spread = [
                1.4826 * np.median(np.abs(differences[part])) if part.any() else 0.0
                for part in (inside > 0.5, inside <= 0.5)
            ]
            # Counts of a share have a share of the variance. Where few electrons fall outside, most
            # pixels are 0: these do not count without end.
            variances = inside * spread[0] ** 2 + (1 - inside) * spread[1] ** 2
            variances += max(0.1 * max(spread), exact) ** 2
            # The edge of a pixelated disk is no Gaussian's.
            step = coefficients[0] - coefficients[4]
            noise = np.sqrt(variances + (_ROUGH * step) ** 2 * inside * (1 - inside))
            fits = np.clip(1 - (differences / noise / _OUTLIER) ** 2, 0, None)
            weights = fits / noise
        return weights, variances

    def judge(self, parameters: NDArray[np.float64], jacobian: NDArray[np.float64]) -> _Fit | None:
        """Add standard errors; return None where the edge may be chance."""
        weights, variances = self.weights(parameters)
        _, functions = self._model(parameters)
        _, differences, coefficients = self._solve(parameters, weights)
        freedom = np.count_nonzero(weights) - 14
        if freedom < 4:
            return None
        variance = float(((differences * weights) ** 2).sum()) / freedom
        weighted = functions * weights[:, None]
        covariance = np.linalg.pinv(weighted.T @ weighted) * variance
        step = coefficients[0] - coefficients[4]
        error = math.sqrt(covariance[0, 0] + covariance[4, 4] - 2 * covariance[0, 4])
        inverse = np.linalg.pinv(jacobian.T @ jacobian)
        errors = np.sqrt(np.diag(inverse) * variance)
        # What the shape of pixels leaves is the same in every scan. Noise moves what is found by
        # inverse J^T (weights noise).
        moved = (jacobian * (weights * np.sqrt(variances))[:, None]) @ inverse
        noise_errors = np.sqrt((moved**2).sum(axis=0))
        if not step > _SIGNIFICANT * error:
            return None
        inside, outside = float(coefficients[0]), float(coefficients[4])
        return _Fit(parameters, errors, noise_errors, inside, outside)


def hot_pixel(pattern: NDArray[np.float64], inside: NDArray[np.bool_]) -> str | None:
    """Tell of a pixel that outshines all others of the bright field: contrast is relative.

    Parameters
    ----------
    pattern : (rows, columns) float
        Sum or mean of frames.
    inside : (rows, columns) bool
        Usable pixels of the bright field.

    Returns
    -------
    str or None
        Where it is, and what to do.
    """
    values = np.sort(pattern[inside])
    most = values[: len(values) - max(3, len(values) // 100)]  # others may be hot, too
    if 10 * np.count_nonzero(most > 0) <= len(most):  # few electrons tell nothing
        return None
    mean = most.mean()
    if mean <= 0 or not values[-1] > _HOT * max(mean, 2 * most.std()):
        return None
    row, column = np.argwhere(inside & (pattern == values[-1]))[0]
    return (
        f"the pixel at row {row}, column {column} is {values[-1] / mean:,.0f} times as bright as "
        "others of the bright field, and takes the contrast of images. If it is hot, exclude it "
        "with bf_mask (--bf-mask): a .npy file of the detector's shape, False there."
    )
