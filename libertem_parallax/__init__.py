"""Live parallax (tilt-corrected bright-field) imaging of 4D-STEM data with LiberTEM."""

from .udf import ParallaxPhaseFlipUDF, ParallaxUDF

__all__ = ["ParallaxPhaseFlipUDF", "ParallaxUDF"]
