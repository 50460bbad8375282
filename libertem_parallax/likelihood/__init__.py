"""How well the images of bright-field pixels agree with a weak phase object: one contract, engines.

`Engine` is what is promised, `ENGINES` who keeps the promise. Nothing here knows of physics beyond
the interference of three beams, or of LiberTEM.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .compiled import CompiledEngine
from .engine import Engine, Interference, Sums, monomials
from .plain import PlainEngine

__all__ = ["ENGINES", "Engine", "Interference", "Sums", "monomials"]

#: Engines by name.
ENGINES: Mapping[str, type[Engine]] = MappingProxyType(
    {"numba": CompiledEngine, "numpy": PlainEngine}
)
