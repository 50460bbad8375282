"""Adding frames to an accumulator: one contract, several engines.

`Plan` says which pixels go where, `Engine` what is promised, `ENGINES` who keeps the promise.
Nothing here knows of physics or of LiberTEM.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .compiled import CompiledEngine
from .engine import Engine, accumulator_dtype
from .plain import PlainEngine
from .plan import Plan

__all__ = ["ENGINES", "Engine", "Plan", "accumulator_dtype"]

#: Engines by the name that users give.
ENGINES: Mapping[str, type[Engine]] = MappingProxyType(
    {"numba": CompiledEngine, "numpy": PlainEngine}
)
