"""What was recorded is saved, whatever happens then; real detectors' simulators send the damage."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from detectors import dectris_simulator
from libertem_live.detectors.merlin.connection import MerlinDetectorConnection
from live_commands import (
    OPTIONS,
    Gate,
    Run,
    arguments,
    check_complete,
    check_error,
    check_partial,
    expected,
    simulators,
    when,
)
from numpy.typing import NDArray

from libertem_parallax import files
from libertem_parallax.accumulate import Engine
from libertem_parallax.live import asi_tpx3
from libertem_parallax.live.merlin import Simulator
from libertem_parallax.show import screen
from libertem_parallax.udf.learning import Learning

pytestmark = simulators


def test_a_frame_that_cannot_be_decoded(run: Run, frames: NDArray[Any], tmp_path: Path) -> None:
    with dectris_simulator(tmp_path, frames, damages=50) as simulator:
        ports = f"--port {simulator.port} --data-port {simulator.zmqport}"
        result = run(f"live dectris {ports} {OPTIONS} -o image.tif --nav-shape 8 12 --start")
    assert check_partial(result, frames, "the frames that followed could not be added") == 48


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("pixel", "has an event off the detector"),
        ("bounds", "indptr"),
        ("header", "the connection to the detector "),  # failed, or was lost
    ],
)
def test_a_word_of_a_timepix3_that_is_damaged(
    run: Run, monkeypatch: pytest.MonkeyPatch, what: str, message: str
) -> None:
    """In chunk 12, of frames 48 to 51."""
    monkeypatch.setattr(asi_tpx3, "CHUNK_BYTES", 1 << 10)
    monkeypatch.setattr(asi_tpx3, "BUFFER", 16)
    events = np.random.default_rng(2).poisson(0.05, (8, 12, 64, 64)).astype(np.uint16)
    asi_tpx3.write_tpx3(Path("scan.tpx3"), events, frames_per_chunk=4)
    stream = bytearray(Path("scan.tpx3").read_bytes())
    chunk = events.reshape(96, 64 * 64)[48:52]
    bounds = np.append(0, np.cumsum((chunk > 0).sum(axis=1))).astype("<u4").tobytes()
    start = stream.find(bounds)
    assert start > 0
    place, damaged = {
        "pixel": (start + len(bounds), b"\xff\xff\xff\x7f"),
        "bounds": (start + 4, b"\xff\xff\x00\x00"),
        "header": (start - 32, b"\xff" * 32),
    }[what]
    stream[place : place + len(damaged)] = damaged
    Path("scan.tpx3").write_bytes(stream)
    with asi_tpx3.simulator(Path("scan.tpx3"), seconds=0.5) as where:
        result = run(f"live asi_tpx3 --port {where.data_port} {OPTIONS} -o image.tif --silence 5")
    if what == "header" and "none of 96 frames" in result.stderr:
        # The receiver has connected again before any was taken from it, and dropped those.
        check_error(result, message)
        assert not Path("image.tif").exists()
    else:
        check_partial(result, events, message)


class Panic(BaseException):
    """As native code raises it."""


@pytest.mark.parametrize(
    "error", [MemoryError("not enough"), ValueError("a kernel failed"), Panic("panic")]
)
def test_an_engine_that_fails(
    run: Run,
    merlin: Simulator,
    frames: NDArray[Any],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    add = Engine.add

    def fail(engine: Engine, *args: Any) -> None:
        if Path("live.png").exists():
            raise error
        add(engine, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "add", fail)
        result = run(arguments(merlin, "--start"))
    assert check_partial(result, frames, f"could not be added: {error}") == 8


def test_what_is_done_beside_fails(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking for parameters, here, in the frames so far: these are written, and replace none."""

    def fail(learning: Learning, results: Any) -> bool:
        if learning.stack.scanned.all():
            raise MemoryError("not enough")
        return False

    monkeypatch.setattr(Learning, "step", fail)
    Path("image.toml").write_text("energy = 200e3\n", encoding="utf-8")
    result = run(arguments(merlin, "--start --calibrate"))
    check_error(result, "no image was written: it could not go on: not enough", "96 frames were")
    assert "There is image.toml already" in result.stderr
    assert np.load("image_2_frames.npy").any()
    assert Path("image.toml").read_text(encoding="utf-8") == "energy = 200e3\n"


def test_closing_fails(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image is complete; that something is wrong is told."""
    close = MerlinDetectorConnection.close

    def fail(conn: Any) -> None:
        close(conn)
        raise Panic("called `Result::unwrap()` on an `Err` value")

    monkeypatch.setattr(MerlinDetectorConnection, "close", fail)
    result = run(arguments(merlin, "--start"))
    check_error(
        result, "Closing the connection failed: called `Result", "It was written to image.tif"
    )
    np.testing.assert_array_equal(tifffile.imread("image.tif"), expected(frames))


def test_pictures_that_fail(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder for them is gone; recording goes on, and it is told once."""
    Gate(monkeypatch, "wait").opened.set()
    blur = screen.blur

    def fail(*args: Any) -> Any:
        if Path("live.png").exists():
            raise MemoryError("not enough")
        return blur(*args)

    monkeypatch.setattr(screen, "blur", fail)
    result = run(arguments(merlin, "--start"))
    check_complete(result, frames)
    assert result.stderr.count("Warning: live.png: not enough") == 1


def test_the_folder_is_gone(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image goes to the current one, and not over another file."""
    gate = Gate(monkeypatch)
    Path("out").mkdir()
    Path("image.tif").write_bytes(b"something else")

    def remove() -> None:
        Path("out").rename("elsewhere")
        gate.opened.set()

    removing = when(Path("out/live.png").exists, remove)
    result = run(arguments(merlin, "--start -o out/image.tif --snapshot out"))
    removing.join()
    check_error(result, "could not be written to out/image.tif: [Errno 2]", "image_2.tif")
    np.testing.assert_array_equal(tifffile.imread("image_2.tif"), expected(frames))
    assert Path("image.tif").read_bytes() == b"something else"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_nothing_can_be_written_but_to_the_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    replacing = files.replacing

    def fail(path: Path, **how: bool) -> Any:
        if path.parent.name != "temporary":
            raise OSError(code, os.strerror(code), str(path))
        return replacing(path, **how)

    monkeypatch.setattr(files, "replacing", fail)
    image = np.arange(12.0).reshape(3, 4)
    written, problem = files.save_somewhere(tmp_path / "out.npy", image, files.About((1, 1)))
    assert written == tmp_path / "temporary" / "out.npy"
    assert problem is not None
    assert os.strerror(code) in problem
    np.testing.assert_array_equal(np.load(written), image)
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(OSError, match=os.strerror(code)):
        files.save_somewhere(tmp_path / "out.npy", image, files.About((1, 1)))
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
