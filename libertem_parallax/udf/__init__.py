"""LiberTEM's tiles in, images out. Physics and arithmetic are elsewhere."""

from .calibration import calibrate
from .parallax import ParallaxPhaseFlipUDF, ParallaxPhaseUDF, ParallaxUDF
from .stack import StackUDF

__all__ = ["ParallaxPhaseFlipUDF", "ParallaxPhaseUDF", "ParallaxUDF", "StackUDF", "calibrate"]
