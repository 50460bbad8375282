"""Nothing of the user's is touched but what was named; images say how they were made."""

from __future__ import annotations

import json
import os
import resource
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import tifffile
from file_commands import check_error, expected, frames, succeeded
from libertem.api import Context
from live_commands import Run
from PIL import Image

from libertem_parallax import Parameters, event_files, files, simulate
from libertem_parallax.cli.specimen import check_folder, save_parameters
from libertem_parallax.files import About, said, save

COMMAND = "reconstruct data/scan.npy --params data/scan.toml"


def test_the_input_may_end_with_part(run: Run, folder: Path) -> None:
    """As temporary names did once, so that it was destroyed."""
    part = folder / "image.tif.part"
    frames().tofile(part)
    load = "type=raw dtype=uint8 nav_shape=[6,8] sig_shape=[10,12]".replace(" ", " --load ")
    succeeded(run(f"reconstruct {part.name} --params data/scan.toml --load {load} -o image.tif"))
    np.testing.assert_array_equal(np.fromfile(part, np.uint8), frames().ravel())
    np.testing.assert_array_equal(tifffile.imread("image.tif"), expected())
    assert {path.name for path in folder.iterdir()} == {"data", "image.tif", part.name}


@pytest.mark.parametrize("suffix", [".tif", ".png", ".npy"])
def test_what_is_no_image_of_ours_is_not_replaced(run: Run, folder: Path, suffix: str) -> None:
    mine = folder / f"image{suffix}"
    if suffix == ".npy":
        np.save(mine, np.zeros(3))
    elif suffix == ".tif":
        tifffile.imwrite(mine, np.zeros((3, 4), np.float32), imagej=True)
    else:
        Image.new("L", (3, 4)).save(mine)
    before = mine.read_bytes()
    check_error(
        run(f"{COMMAND} -o {mine.name}"), [f"--output {mine.name}: that is ", "--overwrite"]
    )
    assert mine.read_bytes() == before
    succeeded(run(f"{COMMAND} -o {mine.name} --overwrite"))
    assert mine.read_bytes() != before
    assert (said(mine) is not None) == (suffix != ".npy")
    if suffix != ".npy":
        succeeded(run(f"{COMMAND} -o {mine.name}"))
        mine.write_bytes(b"text")
        check_error(run(f"{COMMAND} -o {mine.name}"), ["no image of this program"])
    mine.write_bytes(b"")  # as of mktemp
    succeeded(run(f"{COMMAND} -o {mine.name}"))


def test_nor_is_what_came_meanwhile(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from the same command, started at the same time."""
    run_udf = Context.run_udf

    def late(*arguments: Any, **how: Any) -> Any:
        for name in ("image.npy", "image.tif"):
            Path(name).write_text("mine", encoding="utf-8")
        return run_udf(*arguments, **how)

    monkeypatch.setattr(Context, "run_udf", late)
    for suffix, read in ((".npy", np.load), (".tif", tifffile.imread)):
        Path(f"image{suffix}").unlink(missing_ok=True)
        result = succeeded(run(f"{COMMAND} -o image{suffix}"))
        assert f"Written to     image_2{suffix}" in result.stdout
        np.testing.assert_array_equal(read(f"image_2{suffix}"), expected())
        assert Path(f"image{suffix}").read_text(encoding="utf-8") == "mine"
    Path("image.tif").unlink()
    result = succeeded(run(f"{COMMAND} --defocus-series 100 200 2 -o image.tif"))
    assert "Written to     image_3.tif" in result.stdout
    assert tifffile.imread("image_3.tif").shape[0] == 2
    assert Path("image_sharpness_3.png").exists()
    assert Path("image.tif").read_text(encoding="utf-8") == "mine"


def test_files_that_an_input_names_are_not_overwritten(run: Run, folder: Path) -> None:
    """Not even with --overwrite, and by no other name."""
    events = scipy.sparse.csr_array(frames().reshape(48, 120))
    description = event_files.write_events(folder / "data", (6, 8), (10, 12), events)
    data, named = folder / "data/data.raw", folder / "data/data.tif"
    data.rename(named)
    description.write_text(description.read_text().replace("data.raw", "data.tif"))
    (folder / "link.tif").symlink_to(named)
    before = named.read_bytes()
    for output in ("data/data.tif", "link.tif"):
        command = f"reconstruct data/events.toml --params data/scan.toml -o {output} --overwrite"
        check_error(run(command), [f"--output {output}: that is an input"])
    mask = "--bf-mask data/mask.npy -o data/mask.npy --overwrite"
    check_error(run(f"{COMMAND} {mask}"), ["--output data/mask.npy: that is an input"])
    assert named.read_bytes() == before


def test_links_are_followed_and_permissions_kept(run: Run, folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    target, link = folder / "elsewhere/image.tif", folder / "image.tif"
    link.symlink_to(target)
    succeeded(run(f"{COMMAND} -o image.tif"))
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask
    target.chmod(0o640)
    before = target.stat().st_ino
    succeeded(run(f"{COMMAND} -o image.tif"))
    assert link.is_symlink()
    assert target.stat().st_ino != before
    assert target.stat().st_mode & 0o777 == 0o640
    np.testing.assert_array_equal(tifffile.imread(target), expected())
    assert [path.name for path in target.parent.iterdir()] == ["image.tif"]


def test_two_at_a_time_to_one_output_both_end_well(tmp_path: Path) -> None:
    """The image is that of one of them, whole."""
    path = tmp_path / "image.npy"
    images = [np.full((300, 300), value) for value in (1.0, 2.0)]
    errors: list[BaseException] = []

    def write(image: Any) -> None:
        try:
            for _ in range(20):
                save(path, image, About((1, 1)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(image,)) for image in images]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert any(np.array_equal(np.load(path), image) for image in images)
    assert [left.name for left in tmp_path.iterdir()] == ["image.npy"]


def test_images_carry_their_parameters(run: Run, folder: Path) -> None:
    options = "--bf-mask data/mask.npy --image phase_flip"
    succeeded(run(f"{COMMAND} {options} -o image.tif"))
    succeeded(run(f"{COMMAND} {options} --blur 3 -o image.png"))
    with tifffile.TiffFile("image.tif") as tiff:
        assert tiff.imagej_metadata
        texts = [tiff.imagej_metadata["Info"]]
        (line,) = [
            line
            for line in tiff.pages.first.description.splitlines()
            if "libertem-parallax=" in line
        ]
        texts.append(line.partition("=")[2])
    with Image.open("image.png") as picture:
        texts.append(picture.info["libertem-parallax"])
    for text in texts:
        about = json.loads(text)
        assert about["software"].startswith("libertem-parallax")
        assert about["image"] == "phase_flip"
        assert about["data"] == "data/scan.npy"
        assert (about["scan"], about["detector"]) == ([6, 8], [10, 12])
        assert about["pixel_size_in_angstrom"] == [2.0, 2.5]
        parameters = about["parameters"]
        assert parameters["bf_mask"] == "data/mask.npy"
        assert parameters["scan_sampling"] == [4.0, 5.0]
        assert parameters["aberration_coefs"]
        assert ("blur" in about) == (text is texts[2])


def test_tiff_of_4_gib_is_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is far lower here."""
    monkeypatch.setattr(files, "_BIG", 4000)
    for columns, big in ((99, False), (100, True)):
        image = np.arange(10.0 * columns, dtype=np.float32).reshape(10, columns)
        save(tmp_path / "image.tif", image, About((1, 2)))
        with tifffile.TiffFile(tmp_path / "image.tif") as tiff:
            assert tiff.is_bigtiff == big
            np.testing.assert_array_equal(tiff.asarray(), image)
        assert said(tmp_path / "image.tif") is not None


def test_the_default_name_tells_the_image(run: Run, folder: Path) -> None:
    succeeded(run(f"{COMMAND} --phase-flip"))
    assert (folder / "scan_phase_flip.tif").exists()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the specimen be scanned coarsely."""
    monkeypatch.setattr(simulate, "simulate", partial(simulate.simulate, scan_shape=(12, 14)))


@pytest.mark.usefixtures("small")
def test_the_demo_replaces_its_own_files_only(run: Run, folder: Path) -> None:
    for image in ("image.png", "image_2.png"):
        result = succeeded(run("demo --output here"))
        assert {path.name for path in Path("here").iterdir()} == {
            "demo.png",
            "frames.h5",
            "params.toml",
        }
        assert f" -o {image} " in result.stdout  # what it proposes next
        save(Path(image), np.ones((2, 2)), About((1, 1)))
    params = Path("here/params.toml")
    params.write_text(params.read_text(encoding="utf-8") + "\n# mine\n", encoding="utf-8")
    check_error(run("demo --output here"), ["here/params.toml: that was changed", "--overwrite"])
    assert params.read_text(encoding="utf-8").endswith("# mine\n")
    succeeded(run("demo --output here --overwrite"))
    for name, message in (("frames.h5", "not what this version"), ("demo.png", "no image")):
        (Path("here") / name).write_bytes(b"mine")
        check_error(run("demo --output here"), [f"here/{name}: that is {message}"])
        assert (Path("here") / name).read_bytes() == b"mine"
        (Path("here") / name).unlink()
    assert {path.name for path in Path("here").iterdir()} == {"params.toml"}


def test_what_does_not_fit_the_disk_leaves_parameters_as_they_were(tmp_path: Path) -> None:
    """They would not be known again, and never be replaced."""
    parameters = Parameters(energy=300e3)
    path = save_parameters(parameters, tmp_path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) - 10, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            save_parameters(parameters, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    check_folder(tmp_path, [], False)
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("params.toml", "that was changed"),
        ("live.png", "no image of this program"),
        ("growth.png", "no image of this program"),
        ("frames.hdr", "not what this version simulates"),
    ],
)
def test_a_simulated_detector_replaces_its_own_files_only(
    run: Run, name: str, message: str
) -> None:
    mine = Path("libertem-parallax-live") / name
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    result = run("live --simulate merlin")
    assert result.exit_code != 0
    assert message in result.stderr
    assert "Recording" not in result.stderr
    assert mine.read_bytes() == b"mine"
    assert [path.name for path in mine.parent.iterdir() if path.name[0] == "."] == []
