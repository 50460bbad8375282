"""What the benchmarks make of times. Times themselves are never asserted."""

from __future__ import annotations

import re
from dataclasses import replace

from conftest import needs_compiler

from benchmarks import gpu, report
from benchmarks.report import Row

FLOOR = Row("w", "floor", 1000, 10, [0.1, 0.1, 0.1])
NUMBA = Row("w", "numba", 1000, 10, [0.4, 0.5, 0.6])


def slowed(row: Row, factor: float) -> Row:
    return replace(row, seconds=[factor * s for s in row.seconds])


def test_rate_and_spread_are_those_of_the_median_round() -> None:
    assert NUMBA.rate == 2000
    assert round(NUMBA.spread, 6) == 0.2  # (0.55 - 0.45) / 0.5


def test_ratios_are_of_paired_rounds() -> None:
    """Both are slow in the last round: that is the machine."""
    a = replace(NUMBA, seconds=[0.1, 0.1, 1.0])
    b = replace(NUMBA, seconds=[0.2, 0.2, 2.0])
    assert a.ratio(b) == 2


def test_compare_tells_slower_code_from_a_slower_machine_and_from_noise() -> None:
    old = [FLOOR, NUMBA]
    assert report.compare(old, old) == []
    assert report.compare(old, [slowed(FLOOR, 3), slowed(NUMBA, 3)]) == []
    assert report.compare(old, [FLOOR, slowed(NUMBA, 1.3)]) == []  # spread: 20 % each
    assert report.compare(old, [FLOOR, slowed(NUMBA, 0.1)]) == []
    assert report.compare(old, [FLOOR, slowed(NUMBA, 4)]) == ["w, numba: 75% slower than before"]
    assert report.compare([NUMBA], [slowed(NUMBA, 4)]) == ["w, numba: 75% slower than before"]
    assert report.compare([FLOOR], [slowed(NUMBA, 4)]) == []


def test_table_shows_every_path_against_the_references() -> None:
    head, columns, floor, numba, end = report.table([FLOOR, NUMBA])
    assert head == "w, 10 bright-field pixels"
    assert columns.split() == ["path", "frames/s", "updates/s", "spread", "x", "floor"]
    assert floor.split() == ["floor", "10,000", "0%", "1.00"]
    assert numba.split() == ["numba", "2,000", "0", "M", "20%", "0.20"]
    assert end == ""


@needs_compiler
def test_gpu_table_has_all_figures(standin, monkeypatch) -> None:
    """They say nothing here, where the GPU is none."""
    standin()
    monkeypatch.setattr(gpu, "_ROUNDS", 1)
    monkeypatch.setattr(gpu, "WORKLOADS", gpu.WORKLOADS[:1])
    lines = list(gpu.table(1 << 16))
    figures = [len(re.findall(r" [\d,.]+(?= G|%| frames)", line)) for line in lines]
    assert figures[1:] == [2, 3, 0, 0, 0, 3, 3, 3, 1, 1]
