"""What the benchmarks make of times. Times themselves are never asserted."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import needs_compiler

from benchmarks import __main__ as command
from benchmarks import floor, growth, report, targets, worker
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import cutting, floors, parts, whole
from benchmarks.report import Row
from benchmarks.workloads import Workload, events, write
from libertem_parallax.accumulate import CudaError

FLOOR = Row("w", "floor", 1000, 10, 5000.0, [0.1, 0.1, 0.1])
NUMBA = Row("w", "numba", 1000, 10, 5000.0, [0.4, 0.5, 0.6], 1.0)
WRONG = Row("w", "numpy", 1000, 10, 5000.0, [], 0.123)
SMALL = Workload("small", (18, 20, 64, 64))
#: What a device that is none is asked to calibrate.
TINY = Workload(
    "tiny",
    (12, 14, 24, 24),
    "uint16",
    SMALL.parameters | {"angular_sampling": (0.8, 0.8), "aberration_coefs": {"C10": -1e4}},
    electrons=100,
)


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


def test_slow_paths_run_in_the_first_rounds_only() -> None:
    assert replace(NUMBA, seconds=[0.4, 0.4, 9.0]).ratio(replace(NUMBA, seconds=[0.8, 0.8])) == 2


def test_compare_tells_slower_code_from_a_slower_machine_and_from_noise() -> None:
    old = [FLOOR, NUMBA]
    assert report.compare(old, old) == []
    assert report.compare(old, [slowed(FLOOR, 3), slowed(NUMBA, 3)]) == []
    assert report.compare(old, [FLOOR, slowed(NUMBA, 1.3)]) == []  # spread: 20 % each
    assert report.compare(old, [FLOOR, slowed(NUMBA, 0.1)]) == []
    assert report.compare(old, [FLOOR, slowed(NUMBA, 4)]) == ["w, numba: 75% slower than before"]
    assert report.compare([NUMBA], [slowed(NUMBA, 4)]) == ["w, numba: 75% slower than before"]
    assert report.compare([FLOOR], [slowed(NUMBA, 4)]) == []


def test_half_the_rate_is_no_noise() -> None:
    unsteady = replace(NUMBA, seconds=[0.1, 0.5, 1.9])
    assert unsteady.spread > 1
    assert report.compare([unsteady], [slowed(unsteady, 1.9)]) == []
    assert report.compare([unsteady], [slowed(unsteady, 2.5)]) == [
        "w, numba: 60% slower than before"
    ]


def test_compare_tells_what_became_wrong() -> None:
    right = replace(WRONG, seconds=[1.0], correlation=1.0)
    assert report.compare([right], [WRONG]) == ["w, numpy: wrong, correlation 0.12"]
    assert report.compare([WRONG], [WRONG]) == report.compare([WRONG], [right]) == []


def test_table_shows_every_path_against_the_references() -> None:
    million = replace(NUMBA, electrons=5e9)
    head, columns, floor, numba, wrong, end = report.table([FLOOR, million, WRONG])
    assert head == "w, 10 bright-field pixels, 5 electrons a frame"
    assert columns.split() == [
        "path", "frames/s", "updates/s", "electrons/s", "spread", "x", "floor",
    ]  # fmt: skip
    assert floor.split() == ["floor", "10,000", "0%", "1.00"]
    assert numba.split() == ["numba", "2,000", "0", "M", "10,000", "M", "20%", "0.20"]
    assert wrong.split() == ["numpy", "wrong,", "correlation", "0.12:", "not", "timed"]
    assert end == ""


@pytest.mark.parametrize("electrons", [0.01, 0.7])
def test_frames_hold_poisson_noise(tmp_path, electrons) -> None:
    frames = np.load(write(replace(SMALL, electrons=electrons), tmp_path))
    assert (frames.shape, frames.dtype) == (SMALL.shape, np.uint8)
    # The mean of n Poisson numbers has this standard deviation; the table has steps of 2**-16.
    bright = frames[:, :, ~SMALL.dark]
    assert abs(bright.mean() - electrons) < 4 * np.sqrt(electrons / bright.size) + 2**-14
    assert abs(bright.var() / electrons - 1) < 0.03
    # A disk of 13 pixels, and one more.
    assert abs(np.sqrt((~SMALL.dark).sum() / np.pi) - 14) < 0.3
    assert not frames[:, :, SMALL.dark].any()
    assert (frames[1:] != frames[:-1]).any(axis=(1, 2, 3)).all()  # no row twice


def test_a_workload_replaces_the_last_ones_file(tmp_path) -> None:
    first = write(SMALL, tmp_path)
    assert write(SMALL, tmp_path) == first
    other = write(replace(SMALL, dtype="uint16"), tmp_path)
    assert list(tmp_path.iterdir()) == [other]


class Misled(command.Worker):
    """Gives another defocus than it should to one of its paths."""

    def ask(self, question):
        if isinstance(question, dict) and question["path"] == "numpy":
            coefs = {"C10": 1.5 * question["parameters"]["aberration_coefs"]["C10"]}
            parameters = {**question["parameters"], "aberration_coefs": coefs}
            question = {**question, "parameters": parameters}
        return super().ask(question)


def test_a_wrong_image_gets_no_time(tmp_path) -> None:
    misled = Misled()
    workers = dict.fromkeys(("numba", "numpy", "numba, engine alone"), misled)
    try:
        numba, numpy, alone = command.measure(SMALL, workers, 2, tmp_path)
    finally:
        misled.close()
    assert (len(numba.seconds), numpy.seconds, len(alone.seconds)) == (2, [], 2)
    assert numba.correlation == pytest.approx(1)
    assert alone.correlation == pytest.approx(1)
    assert abs(numpy.correlation) < 0.9
    frames = np.load(write(SMALL, tmp_path)).astype(float)
    offsets = (np.indices((64, 64)) - 32) * 0.307617
    bright_field = np.hypot(*offsets) <= 4
    assert numba.pixels == bright_field.sum()
    assert numba.electrons == frames[..., bright_field].sum()


def test_the_exit_status_says_whether_anything_became_slower(tmp_path, monkeypatch) -> None:
    """Than in times that no machine needs."""
    monkeypatch.setattr(command, "WORKLOADS", (SMALL,))
    old = tmp_path / "old.json"
    options = ["--quick", "--output", str(tmp_path), "--compare", str(old)]
    for seconds, status, says in (
        (1e6, 0, "Nothing became slower or wrong."),
        (1e-9, 1, "small, numba: 100% slower"),
    ):
        row = Row("small", "numba", 360, 529, 1.0, [seconds])
        old.write_text(json.dumps({"rows": [asdict(row)]}))
        result = CliRunner().invoke(command.main, options)
        assert says in result.output
        assert result.exit_code == status
        rows = json.loads((tmp_path / "results.json").read_text())["rows"]
        assert {row["path"]: len(row["seconds"]) for row in rows} == dict.fromkeys(
            command.PATHS + command.STACK, 3
        )
        # Once will do.
        measured = [Row(**row) for row in rows]
        monkeypatch.setattr(command, "measure", lambda *_, measured=measured: measured)


def test_results_go_outside_of_the_checkout(tmp_path, monkeypatch) -> None:
    temporary, here = tmp_path / "temporary", tmp_path / "here"
    temporary.mkdir()
    here.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.chdir(here)
    monkeypatch.setattr(command, "WORKLOADS", ())
    result = CliRunner().invoke(command.main, ["--quick"])
    [file] = temporary.glob("*/results.json")
    assert f"Written to {file}" in result.output
    assert list(here.iterdir()) == []


def test_old_results_that_are_none_are_refused(tmp_path) -> None:
    file = tmp_path / "old.json"
    file.write_text("{}")
    result = CliRunner().invoke(command.main, ["--compare", str(file)])
    assert result.exit_code == 1
    assert "no results.json" in result.output


def test_curves_are_drawn(tmp_path) -> None:
    curves: Mapping = {
        "numbers": [(1, [FLOOR, NUMBA]), (2, [FLOOR, NUMBA])],
        "names": [("uint8", [FLOOR]), ("uint16", [NUMBA])],
    }
    report.plot(tmp_path / "curves.png", curves)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def gpu_report(standin, monkeypatch, tmp_path):
    """Run the report on small frames, by a device that is none; returns its result and lines."""
    standin(order="forward")
    monkeypatch.setattr(floors, "_ROUNDS", 1)
    monkeypatch.setattr(parts, "C_TYPES", ["float32", "uint8"])
    for which in ("FRAMES", "STACKS"):
        monkeypatch.setattr(gpu, which, (TINY,))
    monkeypatch.setattr(gpu, "RUNS", (TINY, events(8, 0.01)))
    # Of the calibration, the transforms and some sums.
    monkeypatch.setattr(gpu, "TOLD", (*gpu.TOLD, "rotation_angle", "aberration_coefs"))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(parts, "_run", lambda *_: ("9 passed in 1 s", True))  # on a GPU

    def run(*options, name="report.md"):
        file = tmp_path / name
        result = CliRunner().invoke(gpu.main, ["--size", "1", "--output", str(file), *options])
        return result, file.read_text().splitlines() if file.exists() else []

    return run


@needs_compiler
@pytest.mark.filterwarnings("ignore:shifts of up to")
def test_the_gpu_report_has_all_figures(gpu_report) -> None:
    """They say nothing here, where the GPU is none."""
    result, lines = gpu_report()
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == lines
    assert lines[0].startswith("No GPU, driver for CUDA 13.0, CuPy 0")
    assert lines[4] == "|---|---|---|"
    assert lines[5:7] == [
        "| frames, events and stacks against NumPy | equal to the last bit, 2 dtypes |  |",
        "| likelihood against NumPy | equal to single precision |  |",
    ]
    assert lines[-2:] == [
        "| tests that need a GPU | 9 passed in 1 s |  |",
        "| compute-sanitizer | not installed |  |",
    ]
    rows = [line.strip("| ").split(" | ") for line in lines[7:-2]]
    named = re.compile(
        r"(?:direct ptychography|calibration), (?:its sums|a step|whole)|.*?(?=[,:]| from| on| to)"
    )
    kinds = [named.match(what)[0] for what, *_ in rows]
    expected = {
        "copies": 2,
        "additions": 3,
        "scatter": 2,
        "engine cuda alone": 1,
        "upload of a stack": 1,
        "stack added again": 9,
        "upload of images": 1,
        "direct ptychography, its sums": 1,
        "calibration, a step": 1,
        "direct ptychography, whole": 1,
        "calibration, whole": 1,
        "run_udf": 6,
        "live": 3,
    }
    assert kinds == [kind for kind, count in expected.items() for _ in range(count)]
    assert all(re.match(r"[\d,.e+-]+ (G?B?/s|s|frames|G )", figure) for _, figure, *_ in rows)
    ways = [what.split(", ", 1)[1].partition(":")[0] for what, *_ in rows if "again" in what]
    assert ways[:3] == [
        f"{way}, sums stay there" for way in ("gather", "scatter", "patches in shared memory")
    ]
    figures = dict(zip(kinds, rows, strict=True))
    # Of both the same, to single precision.
    assert figures["calibration, whole"][2].endswith("; C10 = -10000 Å")
    difference = figures["direct ptychography, whole"][2].split("differs by ")[1]
    assert float(difference.split()[0]) < 1e-5
    again, _ = gpu_report()
    assert again.exit_code == 1
    assert "report.md exists" in again.output


@pytest.mark.filterwarnings("ignore:shifts of up to")
def test_the_host_cuts_frames_on_threads_without_a_gpu(monkeypatch) -> None:
    """Of what it takes here nothing is said; bytes are those of a disk of 27 rows."""
    monkeypatch.setattr(cutting, "WORKLOADS", (replace(SMALL, shape=(128, 2, 64, 64)),))
    result = CliRunner().invoke(cutting.main, ["--threads", "2", "--rounds", "1"])
    assert result.exit_code == 0, result.output
    rows = [line.strip("| ").split(" | ") for line in result.output.splitlines()[2:]]
    assert [row[1:3] for row in rows] == [[w, n] for w in ("cut", "added") for n in ("1", "2")]
    # Rows of one cache line each are cut whole.
    assert [row[-1] for row in rows] == [f"{64 * 27}, {b}, {b}" for b in (64 * 27,) * 2 + (0,) * 2]


@needs_compiler
def test_a_gpu_that_adds_wrongly_is_not_measured(gpu_report, monkeypatch) -> None:
    monkeypatch.setattr(parts, "check", lambda *_: ["sums of events of int8"])
    for number, options in enumerate([(), ("--check",)]):
        result, lines = gpu_report(*options, name=f"{number}.md")
        assert result.exit_code == 1
        assert lines[5] == "| frames, events and stacks against NumPy | sums of events of int8 |  |"
        assert len(lines) == 9 - 2 * number


@needs_compiler
@pytest.mark.filterwarnings("ignore:shifts of up to")
def test_what_fails_on_a_gpu_is_told_and_the_rest_goes_on(gpu_report, monkeypatch) -> None:
    def lose(*_: object) -> None:
        raise CudaError("GPU 0: lost | for good")

    monkeypatch.setattr(whole, "place_stack", lose)
    result, lines = gpu_report("--only", "whole", "--only", "tests")
    assert result.exit_code == 1
    assert lines[-2] == "| whole: tiny | failed | GPU 0: lost / for good |"
    assert lines[-1] == "| tests that need a GPU | 9 passed in 1 s |  |"


@pytest.mark.parametrize(
    ("path", "storage"),
    [("floor", "npy"), ("floor, file mapped", "npy"), ("floor", "memory"), ("floor, asked", "npy")],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_floor_reads_every_cache_line_of_the_bright_field(tmp_path, path, storage, dtype):
    """Lines of memory, wherever the frames begin."""
    workload = replace(SMALL, dtype=dtype, storage=storage)
    question = {**asdict(workload), "file": str(write(workload, tmp_path))}
    run, *_ = worker.prepare(path, question)
    frames = worker.load_frames(question).reshape(-1, 64 * 64)
    bright_field = (np.hypot(*(np.indices((64, 64)) - 32)) * 0.307617 <= 4).reshape(-1)
    pixels = np.flatnonzero(bright_field)
    lines = (frames.ctypes.data + pixels * frames.itemsize) // 64
    first = [pixels[lines == line][0] for line in set(lines)]
    assert run() == frames[:, first].astype(int).sum()


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_an_engine_at_the_floor_reads_as_many_lines_and_adds_nothing(tmp_path, monkeypatch, dtype):
    workload = replace(SMALL, dtype=dtype, storage="memory")
    question = {**asdict(workload), "file": str(write(workload, tmp_path))}
    touched = []
    monkeypatch.setattr(
        floor, "touch_asked", lambda frames, pixels: touched.append((frames, pixels))
    )
    udf = worker.make_udf("numba", question)
    run = worker.make_run(udf, question)
    assert not floor.at_the_floor(run)().any()
    frames = worker.load_frames(question)
    assert sum(len(tile) for tile, _ in touched) == frames.shape[0] * frames.shape[1]
    (x, y), size = udf.params.geometry.plan.pixels.T, frames.itemsize
    lines = set((frames.ctypes.data + (64 * x + y) * size) // 64)
    for _, pixels in touched:
        assert set((frames.ctypes.data + pixels * size) // 64) == lines
        assert len(pixels) == len(lines)
    assert run().any()  # as ever


@pytest.mark.parametrize("path", ["NoOpUDF", "SumUDF"])
def test_what_is_compared_with_runs(tmp_path, path) -> None:
    question = {**asdict(SMALL), "file": str(write(SMALL, tmp_path))}
    run, *nothing = worker.prepare(path, question)
    run()
    assert nothing == [None, None, None]


def test_paths_share_an_executor(tmp_path) -> None:
    """A stack is filled without closing what another path goes on with."""
    workload = replace(SMALL, executor="threads", workers=2)
    question = {**asdict(workload), "file": str(write(workload, tmp_path))}
    runs = [worker.prepare(path, question)[0] for path in ("numba", "numba, stack")]
    for run in runs:
        run()


def test_paths_take_part_where_they_can() -> None:
    small = replace(SMALL, storage="raw_csr", electrons=0.05)
    many = replace(small, electrons=0.1)
    assert not command._takes_part("upstream", small)
    assert not command._takes_part("scatter floor", SMALL)
    assert command._takes_part("numba, dense", many)
    assert not command._takes_part("numpy", many)


@needs_compiler
def test_gpu_paths_run(standin, tmp_path) -> None:
    """As above; images of the engine are right here, too."""
    standin()
    question = {**asdict(SMALL), "file": str(write(SMALL, tmp_path))}
    for path in ("bus floor", "device floor"):
        run, *nothing = worker.prepare(path, question)
        run()
        assert nothing == [None, None, None]
    images = {
        path: worker.prepare(path, question)[1]
        for path in ("numba", "numba, phase flip", "cuda, engine alone", "cuda, phase flip", "cuda")
    }
    for path in ("cuda", "cuda, engine alone", "cuda, phase flip"):
        right = images["numba, phase flip" if path.endswith("phase flip") else "numba"]
        np.testing.assert_array_equal(images[path], right)


def test_growth_tells_cliffs_and_memory(monkeypatch) -> None:
    """Of what is measured here the rates say nothing; those of the rows do."""
    monkeypatch.setattr(growth, "GROWTH", {"rows": [("18", 1, SMALL), ("again", 2, SMALL)]})
    monkeypatch.setattr(growth, "IMAGES", [(20, 2)])
    result = CliRunner().invoke(growth.main, ["--rounds", "2"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].startswith("| rows | NoOpUDF / ms | ms more | frames/s ")
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| 18", "| again"]
    assert lines[5].startswith("| memory beyond the data ")
    assert lines[7].startswith("| scan 20 x 20, u = 2 | 0 | ")
    half = replace(NUMBA, seconds=[0.5])
    rows = [
        (str(size), size, half, replace(NUMBA, seconds=[seconds]))
        for size, seconds in ((1, 1.5), (4, 2.5), (8, 12.5))
    ]
    last = [line.split(" | ")[-1] for line in growth.table("time", rows)]
    assert last[2:] == [" |", "0.50 |", "3.00 **cliff** |", ""]


def test_targets_tell_what_is_met(monkeypatch) -> None:
    """As above; no path is that slow, or that fast."""
    asked = [
        targets.Ratio("slow", "numba", "SumUDF", 1e-9),
        targets.Ratio("fast", "numba", "floor", 1e9),
        targets.Ratio("any", "numba, engine alone", "floor"),
    ]
    monkeypatch.setattr(targets, "RATIOS", [(replace(SMALL, storage="memory"), asked)])
    result = CliRunner().invoke(targets.main, ["--rounds", "2", "--only", "ratios"])
    assert result.exit_code == 0, result.output
    rows = [line.strip("| ").split(" | ") for line in result.output.splitlines()[2:]]
    assert [[row[0], row[-1]] for row in rows[:2]] == [["slow", "yes"], ["fast", "no"]]
    assert rows[2][:2] == ["any", ""]
    times = {"a": [1.0, 2.0, 30.0], "b": [2.0, 4.0, 30.0]}
    assert targets.ratio(times["a"], times["b"]) == 2
