"""Something that is done now and then, and takes a small part of the time at most."""

from __future__ import annotations

import math
import time
from typing import Self

__all__ = ["Throttle"]


class Throttle:
    """Tells when there is time to do it again; does it under a ``with`` statement.

    Parameters
    ----------
    share
        Part of the time that it may take.
    interval
        Seconds from its end to its next start, at least.
    """

    def __init__(self, share: float, interval: float = 0.0) -> None:
        self.share, self.interval = share, interval
        self._begin, self._next = 0.0, -math.inf

    def due(self) -> bool:
        """Whether there is time."""
        return time.perf_counter() >= self._next

    def __enter__(self) -> Self:
        """Begin."""
        self._begin = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        """End, however that was: what failed is not tried all the time."""
        end = time.perf_counter()
        self._next = end + max(self.interval, (end - self._begin) / self.share)
