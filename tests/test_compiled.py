"""What is particular to the Numba engine."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import numpy as np
from libertem_parallax.accumulate import ENGINES, Plan, compiled

plan = Plan((2, 3), (8, 8), 1, np.array([[4, 4]]), np.array([[0, 0]]))
A, S = np.zeros(plan.accumulator_shape, np.int32), np.zeros(6, np.int32)
frames = np.ones((6, 8, 8), np.uint8)
worker = ENGINES["numba"](plan, np.arange(6), A, S)
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
