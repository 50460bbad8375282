"""Threads that share work of milliseconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
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
    function: Callable[[_Part], _Result], parts: Sequence[_Part], threads: int
) -> list[_Result]:
    """Call a function for each of some parts, in several threads, this one among them.

    Each takes the next part until none is left. So where other cores are busy, this one takes what
    others have not come to.

    Parameters
    ----------
    function
        Must not share work itself.
    parts
        What to call it with.
    threads
        How many to use at most.

    Returns
    -------
    list
        What the function returned, in the order of the parts.
    """
    left, results = iter(range(len(parts))), {}  # threads may ask a range's iterator at once

    def work() -> None:
        for number in left:
            results[number] = function(parts[number])

    others = [_pool().submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        if not other.cancel():
            other.result()
    return [results[number] for number in range(len(parts))]


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads that stay: to start them anew would take a tenth of the time of small stacks."""
    return ThreadPoolExecutor(cores(), thread_name_prefix="share")
