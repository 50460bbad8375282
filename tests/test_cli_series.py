"""Only the acquisition that was named, whatever lies beside it."""

from pathlib import Path

import numpy as np
import pytest
from file_commands import BRIEF, Run, check_error, succeeded

from libertem_parallax.live.merlin import write_mib

pytestmark = pytest.mark.usefixtures("folder")
SHAPE = (6, 8, 12, 8)


def acquisition(name: str, seed: int) -> np.ndarray:
    frames = np.random.default_rng(seed).integers(0, 200, SHAPE).astype(np.uint16)
    write_mib(Path(f"{name}.hdr"), frames)
    return frames


def split(name: str, *parts: str) -> None:
    """Cut an acquisition in files, as a Merlin does on demand."""
    data = Path(f"{name}.mib").read_bytes()
    Path(f"{name}.mib").unlink()
    size = len(data) // len(parts)
    for i, part in enumerate(parts):
        Path(f"{part}.mib").write_bytes(data[i * size : (i + 1) * size])


def image(run: Run, command: str) -> np.ndarray:
    succeeded(run(f"reconstruct {command} {BRIEF} -o image.npy --overwrite"))
    return np.load("image.npy")


def expected(run: Run, frames: np.ndarray) -> np.ndarray:
    np.save("frames.npy", frames)
    return image(run, "frames.npy")


NAV = "--load 'nav_shape=[6,8]'"


@pytest.mark.parametrize("kind", ["", "--load type=mib"])
def test_another_scan_beside_it_is_left_alone(run: Run, kind: str) -> None:
    scans = {name: acquisition(name, seed) for seed, name in enumerate(["scan_1", "scan_11", "s"])}
    for name, frames in scans.items():
        wanted = expected(run, frames)
        np.testing.assert_array_equal(image(run, f"{name}.hdr {kind}"), wanted)
        np.testing.assert_array_equal(image(run, f"{name}.mib {NAV} {kind}"), wanted)


def test_the_shape_is_guessed_from_the_named_file_only(run: Run) -> None:
    frames = np.random.default_rng(3).integers(0, 200, (6, 6, 12, 8)).astype(np.uint16)
    write_mib(Path("scan_2.hdr"), frames)
    acquisition("scan_1", 0)
    np.testing.assert_array_equal(image(run, "scan_2.mib"), expected(run, frames))


def test_files_of_one_acquisition_belong_together(run: Run) -> None:
    frames = acquisition("scan", 0)
    split("scan", "scan1", "scan2", "scan3")
    wanted = expected(run, frames)
    np.testing.assert_array_equal(image(run, "scan.hdr"), wanted)
    np.testing.assert_array_equal(image(run, f"scan2.mib {NAV}"), wanted)


def test_what_cannot_be_left_out_is_refused(run: Run) -> None:
    acquisition("scan", 0)
    split("scan", "scan1", "scan2")
    acquisition("scan7", 1)
    result = run(f"reconstruct scan1.mib {NAV} {BRIEF} -o image.npy")
    check_error(result, ["scan7.mib", "another folder"])
    assert not Path("image.npy").exists()


def test_a_header_without_its_file_is_refused(run: Run) -> None:
    for seed, name in enumerate(["scan_1", "scan_11"]):
        acquisition(name, seed)
    Path("scan_1.mib").unlink()
    check_error(run(f"reconstruct scan_1.hdr {BRIEF} -o image.npy"), ["no scan_1.mib"])


@pytest.mark.parametrize(
    ("named", "other"),
    [
        ("scan_1.gtg", "scan_1b_1.bin"),
        ("scan_1_000.tvips", "scan_1_x_000.tvips"),
        ("scan_1_000.frms6", "scan_1_new_000.frms6"),
    ],
)
def test_other_formats_with_alike_names_are_refused(run: Run, named: str, other: str) -> None:
    Path(named).touch()
    Path(other).touch()
    check_error(run(f"reconstruct {named} {BRIEF} -o image.npy"), [other, "another folder"])
