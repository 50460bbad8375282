"""LiberTEM's tiles in, images out. Physics and arithmetic are elsewhere."""

from .parallax import ParallaxPhaseFlipUDF, ParallaxUDF

__all__ = ["ParallaxPhaseFlipUDF", "ParallaxUDF"]
