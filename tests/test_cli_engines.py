"""Engines and GPUs on the command line, and what `info` says of them."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_commands import TOML, Run, check_error, expected, succeeded
from helpers import needs_compiler

from libertem_parallax.accumulate import ENGINES, make_engine
from libertem_parallax.accumulate.cuda import device

pytestmark = pytest.mark.usefixtures("folder")


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


FRAMES = "works; would be used for frames from files and detectors"

AUTO = "reconstruct data/scan.npy --params data/scan.toml -o image.npy"


@needs_compiler
@pytest.mark.parametrize(
    ("variable", "devices", "used"),
    [
        (None, set(), {"cuda, GPU 0": "for stacks and calibration", "numba": "for frames from fi"}),
        ("LIBERTEM_USE_CUDA", {1}, {"cuda, GPU 1": ""}),
        ("LIBERTEM_USE_CPU", set(), {"numba": ""}),
    ],
)
def test_frames_go_to_a_gpu_that_is_assigned(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    standin: Any,
    variable: str | None,
    devices: set[int],
    used: dict[str, str],
) -> None:
    if variable:
        monkeypatch.setenv(variable, "1")
    cupy = standin(devices=2)
    result = succeeded(run(AUTO))
    assert {device for device, _ in cupy.compiled} == devices
    assert (cupy.launches > 0) == bool(devices)
    assert f"on the {'GPU' if devices else 'CPU'}\n" in result.stdout
    np.testing.assert_array_equal(np.load("image.npy"), expected(engine="numba"))

    statuses = told(run)
    assert {name for name, status in statuses.items() if "would be used" in status} == set(used)
    assert all(f"would be used {what}".strip() in statuses[name] for name, what in used.items())
    assert all("works" in status for status in statuses.values())
    assert "No GPU, driver for CUDA 13.0" in statuses["cuda, GPU 1"]


@needs_compiler
def test_a_gpu_that_cannot_be_set_up_is_told_of(
    run: Run, monkeypatch: pytest.MonkeyPatch, standin: Any
) -> None:
    monkeypatch.setenv("LIBERTEM_USE_CUDA", "0")
    cupy = standin()
    cupy.faults["compile"] = OSError("this device is too old")
    result = succeeded(run(AUTO))
    [warning] = [line for line in result.stderr.splitlines() if "Warning" in line]
    assert warning.startswith("Warning: frames are added on the CPU")
    assert "this device is too old" in warning
    assert ".py" not in result.stderr
    assert "on the GPU" not in result.stdout
    np.testing.assert_array_equal(np.load("image.npy"), expected(engine="numba"))
    check_error(run(f"{AUTO} --engine cuda --overwrite"), ["GPU 0", "this device is too old"])


@needs_compiler
def test_a_gpu_that_fails_on_the_way_stops_the_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, standin: Any
) -> None:
    monkeypatch.setenv("LIBERTEM_USE_CUDA", "0")
    cupy = standin()
    cupy.faults["launch"] = OSError("the device fell off")
    check_error(run(AUTO), ["GPU 0", "the image is not complete", "the device fell off"])


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
        ("compile", "cuda, GPU 0", "would be tried first, but fails: GPU 0, ", FRAMES),
        ("launch", "cuda, GPU 0", "would be tried first, but fails: GPU 0, ", FRAMES),
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
