"""Calibration of data sets that LiberTEM opens, in Python and on the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from click.testing import CliRunner, Result
from libertem.api import Context
from scans import KNOWN, bright_field, scan, specimen

import libertem_parallax as prlx
from libertem_parallax.calibration import Calibration, calibrate_stack, find_beam
from libertem_parallax.cli import main
from libertem_parallax.event_files import write_events
from libertem_parallax.parameters import Parameters
from libertem_parallax.udf import calibration as glue
from libertem_parallax.udf import learning as learns
from libertem_parallax.udf.learning import Learning

SHAPE = (36, 36)
Told = list[tuple[float, str]]


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return scan(specimen(SHAPE))


@pytest.fixture(scope="module")
def ctx() -> Any:
    with Context.make_with("inline") as ctx:
        yield ctx


@pytest.fixture(scope="module")
def calibrated(ctx: Any, frames: np.ndarray) -> tuple[Calibration, Told]:
    """What is found in the frames, and what was told meanwhile."""
    ds = ctx.load("memory", data=frames, sig_dims=2)
    told: Told = []
    return prlx.calibrate(ctx, ds, progress=lambda *args: told.append(args), **KNOWN), told


def test_is_that_of_the_stack(
    ctx: Any, frames: np.ndarray, calibrated: tuple[Calibration, Told]
) -> None:
    found, told = calibrated
    parameters = Parameters(**KNOWN)
    beam = find_beam(frames.mean(axis=(0, 1)), parameters)
    expected = calibrate_stack(bright_field(frames, beam.mask), parameters, beam)
    assert dict(found.parameters) == dict(expected.parameters)
    assert found.uncertainties == expected.uncertainties
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    # What is found is what UDFs take.
    ds = ctx.load("memory", data=frames, sig_dims=2)
    udf = prlx.ParallaxUDF.from_parameters(shape=ds.shape, **found.parameters)
    assert ctx.run_udf(ds, udf)["reconstruction"].data.any()


def test_events(
    ctx: Any, frames: np.ndarray, calibrated: tuple[Calibration, Told], tmp_path: Path
) -> None:
    path = write_events(tmp_path, SHAPE, (16, 16), scipy.sparse.csr_array(frames.reshape(-1, 256)))
    events = ctx.load("raw_csr", path=str(path))
    found = prlx.calibrate(ctx, events, **KNOWN)
    assert dict(found.parameters) == dict(calibrated[0].parameters)


def test_part_of_a_scan(ctx: Any, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = ctx.load("memory", data=frames, sig_dims=2)
    roi = np.zeros(SHAPE, bool)
    roi[2:34, 1:31] = True
    roi[5, 6] = False
    found = prlx.calibrate(ctx, ds, roi=roi, **KNOWN)
    assert found.stack.scan_shape == (32, 30)
    assert found.stack.scanned.sum() == 32 * 30 - 1
    assert found.parameters["aberration_coefs"]["C10"] == pytest.approx(-420, rel=0.03)
    monkeypatch.setattr(glue, "_FRAMES", 28 * 28)
    found = prlx.calibrate(ctx, ds, **KNOWN)
    assert found.stack.scan_shape == (28, 28)


def test_bad_input_is_refused_before_work(ctx: Any, frames: np.ndarray) -> None:
    ds = ctx.load("memory", data=frames, sig_dims=2)
    known = {name: value for name, value in KNOWN.items() if name != "energy"}
    for arguments, message in (
        (known, "energy is missing: expected the energy of the electrons"),
        ({**KNOWN, "search": ["C99"]}, "search: 'C99'"),
        ({**KNOWN, "defocus_between": (5.0, 3.0)}, "defocus_between = 5, 3: expected"),
        ({**KNOWN, "defocus_between": (10, 20), "underfocus": False}, "that is no overfocus"),
        ({**KNOWN, "rotation_near": "north"}, "rotation_near"),
        ({**KNOWN, "roi": np.ones((3, 3), bool)}, "roi: expected booleans of the scan's shape"),
        ({**KNOWN, "bf_mask": np.ones((3, 3), bool)}, "bf_mask has shape"),
        ({**KNOWN, "semiangel": 3}, "semiangle_cutoff"),
    ):
        with pytest.raises(ValueError, match=message):
            prlx.calibrate(ctx, ds, **arguments)


OPTIONS = "--energy 300e3 --scan-sampling 0.9 0.9 --semiangle-cutoff 20"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: np.ndarray) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("scan.npy", frames)
    return tmp_path


def run(command: str) -> Result:
    return CliRunner().invoke(main, command.split(), catch_exceptions=False)


def test_command(folder: Path) -> None:
    result = run(f"calibrate scan.npy {OPTIONS} -o params.toml --picture sheet.png")
    assert result.exit_code == 0, result.output
    for text in ("Center", "Defocus", "underfocus", "Rotation", "decided by skewness", "the twin"):
        assert text in result.stdout
    # Nobody is to take that for how good the fit is.
    signal = r"Signal {9}\d+ times the noise, where 10 are needed\. .* not how exact"
    assert re.search(signal, result.stdout)
    file = (folder / "params.toml").read_text()
    assert "# Or: C10 = 4" in file
    assert "±" in file
    assert (folder / "sheet.png").stat().st_size > 10000
    # The next command reads it.
    result = run("reconstruct scan.npy --params params.toml --phase-flip -o image.npy")
    assert result.exit_code == 0, result.output
    # Nothing is overwritten unasked.
    for names in ("-o params.toml", "-o other.toml --picture sheet.png"):
        result = run(f"calibrate scan.npy {OPTIONS} {names}")
        assert result.exit_code == 2
        assert "that exists; choose another name, or --overwrite" in result.stderr
    assert (folder / "params.toml").read_text() == file
    result = run(f"calibrate scan.npy {OPTIONS} -o same.toml --picture same.toml")
    assert "--picture same.toml: that is --output" in result.stderr


def test_command_tells_what_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as into a folder that is gone when all is done, or over a file that came meanwhile."""
    (folder / "gone").mkdir()
    calibrate = prlx.calibrate

    def late(*arguments: Any, **more: Any) -> Any:
        (folder / "gone").rmdir()
        (folder / "sheet.png").write_text("mine")
        return calibrate(*arguments, **more)

    monkeypatch.setattr("libertem_parallax.udf.calibrate", late)
    result = run(f"calibrate scan.npy {OPTIONS} -o gone/params.toml --picture sheet.png")
    assert result.exit_code == 1
    assert "Error: cannot write gone/params.toml" in result.stderr
    for text in ("Center", "Defocus", "Rotation", "Written to     sheet_2.png"):
        assert text in result.stdout
    assert (folder / "sheet.png").read_text() == "mine"


def test_command_at_the_same_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another one that has written its parameters, and draws: a sheet is of its parameters."""
    calibrate = prlx.calibrate

    def late(*arguments: Any, **more: Any) -> Any:
        (folder / "params.toml").write_text("mine")
        return calibrate(*arguments, **more)

    monkeypatch.setattr("libertem_parallax.udf.calibrate", late)
    result = run(f"calibrate scan.npy {OPTIONS} -o params.toml --picture sheet.png")
    assert result.exit_code == 0, result.output
    assert (folder / "params.toml").read_text() == "mine"
    assert prlx.load_parameters(folder / "params_2.toml")["center"]
    assert {path.name for path in folder.glob("sheet*")} == {"sheet_2.png"}


def test_command_keeps_what_the_file_says(folder: Path) -> None:
    mask = np.ones((16, 16), bool)
    mask[5, 5] = False
    np.save("mask.npy", mask)
    (folder / "known.toml").write_text(
        "energy = 300e3\nscan_sampling = [0.9, 0.9]\nsemiangle_cutoff = 20\nupsampling_factor = 2\n"
        'bf_mask = "mask.npy"\ncenter = [8.4, 7.4]\n[load]\ntype = "npy"\n'
    )
    result = run(
        "calibrate scan.npy --params known.toml --overfocus -o params.toml --roi 1 0 36 34"
    )
    assert "35 x 34 of it was used" in result.stdout
    assert result.exit_code == 0, result.output
    found = prlx.load_parameters("params.toml")
    assert found["upsampling_factor"] == 2
    assert found["center"] == (8.4, 7.4)
    assert found["aberration_coefs"]["C10"] > 0
    assert found.settings == {"load": {"type": "npy"}}
    np.testing.assert_array_equal(found["bf_mask"], mask)
    assert found.files["bf_mask"].name == "mask.npy"


def test_command_without_a_result(folder: Path) -> None:
    np.save("empty.npy", scan(np.zeros((24, 24))))
    result = run(f"calibrate empty.npy {OPTIONS} -o params.toml --picture sheet.png")
    assert result.exit_code == 1
    # Without a terminal, there is no bar.
    assert re.fullmatch(r"Error: nothing stands out of the noise.*\n", result.stderr)
    assert not (folder / "params.toml").exists()
    assert not (folder / "sheet.png").exists()


def test_command_says_what_is_missing(folder: Path) -> None:
    result = run(f"calibrate scan.npy {OPTIONS} --semiangle-cutoff 0.02 -o params.toml")  # rad
    assert result.exit_code == 1
    assert "0.02 mrad shows no detail that is smaller than the scan" in result.stderr
    result = run("calibrate scan.npy --energy 300e3 -o params.toml")
    assert result.exit_code == 2
    assert "--scan-sampling" in result.stderr
    assert "--semiangle-cutoff" in result.stderr
    result = run(f"calibrate scan.npy {OPTIONS} -o scan.npy --overwrite")
    assert "that is an input" in result.stderr


@pytest.mark.parametrize(("count", "limit", "error"), [(12, None, 0.03), (2, 1, 0.05)])
def test_while_the_scan_runs(
    ctx: Any, frames: np.ndarray, count: int, limit: int | None, error: float
) -> None:
    """The image has all frames, also those of the calibration, however little memory they may take.

    That has a partition at least: here one of two.
    """
    ds = ctx.load("memory", data=frames, sig_dims=2, num_partitions=count)
    learning = Learning(ds, image="phase_flip", upsampling_factor=2, limit=limit, **KNOWN)
    results = ctx.run_udf_iter(ds, learning.udfs)
    zero = True
    for part in results:
        found = learning.step(results)
        image = part.buffers[0]["phase_flip"].data
        if learning.calibration is None:
            assert not image.any()
        elif found:
            zero = False
    assert not zero
    assert learning.calibration is not None
    parameters = learning.calibration.parameters
    assert parameters["aberration_coefs"]["C10"] == pytest.approx(-420, rel=error)
    udf = prlx.ParallaxUDF.from_parameters(ds.shape, **parameters)
    expected = ctx.run_udf(ds, udf)["phase_flip"].data
    np.testing.assert_array_equal(image, expected)


def test_the_example_of_the_docs(ctx: Any, frames: np.ndarray) -> None:
    page = (Path(__file__).parents[1] / "docs/live.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n([^`]*prlx.Learning[^`]*)```", page)
    told = "energy=300e3, scan_sampling=(3.556, 3.556), semiangle_cutoff=4.0"
    assert told in code
    names = {"ctx": ctx, "aq": ctx.load("memory", data=frames, sig_dims=2), "KNOWN": KNOWN}
    exec(code.replace(told, "**KNOWN"), names)
    udf = prlx.ParallaxUDF.from_parameters(
        (*SHAPE, 16, 16), **names["learning"].calibration.parameters
    )
    expected = ctx.run_udf(names["aq"], udf)["reconstruction"].data
    np.testing.assert_array_equal(names["image"], expected)


def test_while_a_scan_of_nothing_runs(ctx: Any) -> None:
    ds = ctx.load("memory", data=scan(np.zeros((24, 24))), sig_dims=2, num_partitions=4)
    learning = Learning(ds, **KNOWN)
    results = ctx.run_udf_iter(ds, learning.udfs)
    for _ in results:
        assert not learning.step(results)
    assert learning.calibration is None
    assert "nothing stands out" in str(learning.problem)


@pytest.mark.parametrize("name", ["calibrate_stack", "Geometry"])
def test_while_calibration_fails(
    ctx: Any, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever it is, and also if what was found makes no image: the frames are there."""

    class Fails:
        def __init__(self, *arguments: Any, **more: Any) -> None:
            raise MemoryError("no memory")

        from_parameters = __init__

    ds = ctx.load("memory", data=frames, sig_dims=2, num_partitions=4)
    learning = Learning(ds, **KNOWN)
    monkeypatch.setattr(learns, name, Fails)
    results = ctx.run_udf_iter(ds, learning.udfs)
    for _ in results:
        assert not learning.step(results)
    assert learning.calibration is None
    assert learning.problem == "no memory"
    assert learning.stack.scanned.all()
