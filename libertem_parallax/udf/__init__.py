"""LiberTEM's tiles in, images out. Physics and arithmetic are elsewhere."""

from .calibration import calibrate
from .learning import Learning
from .parallax import ParallaxPhaseFlipUDF, ParallaxPhaseUDF, ParallaxUDF
from .stack import StackUDF

__all__ = [
    "Learning",
    "ParallaxPhaseFlipUDF",
    "ParallaxPhaseUDF",
    "ParallaxUDF",
    "StackUDF",
    "calibrate",
]
