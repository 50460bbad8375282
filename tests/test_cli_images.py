"""Which images the command line makes, and the files that it writes."""

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import scipy.sparse
import tifffile
from file_commands import BRIEF, TINY, TOML, Run, check_error, expected, succeeded
from PIL import Image

from libertem_parallax import ParallaxPhaseFlipUDF, ParallaxUDF, files
from libertem_parallax.files import About, save
from libertem_parallax.images import IMAGES, STACK_IMAGES

pytestmark = pytest.mark.usefixtures("folder")


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
    assert f"--image [{'|'.join((*IMAGES, *STACK_IMAGES))}]" in help_text
    assert "Repeat --image for more" in " ".join(help_text.split())


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
    save(Path("expected.png"), blurred, About((2, 2.5)))
    with Image.open("image.png") as picture, Image.open("expected.png") as other:
        inside = np.s_[76:-44]  # between title and scale bar
        np.testing.assert_array_equal(np.asarray(picture)[inside], np.asarray(other)[inside])
    check_error(run(f"{command} --blur 5 -o image.tif"), ["--blur", "image.tif", ".png"])
    for number in ("nan", "inf", "-1"):
        check_error(run(f"{command} --blur {number} -o image.png"), ["--blur", number])
    succeeded(run(f"{command} --blur 1e13 -o image.png"))


def test_an_image_that_cannot_be_written_leaves_the_old_one(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"reconstruct data/scan.npy {BRIEF} -o image.tif"
    succeeded(run(command))
    old = (folder / "image.tif").read_bytes()
    check_error(run(f"reconstruct data/scan.npy {TINY} -o image.tif"), ["cannot write image.tif"])
    assert (folder / "image.tif").read_bytes() == old
    # Where the new file cannot be made beside the old one, nothing is computed in vain.
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "taken")
    (folder / ".image.tif.taken.part").mkdir()
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
