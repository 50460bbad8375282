"""Aberrations of the probe-forming lens: names, units, surface and gradient.

Polar coefficients ``C10 ... C56`` (Å) with their azimuths ``phi12 ... phi56`` (rad) as abTEM and
quantEM define them. A direction is a pair of angles ``(first, second)`` in rad, first along rows
and second along columns; its azimuth is ``arctan2(second, first)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import checks

__all__ = [
    "ALIASES",
    "ELSEWHERE",
    "SYMBOLS",
    "canonical",
    "gradient",
    "has_even",
    "surface",
    "unit",
    "wavelength",
]

#: (n, m) of every coefficient: C_nm multiplies alpha**(n+1) and varies as cos(m (phi - phi_nm)).
_ORDERS = tuple((n, m) for n in range(1, 6) for m in range(n + 2) if (n + m) % 2 == 1)

#: The names of all coefficients and azimuths.
SYMBOLS = tuple(
    name for n, m in _ORDERS for name in ((f"C{n}{m}", f"phi{n}{m}") if m else (f"C{n}{m}",))
)

#: Other customary names. ``defocus`` changes sign: ``defocus = -C10``.
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "defocus": "C10",
        "Cs": "C30",
        "C5": "C50",
        **{
            alias + suffix: symbol + order
            for alias, order in {
                "astigmatism": "12",
                "astigmatism3": "32",
                "astigmatism5": "52",
                "coma": "21",
                "coma4": "41",
                "trefoil": "23",
                "trefoil4": "43",
                "quadrafoil": "34",
                "quadrafoil5": "54",
                "pentafoil": "45",
                "hexafoil": "56",
            }.items()
            for suffix, symbol in (("", "C"), ("_angle", "phi"))
        },
    }
)


#: What some are called elsewhere, in small letters.
ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("df", "dz", "defoc", "underfocus"), "defocus"),
        "spherical_aberration": "Cs",
        # Uhlemann and Haider's, where these have the same magnitude.
        "c1": "C10",
        "a1": "C12",
        "a2": "C23",
        "c3": "C30",
        "a3": "C34",
        "a4": "C45",
        "a5": "C56",
    }
)


def unit(name: str) -> str:
    """Tell the unit of a coefficient or azimuth: Å or rad."""
    return "rad" if ALIASES.get(name, name).startswith("phi") else "Å"


def wavelength(energy: float) -> float:
    """Relativistic wavelength of an electron.

    Parameters
    ----------
    energy
        Kinetic energy in eV.

    Returns
    -------
    float
        Wavelength in Å: ``h c / sqrt(E (E + 2 m c²))``.
    """
    import scipy.constants  # takes a while, which the help of the command line need not

    rest = scipy.constants.value("electron mass energy equivalent in MeV") * 1e6
    hc = scipy.constants.h * scipy.constants.c / scipy.constants.e * 1e10
    return float(hc / math.sqrt(energy * (energy + 2 * rest)))


def canonical(coefs: Mapping[str, float | str] | None) -> dict[str, float]:
    """Check aberration coefficients and resolve their aliases.

    Parameters
    ----------
    coefs
        Coefficients in Å and azimuths in rad or as texts like ``"15deg"``, by any name in `SYMBOLS`
        or `ALIASES`.

    Returns
    -------
    dict
        The same by the names of `SYMBOLS`; what was not given is not in it.

    Raises
    ------
    ValueError
        For an unknown name, a value that is not a finite number, or a coefficient given twice
        under two names.
    """
    if coefs is not None and not isinstance(coefs, Mapping):
        raise ValueError(
            f"aberration_coefs = {coefs!r}: expected names and values, {{'C10': -1.5e4}}."
        )
    result: dict[str, float] = {}
    given: dict[str, str] = {}
    for name, value in (coefs or {}).items():
        symbol = ALIASES.get(name, name)
        if symbol not in SYMBOLS:
            near = checks.nearest(name, [*SYMBOLS, *ALIASES], ELSEWHERE)
            hint = f"; the nearest known one is {near!r} in {unit(near)}" if near else ""
            raise ValueError(
                f"aberration_coefs: unknown name {name!r}{hint}. "
                f"Known: {', '.join(SYMBOLS)}; aliases: {', '.join(ALIASES)}."
            )
        if symbol in given:
            raise ValueError(
                f"aberration_coefs: {given[symbol]!r} and {name!r} both name {symbol}; give one."
            )
        what = f"aberration_coefs[{name!r}]"
        if unit(symbol) == "rad":
            number = checks.angle(what, value)
        else:
            number = checks.number(what, value, unit(symbol), positive=False)
        result[symbol] = -number if name == "defocus" else number
        given[symbol] = name
    return result


def _terms(coefs: Mapping[str, float]) -> Iterator[tuple[int, int, float, float]]:
    for n, m in _ORDERS:
        magnitude = coefs.get(f"C{n}{m}", 0.0)
        if magnitude:
            yield n, m, magnitude, coefs.get(f"phi{n}{m}", 0.0)


def _polar(angles: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.moveaxis(np.asarray(angles, dtype=np.float64), -1, 0)
    return np.hypot(first, second), np.arctan2(second, first)


def gradient(coefs: Mapping[str, float], angles: ArrayLike) -> NDArray[np.float64]:
    """Displacement of the image that is seen in a direction, ``(1 / 2π) ∂χ/∂k``.

    Parameters
    ----------
    coefs
        As `canonical` returns them.
    angles : (..., 2) float
        Directions in rad.

    Returns
    -------
    (..., 2) float64
        Displacement in Å along rows and columns. The wavelength cancels: it is the gradient of
        ``Σ C_nm α^(n+1)/(n+1) cos(m(φ - φ_nm))`` by the angles.
    """
    alpha, phi = _polar(angles)
    radial = np.zeros_like(alpha)
    azimuthal = np.zeros_like(alpha)
    for n, m, magnitude, azimuth in _terms(coefs):
        radial += magnitude * alpha**n * np.cos(m * (phi - azimuth))
        azimuthal -= magnitude * alpha**n * np.sin(m * (phi - azimuth)) * m / (n + 1)
    cos, sin = np.cos(phi), np.sin(phi)
    return np.stack([cos * radial - sin * azimuthal, sin * radial + cos * azimuthal], axis=-1)


def has_even(coefs: Mapping[str, float]) -> bool:
    """Whether any aberration is even under inversion, as defocus, astigmatism and Cs are."""
    return any(n % 2 == 1 for n, *_ in _terms(coefs))


def surface(
    coefs: Mapping[str, float], angles: ArrayLike, wavelength: float, *, even_only: bool = False
) -> NDArray[np.float64]:
    """Aberration surface χ.

    Parameters
    ----------
    coefs
        As `canonical` returns them.
    angles : (..., 2) float
        Directions in rad.
    wavelength
        In Å.
    even_only
        Leave out the aberrations that are odd under inversion (n even: coma, trefoil, ...).

    Returns
    -------
    (...) float64
        ``2π/λ Σ C_nm α^(n+1)/(n+1) cos(m(φ - φ_nm))`` in rad.
    """
    alpha, phi = _polar(angles)
    path = np.zeros_like(alpha)
    for n, m, magnitude, azimuth in _terms(coefs):
        if n % 2 == 1 or not even_only:
            path += magnitude * alpha ** (n + 1) / (n + 1) * np.cos(m * (phi - azimuth))
    chi: NDArray[np.float64] = 2 * np.pi / wavelength * path
    return chi
