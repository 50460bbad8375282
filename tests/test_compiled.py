"""What is particular to the Numba engine."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref

import numpy as np

from libertem_parallax.accumulate import Plan, compiled

SCRIPT = """
import numpy as np
from libertem_parallax.accumulate import ENGINES, Plan, compiled

plan = Plan((2, 3), (8, 8), 1, np.array([[4, 4]]), np.array([[0, 0]]))
A, S = np.zeros(plan.accumulator_shape, np.int32), np.zeros(6, np.int32)
frames = np.ones((6, 8, 8), np.uint8)
worker = ENGINES["numba"](plan, np.uint8, np.arange(6), A, S)
worker.add(frames)
frames.flags.writeable = False  # as memory maps are
worker.add(frames)
assert A.sum() == 12
stats = compiled._accumulate.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


def test_the_second_process_does_not_compile(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_DISABLE_JIT": "0"}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        for _ in range(2)
    ]
    # One specialisation, compiled by the first process and read from disk by the second.
    assert outputs == [["0", "1"], ["1", "0"]]


def test_no_folder_for_the_cache_is_no_error(monkeypatch):
    """As in containers and on cluster nodes."""

    def refuse(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(compiled, "njit", refuse)
    assert compiled._keep_on_disk(abs)(-1) == 1


def test_engines_leave_with_their_last_reference():
    """Without waiting for the garbage collector: accumulators are large, partitions many."""
    plan = Plan((2, 3), (8, 8), 1, np.array([[4, 4]]), np.array([[0, 0]]))
    worker = compiled.CompiledEngine(
        plan,
        np.uint8,
        np.arange(6),
        np.zeros(plan.accumulator_shape, np.int32),
        np.zeros(6, np.int32),
    )
    worker.add(np.ones((6, 8, 8), np.uint8))
    gc.disable()
    try:
        gone = weakref.ref(worker)
        del worker
        assert gone() is None
    finally:
        gc.enable()
