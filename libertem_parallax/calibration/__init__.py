"""Calibration: parameters that nobody knows, from the data themselves.

`find_beam` takes center and sampling from the mean pattern, `calibrate_stack` rotation, hand and
aberrations from a stack of bright-field pixels. What is here needs no LiberTEM.
"""

from .beam import Beam, find_beam
from .calibration import Alternative, Calibration, calibrate_stack, check_search, without
from .failure import CalibrationError
from .reduce import mean_pattern, scanned_part
from .twins import Hints

__all__ = [
    "Alternative",
    "Beam",
    "Calibration",
    "CalibrationError",
    "Hints",
    "calibrate_stack",
    "check_search",
    "find_beam",
    "mean_pattern",
    "scanned_part",
    "without",
]
