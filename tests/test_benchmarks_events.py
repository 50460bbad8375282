"""Benchmarks of frames that are lists of events."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import libertem.api as lt
import numpy as np
import pytest
import scipy.sparse
from click.testing import CliRunner
from libertem.udf.raw import PickUDF
from numpy.typing import NDArray

from benchmarks import __main__ as command
from benchmarks import events, report, worker
from benchmarks.workloads import Workload, write

SMALL = Workload("small", (18, 20, 64, 64))
EVENTS = replace(SMALL, storage="raw_csr", electrons=0.05)


BRIGHT_FIELD = np.hypot(*(np.indices((64, 64)) - 32)) * 0.307617 <= 4


def read_frames(workload: Workload, file: Path) -> NDArray[np.int64]:
    """Frames by LiberTEM's own way of making events dense."""
    with lt.Context.make_with("inline") as ctx:
        ds = ctx.load(workload.storage, path=str(file))
        return ctx.run_udf(ds, PickUDF(), roi=np.ones(workload.shape[:2], bool))[
            "intensity"
        ].raw_data.astype(int)


@pytest.mark.parametrize("lit", [None, 16])
def test_events_are_where_electrons_come(tmp_path, lit) -> None:
    workload = replace(EVENTS, lit=lit)
    frames = read_frames(workload, write(workload, tmp_path))
    part = slice(None) if lit is None else slice(32 - 8, 32 + 8)
    lit_frames = frames[:, part, part][:, ~workload.dark]
    assert frames.max() == 1
    assert frames.sum() == lit_frames.sum()
    # Standard deviation of the mean of n numbers that are 1 with probability p.
    n, p = lit_frames.size, workload.electrons
    assert abs(lit_frames.mean() - p) < 4 * np.sqrt(p * (1 - p) / n)
    # ... wherever they are: by pixel, by frame, and right after another one.
    for axis in (0, 1):
        sums = lit_frames.sum(axis=axis)
        assert abs(sums.var() / (lit_frames.size / sums.size * p * (1 - p)) - 1) < 0.25
    pairs = lit_frames[..., 1:] * lit_frames[..., :-1]
    assert abs(pairs.mean() - p**2) < 5 * p / np.sqrt(pairs.size)


def test_dense_frames_fill_the_same_part(tmp_path) -> None:
    """The middle of the disk, here."""
    frames = np.load(write(replace(SMALL, lit=16), tmp_path))
    lit = np.zeros((64, 64), bool)
    lit[24:40, 24:40] = True
    assert frames.any(axis=(0, 1))[lit].all()
    assert not frames.any(axis=(0, 1))[~lit].any()


def test_events_and_dense_frames_of_the_same_are_compared(tmp_path) -> None:
    shared = command.Worker()
    paths = (*command.PATHS, *command.EVENTS)
    try:
        rows = command.measure(EVENTS, dict.fromkeys(paths, shared), 2, tmp_path)
    finally:
        shared.close()
    frames = read_frames(EVENTS, write(EVENTS, tmp_path))
    assert np.array_equal(np.load(*tmp_path.glob("*.npy")).reshape(frames.shape), frames)
    for row in rows:
        assert len(row.seconds) == 2, row.path
        assert row.electrons == frames[:, BRIGHT_FIELD].sum()
        assert row.correlation is None or row.correlation == pytest.approx(1)
        assert row.events == (not row.path.endswith("dense"))
    assert sum(row.correlation is not None for row in rows) == 6
    table = "\n".join(report.table(rows))
    assert "x numba, dense" in table
    assert "x scatter floor" in table


@pytest.mark.parametrize("path", ["floor", "floor, file mapped"])
def test_the_floor_of_events_reads_all_of_them(tmp_path, path) -> None:
    question = {**asdict(EVENTS), "file": str(write(EVENTS, tmp_path))}
    run, *nothing = worker.prepare(path, question)
    plan = worker.make_udf("numba", question).params.geometry.plan
    expected = 0
    for frame in read_frames(EVENTS, Path(question["file"])):
        for target in plan.lookup[frame > 0].tolist():
            expected = (expected ^ target) + 1
    assert run() == expected
    assert nothing == [None, None, None]


def test_the_scatter_floor_adds_once_for_every_electron(tmp_path) -> None:
    """In the same places as all frames together, and evenly."""
    question = {**asdict(EVENTS), "file": str(write(EVENTS, tmp_path))}
    plan = worker.make_udf("numba", question).params.geometry.plan
    run, *_ = worker.prepare("scatter floor", question)
    electrons = read_frames(EVENTS, Path(question["file"]))[:, BRIGHT_FIELD].sum()
    once, twice = run().copy(), run()
    assert twice.sum() - once.sum() == electrons
    every = np.zeros(plan.accumulator_shape, int).reshape(-1)
    for y, x in np.ndindex(plan.scan_shape):
        every[plan.targets + y * plan.accumulator_shape[3] + x] += 1
    assert not twice[every == 0].any()


def test_noop_of_events_gets_events(tmp_path, monkeypatch) -> None:
    """LiberTEM would make dense frames for its own."""
    udf = worker.make_udf("NoOpUDF", asdict(EVENTS))
    seen: list[Any] = []
    monkeypatch.setattr(type(udf), "process_tile", lambda self, tile: seen.append(tile))
    with lt.Context.make_with("inline") as ctx:
        ctx.run_udf(ctx.load("raw_csr", path=str(write(EVENTS, tmp_path))), udf)
    assert seen
    assert all(scipy.sparse.issparse(tile) for tile in seen)


def test_a_line_is_fitted() -> None:
    start, slope, off = events.fit([1, 10, 100], [12, 30, 210])
    assert (start, slope) == (pytest.approx(10), pytest.approx(2))
    assert off < 1e-12
    # Twice the same x: the sum of (c / y - 1)² is least for this c.
    *_, off = events.fit([1, 1, 2, 2], [9, 11, 9, 11])
    assert off == pytest.approx(1 - (1 / 9 + 1 / 11) / (1 / 9**2 + 1 / 11**2) / 11)


def test_what_events_cost_is_reported() -> None:
    result = CliRunner().invoke(events.main, ["--scan", "36", "--rounds", "2"])
    assert result.exit_code == 0, result.output
    for says in (
        "| events, 1.0% |",
        "Line through",
        "A partition costs",
        "512 x 512, the same",
        "makes dense of the events",
    ):
        assert says in result.output
