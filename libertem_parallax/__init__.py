"""Live parallax (tilt-corrected bright-field) imaging of 4D-STEM data with LiberTEM."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calibration import CalibrationError
    from .parameters import Parameters, load_parameters
    from .udf import ParallaxPhaseFlipUDF, ParallaxPhaseUDF, ParallaxUDF, StackUDF, calibrate

__all__ = [
    "CalibrationError",
    "ParallaxPhaseFlipUDF",
    "ParallaxPhaseUDF",
    "ParallaxUDF",
    "Parameters",
    "StackUDF",
    "calibrate",
    "load_parameters",
]


def __getattr__(name: str) -> Any:
    # LiberTEM takes a second to import, which the help and errors of the command line need not.
    if name in ("Parameters", "load_parameters"):
        from . import parameters

        return getattr(parameters, name)
    if name == "CalibrationError":
        from .calibration import CalibrationError

        return CalibrationError
    if name in __all__:
        from . import udf

        return getattr(udf, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
