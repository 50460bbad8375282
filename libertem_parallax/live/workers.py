"""Processes that add frames: one, or several where a detector is faster than a core."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from libertem_live.api import LiveContext

__all__ = ["BYTES_PER_SECOND", "default_workers", "make_context"]

#: What a core adds of frames, by measurement: see benchmarks/README.md.
BYTES_PER_SECOND = 1.5e9


def default_workers(rate: float | None, frame_bytes: int, cores: int) -> int:
    """Choose how many processes add frames.

    Parameters
    ----------
    rate
        Frames per second that the detector will send; None if it does not tell.
    frame_bytes
        Of a frame, decoded.
    cores
        That may be used. One of them receives.

    Returns
    -------
    int
        1 where that is enough, or where the rate is not known: a single process loses nothing when
        a detector fails, and starts at once.
    """
    if rate is None:
        return 1
    return max(1, min(math.ceil(rate * frame_bytes / BYTES_PER_SECOND), cores - 1))


def make_context(workers: int) -> LiveContext:
    """Make a context of LiberTEM-live that adds frames in so many processes.

    One is this process. More of them are others, which Ctrl-C and a terminal that is closed do not
    end: they are told what to do. If a detector fails, the partition that it sent is lost, and if a
    worker does, those that it had. What was added by then is merged.

    Parameters
    ----------
    workers
        Number of processes.

    Returns
    -------
    LiveContext
        For one acquisition, to be closed.
    """
    from libertem_live.api import LiveContext

    if workers == 1:
        return LiveContext.make_with("inline")
    from .pipelined import Pipelined

    return LiveContext(Pipelined(workers))
