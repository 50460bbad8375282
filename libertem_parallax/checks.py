"""Single values: what is accepted as a number, a pair, an angle; in words where it is not."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np

__all__ = ["angle", "flag", "integer", "nearest", "number", "pair", "regularization", "shape"]

#: Where an angle is not a number in rad.
DEGREES = 'a number in rad, or a text in degrees like "-15deg"'


def number(
    name: str,
    value: Any,
    unit: str,
    *,
    positive: bool = True,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> float:
    """Check a finite number.

    Parameters
    ----------
    name, unit
        For the message.
    value
        Anything that is a number; texts and truth values are not.
    positive
        Whether it has to be larger than 0.
    limits
        Least and largest number that makes sense.

    Returns
    -------
    float
        The number.

    Raises
    ------
    ValueError
        If it is none; the message says what is expected.
    """
    result = _float(value)
    if not math.isfinite(result) or (positive and result <= 0):
        kind = "positive" if positive else "finite"
        raise ValueError(f"{name} = {value!r}: expected a {kind} number ({unit}).")
    least, largest = limits
    if not least <= result <= largest:
        raise ValueError(
            f"{name} = {result:g}: expected a number from {least:g} to {largest:g} ({unit})."
        )
    return result


def _float(value: Any) -> float:
    """Convert a number; nan for anything else, such as texts, ``True`` and arrays."""
    if isinstance(value, str | bytes | bytearray | bool | np.bool_ | complex | np.complexfloating):
        return math.nan
    if isinstance(value, np.ndarray) and value.ndim:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def pair(name: str, value: Any, unit: str, *, positive: bool = True) -> tuple[float, float]:
    """Check two numbers, along rows and columns; arguments as for `number`."""
    # In a text, bytes or keys there may be two of something, too, and sets have no order.
    if not isinstance(value, str | bytes | bytearray | Mapping | AbstractSet):
        try:
            first, second = value
        except (TypeError, ValueError):
            pass
        else:
            return (
                number(f"{name}[0]", first, unit, positive=positive),
                number(f"{name}[1]", second, unit, positive=positive),
            )
    kind = "positive" if positive else "finite"
    raise ValueError(
        f"{name} = {value!r}: expected two {kind} numbers, along rows and columns ({unit})."
    )


def angle(name: str, value: Any) -> float:
    """Check an angle: a number in rad, or a text in degrees like ``"-15deg"``; in rad.

    Raises
    ------
    ValueError
        If it is neither, or not finite.
    """
    text = value.strip() if isinstance(value, str) else ""
    if text.endswith("deg"):
        try:
            result = math.radians(float(text.removesuffix("deg")))
        except ValueError:
            result = math.nan
    else:
        result = _float(value)
    if not math.isfinite(result):
        raise ValueError(f"{name} = {value!r}: expected an angle, {DEGREES}.")
    return result


def integer(name: str, value: Any, limits: tuple[float, float]) -> int:
    """Check an integer within limits.

    Raises
    ------
    ValueError
        If it is none.
    """
    least, largest = limits
    try:
        result = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        result = None
    if result is None or not least <= result <= largest:
        lower = f" of at least {least}" if math.isfinite(least) else ""
        upper = f", and no more than {largest}" if math.isfinite(largest) else ""
        raise ValueError(f"{name} = {value!r}: expected an integer{lower}{upper}.")
    return result


def flag(name: str, value: Any) -> bool:
    """Check a truth value.

    Raises
    ------
    ValueError
        If it is none: a text like ``"False"`` would count as True.
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} = {value!r}: expected True or False.")
    return bool(value)


def shape(value: Any) -> tuple[int, int, int, int]:
    """Check the shape of a data set: scan rows and columns, detector rows and columns.

    Raises
    ------
    ValueError
        If these are no four positive integers.
    """
    try:
        value = tuple(value)
        a, b, c, d = (0 if isinstance(n, bool | np.bool_) else operator.index(n) for n in value)
        if min(a, b, c, d) >= 1:
            return a, b, c, d
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"shape = {value}: expected four positive integers (scan rows, scan columns, detector "
        "rows, detector columns). Give nav_shape when loading data that is not 4D."
    )


#: Units at the end of names, as of defocus_nm.
_UNIT = re.compile(r"_(a|å|angstroms?|pm|nm|um|µm|mm|rad|mrad|deg|degrees?|ev|kev|kv|px)$")


def nearest(name: str, known: Iterable[str], others: Mapping[str, str]) -> str | None:
    """Find out which name may have been meant.

    Parameters
    ----------
    name
        An unknown one.
    known
        Those that there are.
    others
        What some of them are called elsewhere, in small letters, and which these are.

    Returns
    -------
    str or None
        One of `known`, if any is near.
    """
    small = {**others, **{name.lower(): name for name in known}}
    plain = _UNIT.sub("", str(name).lower())
    if plain in small:
        return small[plain]
    near = difflib.get_close_matches(plain, small, n=len(small)) if len(plain) > 2 else []
    # Rather one that starts alike: C11 is as near to C41 as to C10, energie to engine as to energy.
    for letters in (4, 2):
        near = [other for other in near if other[:letters] == plain[:letters]] or near
    return small[near[0]] if near else None


def mapping(name: str, value: Any) -> None:
    """Refuse what is no mapping of parameters.

    Raises
    ------
    TypeError
        The message says what is expected.
    """
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name}: expected parameters by name, such as load_parameters returns; got "
            f"{type(value).__name__}."
        )


def regularization(name: str, value: Any) -> float | str:
    """Check how a filter weighs signal and noise.

    Parameters
    ----------
    name
        For the message.
    value
        ``"auto"``, or a positive number.

    Returns
    -------
    float or str
        The same.

    Raises
    ------
    ValueError
        If it is neither; the message says what is expected.
    """
    if isinstance(value, str) and value == "auto":
        return value
    try:
        return number(name, value, "signal over noise")
    except ValueError:
        raise ValueError(
            f"{name} = {value!r}: expected auto, or a positive number, the power of the signal "
            "over that of the noise where contrast is best."
        ) from None
