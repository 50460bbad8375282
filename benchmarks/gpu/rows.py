"""A line of the report."""

from __future__ import annotations

import os
from typing import NamedTuple

__all__ = ["CORES", "Row"]

#: Cores that are compared with.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Row(NamedTuple):
    """A line of the report."""

    what: str
    figure: str
    against: str = ""
