"""The command line, run on small files with LiberTEM."""

import json
import os
import shlex
import subprocess
import sys
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.ndimage
import scipy.sparse
from file_commands import OPTIONS, TOML, Run, check_error, expected, frames, succeeded
from PIL import Image

from libertem_parallax import simulate
from libertem_parallax.accumulate import ENGINES
from libertem_parallax.cli.reconstruct import reconstruct
from libertem_parallax.cli.run import speed_text
from libertem_parallax.parameters import PARAMETERS

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.parametrize("source", [OPTIONS, "--params data/scan.toml"])
def test_reconstruct_does_what_the_udf_does(run: Run, source: str) -> None:
    succeeded(run(f"reconstruct data/scan.npy {source} -o image.npy"))
    image = np.load("image.npy")
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, expected())


def test_options_win(run: Run, folder: Path) -> None:
    (folder / "data/scan.toml").write_text("phase_flip = true\n" + TOML, encoding="utf-8")
    succeeded(
        run(
            "reconstruct data/scan.npy --params data/scan.toml --no-phase-flip --energy 300e3 "
            "--reciprocal-sampling 0.05 0.06 --aberration defocus=3000 --rotation-angle 0.1 "
            "--suppress-nyquist-noise -o image.npy"
        )
    )
    changed = expected(
        energy=300e3,
        angular_sampling=None,
        reciprocal_sampling=(0.05, 0.06),
        aberration_coefs={"C10": -3000.0, "C12": 300.0, "phi12": 0.5},
        rotation_angle=0.1,
        suppress_Nyquist_noise=True,
    )
    np.testing.assert_array_equal(np.load("image.npy"), changed)


def test_summary_and_default_output(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = succeeded(run("reconstruct data/scan.npy --params data/scan.toml"))
    assert (folder / "scan_parallax.tif").exists()
    for text in (
        "6 x 8 scan, 10 x 12 detector, uint8",
        "12 x 16 pixels of 0.2 x 0.25 nm",
        "48 frames",
        "frames/s",
        "scan_parallax.tif",
    ):
        assert text in result.stdout
    assert "48/48" not in result.stderr  # the progress bar is for terminals
    monkeypatch.setattr("libertem_parallax.cli.run.has_terminal", lambda: True)
    result = succeeded(run("reconstruct data/scan.npy --params data/scan.toml --overwrite"))
    assert "48/48" in result.stderr


@pytest.mark.parametrize("by_file", [True, False])
def test_load_describes_raw_data(run: Run, folder: Path, by_file: bool) -> None:
    frames().astype(np.uint16).tofile(folder / "data/scan.raw")
    load = {"type": "raw", "dtype": "uint16", "nav_shape": [6, 8], "sig_shape": [10, 12]}
    if by_file:
        # What is left to the option must come from there.
        table = "\n[load]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in load.items())
        table = table.replace("[6, 8]", "[48, 1]")
        (folder / "data/scan.toml").write_text(TOML + table, encoding="utf-8")
        load = {"nav_shape": [6, 8]}
    options = " ".join(f"--load '{k}={v}'" for k, v in load.items())
    succeeded(run(f"reconstruct data/scan.raw --params data/scan.toml {options} -o image.npy"))
    np.testing.assert_array_equal(np.load("image.npy"), expected())


def test_files_of_events(run: Run, folder: Path) -> None:
    """They are TOML as parameters are; the image is that of dense frames."""
    stacked = scipy.sparse.csr_array(frames().reshape(48, 120))
    lines = ["[params]", 'filetype = "raw_csr"', "nav_shape = [6, 8]", "sig_shape = [10, 12]"]
    lines += ["[raw_csr]"]
    for name in ("data", "indices", "indptr"):
        array = getattr(stacked, name)
        array.tofile(folder / f"data/{name}.raw")
        lines += [f'{name}_file = "{name}.raw"', f'{name}_dtype = "{array.dtype.name}"']
    events = folder / "data/events.toml"
    events.write_text("\n".join(lines), encoding="utf-8")
    result = succeeded(run("reconstruct data/events.toml --params data/scan.toml -o image.npy"))
    np.testing.assert_array_equal(np.load("image.npy"), expected())
    assert "6 x 8 scan, 10 x 12 detector, uint8" in result.stdout
    (folder / "data/data.raw").unlink()
    check_error(
        run("reconstruct data/events.toml --params data/scan.toml -o other.npy"),
        ["data/events.toml names", "data/data.raw, which does not exist.\n"],
    )
    events.write_text("\n".join(line for line in lines if "indptr_file" not in line))
    check_error(
        run("reconstruct data/events.toml --params data/scan.toml -o other.npy"),
        ["'indptr_file' is missing. Describe"],
    )
    # The other way round, each says what it is not.
    check_error(
        run("reconstruct data/scan.npy --params data/events.toml"),
        ["data/events.toml", "unknown parameter 'params'"],
    )
    check_error(
        run("reconstruct data/scan.toml --params data/scan.toml"), ["cannot open data/scan.toml"]
    )


@pytest.mark.parametrize(
    ("frames", "seconds", "text"),
    [
        (262_144, 123.4, "262,144 frames in 123 s, 2,100 frames/s"),
        (3_600_000, 7200.0, "3,600,000 frames in 7,200 s, 500 frames/s"),
        (1000, 99.6, "1,000 frames in 100 s, 10 frames/s"),
        (5184, 7.912, "5,184 frames in 7.9 s, 660 frames/s"),
        (48, 0.0123, "48 frames in 0.012 s, 3,900 frames/s"),
    ],
)
def test_speed(frames: int, seconds: float, text: str) -> None:
    assert speed_text(frames, seconds) == text


def test_every_parameter_is_an_option() -> None:
    options = {param.name: param for param in reconstruct.params}
    assert set(PARAMETERS) <= set(options)
    assert list(options["engine"].type.choices) == ["auto", *ENGINES]
    for name, declared in PARAMETERS.items():
        for text in (declared.words[1:], declared.need, declared.unit):
            assert text in options[name].help
        assert options[name].opts[0].replace("-", "_").removeprefix("__") in (
            name.lower(), "aberration"
        )  # fmt: skip


def test_demo_and_what_it_proposes_next(run: Run, folder: Path) -> None:
    result = succeeded(run("demo --output 'my demo'"))
    with Image.open(folder / "my demo/demo.png") as picture:
        assert picture.width > 3 * picture.height
    with h5py.File(folder / "my demo/frames.h5") as file:
        assert file["frames"].shape == (72, 72, 64, 64)
    assert "my demo/demo.png" in result.stdout
    assert "Å " not in result.stdout  # of lengths; a dose is per Å²
    assert "blurred by 0.6 nm" in result.stdout
    [correlation] = [line for line in result.stdout.splitlines() if "Correlation" in line]
    assert float(correlation.split()[1]) > 0.5
    assert "Simulating" in result.stderr

    program, *proposed = shlex.split(result.stdout.splitlines()[-1])
    assert program == "libertem-parallax"
    assert proposed[-2:] == ["--image", "phase"]
    result = succeeded(run(shlex.join(proposed)))
    assert "144 x 144 pixels of 0.1778 x 0.1778 nm" in result.stdout
    with Image.open("image.png") as picture:
        assert min(picture.size) > 5 * 144


def test_demo_says_where_it_cannot_write(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "simulate", partial(simulate.simulate, scan_shape=(8, 8)))
    check_error(run("demo --output data/scan.npy"), ["--output", "scan.npy"])
    (folder / "occupied/frames.h5").mkdir(parents=True)
    check_error(run("demo --output occupied --overwrite"), ["--output", "occupied"])


def test_help_does_not_wait_for_what_is_slow_to_import() -> None:
    code = (
        "import sys; from libertem_parallax.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print([name for name in ('libertem', 'numba', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Commands:" in result.stdout
    assert result.stdout.endswith("[]\n")


def test_version(run: Run) -> None:
    try:
        installed = version("libertem-parallax")
    except PackageNotFoundError:
        pytest.skip("the package is not installed")
    assert installed in succeeded(run("--version")).stdout
