"""Commands behind LiberTEM-live's simulators, and what is expected of them."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import Result
from libertem.api import Context
from libertem_live.detectors.merlin import sim
from libertem_live.detectors.merlin.control import MerlinControl
from numpy.typing import NDArray

from libertem_parallax import ParallaxUDF
from libertem_parallax.live.merlin import Simulator

#: What the simulators leave behind, and Python warns of.
simulators = [
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
    frames: NDArray[Any],
    count: int = FRAMES,
    cls: type[ParallaxUDF] = ParallaxUDF,
    **others: Any,
) -> NDArray[np.float32]:
    """Image of the first frames, made offline; maybe with other parameters."""
    udf = cls.from_parameters(shape=frames.shape, **{**ACQUISITION, **others})
    roi = (np.arange(FRAMES) < count).reshape(SHAPE[:2])
    with Context.make_with("inline") as ctx:
        dataset = ctx.load("memory", data=frames, sig_dims=2)
        image: NDArray[np.float32] = ctx.run_udf(dataset, udf, roi=roi)["reconstruction"].data
    return image


def written_to(result: Result) -> str:
    """Tell where the image is: an image of that name is not replaced."""
    found = re.search(r"^Written to +(.+)$", result.stdout, re.MULTILINE)
    assert found, result.output
    return found[1]


def check_complete(result: Result, frames: NDArray[Any]) -> None:
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(tifffile.imread(written_to(result)), expected(frames))


def check_error(result: Result, *messages: str) -> None:
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    for message in messages:
        assert message in result.stderr, result.output


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
