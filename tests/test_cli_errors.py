"""What the command line says when something is wrong."""

from pathlib import Path

import numpy as np
import pytest
from file_commands import BRIEF, MINIMUM, TINY, Run, check_error, frames, mask, succeeded

pytestmark = pytest.mark.usefixtures("folder")


def test_warnings_are_shown_without_code(run: Run) -> None:
    images = "--image direct --image parallax"
    result = succeeded(run(f"reconstruct data/scan.npy {BRIEF} --center 0 0 {images} -o image.npy"))
    lines = [line for line in result.stderr.splitlines() if "cuts off" in line]
    assert len(lines) == 1
    assert lines[0].startswith("Warning: the detector cuts off the bright field")
    assert ".py" not in result.stderr


@pytest.mark.parametrize(
    ("command", "messages"),
    [
        (
            "scan.npy",
            ["scan_sampling", "--energy", "--semiangle-cutoff", "--angular-sampling", "--params"],
        ),
        (f"scan.npy {BRIEF} -o image.jpg", ["--output", "image.jpg", ".tif", ".png"]),
        (f"scan.npy {BRIEF} -o nowhere/image.tif", ["--output", "nowhere", "create it"]),
        (f"scan.npy {BRIEF} -o data/scan.npy", ["--output", "overwritten"]),
        (f"missing.npy {BRIEF}", ["missing.npy", "does not exist"]),
        (f"scan.toml {BRIEF}", ["cannot open", "scan.toml", "--load"]),
        (f"scan.npy {BRIEF} --load type=rww", ["rww", "--load"]),
        (f"scan.npy {BRIEF} --load nav_shpe=4", ["nav_shpe"]),
        (f"scan.npy {BRIEF} --load 4", ["--load", "'4'", "="]),
        (f"scan.npy {BRIEF} --load 'nav_shape=[10'", ["[10 is no TOML"]),
        (f"scan.npy {BRIEF} --load 'nav_shape=[48]'", ["(48, 10, 12)", "four", "nav_shape"]),
        (f"scan.npy {BRIEF} --energy 300", ["energy = 300", "eV"]),
        (f"scan.npy {BRIEF} --energy fast", ["--energy", "'fast' is no number", "eV"]),
        (
            f"scan.npy {BRIEF} --scan-sampling 4 --energy 200e3",
            ["--scan-sampling", "number along columns in Å is missing, --energy follows"],
        ),
        (
            f"scan.npy {BRIEF} --center --energy 200e3",
            ["--center", "number of the row is missing, --energy follows"],
        ),
        (
            f"scan.npy {BRIEF} --semiangle-cutoff --energy 200e3",
            ["--semiangle-cutoff", "the number in mrad is missing, --energy follows"],
        ),
        (
            f"scan.npy {BRIEF} --scan-sampling 4",
            ["'--scan-sampling' requires 2 arguments. Step of the scan along rows and columns"],
        ),
        (f"scan.npy {BRIEF} --load x={3000 * '['}", ["[[[ is no TOML", "recursion"]),
        (f"scan.npy {BRIEF} --load sync_offset=1.5", ["sync_offset = 1.5: expected an integer.\n"]),
        (f"scan.npy {BRIEF} --load sync_offset=true", ["sync_offset = True: expected an integer"]),
        (f"scan.npy {BRIEF} --load num_partitions=0", ["num_partitions = 0: ", "at least 1.\n"]),
        (f"scan.npy {BRIEF} --load 'nav_shape=[6.5, 8]'", ["nav_shape = 6.5: expected an integer"]),
        (f"scan.npy {BRIEF} -o {300 * 'a'}.tif", ["--output", "cannot write there", "too long"]),
        (f"scan.npy {BRIEF} -o {300 * 'a'}/x.tif", ["--output", "cannot write there", "too long"]),
        (f"{300 * 'a'}.npy {BRIEF}", ["does not exist"]),
        (f"scan.npy {BRIEF} --reciprocal-sampling 1 1", ["angular_sampling", "both given"]),
        (f"scan.npy {BRIEF} --upsampling-factor 0", ["upsampling_factor = 0", "at least 1"]),
        (f"scan.npy {BRIEF} --rotation-angle left", ["--rotation-angle", "left", "-15deg"]),
        (f"scan.npy {BRIEF} --aberration C10", ["--aberration", "C10", "="]),
        (f"scan.npy {BRIEF} --aberration C10=big", ["--aberration", "C10=big", "number"]),
        (f"scan.npy {BRIEF} --aberration C11=1", ["aberration_coefs", "C11", "nearest"]),
        (f"scan.npy {BRIEF} --bf-mask data/scan.toml", ["bf_mask", "scan.toml", ".npy"]),
        (f"scan.npy {BRIEF} --bf-mask data/scan.npy", ["bf_mask", "scan.npy", "(6, 8, 10, 12)"]),
        (f"scan.npy {BRIEF} --aberration C10=1 --aberration C10=2", ["C10 is given twice"]),
        (f"scan.npy {BRIEF} --load type=3", ["type = 3", "'raw'"]),
        (f"scan.npy {BRIEF} --load type=raw --load type=npy", ["type is given twice"]),
        (f"scan.npy {BRIEF} --bf-mask data/mask.npy -o data/mask.npy", ["mask.npy", "an input"]),
        (f"scan.npy {TINY} -o image.tif", ["cannot write image.tif"]),
        (f"scan.npy {MINIMUM}", ["parallax image will be zero: no aberration", "Give a defocus"]),
        (
            f"scan.npy {MINIMUM} --aberration C10=-400",
            ["shift images against each other by no more than 0.8 pixels", "factor of 2 is enough"],
        ),
        (f"scan.npy {BRIEF} --semiangle-cutoff 0.5", ["will be zero: ", "a single detector pixel"]),
        (
            f"scan.npy {MINIMUM} --phase-flip --aberration C21=4e5",
            ["phase-flipped image will be zero: aberration_coefs has no even aberration"],
        ),
        (
            f"scan.npy {MINIMUM} --aberration C21=4e5 --image parallax --image phase_flip",
            ["phase-flipped image will be zero"],
        ),
        (f"scan.npy {BRIEF} --engine gpu", ["--engine", "'gpu'", "'cuda'"]),
        (f"complex.npy {BRIEF}", ["complex128"]),
    ],
)
def test_errors(run: Run, folder: Path, command: str, messages: list[str]) -> None:
    np.save(folder / "data/complex.npy", frames().astype(complex))
    check_error(run(f"reconstruct data/{command}"), messages)
    assert not (folder / "scan_parallax.tif").exists()
    assert not (folder / "image.tif").exists()
    np.testing.assert_array_equal(np.load(folder / "data/mask.npy"), mask())


def test_warnings_come_before_errors_and_once(run: Run, folder: Path) -> None:
    np.save(folder / "data/complex.npy", frames().astype(complex))
    command = f"reconstruct data/complex.npy {BRIEF} --aberration C10=1e6"
    result = run(command)
    check_error(result, ["complex128"])
    assert result.stderr.count("Warning: shifts of up to") == 1


def test_frames_that_do_not_fit_the_scan_are_told(run: Run, folder: Path) -> None:
    """As when data are opened with the wrong shape or dtype."""
    frames()[:4].tofile(folder / "data/scan.raw")
    load = f"{BRIEF} --load type=raw --load dtype=uint8 --load 'sig_shape=[10,12]'"
    for shape, warning in (
        ("6,8", "has no frames for 16 of 48 scan positions"),
        ("3,8", "has 8 frames more than the 24 scan positions; they are left out"),
        ("4,8", None),
    ):
        result = succeeded(run(f"reconstruct data/scan.raw {load} --load 'nav_shape=[{shape}]'"))
        lines = [line for line in result.stderr.splitlines() if "scan.raw has" in line]
        assert len(lines) == (warning is not None)
        assert warning is None or lines[0].startswith(f"Warning: data/scan.raw {warning}")
    # Frames that are moved beyond the end are meant to be.
    load += " --load 'nav_shape=[4,8]'"
    result = succeeded(run(f"reconstruct data/scan.raw {load} --load sync_offset=-8"))
    assert "more than" not in result.stderr


@pytest.mark.parametrize(
    ("line", "messages"),
    [
        ("enery = 1", ["unknown parameter 'enery'", "one is 'energy'"]),
        ("output = 1", ["unknown parameter 'output'. Known: scan_sampling"]),
        ("C10 = -1e4", ["unknown parameter 'C10'; it belongs in aberration_coefs"]),
        ("defocus = 1e4", ["unknown parameter 'defocus'; it belongs in aberration_coefs"]),
        ("energy = '300 kV'", ["energy = '300 kV'", "eV"]),
        ("energy = true", ["energy = True", "eV"]),
        ("scan_sampling = 4", ["scan_sampling = 4", "two positive numbers", "Å"]),
        ("rotation_angle = 'left'", ["rotation_angle = 'left'", "-15deg"]),
        ("phase_flip = 'no'", ["phase_flip = 'no'", "True or False"]),
        ("engine = 1", ["engine = 1", "cuda"]),
        ("engine = 'cdua'", ["engine = 'cdua'", "auto, cuda, numba, numpy"]),
        ("aberration_coefs = 1", ["aberration_coefs = 1", "names and values"]),
        ("bf_mask = 'gone.npy'", ["bf_mask", "gone.npy"]),
        ("energy = fast", ["scan.toml", "TOML", "line 1"]),
    ],
)
def test_errors_in_the_file(run: Run, folder: Path, line: str, messages: list[str]) -> None:
    (folder / "data/scan.toml").write_text(line, encoding="utf-8")
    # Values on the command line do not make the file right.
    check_error(run(f"reconstruct data/scan.npy --params data/scan.toml {BRIEF}"), messages)
