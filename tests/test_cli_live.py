"""The command line behind LiberTEM-live's own simulators, which work, fail, or are not there."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile
from click.testing import CliRunner, Result
from detectors import dectris_simulator
from libertem.api import Context
from numpy.typing import NDArray
from PIL import Image

from libertem_parallax import ParallaxPhaseFlipUDF, ParallaxUDF, live, simulate
from libertem_parallax.accumulate import Engine
from libertem_parallax.cli import main

pytest.importorskip("libertem_live", reason="LiberTEM-live is not installed")

from libertem_live.detectors.asi_tpx3.sim import TpxSim
from libertem_live.detectors.common import StopException
from libertem_live.detectors.dectris.connection import DectrisDetectorConnection
from libertem_live.detectors.merlin import sim
from libertem_live.detectors.merlin.connection import MerlinDetectorConnection
from libertem_live.detectors.merlin.control import MerlinControl

from libertem_parallax.live import asi_tpx3, detector
from libertem_parallax.live.merlin import Simulator, simulator, write_mib
from libertem_parallax.show import screen
from libertem_parallax.udf import base

pytestmark = [
    # Merlin's simulator opens its file for each frame, and closes none.
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    # Nor does that of DECTRIS close what it sends with.
    pytest.mark.filterwarnings("ignore:[Uu]nclosed context:ResourceWarning"),
    # It forks for its HTTP server, of which Python 3.12 and 3.13 warn.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

# Merlin's frames are received by 2 MB: 16 of these.
SHAPE = (8, 12, 256, 256)
FRAMES = 96
ACQUISITION: dict[str, Any] = {
    "scan_sampling": (4.0, 5.0),
    "energy": 200e3,
    "semiangle_cutoff": 4.0,
    "angular_sampling": (0.5, 0.5),
    "aberration_coefs": {"C10": -2000.0},
    "upsampling_factor": 2,
}
OPTIONS = (
    "--scan-sampling 4 5 --energy 200e3 --semiangle-cutoff 4 --angular-sampling 0.5 0.5 "
    "--aberration C10=-2000 --upsampling-factor 2 --frames-per-partition 8 --interval 0 "
)
SECONDS = 60.0  # for what should take far less

Run = Callable[[str], Result]


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint16]:
    return np.random.default_rng(1).poisson(3, SHAPE).astype(np.uint16)


@pytest.fixture(scope="module")
def hdr(frames: NDArray[np.uint16], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("merlin") / "scan.hdr"
    write_mib(path, frames, bits=12)
    return path


@pytest.fixture
def merlin(hdr: Path) -> Iterator[Simulator]:
    with simulator(hdr) as where:
        yield where


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run a command in a folder of its own; it leaves neither processes nor a handler."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    before = set(psutil.Process().children(recursive=True))
    handler = signal.getsignal(signal.SIGINT)
    yield lambda command: CliRunner().invoke(main, shlex.split(command))
    assert signal.getsignal(signal.SIGINT) is handler
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Start an acquisition as soon as somebody waits for one; the commands can be changed."""
    commands = ["STARTACQUISITION", "SOFTTRIGGER"]
    wait = MerlinDetectorConnection.wait_for_acquisition

    def start_and_wait(conn: MerlinDetectorConnection, timeout: float | None = None) -> Any:
        command(conn._api_port, *commands)
        return wait(conn, timeout)

    monkeypatch.setattr(MerlinDetectorConnection, "wait_for_acquisition", start_and_wait)
    return commands


def command(port: int, *commands: str) -> None:
    with MerlinControl("127.0.0.1", port) as control:
        for name in commands:
            control.cmd(name)


class Gate:
    """Lets the simulator send a part of the frames, and then what is to happen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, then: str = "wait") -> None:
        chunks = sim.DataSocketSimulator.get_chunks
        self.opened = threading.Event()
        self.count = 50
        self.then = then

        def gated(camera: Any) -> Iterator[Any]:
            for number, chunk in enumerate(chunks(camera)):
                if number == 2 * self.count and not self.opened.is_set():
                    if self.then == "wait":
                        while not self.opened.wait(0.05) and not camera.is_stopped():
                            pass
                    elif self.then == "disconnect":
                        raise BrokenPipeError
                    else:
                        return
                yield chunk

        monkeypatch.setattr(sim.DataSocketSimulator, "get_chunks", gated)


def arguments(merlin: Simulator, options: str = "") -> str:
    ports = f"--port {merlin.api_port} --data-port {merlin.data_port}"
    return f"live merlin {ports} {OPTIONS} -o image.tif {options}"


def expected(
    frames: NDArray[Any], count: int = FRAMES, cls: type[ParallaxUDF] = ParallaxUDF
) -> NDArray[np.float32]:
    """Image of the first frames, made offline."""
    udf = cls.from_parameters(shape=frames.shape, **ACQUISITION)
    roi = (np.arange(FRAMES) < count).reshape(SHAPE[:2])
    with Context.make_with("inline") as ctx:
        dataset = ctx.load("memory", data=frames, sig_dims=2)
        image: NDArray[np.float32] = ctx.run_udf(dataset, udf, roi=roi)["reconstruction"].data
    return image


def check_complete(result: Result, frames: NDArray[Any]) -> None:
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(tifffile.imread("image.tif"), expected(frames))


def check_error(result: Result, *messages: str) -> None:
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    for message in messages:
        assert message in result.stderr


def check_partial(result: Result, frames: NDArray[Any], *messages: str) -> int:
    check_error(result, *messages, "It was written to image.tif")
    number = re.search(r"(\d+) of 96 frames \((\S+)%\) are in the image", result.stderr)
    assert number, result.stderr
    count = int(number[1])
    assert float(number[2]) == pytest.approx(100 * count / FRAMES, abs=0.05)
    assert 0 < count <= 50
    np.testing.assert_array_equal(tifffile.imread("image.tif"), expected(frames, count))
    return count


def when(event: Callable[[], Any], do: Callable[[], object]) -> threading.Thread:
    """Wait for an event besides the main thread, and do something."""

    def wait() -> None:
        end = time.monotonic() + SECONDS
        while not event() and time.monotonic() < end:
            time.sleep(0.01)
        do()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


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
        assert picture.size == (24, 16)


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
    assert last.shape == seen[0].shape == (16, 24)
    assert (last != seen[0]).any()


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
        np.testing.assert_allclose(np.asarray(picture, float), gray, atol=2)


def test_interrupted(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Gate(monkeypatch)
    interrupting = when(Path("live.png").exists, interrupt)
    result = run(arguments(merlin, "--start"))
    interrupting.join()
    check_partial(result, frames, "interrupted")


def test_interrupted_while_frames_are_added(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(udf: ParallaxUDF, dest: Any, src: Any) -> None:
        udf.params.geometry.plan.add_part(src.A, int(src.part[1]), dest.A)
        if Path("live.png").exists():
            interrupt()
        dest.S[:] += src.S
        dest.part[0] = src.part[0]

    Gate(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(ParallaxUDF, "merge", interrupted)
        result = run(arguments(merlin, "--start"))
    assert check_partial(result, frames, "interrupted") == 16


def test_interrupted_while_it_waits(run: Run, merlin: Simulator, operator: list[str]) -> None:
    operator.clear()
    wait = MerlinDetectorConnection.wait_for_acquisition
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            MerlinDetectorConnection,
            "wait_for_acquisition",
            lambda *args: (threading.Timer(0.2, interrupt).start(), wait(*args))[1],
        )
        check_error(run(arguments(merlin)), "interrupted")
    assert not Path("image.tif").exists()


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("disconnect", "the connection to the detector failed"),
        ("return", "the detector sent nothing for 0.5 s"),
    ],
)
def test_the_detector_fails_and_works_again(
    run: Run,
    merlin: Simulator,
    frames: NDArray[Any],
    monkeypatch: pytest.MonkeyPatch,
    then: str,
    message: str,
) -> None:
    gate = Gate(monkeypatch, then)
    begin = time.monotonic()
    check_partial(run(arguments(merlin, "--start --silence 0.5")), frames, message)
    assert time.monotonic() - begin < SECONDS / 3  # and not the timeout of 60 s
    gate.opened.set()
    check_complete(run(arguments(merlin, "--start --silence 5")), frames)


def test_the_detector_is_killed(run: Run, hdr: Path, frames: NDArray[Any]) -> None:
    code = (
        "import sys; from pathlib import Path; from libertem_parallax.live import merlin\n"
        "with merlin.simulator(Path(sys.argv[1]), dwelltime=50_000) as where:\n"
        "    print(where.api_port, where.data_port, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(hdr)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout
            ports = [int(port) for port in process.stdout.readline().split()]
            killing = when(Path("live.png").exists, process.kill)
            result = run(arguments(Simulator("", ports[0], "", ports[1]), "--start"))
            killing.join()
        finally:
            process.kill()
    check_partial(result, frames, "the connection to the detector failed")


@pytest.mark.parametrize("commands", [[], ["STARTACQUISITION"]])
def test_nothing_comes(
    run: Run, merlin: Simulator, frames: NDArray[Any], operator: list[str], commands: list[str]
) -> None:
    operator[:] = commands
    result = run(arguments(merlin, "--timeout 0.5"))
    check_error(result, "no acquisition was started within 0.5 s")
    assert not Path("image.tif").exists()
    if not commands:
        operator[:] = ["STARTACQUISITION", "SOFTTRIGGER"]
        check_complete(run(arguments(merlin)), frames)


def test_no_frame_is_complete(run: Run, merlin: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    Gate(monkeypatch, "return").count = 20
    result = run(arguments(merlin, "--start --silence 0.5 --frames-per-partition 48"))
    check_error(result, "none of 96 frames", "not written", "sent nothing for 0.5 s")
    assert not Path("image.tif").exists()


@pytest.mark.parametrize("shape", ["6 6", "12 8"])
@pytest.mark.parametrize("start", ["", "--start"])
def test_another_scan_is_refused(
    run: Run, merlin: Simulator, request: pytest.FixtureRequest, shape: str, start: str
) -> None:
    if not start:
        request.getfixturevalue("operator")
    result = run(arguments(merlin, f"--nav-shape {shape} {start}"))
    check_error(result, "96 frames, a scan of 8 x 12", f"--nav-shape {shape.replace(' ', ' x ')}")
    assert not Path("image.tif").exists()


@pytest.fixture
def silent() -> Iterator[int]:
    """Give a port that somebody listens on who never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.mark.parametrize("detector", ["merlin", "dectris", "asi_tpx3"])
def test_nobody_is_there(run: Run, closed: int, detector: str) -> None:
    result = run(f"live {detector} --port {closed} {OPTIONS}")
    check_error(result, f"no answer from {detector} at 127.0.0.1", str(closed), "Is the detector's")


@pytest.mark.parametrize("wrong", ["control", "data"])
def test_somebody_else_is_there(
    run: Run,
    merlin: Simulator,
    silent: int,
    closed: int,
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
) -> None:
    monkeypatch.setattr(detector, "ANSWER", 0.5)
    if wrong == "control":
        result = run(arguments(merlin, f"--port {silent}"))
        check_error(result, "did not tell the shape of its frames within 0.5 s")
    else:
        result = run(arguments(merlin, f"--data-port {closed}"))
        check_error(result, f"no answer from merlin at 127.0.0.1, ports {merlin.api_port}")


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
    Path("taken.tif.part").mkdir()
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


def test_without_libertem_live(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libertem_live.api", None)
    for command in ("live merlin", "live --simulate merlin", "live asi_tpx3"):
        check_error(run(command), "pip install 'libertem-parallax[live]'")


def test_a_window_where_there_is_a_display(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib import pyplot
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    shown: list[Any] = []
    monkeypatch.setattr(FigureCanvasAgg, "required_interactive_framework", "none")
    monkeypatch.setattr(pyplot.Figure, "show", lambda *_: shown.append("figure"))
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(pyplot.gca().images[0].get_array()))
    try:
        check_complete(run(arguments(merlin, "--start")), frames)
    finally:
        pyplot.close("all")
    assert shown[0] == "figure"
    np.testing.assert_array_equal(shown[-1], expected(frames))
    assert not Path("live.png").exists()


def dectris(simulator: Any, options: str = "") -> str:
    ports = f"--port {simulator.port} --data-port {simulator.zmqport}"
    return f"live dectris {ports} {OPTIONS} -o image.tif {options}"


@pytest.mark.parametrize("start", [True, False])
def test_dectris(
    run: Run, frames: NDArray[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bool
) -> None:
    wait = DectrisDetectorConnection.wait_for_acquisition

    def start_and_wait(conn: Any, timeout: float | None = None) -> Any:
        conn.get_api_client().sendDetectorCommand("arm")
        return wait(conn, timeout)

    with dectris_simulator(tmp_path, frames) as simulator:
        if start:
            result = run(dectris(simulator, "--start"))
            check_error(result, "96 frames, but not the shape", "--nav-shape")
        else:
            monkeypatch.setattr(DectrisDetectorConnection, "wait_for_acquisition", start_and_wait)
        result = run(dectris(simulator, "--nav-shape 8 12" + " --start" * start))
    check_complete(result, frames)
    assert "8 x 12 scan, 256 x 256 detector, uint16" in result.stdout


def test_dectris_fails_and_works_again(run: Run, frames: NDArray[Any], tmp_path: Path) -> None:
    options = "--start --nav-shape 8 12 --silence 0.5"
    begin = time.monotonic()
    with dectris_simulator(tmp_path, frames, dies_after=50) as simulator:
        result = run(dectris(simulator, options))
    assert time.monotonic() - begin < SECONDS / 3  # and not the timeout of 60 s
    assert check_partial(result, frames, "the detector sent nothing for 0.5 s") == 48
    with dectris_simulator(tmp_path, frames) as simulator:
        check_complete(run(dectris(simulator, options)), frames)


def test_it_is_started_and_sends_no_frame(run: Run, frames: NDArray[Any], tmp_path: Path) -> None:
    """The scan is announced and never begins. A Merlin announces it with the first frame only."""
    begin = time.monotonic()
    with dectris_simulator(tmp_path, frames, triggered=False) as simulator:
        result = run(dectris(simulator, "--start --timeout 0.5 --nav-shape 8 12"))
    check_error(
        result,
        "none of 96 frames is in the image, which was not written: the detector sent no frame "
        "within 0.5 s after it was started",
    )
    assert time.monotonic() - begin < SECONDS / 3
    assert not Path("image.tif").exists()


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
        assert picture.size == (24, 16)


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
        ("wait", "the detector sent nothing for 0.5 s"),
        ("end", "the detector sent nothing for 0.5 s"),
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


def test_somebody_else_receives_the_frames(
    run: Run, merlin: Simulator, frames: NDArray[Any]
) -> None:
    """A Merlin sends to one program only."""
    with socket.create_connection((merlin.data_host, merlin.data_port)):
        result = run(arguments(merlin, "--start --timeout 0.5"))
    check_error(result, "no acquisition was started within 0.5 s", "other program")
    check_complete(run(arguments(merlin, "--start")), frames)


def test_pictures_take_a_small_part_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long they take, and they do not come more often than they are wanted."""
    now, drawn = 0.0, 0.0

    def show(seconds: float) -> None:
        nonlocal now, drawn
        now, drawn = now + seconds, drawn + seconds

    monkeypatch.setattr(screen.time, "perf_counter", lambda: now)
    shape = (*SHAPE[:2], 20, 20)
    with Context.make_with("inline") as ctx:
        dataset = ctx.load("memory", data=np.ones(shape, np.uint8))
        udf = ParallaxUDF.from_parameters(shape, **ACQUISITION)
        *_, results = ctx.run_udf_iter(dataset, udf)
    for seconds, interval, pictures in ((0.001, 2, 500), (1, 2, 48), (0.5, 0, 95)):
        now = drawn = 0
        count = 0
        shown = screen.Screen(lambda *_: show(seconds), interval)  # noqa: B023
        while now < 1000:
            if shown.due():
                shown.show(results)
                count += 1
            now += 0.01
        assert drawn <= now / 20
        assert count == pytest.approx(pictures, rel=0.03)


@pytest.mark.parametrize(
    ("detector", "size", "options"),
    [
        ("merlin", 64, ""),
        ("asi_tpx3", 512, ""),
        ("merlin", 64, "--aberration defocus=1.4e4 --energy 200e3"),
        ("merlin", 64, "--params mine/scan.toml --no-phase-flip"),
        ("asi_tpx3", 512, "--aberration C10=-1.2e4 --center 255.5 256.5"),
    ],
)
def test_simulate(
    run: Run, monkeypatch: pytest.MonkeyPatch, detector: str, size: int, options: str
) -> None:
    """Whatever parameters the image is made with, the files give the same; the specimen stays."""
    mask = np.ones((64, 64), dtype=bool)
    mask[30] = False
    Path("mine").mkdir()
    np.save("mine/mask.npy", mask)
    Path("mine/scan.toml").write_text(
        'reciprocal_sampling = [0.0156, 0.0157]\nbf_mask = "mask.npy"\nphase_flip = true\n'
        '[aberration_coefs]\ndefocus = 1.3e4\n[load]\ntype = "raw"\n',
        encoding="utf-8",
    )
    monkeypatch.setattr(simulate, "simulate", partial(simulate.simulate, scan_shape=(20, 24)))
    result = run(f"live --simulate {detector} {options}")
    assert result.exit_code == 0, result.output
    assert f"20 x 24 scan, {size} x {size} detector" in result.stdout
    assert "300 keV, 4 mrad, defocus 1.5 µm" in result.stdout
    folder = Path("libertem-parallax-live")
    for name in ("live.png", "growth.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 0
    program, *proposed = shlex.split(result.stdout.splitlines()[-1])
    assert program == "libertem-parallax"
    assert run(shlex.join(proposed)).exit_code == 0
    np.testing.assert_array_equal(
        tifffile.imread("image.tif"), tifffile.imread(folder / "image.tif")
    )


def test_simulate_leaves_a_file_of_parameters_alone(run: Run) -> None:
    file = Path("libertem-parallax-live/params.toml")
    file.parent.mkdir()
    file.write_text("upsampling_factor = 2  # mine", encoding="utf-8")
    result = run(f"live --simulate merlin --params {file}")
    assert result.exit_code == 2
    assert "Give a copy of it" in result.stderr
    assert file.read_text(encoding="utf-8").endswith("# mine")


@pytest.mark.parametrize("detector", ["merlin", "asi_tpx3"])
@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ("--energy 300", ["energy = 300", "eV"]),
        ("--params both.toml", ["angular_sampling", "both given"]),
        ("--aberration C11=1", ["aberration_coefs", "C11"]),
        ("--aberration C10=0", ["will be zero: no aberration shifts"]),
        ("--bf-mask mask.npy", ["bf_mask", "(63, 64)"]),
        ("--center 512 0", ["center = (512.0, 0.0)"]),
        ("-o taken.tif", ["--output taken.tif"]),
    ],
)
def test_nothing_is_simulated_in_vain(
    run: Run, detector: str, options: str, messages: list[str]
) -> None:
    np.save("mask.npy", np.ones((63, 64), dtype=bool))
    sampling = "reciprocal_sampling = [0.0156, 0.0156]\nangular_sampling = [0.3, 0.3]\n"
    Path("both.toml").write_text(sampling, encoding="utf-8")
    Path("taken.tif.part").mkdir()
    result = run(f"live --simulate {detector} {options}")
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    for message in messages:
        assert message in result.stderr
    assert "Simulating" not in result.stderr


def test_simulate_interrupted_in_a_process_of_its_own(tmp_path: Path) -> None:
    code = (
        "from functools import partial; from libertem_parallax import cli, simulate\n"
        "simulate.simulate = partial(simulate.simulate, scan_shape=(24, 72))\n"
        "cli.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "live", "--simulate", "merlin"],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "libertem-parallax-live"
    interrupting = when((folder / "live.png").exists, lambda: process.send_signal(signal.SIGINT))
    stdout, stderr = process.communicate(timeout=2 * SECONDS)
    interrupting.join()
    assert process.returncode == 1, stderr
    assert re.search(r"of 1,728 frames \(\S+%\) are in the image: interrupted", stderr)
    assert "Traceback" not in stderr
    assert tifffile.imread(folder / "image.tif").shape == (48, 144)
    assert "Written to" in stdout
