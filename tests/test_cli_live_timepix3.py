"""The command line behind a simulated Timepix3."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from libertem.api import Context
from libertem_live.detectors.asi_tpx3.sim import TpxSim
from libertem_live.detectors.common import StopException
from live_commands import (
    ACQUISITION,
    FRAMES,
    OPTIONS,
    Run,
    check_complete,
    check_error,
    check_partial,
    interrupt,
    simulators,
    when,
)
from numpy.typing import NDArray
from PIL import Image

from libertem_parallax import ParallaxUDF, live
from libertem_parallax.accumulate import Engine
from libertem_parallax.live import asi_tpx3

pytestmark = simulators


@pytest.fixture(scope="module")
def events() -> NDArray[np.uint16]:
    """Few electrons; some frames have none."""
    rng = np.random.default_rng(2)
    frames = rng.poisson(0.05, (8, 12, 64, 64)).astype(np.uint16)
    frames[2, 3:6] = 0
    return frames


@pytest.fixture
def timepix3(
    events: NDArray[np.uint16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Run a Timepix3; the command for it, which receives some 15 frames at a time."""
    monkeypatch.setattr(asi_tpx3, "CHUNK_BYTES", 1 << 10)
    monkeypatch.setattr(asi_tpx3, "BUFFER", 16)
    asi_tpx3.write_tpx3(tmp_path / "scan.tpx3", events, frames_per_chunk=4)
    with asi_tpx3.simulator(tmp_path / "scan.tpx3", seconds=0.5) as where:
        yield f"live asi_tpx3 --port {where.data_port} {OPTIONS} -o image.tif "


class Half:
    """Lets the simulator send half of the scan and then wait, end, or send the scan anew."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
        whole = TpxSim.handle_conn
        self.repaired = False
        self.half = False

        def handle(simulator: Any, conn: socket.socket) -> None:
            if self.repaired or (self.half and then == "anew"):
                whole(simulator, conn)
                return
            stream = simulator._data_source._get_cache_view()
            conn.sendall(stream[: len(stream) // 2])
            # Who only tries the port goes at once.
            while not simulator.stop_event.wait(0.05):
                if self.gone(conn):
                    return
                if then != "wait" and Path("live.png").exists():
                    self.half = True
                    if then == "end":
                        raise StopException
                    return

        monkeypatch.setattr(TpxSim, "handle_conn", handle)

    @staticmethod
    def gone(conn: socket.socket) -> bool:
        try:
            return not conn.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False


@pytest.mark.parametrize("nav_shape", ["", "--nav-shape 8 12"])
def test_timepix3(run: Run, timepix3: str, events: NDArray[Any], nav_shape: str) -> None:
    result = run(timepix3 + nav_shape)
    check_complete(result, events)
    assert "Waiting up to 60 s" in result.stderr
    assert "96/96" in result.stderr
    assert "8 x 12 scan, 512 x 512 detector, float32" in result.stdout
    with Image.open("live.png") as picture:
        assert picture.size == (600, 364)


def test_timepix3_with_few_updates(run: Run, timepix3: str, events: NDArray[Any]) -> None:
    """A partition of more frames than the scan has."""
    check_complete(run(f"{timepix3} --frames-per-partition 1000"), events)


@pytest.mark.parametrize("nav_shape", ["", "--nav-shape 8 12"])
def test_timepix3_takes_parameters_of_the_detector(
    run: Run, timepix3: str, events: NDArray[Any], nav_shape: str
) -> None:
    """Its shape is known when the scan has begun."""
    mask = np.ones(asi_tpx3.DETECTOR_SHAPE, dtype=bool)
    mask[256] = False
    np.save("mask.npy", mask)
    assert run(f"{timepix3} {nav_shape} --bf-mask mask.npy --center 255 257").exit_code == 0
    udf = ParallaxUDF.from_parameters(
        events.shape, bf_mask=mask[224:288, 224:288], center=(31, 33), **ACQUISITION
    )
    with Context.make_with("inline") as ctx:
        image = ctx.run_udf(ctx.load("memory", data=events, sig_dims=2), udf)
    np.testing.assert_array_equal(tifffile.imread("image.tif"), image["reconstruction"].data)
    np.save("mask.npy", mask[1:])
    check_error(run(f"{timepix3} {nav_shape} --bf-mask mask.npy"), "bf_mask", "(511, 512)")


def test_timepix3_of_another_shape(run: Run, timepix3: str, events: NDArray[Any]) -> None:
    """One chip; its pixels in the stream are counted by rows of 256."""
    frames = np.zeros((*events.shape[:2], 256, 256), np.uint16)
    frames[..., 96:160, 96:160] = events
    detected = np.zeros((*events.shape[:2], *asi_tpx3.DETECTOR_SHAPE), np.uint16)
    detected.reshape(FRAMES, -1)[:, : 256 * 256] = frames.reshape(FRAMES, -1)
    asi_tpx3.write_tpx3(Path("chip.tpx3"), detected, frames_per_chunk=4)
    stream = bytearray(Path("chip.tpx3").read_bytes())
    stream[8:12] = struct.pack("<HH", 256, 256)
    Path("chip.tpx3").write_bytes(stream)
    np.save("mask.npy", np.ones((256, 256), dtype=bool))
    with asi_tpx3.simulator(Path("chip.tpx3"), seconds=0.5) as where:
        result = run(f"{timepix3} --port {where.data_port} --bf-mask mask.npy --center 128 128")
    check_complete(result, events)
    assert "8 x 12 scan, 256 x 256 detector, float32" in result.stdout


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("wait", "no more frames came through for 0.5 s"),
        ("end", "no more frames came through for 0.5 s"),
        ("anew", "the connection to the detector was lost, and made anew"),
    ],
)
def test_timepix3_fails_and_works_again(
    run: Run,
    timepix3: str,
    events: NDArray[Any],
    monkeypatch: pytest.MonkeyPatch,
    then: str,
    message: str,
) -> None:
    """A scan that is sent anew is not taken for the rest of that before."""
    half = Half(monkeypatch, then)
    silence = 5 if then == "anew" else 0.5
    result = run(f"{timepix3} --silence {silence}")
    check_partial(result, events, message)
    half.repaired = True
    with asi_tpx3.simulator(Path("scan.tpx3"), seconds=0.5) as where:
        again = where.data_port if then == "end" else int(timepix3.split()[3])
        check_complete(run(f"{timepix3} --port {again}"), events)


def test_timepix3_interrupted(
    run: Run, timepix3: str, events: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Half(monkeypatch, "wait")
    interrupting = when(Path("live.png").exists, interrupt)
    result = run(timepix3)
    interrupting.join()
    check_partial(result, events, "interrupted")


def test_timepix3_is_silent(run: Run, silent: int) -> None:
    result = run(f"live asi_tpx3 --port {silent} {OPTIONS} --timeout 0.5")
    check_error(result, "no acquisition was started within 0.5 s")
    assert not Path("live_parallax.tif").exists()


def test_another_scan_of_timepix3_is_refused(run: Run, timepix3: str) -> None:
    result = run(f"{timepix3} --nav-shape 12 8")
    check_error(result, "96 frames, a scan of 8 x 12", "--nav-shape 12 x 8")
    assert not Path("image.tif").exists()


@pytest.mark.parametrize("chunk_bytes", [1 << 4, 1 << 10])
def test_more_events_than_there_is_memory_for(
    run: Run, timepix3: str, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    """Together, or altogether; LiberTEM-live's receiver ends then."""
    monkeypatch.setattr(asi_tpx3, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(asi_tpx3, "BUFFER", 1)
    with asi_tpx3.simulator(Path("scan.tpx3")) as where:  # as fast as it can, again and again
        result = run(f"{timepix3} --port {where.data_port}")
    check_error(result, "the connection to the detector failed: ")


def test_timepix3_gets_everything_compiled_before(
    run: Run, timepix3: str, events: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is added before the acquisition has the types of what is added in it."""
    types: list[tuple[str, ...]] = []
    waited: list[int] = []
    add, acquire = Engine.add_events, live.acquire

    def note(engine: Engine, tile: Any, *args: Any) -> None:
        arrays = (tile.data, tile.indices, tile.indptr, engine.A)
        types.append((type(tile).__name__, *(array.dtype.name for array in arrays)))
        add(engine, tile, *args)

    monkeypatch.setattr(Engine, "add_events", note)
    monkeypatch.setattr(
        live, "acquire", lambda *args: (waited.append(len(types)), acquire(*args))[1]
    )
    check_complete(run(timepix3), events)
    assert waited == [1]
    assert len(types) > 12
    assert len(set(types)) == 1, set(types)
