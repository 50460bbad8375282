"""`live --simulate`: detector and acquisition on this machine."""

from __future__ import annotations

import functools
import os
import re
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from libertem.api import Context
from libertem.udf.raw import PickUDF
from live_commands import SECONDS, Run, simulators, when, written_to
from PIL import Image

from libertem_parallax import files, load_parameters, simulate
from libertem_parallax.cli import simulated

pytestmark = simulators


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames come sooner than they are good to look at."""
    monkeypatch.setattr(simulated, "_DWELL_TIME", 3e-4)


@pytest.mark.parametrize(
    ("detector", "size", "options"),
    [
        ("merlin", 64, ""),
        ("asi_tpx3", 512, ""),
        ("merlin", 64, "--params mine/scan.toml --no-phase-flip --energy 200e3"),
        ("asi_tpx3", 512, "--aberration C10=-1.2e4 --center 255.5 256.5 -o image.tif"),
    ],
)
def test_simulate(
    run: Run, monkeypatch: pytest.MonkeyPatch, detector: str, size: int, options: str
) -> None:
    """Whatever parameters the image is made with, the files give the same; the specimen stays."""
    mask = np.ones((64, 64), dtype=bool)
    mask[30] = False
    Path("mine").mkdir()
    np.save("mine/mask.npy", mask)
    Path("mine/scan.toml").write_text(
        'reciprocal_sampling = [0.0156, 0.0157]\nbf_mask = "mask.npy"\nphase_flip = true\n'
        '[aberration_coefs]\ndefocus = 1.3e4\n[load]\ntype = "raw"\n',
        encoding="utf-8",
    )
    monkeypatch.setattr(simulate, "simulate", partial(simulate.simulate, scan_shape=(20, 24)))
    result = run(f"live --simulate {detector} {options}")
    assert result.exit_code == 0, result.output
    assert f"20 x 24 scan, {size} x {size} detector" in result.stdout
    assert "300 keV, 4 mrad, defocus 1500 nm" in result.stdout
    folder = Path("libertem-parallax-live")
    there = written_to(result)
    for path in (Path(there).with_name("live.png"), folder / "growth.png"):
        with Image.open(path) as picture:
            assert picture.width > 0
    program, *proposed = shlex.split(result.stdout.splitlines()[-1])
    assert program == "libertem-parallax"
    before = Path(there).read_bytes()
    again = run(shlex.join(proposed))
    assert again.exit_code == 0, again.output
    assert written_to(again) == ("image_2.tif" if there == "image.tif" else "image.tif")
    np.testing.assert_array_equal(tifffile.imread(written_to(again)), tifffile.imread(there))
    refused = run(shlex.join([*proposed[:-1], there]))  # the scan cannot be repeated
    assert f"--output {there}: that is the image of a scan that was recorded" in refused.stderr
    assert Path(there).read_bytes() == before


def test_simulate_leaves_a_file_of_parameters_alone(run: Run) -> None:
    file = Path("libertem-parallax-live/params.toml")
    file.parent.mkdir()
    file.write_text("upsampling_factor = 2  # mine", encoding="utf-8")
    result = run(f"live --simulate merlin --params {file}")
    assert result.exit_code == 2
    assert "Give a copy of it" in result.stderr
    assert file.read_text(encoding="utf-8").endswith("# mine")


@pytest.mark.parametrize("detector", ["merlin", "asi_tpx3"])
@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ("--energy 300", ["energy = 300", "eV"]),
        ("--params both.toml", ["angular_sampling", "both given"]),
        ("--aberration C11=1", ["aberration_coefs", "C11"]),
        ("--aberration C10=0", ["will be zero: no aberration shifts"]),
        ("--bf-mask mask.npy", ["bf_mask", "(63, 64)"]),
        ("--center 512 0", ["center = (512.0, 0.0)"]),
        ("-o taken.tif", ["--output taken.tif"]),
    ],
)
def test_nothing_is_simulated_in_vain(
    run: Run, monkeypatch: pytest.MonkeyPatch, detector: str, options: str, messages: list[str]
) -> None:
    np.save("mask.npy", np.ones((63, 64), dtype=bool))
    sampling = "reciprocal_sampling = [0.0156, 0.0156]\nangular_sampling = [0.3, 0.3]\n"
    Path("both.toml").write_text(sampling, encoding="utf-8")
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "taken")
    Path(".taken.tif.taken.part").mkdir()
    result = run(f"live --simulate {detector} {options}")
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    for message in messages:
        assert message in result.stderr
    assert "Simulating" not in result.stderr


def test_simulate_interrupted_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The scan takes 10 s, of which the first image needs a few."""
    code = (
        "from functools import partial; from libertem_parallax import cli, simulate\n"
        "from libertem_parallax.cli import simulated; simulated._DWELL_TIME = 6e-3\n"
        "simulate.simulate = partial(simulate.simulate, scan_shape=(24, 72))\n"
        "cli.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "live", "--simulate", "merlin"],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "libertem-parallax-live"
    interrupting = when((folder / "live.png").exists, lambda: process.send_signal(signal.SIGINT))
    stdout, stderr = process.communicate(timeout=2 * SECONDS)
    interrupting.join()
    assert process.returncode == 1, stderr
    assert re.search(r"of 1,728 frames \(\S+%\) are in the image: interrupted", stderr)
    assert "Traceback" not in stderr
    assert tifffile.imread(folder / "image.tif").shape == (48, 144)
    assert "Written to" in stdout


@functools.cache
def small() -> simulate.Simulation:
    """A smaller specimen that gets more electrons."""
    return plain(scan_shape=(40, 48), dose=60.0, seed=1)


plain = simulate.simulate


@pytest.fixture
def brighter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        simulate, "simulate", lambda **how: plain(**how) if how["dose"] is None else small()
    )


@pytest.mark.usefixtures("brighter")
def test_calibrated_in_a_folder_that_is_gone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image is told, wherever it went, though the parameters have no place."""
    Path("gone").mkdir()
    save = files.save_somewhere

    def late(*arguments: Any, **how: Any) -> Any:
        Path("gone").rename("elsewhere")  # when all frames have come, however long that took
        return save(*arguments, **how)

    monkeypatch.setattr(files, "save_somewhere", late)
    result = run("live --simulate merlin --calibrate --underfocus -o gone/image.tif")
    assert result.exit_code == 1
    assert "Error: The parameters could not be written to gone" in result.stderr
    written = result.stderr.rpartition("It was written to ")[2].strip().removesuffix(".")
    assert not Path(written).is_relative_to(Path("gone").absolute())
    assert tifffile.imread(written).any()


@pytest.mark.usefixtures("brighter")
def test_frames_are_kept_where_no_parameters_are_found(run: Run) -> None:
    """The scan cannot be repeated; nothing of the same name is replaced."""
    folder = Path("libertem-parallax-live")
    folder.mkdir()
    (folder / "image_frames.npy").write_text("mine", encoding="utf-8")
    result = run("live --simulate merlin --calibrate --defocus-between 200 300")
    assert result.exit_code == 1, result.output
    assert not (folder / "image.tif").exists()
    kept = folder / "image_2_frames.npy"
    assert (folder / "image_frames.npy").read_text(encoding="utf-8") == "mine"
    with Context.make_with("inline") as ctx:
        sent = ctx.load("mib", path=str(folder / "frames.hdr"))
        everywhere = np.ones(tuple(sent.shape.nav), bool)
        pick = ctx.run_udf(sent, PickUDF(), roi=everywhere)["intensity"].data
    assert f"{len(pick):,} frames were written to {kept}." in result.stderr
    proposed = shlex.split(result.stderr.splitlines()[-1])[1:]
    result = run(shlex.join(proposed))
    assert result.exit_code == 0, result.output
    assert load_parameters("image_2_frames.toml")["energy"] == 300e3
    np.testing.assert_array_equal(np.load(kept).reshape(pick.shape), pick)


@pytest.mark.usefixtures("brighter")
def test_simulate_and_calibrate(run: Run) -> None:
    """Parameters come from the first rows; the image has all frames nevertheless."""
    folder = Path("libertem-parallax-live")
    result = run("live --simulate merlin --calibrate --underfocus")
    assert result.exit_code == 0, result.output
    assert "calibrated" in result.stderr
    assert "decided by the hint" in result.stdout
    found = load_parameters(folder / "image.toml")
    assert found["aberration_coefs"]["C10"] == pytest.approx(simulate.C10, rel=0.05)
    assert found["rotation_angle"] == pytest.approx(simulate.ROTATION, abs=np.deg2rad(3))
    proposed = shlex.split(result.stdout.splitlines()[-1])[1:]
    assert run(shlex.join(proposed)).exit_code == 0
    np.testing.assert_array_equal(
        tifffile.imread("image.tif"), tifffile.imread(folder / "image.tif")
    )
    (folder / "image.toml").write_text("energy = 200e3  # edited", encoding="utf-8")
    result = run("live --simulate merlin --calibrate --underfocus")
    assert result.exit_code == 0, result.output
    assert (folder / "image.toml").read_text(encoding="utf-8") == "energy = 200e3  # edited"
    assert load_parameters(folder / "image_2.toml")["energy"] == 300e3
    result = run("live merlin --underfocus")
    assert "--underfocus: without meaning without --calibrate" in result.stderr
