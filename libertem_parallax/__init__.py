"""Live parallax (tilt-corrected bright-field) imaging of 4D-STEM data with LiberTEM."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .parameters import Parameters, load_parameters
    from .udf import ParallaxPhaseFlipUDF, ParallaxPhaseUDF, ParallaxUDF, StackUDF

__all__ = [
    "ParallaxPhaseFlipUDF",
    "ParallaxPhaseUDF",
    "ParallaxUDF",
    "Parameters",
    "StackUDF",
    "load_parameters",
]


def __getattr__(name: str) -> Any:
    # LiberTEM takes a second to import, which the help and errors of the command line need not.
    if name in ("Parameters", "load_parameters"):
        from . import parameters

        return getattr(parameters, name)
    if name in __all__:
        from . import udf

        return getattr(udf, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
