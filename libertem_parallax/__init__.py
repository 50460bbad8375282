"""Live parallax (tilt-corrected bright-field) imaging of 4D-STEM data with LiberTEM."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calibration import CalibrationError
    from .curves import Transfer, transfer
    from .direct import direct_phase
    from .parameters import Parameters, load_parameters
    from .series import defocus_series
    from .show.notebook import tune
    from .udf import (
        Learning,
        ParallaxPhaseFlipUDF,
        ParallaxPhaseUDF,
        ParallaxUDF,
        StackUDF,
        calibrate,
    )

__all__ = [
    "CalibrationError",
    "Learning",
    "ParallaxPhaseFlipUDF",
    "ParallaxPhaseUDF",
    "ParallaxUDF",
    "Parameters",
    "StackUDF",
    "Transfer",
    "calibrate",
    "defocus_series",
    "direct_phase",
    "load_parameters",
    "transfer",
    "tune",
]


#: Where names are, if not in `udf`.
_MODULES = {
    "CalibrationError": "calibration",
    "Parameters": "parameters",
    "Transfer": "curves",
    "defocus_series": "series",
    "direct_phase": "direct",
    "transfer": "curves",
    "tune": "show.notebook",
    "load_parameters": "parameters",
}


def __getattr__(name: str) -> Any:
    # LiberTEM takes a second to import, which the help and errors of the command line need not.
    if name in __all__:
        return getattr(importlib.import_module(f".{_MODULES.get(name, 'udf')}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
