"""LiberTEM's tiles in, images out. Physics and arithmetic are elsewhere."""

from .parallax import ParallaxPhaseFlipUDF, ParallaxUDF
from .stack import StackUDF

__all__ = ["ParallaxPhaseFlipUDF", "ParallaxUDF", "StackUDF"]
