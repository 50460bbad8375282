"""The command line behind LiberTEM-live's own simulators, which work, fail, or are not there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from libertem.api import Context
from live_commands import (
    ACQUISITION,
    SHAPE,
    Gate,
    Run,
    arguments,
    check_complete,
    check_error,
    expected,
    simulators,
    when,
)
from numpy.typing import NDArray
from PIL import Image

from libertem_parallax import ParallaxPhaseFlipUDF, ParallaxUDF, files, live

pytest.importorskip("libertem_live", reason="LiberTEM-live is not installed")


from libertem_parallax.live.merlin import Simulator
from libertem_parallax.udf import base

pytestmark = simulators


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("nav_shape", [True, False])
def test_the_image_is_that_of_the_file(
    run: Run,
    merlin: Simulator,
    frames: NDArray[Any],
    request: pytest.FixtureRequest,
    start: bool,
    nav_shape: bool,
) -> None:
    if not start:
        request.getfixturevalue("operator")
    shape = "--nav-shape 8 12 " if nav_shape else ""
    result = run(arguments(merlin, shape + ("--start" if start else "")))
    check_complete(result, frames)
    assert ("Waiting up to 60 s" in result.stderr) != start
    assert "100%" in result.stderr
    assert "96/96" in result.stderr
    assert "frames/s" in result.stderr
    for text in ("8 x 12 scan, 256 x 256 detector, uint16", "96 frames in", "image.tif"):
        assert text in result.stdout
    with Image.open("live.png") as picture:
        assert picture.size == (600, 320 + 44)  # 24 x 16 pixels, 25 x 20 dots each
        below = np.asarray(picture)[320:]
    # A bar of 1 nm, as pixels are 2.5 Å wide; some space, and words.
    bar = (below == 0).any(axis=0)
    assert bar[:100].all()
    assert not bar[100:108].any()
    assert bar[108:].any()


def test_parameters_as_for_files(run: Run, merlin: Simulator, frames: NDArray[Any]) -> None:
    mask = np.ones(SHAPE[2:], dtype=bool)
    mask[128] = False
    np.save("mask.npy", mask)
    Path("scan.toml").write_text(
        'phase_flip = true\nbf_mask = "mask.npy"\nenergy = 1e5\n[load]\ntype = "raw"\n',
        encoding="utf-8",
    )
    result = run(arguments(merlin, "--start --params scan.toml"))
    assert result.exit_code == 0, result.output
    udf = ParallaxPhaseFlipUDF.from_parameters(shape=SHAPE, bf_mask=mask, **ACQUISITION)
    with Context.make_with("inline") as ctx:
        dataset = ctx.load("memory", data=frames, sig_dims=2)
        image = ctx.run_udf(dataset, udf)["reconstruction"].data
    np.testing.assert_array_equal(tifffile.imread("image.tif"), image)


def test_zero_images_are_refused_before_the_detector_starts(run: Run, merlin: Simulator) -> None:
    """With the mask of a single pixel."""
    mask = np.zeros(SHAPE[2:], dtype=bool)
    mask[128, 128] = True
    np.save("mask.npy", mask)
    result = run(arguments(merlin, "--start --bf-mask mask.npy"))
    assert result.exit_code == 1
    assert "Error: the parallax image will be zero: the bright field is a single" in result.stderr
    assert "Recording" not in result.stderr
    assert not Path("image.tif").exists()


def test_it_can_be_seen_growing(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    picture = Path("shots/live.png")
    seen: list[NDArray[Any]] = []

    def look() -> None:
        with Image.open(picture) as image:
            seen.append(np.asarray(image))
        gate.opened.set()

    looking = when(picture.exists, look)
    result = run(arguments(merlin, "--start --snapshot shots"))
    looking.join()
    check_complete(result, frames)
    with Image.open(picture) as image:
        last = np.asarray(image)
    assert last.shape == seen[0].shape
    assert (last != seen[0])[:320].any()
    np.testing.assert_array_equal(last[320:], seen[0][320:])


def test_the_picture_is_not_put_in_place_of_an_image(
    run: Run, merlin: Simulator, frames: NDArray[Any]
) -> None:
    """Of another scan, whose name is that of the picture."""
    assert run(arguments(merlin, "--start -o live.png")).exit_code == 0
    image, before = Path("live.png").read_bytes(), Path("growing.png").read_bytes()
    Path("growing.png").unlink()
    check_complete(run(arguments(merlin, "--start")), frames)
    assert Path("live.png").read_bytes() == image
    assert Path("growing.png").read_bytes() == before


def test_pictures_are_blurred_and_the_image_is_not(
    run: Run, merlin: Simulator, frames: NDArray[Any]
) -> None:
    """By a Gaussian in Å, which is one in the Fourier transform, too; pixels are 2 x 2.5 Å."""
    check_complete(run(arguments(merlin, "--start --blur 6")), frames)
    image = expected(frames).astype(float)
    frequency = np.hypot(*np.ix_(np.fft.fftfreq(16, 2.0), np.fft.fftfreq(24, 2.5)))
    blurred = np.fft.ifft2(np.fft.fft2(image) * np.exp(-2 * (np.pi * 6 * frequency) ** 2)).real
    low, high = np.percentile(blurred, (0.5, 99.5))
    gray = np.clip((blurred - low) / (high - low), 0, 1) * 255
    with Image.open("live.png") as picture:
        shown = np.asarray(picture, float)[:320]
    np.testing.assert_allclose(shown, gray.repeat(20, axis=0).repeat(25, axis=1), atol=2)


@pytest.mark.parametrize("nav_shape", ["", "--nav-shape 8 12"])
def test_everything_was_run_once_before_the_detector_starts(
    run: Run,
    merlin: Simulator,
    frames: NDArray[Any],
    monkeypatch: pytest.MonkeyPatch,
    nav_shape: str,
) -> None:
    steps: list[str] = []

    def note(module: Any, name: str) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, **more: (steps.append(name), function(*args, **more))[1]
        )

    note(live, "start")
    note(base, "make_engine")
    note(ParallaxUDF, "get_results")
    check_complete(run(arguments(merlin, f"--start {nav_shape}")), frames)
    assert steps[:3] == ["make_engine", "get_results", "start"]


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ("--energy 300", ["energy = 300", "eV"]),
        ("-o nowhere/image.tif", ["nowhere", "create it"]),
        ("-o taken.tif", ["--output taken.tif", "cannot write there"]),
        ("--snapshot scan.toml", ["scan.toml", "file"]),
        ("--timeout 0", ["--timeout"]),
    ],
)
def test_the_detector_is_not_started_in_vain(
    run: Run,
    merlin: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    messages: list[str],
) -> None:
    Path("scan.toml").touch()
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "taken")
    Path(".taken.tif.taken.part").mkdir()
    monkeypatch.setattr(live, "start", lambda *_: pytest.fail("it was started"))
    result = run(arguments(merlin, f"--start {options}"))
    assert result.exit_code in (1, 2)
    for message in messages:
        assert message in result.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("live", "--simulate merlin"),
        ("live merlin --simulate merlin", "either"),
        ("live --simulate merlin --host 127.0.0.1 --port 1", "--host, --port: without meaning"),
        ("live --simulate merlin --nav-shape 8 12 --start", "--start, --nav-shape: without"),
        ("live merlin --port 99999", "1<=x<=65535"),
        ("live merlin --workers 2 --calibrate", "--workers 2: with --calibrate"),
        ("live merlin --workers 2 --engine cuda", "--workers 2: with"),
        ("live merlin --timeout inf", "'--timeout': inf is not a finite number"),
        ("live merlin --silence nan", "'--silence': nan is not a finite number"),
        ("live merlin --interval inf", "'--interval': inf is not a finite number"),
        ("live merlin --page --memory inf", "'--memory': inf is not a finite number"),
        ("live eiger", "'merlin', 'dectris', 'asi_tpx3'"),
        ("live asi_tpx3", "--params"),
        ("live asi_tpx3 --start", "--start: asi_tpx3 cannot be started from here"),
        ("live asi_tpx3 --data-port 1", "asi_tpx3 has one port only"),
        ("live merlin", "--params"),
    ],
)
def test_usage(run: Run, command: str, message: str) -> None:
    result = run(command)
    assert result.exit_code == 2
    assert message in result.stderr


def test_parameters_that_are_given_are_not_replaced_by_those_that_are_found(run: Run) -> None:
    Path("image.toml").write_text("energy = 200e3\nsemiangle_cutoff = 4\n", encoding="utf-8")
    given = "--params image.toml --scan-sampling 4 5 -o image.tif"
    result = run(f"live merlin --calibrate {given} --overwrite")
    assert result.exit_code == 2
    assert "--output image.toml: that is an input" in result.stderr


def test_without_libertem_live(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libertem_live.api", None)
    for command in ("live merlin", "live --simulate merlin", "live asi_tpx3"):
        check_error(run(command), "pip install 'libertem-parallax[live]'")
