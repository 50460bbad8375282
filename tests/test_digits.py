"""Numbers are written with as many digits as their errors allow."""

from __future__ import annotations

import math

import pytest

from libertem_parallax.show.digits import plus_minus


@pytest.mark.parametrize(
    ("values", "errors", "unit", "text"),
    [
        ((1489.7321,), (0.23,), "nm", "1489.73 ± 0.23 nm"),
        ((10.635,), (8.4,), "", "10.6 ± 8.4"),
        ((-10.185,), (52.3,), "°", "-10 ± 52°"),
        ((31.9979, 32.0041), (0.0031, 0.02), "pixels", "31.9979, 32.004 ± 0.02 pixels"),
        ((1.0,), (0.0,), "", "1.000 ± 0"),
        ((1.0,), (math.inf,), "", "1.000 ± inf"),
    ],
)
def test_digits(values: tuple[float], errors: tuple[float], unit: str, text: str) -> None:
    assert plus_minus(values, errors, unit) == text
