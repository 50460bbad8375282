"""Numbers with as many digits as they have."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["plus_minus"]


def plus_minus(values: Iterable[float], errors: Iterable[float], unit: str = "") -> str:
    """Write values with as many digits as their errors allow.

    Parameters
    ----------
    values, errors
        As many of both. Of the errors, the largest is written.
    unit
        Of all of them.
    """
    values, errors = tuple(values), tuple(errors)
    texts = []
    for value, error in zip(values, errors, strict=True):
        known = 0 < error < math.inf
        digits = min(6, max(0, 1 - math.floor(math.log10(error)))) if known else 3
        texts.append(f"{value:.{digits}f}")
    error = max(errors)
    space = " " if unit not in ("", "°") else ""
    stated = f"{error:.2g}" if error < 10 else f"{error:.0f}"
    return f"{', '.join(texts)} ± {stated}{space}{unit}"
