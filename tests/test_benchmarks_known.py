"""Benchmarks against a known truth: how errors are counted, and that this package's paths run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import calibration, known, peers, phase
from benchmarks.known import Known
from libertem_parallax import ParallaxUDF
from libertem_parallax.simulate import simulate

TRUE: dict[str, Any] = {
    "energy": 300e3,
    "scan_sampling": (1.0, 1.3),
    "semiangle_cutoff": 20.0,
    "angular_sampling": (0.5, 0.4),
    "aberration_coefs": {"C10": -900.0, "C12": 80.0, "phi12": 0.4},
    "rotation_angle": 0.7,
}
ONE = Known("one", Path("one.npy"), TRUE, np.zeros((8, 8)))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """The demo's specimen with fewer scan positions."""
    simulation = simulate((32, 32), dose=None, seed=1)
    file = tmp_path_factory.mktemp("known") / "small.npy"
    np.save(file, np.random.default_rng(1).poisson(simulation.frames * 2e4).astype(np.uint16))
    parameters = {k: v for k, v in simulation.parameters.items() if k != "shape"}
    at = np.round(np.arange(32) * 256 / 72).astype(int)  # in Å, which is pixels
    truth = simulation.truth[np.ix_(at, at)].astype(float)
    return Known("small", file, parameters | {"upsampling_factor": 1}, truth)


def changed(**coefs: float) -> dict[str, Any]:
    return {**TRUE, "aberration_coefs": TRUE["aberration_coefs"] | coefs}


def test_error_of_shifts_is_that_of_the_geometry() -> None:
    """The integer shifts on a much finer image, over all bright-field pixels."""

    def shifts(parameters: dict[str, Any]) -> Any:
        udf = ParallaxUDF.from_parameters(
            shape=(64, 64, 128, 128), upsampling_factor=16, **{**parameters, "center": (64, 64)}
        )
        plan = udf.params.geometry.plan
        return plan.shifts / 16

    found = changed(C10=-850.0) | {"rotation_angle": 0.75}
    difference = shifts(found) - shifts(TRUE)
    expected = np.sqrt((difference**2).sum(1).mean())
    assert known.shift_error(found, ONE) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("flip", [False, True])
def test_a_twin_is_no_error(flip: bool) -> None:
    true = TRUE | {"detector_flip_cols": flip}
    twin = true | {
        "aberration_coefs": {"C10": 900.0, "C12": -80.0, "phi12": 0.4},
        "rotation_angle": 0.7 + np.pi,
    }
    one = replace(ONE, parameters=true)
    assert known.shift_error(twin, one) == pytest.approx(0, abs=1e-9)
    assert calibration.errors(twin, one) == (0, 0, pytest.approx(0, abs=1e-9), True)


def test_errors_are_told_one_by_one() -> None:
    found = changed(C10=-909.0, C12=89.0) | {"rotation_angle": 0.7 - np.pi / 180}
    defocus, astigmatism, rotation, order = calibration.errors(found, ONE)
    assert (defocus, astigmatism, rotation) == pytest.approx((0.01, 0.01, 1.0))
    assert order
    assert not calibration.errors(found | {"detector_flip_cols": True}, ONE)[-1]


@pytest.mark.parametrize("flip", [False, True])
def test_parameters_come_back_from_a_matrix(flip: bool) -> None:
    """What is made of py4DSTEM's shifts."""
    true = TRUE | {"detector_flip_cols": flip, "angular_sampling": (1e3, 1e3)}
    one = replace(ONE, parameters=true)
    found = peers.from_matrix(known._matrix(true))
    assert known.shift_error(found, one) == pytest.approx(0, abs=1e-6)
    assert calibration.errors(found, one)[:3] == pytest.approx((0, 0, 0), abs=1e-9)


@pytest.mark.parametrize("path", ["calibrate", *phase.OURS])
def test_this_package_is_measured(path: str, small: Known, tmp_path: Path) -> None:
    output = tmp_path / "image.npy"
    question = {"path": path, "file": str(small.file), "output": str(output)}
    answer = peers.PATHS[path](question | {"parameters": small.parameters})()
    if path == "calibrate":
        assert known.shift_error(answer["parameters"], small) < 0.5
    else:
        image = np.load(output)
        assert image.shape == small.phase.shape
        assert known.correlation(image, small.phase) > 0.3


def test_a_path_runs_in_a_process_of_its_own(small: Known, tmp_path: Path) -> None:
    answer = calibration.ask(sys.executable, "phase flip", small, tmp_path / "image.npy")
    assert answer["seconds"] > 0
    assert np.load(tmp_path / "image.npy").shape == small.phase.shape


def test_tables_say_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, Any] = {
        "calibrate": {"parameters": changed(C10=-909.0), "seconds": 1.0},
        "py4DSTEM": {"error": "ValueError: no"},
    }
    monkeypatch.setattr(calibration, "ask", lambda _python, path, _one: answers[path])
    lines = list(calibration.table(ONE, dict.fromkeys(answers, "python")))
    assert lines[2].split()[2:] == ["1.0%", "0.0%", "0.00°", "right", "1.0"]
    assert lines[3].split() == ["py4DSTEM", "ValueError:", "no"]


def test_a_folder_of_sets(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros((8, 8, 4, 4), np.uint8))
    y = np.arange(32) / 32
    np.save(tmp_path / "one_potential.npy", np.cos(2 * np.pi * y)[:, None] + np.zeros(32))
    (tmp_path / "one.json").write_text(
        '{"shape": [8, 8, 4, 4], "energy": 3e5, "rotation_angle_deg": 90, "dtype": "uint8"}'
    )
    (one,) = known.folder(tmp_path)
    assert one.parameters == {"energy": 3e5, "rotation_angle": pytest.approx(np.pi / 2)}
    assert np.allclose(one.phase, np.cos(2 * np.pi * y[::4])[:, None])
    empty = tmp_path / "empty"
    empty.mkdir()
    result = CliRunner().invoke(calibration.main, ["--data", str(empty)])
    assert result.exit_code == 1
    assert "expected NAME.npy" in result.output


def test_what_phase_images_cost_is_told() -> None:
    lines = list(phase.cost(image=72, scans=[(72, 32, "uint8")], rounds=1))
    assert [line.split()[0] for line in lines[2:5]] == ["parallax", "phase_flip", "phase"]
    rows = [line.split() for line in lines[7:]]
    assert [row[7:10] for row in rows] == [
        ["from", source, reading] for source in ("memory", "file") for reading in ("sums", "whole")
    ]
    for row in rows:
        parallax, both = (float(rate.replace(",", "")) for rate in row[10:12])
        assert both / parallax == pytest.approx(float(row[12]), abs=0.01)
        assert (row[13] == "yes") == (float(row[12]) >= 0.97)
        assert row[15] == "ms"
