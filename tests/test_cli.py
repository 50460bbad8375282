"""The command line, run on small files with LiberTEM."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.ndimage
import scipy.sparse
import tifffile
from click.testing import CliRunner, Result
from conftest import needs_compiler
from libertem.api import Context
from numpy.typing import NDArray
from PIL import Image

from libertem_parallax import ParallaxPhaseFlipUDF, ParallaxUDF
from libertem_parallax.accumulate import ENGINES, make_engine
from libertem_parallax.accumulate.cuda import device
from libertem_parallax.cli import main
from libertem_parallax.cli.reconstruct import reconstruct
from libertem_parallax.cli.run import speed_text
from libertem_parallax.files import save
from libertem_parallax.images import IMAGES
from libertem_parallax.parameters import PARAMETERS

SHAPE = (6, 8, 10, 12)

# Something other than the default everywhere, in the form for `from_parameters`.
ACQUISITION: dict[str, Any] = {
    "scan_sampling": (4.0, 5.0),
    "energy": 200e3,
    "semiangle_cutoff": 4.0,
    "angular_sampling": (1.0, 1.5),
    "aberration_coefs": {"C10": -2000.0, "C12": 300.0, "phi12": 0.5},
    "rotation_angle": float(np.deg2rad(-15)),
    "upsampling_factor": 2,
    "suppress_Nyquist_noise": False,
    "detector_flip_cols": True,
    "center": (4.5, 6.25),
}
TOML = """
scan_sampling = [4.0, 5.0]
energy = 200e3
semiangle_cutoff = 4
angular_sampling = [1.0, 1.5]
rotation_angle = "-15deg"
upsampling_factor = 2
suppress_Nyquist_noise = false
detector_flip_cols = true
center = [4.5, 6.25]
bf_mask = "mask.npy"

[aberration_coefs]
C10 = -2000
C12 = 300
phi12 = "28.64788975654116deg"
"""
OPTIONS = (
    "--scan-sampling 4 5 --energy 200e3 --semiangle-cutoff 4 --angular-sampling 1 1.5 "
    "--rotation-angle -15deg --upsampling-factor 2 --no-suppress-nyquist-noise "
    "--detector-flip-cols --center 4.5 6.25 --bf-mask data/mask.npy "
    "--aberration C10=-2000 --aberration C12=300 --aberration phi12=28.64788975654116deg"
)
# As little as possible.
MINIMUM = "--scan-sampling 4 5 --energy 200e3 --semiangle-cutoff 4 --angular-sampling 1 1"
BRIEF = f"{MINIMUM} --aberration C12=2000"
# A pixel size that TIFF cannot hold, with shifts of few pixels.
TINY = f"{MINIMUM} --scan-sampling 1e-9 1e-9 --aberration C12=5e-7"

Run = Callable[[str], Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with the data in another one, and an environment that says nothing."""
    monkeypatch.chdir(tmp_path)
    for name in ("LIBERTEM_USE_CUDA", "LIBERTEM_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    data = tmp_path / "data"
    data.mkdir()
    np.save(data / "scan.npy", frames())
    np.save(data / "mask.npy", mask())
    (data / "scan.toml").write_text(TOML, encoding="utf-8")
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Run:
    return lambda command: CliRunner().invoke(main, shlex.split(command))


def frames() -> NDArray[np.uint8]:
    return np.random.default_rng(1).poisson(3, SHAPE).astype(np.uint8)


def mask() -> NDArray[np.bool_]:
    bf_mask = np.ones(SHAPE[2:], dtype=bool)
    bf_mask[4, 5:7] = False
    return bf_mask


def expected(cls: type[ParallaxUDF] = ParallaxUDF, **changes: Any) -> NDArray[np.float32]:
    """Image by the UDF itself."""
    parameters = {**ACQUISITION, "bf_mask": mask(), **changes}
    udf = cls.from_parameters(shape=SHAPE, **parameters)
    with Context.make_with("inline") as ctx:
        dataset = ctx.load("memory", data=frames(), sig_dims=2)
        image: NDArray[np.float32] = ctx.run_udf(dataset, udf)["reconstruction"].data
    return image


def succeeded(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("source", [OPTIONS, "--params data/scan.toml"])
def test_reconstruct_does_what_the_udf_does(run: Run, source: str) -> None:
    succeeded(run(f"reconstruct data/scan.npy {source} -o image.npy"))
    image = np.load("image.npy")
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, expected())


@pytest.mark.parametrize("by_file", [True, False])
def test_phase_flip(run: Run, folder: Path, by_file: bool) -> None:
    if by_file:
        (folder / "data/scan.toml").write_text("phase_flip = true\n" + TOML, encoding="utf-8")
    option = "" if by_file else "--phase-flip"
    succeeded(run(f"reconstruct data/scan.npy --params data/scan.toml {option} -o image.npy"))
    np.testing.assert_array_equal(np.load("image.npy"), expected(ParallaxPhaseFlipUDF))


def check_images(prefix: str, *names: str) -> None:
    """That there are these images, and no others."""
    images = {"parallax": ParallaxUDF, "phase_flip": ParallaxPhaseFlipUDF}
    assert {path.name for path in Path().glob("*.npy")} == {f"{prefix}{n}.npy" for n in names}
    for name in names:
        np.testing.assert_array_equal(np.load(f"{prefix}{name}.npy"), expected(images[name]))


@pytest.mark.parametrize(
    ("line", "options", "names"),
    [
        ("", "--image phase_flip --image parallax", ["phase_flip", "parallax"]),
        ("", "--image parallax --phase-flip", ["phase_flip", "parallax"]),
        ("image = ['parallax', 'phase_flip']", "", ["phase_flip", "parallax"]),
        ("phase_flip = true\nimage = 'parallax'", "", ["phase_flip", "parallax"]),
    ],
)
def test_several_images(run: Run, folder: Path, line: str, options: str, names: list[str]) -> None:
    (folder / "data/scan.toml").write_text(f"{line}\n{TOML}", encoding="utf-8")
    result = succeeded(
        run(f"reconstruct data/scan.npy --params data/scan.toml {options} -o image.npy")
    )
    check_images("image_", *names)
    assert all(f"image_{name}.npy\n" in result.stdout for name in names)


@pytest.mark.parametrize(
    ("line", "options", "name"),
    [
        ("", "", "parallax"),
        ("", "--phase-flip", "phase_flip"),
        ("image = 'phase_flip'", "", "phase_flip"),
        ("image = 'phase_flip'", "--image parallax", "parallax"),
        ("phase_flip = true", "--image parallax", "parallax"),
        ("image = 'parallax'", "--phase-flip", "phase_flip"),
        ("image = 'phase_flip'", "--no-phase-flip", "parallax"),
        ("image = ['phase_flip', 'parallax']", "--no-phase-flip", "parallax"),
    ],
)
def test_the_default_name_tells_the_image(
    run: Run, folder: Path, line: str, options: str, name: str
) -> None:
    """And the command line wins over the file, whichever of its words is used."""
    (folder / "data/scan.toml").write_text(f"{line}\n{TOML}", encoding="utf-8")
    result = succeeded(run(f"reconstruct data/scan.npy --params data/scan.toml {options}"))
    assert {path.name for path in folder.glob("*.tif")} == {f"scan_{name}.tif"}
    kind = {"parallax": "parallax", "phase_flip": "phase-flipped parallax"}[name]
    assert f"{kind}, 12 x 16 pixels" in result.stdout


@pytest.mark.parametrize(
    ("line", "options", "messages"),
    [
        ("", "--image flip", ["--image", "'flip'", "parallax, phase_flip"]),
        ("image = 'flip'", "", ["'flip'", "parallax, phase_flip"]),
        ("image = [1]", "", ["image = [1]", "parallax, phase_flip"]),
        ("", "--image phase_flip --no-phase-flip", ["no phase flip", "leave one out"]),
        ("image = 1", "", ["image = 1", "expected one or several"]),
    ],
)
def test_images_that_there_are_not(
    run: Run, folder: Path, line: str, options: str, messages: list[str]
) -> None:
    (folder / "data/scan.toml").write_text(f"{line}\n{TOML}", encoding="utf-8")
    check_error(
        run(f"reconstruct data/scan.npy --params data/scan.toml {options} -o image.npy"), messages
    )


def test_help_names_all_images(run: Run) -> None:
    help_text = succeeded(run("reconstruct --help")).stdout
    assert f"--image [{'|'.join(IMAGES)}]" in help_text


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


def test_tiff_tells_imagej_the_pixel_size(run: Run) -> None:
    succeeded(run("reconstruct data/scan.npy --params data/scan.toml -o image.TIF"))
    with tifffile.TiffFile("image.TIF") as tiff:
        assert tiff.is_imagej
        assert tiff.imagej_metadata is not None
        assert tiff.imagej_metadata["unit"] == "nm"
        page = tiff.pages.first
        per_nm = [np.divide(*page.tags[name].value) for name in ("YResolution", "XResolution")]
        # Two pixels per scan step of 4 x 5 Å.
        assert per_nm == pytest.approx([1 / 0.2, 1 / 0.25])
        image = tiff.asarray()
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, expected())


def test_only_pictures_are_blurred(run: Run) -> None:
    """By so many Å along both axes; the mean stays."""
    command = "reconstruct data/scan.npy --params data/scan.toml"
    succeeded(run(f"{command} --blur 5 -o image.png"))
    blurred = scipy.ndimage.gaussian_filter(expected(), (5 / 2, 5 / 2.5), mode="wrap")
    save(Path("expected.png"), blurred, (2, 2.5))
    assert Path("image.png").read_bytes() == Path("expected.png").read_bytes()
    check_error(run(f"{command} --blur 5 -o image.tif"), ["--blur", "image.tif", ".png"])
    for number in ("nan", "inf", "-1"):
        check_error(run(f"{command} --blur {number} -o image.png"), ["--blur", number])
    succeeded(run(f"{command} --blur 1e13 -o image.png"))


def test_png_has_the_pixels_of_the_image(run: Run) -> None:
    succeeded(run("reconstruct data/scan.npy --params data/scan.toml -o image.png"))
    with Image.open("image.png") as picture:
        assert picture.mode == "L"
        gray = np.asarray(picture)
    image = expected()
    assert gray.shape == image.shape
    assert (gray.min(), gray.max()) == (0, 255)
    # Brighter where the image is larger.
    assert (np.diff(gray.ravel()[np.argsort(image.ravel())].astype(int)) >= 0).all()


def test_summary_and_default_output(run: Run, folder: Path) -> None:
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
    assert "48/48" in result.stderr  # the progress bar


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
        run("reconstruct data/events.toml --params data/scan.toml -o image.npy"),
        ["data/events.toml names", "data/data.raw, which does not exist.\n"],
    )
    events.write_text("\n".join(line for line in lines if "indptr_file" not in line))
    check_error(
        run("reconstruct data/events.toml --params data/scan.toml -o image.npy"),
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


def test_warnings_are_shown_without_code(run: Run) -> None:
    result = succeeded(run(f"reconstruct data/scan.npy {BRIEF} --center 0 0 -o image.npy"))
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


def test_an_image_that_cannot_be_written_leaves_the_old_one(run: Run, folder: Path) -> None:
    command = f"reconstruct data/scan.npy {BRIEF} -o image.tif"
    succeeded(run(command))
    old = (folder / "image.tif").read_bytes()
    check_error(run(f"reconstruct data/scan.npy {TINY} -o image.tif"), ["cannot write image.tif"])
    assert (folder / "image.tif").read_bytes() == old
    # Where the new file cannot be made beside the old one, nothing is computed in vain.
    (folder / "image.tif.part").mkdir()
    result = run(command)
    check_error(result, ["--output image.tif", "cannot write there"])
    assert "Reconstructing" not in result.stderr
    assert (folder / "image.tif").read_bytes() == old


def test_an_image_that_is_write_protected_is_not_replaced(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the folder allows it. To the administrator everything is allowed, so we ask how."""
    (folder / "image.tif").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: (Path(path).name, mode) != protected)
    protected = ("image.tif", os.W_OK)
    check_error(run(f"reconstruct data/scan.npy {BRIEF} -o image.tif"), ["write-protected"])


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


def check_error(result: Result, messages: list[str]) -> None:
    assert result.exit_code != 0
    # Any other exception would have been shown with its traceback.
    assert isinstance(result.exception, SystemExit)
    assert "Error: " in result.stderr
    assert result.stdout == ""
    for message in messages:
        assert message in result.stderr


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


@pytest.mark.parametrize("by_file", [True, False])
def test_engines_give_the_same_file(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, engine_name: str, by_file: bool
) -> None:
    used = []

    def make(name: str, *args: Any, **options: Any) -> Any:
        used.append(name)
        return make_engine(name, *args, **options)

    monkeypatch.setattr("libertem_parallax.udf.base.make_engine", make)
    in_file = engine_name if by_file else "auto"
    (folder / "data/scan.toml").write_text(f"engine = '{in_file}'\n" + TOML, encoding="utf-8")
    option = "" if by_file else f"--engine {engine_name}"
    result = succeeded(
        run(f"reconstruct data/scan.npy --params data/scan.toml {option} -o image.npy")
    )
    assert set(used) == {engine_name}
    assert f"frames/s, on the {'GPU' if engine_name == 'cuda' else 'CPU'}\n" in result.stdout
    np.save("expected.npy", expected(engine="numpy"))
    assert Path("image.npy").read_bytes() == Path("expected.npy").read_bytes()


AUTO = "reconstruct data/scan.npy --params data/scan.toml -o image.npy"


@needs_compiler
@pytest.mark.parametrize(
    ("variable", "devices"),
    [
        (None, {0}),
        ("LIBERTEM_USE_CUDA", {1}),
        ("LIBERTEM_USE_CPU", set()),
    ],
)
def test_the_gpu_is_used_unless_told_otherwise(
    run: Run, monkeypatch: pytest.MonkeyPatch, standin: Any, variable: str | None, devices: set[int]
) -> None:
    if variable:
        monkeypatch.setenv(variable, "1")
    cupy = standin(devices=2)
    environment = dict(os.environ)
    result = succeeded(run(AUTO))
    assert dict(os.environ) == environment
    assert {device for device, _ in cupy.compiled} == devices
    assert (cupy.launches > 0) == bool(devices)
    assert f"on the {'GPU' if devices else 'CPU'}\n" in result.stdout
    np.testing.assert_array_equal(np.load("image.npy"), expected())

    statuses = told(run)
    assert [name for name, status in statuses.items() if "would be used" in status] == [
        f"cuda, GPU {device}" for device in devices
    ] or ["numba"]
    assert all("works" in status for status in statuses.values())
    assert "No GPU, driver for CUDA 13.0" in statuses["cuda, GPU 1"]


@needs_compiler
def test_a_gpu_that_cannot_be_set_up_is_told_of(run: Run, standin: Any) -> None:
    cupy = standin()
    cupy.faults["compile"] = OSError("this device is too old")
    result = succeeded(run(AUTO))
    [warning] = [line for line in result.stderr.splitlines() if "Warning" in line]
    assert warning.startswith("Warning: frames are added on the CPU")
    assert "this device is too old" in warning
    assert ".py" not in result.stderr
    assert "on the GPU" not in result.stdout
    np.testing.assert_array_equal(np.load("image.npy"), expected())
    check_error(run(f"{AUTO} --engine cuda"), ["GPU 0", "this device is too old"])


@needs_compiler
def test_a_gpu_that_fails_on_the_way_stops_the_run(run: Run, standin: Any) -> None:
    cupy = standin()
    cupy.faults["launch"] = OSError("the device fell off")
    check_error(run(AUTO), ["GPU 0", "the image is not complete", "the device fell off"])
    assert "LIBERTEM_USE_CUDA" not in os.environ


def test_an_environment_that_contradicts_itself(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LIBERTEM_USE_CUDA", "LIBERTEM_USE_CPU"):
        monkeypatch.setenv(name, "0")
    for command in (AUTO, "info"):
        check_error(run(command), ["LIBERTEM_USE_CUDA", "LIBERTEM_USE_CPU"])


def told(run: Run) -> dict[str, str]:
    """What `info` says of each engine."""
    output = succeeded(run("info")).stdout
    lines = output.splitlines()
    assert len(lines) <= 24
    assert all(len(line) < 80 or "/" in line for line in lines)  # paths are not broken
    assert f"numpy {np.__version__}" in " ".join(output.split())
    statuses: dict[str, str] = {}
    name = ""
    for line in lines[lines.index("Engine         Status") + 1 : lines.index("", 4)]:
        name = line[:15].strip() or name
        statuses[name] = f"{statuses.get(name, '')} {line[15:]}".strip()
    return statuses


def test_info_without_cupy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    statuses = told(run)
    assert statuses.pop("cuda").startswith("not available: CuPy is not installed. Install ")
    assert statuses == {
        "numba": "works; would be used",
        "numpy": "works; slow, for comparison",
    }


@needs_compiler
@pytest.mark.parametrize(
    ("fault", "name", "status", "numba"),
    [
        ("device", "cuda", "not available: GPU 0: OSError: no device", "works; would be used"),
        ("compile", "cuda, GPU 0", "would be tried first, but fails: GPU 0, ", "works"),
        ("launch", "cuda, GPU 0", "would be tried first, but fails: GPU 0, ", "works"),
    ],
)
def test_info_says_why_a_gpu_does_not_work(
    run: Run, standin: Any, fault: str, name: str, status: str, numba: str
) -> None:
    standin().faults[fault] = OSError(f"no {fault}")
    statuses = told(run)
    assert statuses[name].startswith(status)
    assert f"no {fault}" in statuses[name]
    assert statuses["numba"] == numba


@needs_compiler
def test_info_tells_what_fits_a_gpu(run: Run, standin: Any) -> None:
    standin(memory=2**31)
    free = "2.0 of 2.0 GiB are free: enough for a stack of 4,294,967 frames with 500"
    assert free in told(run)["cuda, GPU 0"]


@needs_compiler
def test_info_finds_gpus_that_add_wrongly(
    run: Run, standin: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    standin()
    source = device.source
    text = source("stack").read_text("utf-8").replace("sum[i] += ", "sum[i] -= ")
    (tmp_path / "stack.cu").write_text(text)
    files = {"stack": tmp_path / "stack.cu"}
    monkeypatch.setattr(device, "source", lambda name: files.get(name) or source(name))
    status = "its sums of a stack of uint8 differ from NumPy's."
    assert told(run)["cuda, GPU 0"] == f"would be tried first, but fails: {status}"


def test_info_compares_the_sums(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ENGINES["numba"], "_add", lambda *_: None)
    assert told(run)["numba"].endswith("its sums differ from those of the engine numpy.")


def test_demo_and_what_it_proposes_next(run: Run, folder: Path) -> None:
    result = succeeded(run("demo --output 'my demo'"))
    with Image.open(folder / "my demo/demo.png") as picture:
        assert picture.width > 3 * picture.height
    with h5py.File(folder / "my demo/frames.h5") as file:
        assert file["frames"].shape == (72, 72, 64, 64)
    assert "my demo/demo.png" in result.stdout
    [correlation] = [line for line in result.stdout.splitlines() if "Correlation" in line]
    assert float(correlation.split()[1]) > 0.5
    assert "Simulating" in result.stderr

    program, *proposed = shlex.split(result.stdout.splitlines()[-1])
    assert program == "libertem-parallax"
    assert proposed[-3:] == ["--phase-flip", "--blur", "6"]
    result = succeeded(run(shlex.join(proposed)))
    assert "144 x 144 pixels of 0.1778 x 0.1778 nm" in result.stdout
    with Image.open("image.png") as picture:
        assert picture.size == (144, 144)


def test_demo_says_where_it_cannot_write(run: Run, folder: Path) -> None:
    check_error(run("demo --output data/scan.npy"), ["--output", "scan.npy"])
    (folder / "occupied/frames.h5").mkdir(parents=True)
    check_error(run("demo --output occupied"), ["--output", "occupied"])


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
