"""Threads that share work of milliseconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

__all__ = ["cores", "share"]

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")


def cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share(
    work: Callable[[Iterator[_Part]], _Result], parts: Iterable[_Part], threads: int
) -> list[_Result]:
    """Have several threads take parts until none is left, this one among them.

    Where other cores are busy, this one takes what others have not come to.

    Parameters
    ----------
    work
        Called in each thread, with an iterator over the parts that all of them have in common. It
        must not share work itself.
    parts
        Of the work.
    threads
        How many to use at most.

    Returns
    -------
    list
        What `work` returned, for each thread that came to it; the first is that of this thread.
    """
    left = iter(tuple(parts))  # of a tuple: threads may ask it at the same time
    others = [_pool().submit(work, left) for _ in range(threads - 1)]
    own = work(left)
    return [own, *(other.result() for other in others if not other.cancel())]


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads that stay: to start them anew would take a tenth of the time of small stacks."""
    return ThreadPoolExecutor(cores(), thread_name_prefix="share")
