"""Amsterdam Scientific Instruments' Timepix3; and, without it, its stream and a simulator.

LiberTEM-live, which brings both, is imported where it is needed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from numpy.typing import NDArray

from ..event_files import write_events
from .detector import Address, Detector
from .watch import DetectorError

__all__ = ["DETECTOR_SHAPE", "Simulator", "Timepix3", "simulator", "write_tpx3"]

#: Rows and columns of the detector, four chips.
DETECTOR_SHAPE = (512, 512)

_HOST = "127.0.0.1"
# The stream is headers of 32 bytes: of the acquisition, of the scan; for every chunk one that
# tells frames and bytes, before its data; of the end of the scan, of the end of the acquisition.
_HEADER = 32
_PIECE = 1 << 14  # bytes that are sent at once

# Events come in bunches of 24 times so many bytes, which must hold what the detector sends
# together; in all, so many MiB wait to be added, 8 bytes each.
CHUNK_BYTES = 1 << 16
BUFFER = 512


class Timepix3(Detector):
    """The detector, which sends events."""

    name = "asi_tpx3"
    port, data_port = 8283, None
    starts = False
    events = True
    simulated = True
    shape, dtype = DETECTOR_SHAPE, "float32"

    def open(self, builder: Any, address: Address) -> Any:
        """Open a connection."""
        return builder.open(
            data_host=address.host,
            data_port=address.data_port,
            buffer_size=BUFFER,
            bytes_per_chunk=CHUNK_BYTES,
        )

    def begin(self, conn: Any, address: Address) -> None:
        """Take no frames of another acquisition for those of this one."""
        kept = _Kept(conn.get_conn_impl(), address.data_port)
        conn.get_conn_impl = lambda: kept

    def write(self, folder: Path, frames: NDArray[Any]) -> Path:
        """Write its stream, and a file of events."""
        from scipy.sparse import csr_array

        write_tpx3(folder / "frames.tpx3", frames)
        # The stream has them in the middle of a larger detector, and so has the file.
        ny, nx, rows, cols = frames.shape
        events = csr_array(frames.reshape(ny * nx, rows * cols))
        row, col = np.divmod(events.indices, cols)
        height, width = DETECTOR_SHAPE
        pixels = (row + (height // 2 - rows // 2)) * width + col + (width // 2 - cols // 2)
        events = csr_array((events.data, pixels, events.indptr), shape=(ny * nx, height * width))
        return write_events(folder, (ny, nx), DETECTOR_SHAPE, events)

    @contextlib.contextmanager
    def simulate(self, folder: Path, frames: int, dwell_time: float) -> Iterator[Address]:
        """Run LiberTEM-live's simulator."""
        with simulator(folder / "frames.tpx3", seconds=frames * dwell_time) as where:
            yield Address(self, where.data_host, where.data_port, where.data_port)


class _Kept:
    """Native connection of Timepix3 that does not go on with the frames of another one.

    LiberTEM-live connects anew, without a word, as soon as a connection is lost. The frames of the
    scan that the detector sends then would be taken for the rest of that before.
    """

    def __init__(self, native: Any, port: int) -> None:
        self._native, self._port = native, port
        self._socket = self._find()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def get_next_stack(self, max_size: int) -> Any:
        try:
            stack = self._native.get_next_stack(max_size=max_size)
        except BaseException as error:
            if type(error).__name__ == "PanicException":  # Rust's, which Exception does not include
                raise DetectorError(
                    f"the connection to the detector failed: {error}. Events may have come faster "
                    "than they are added."
                ) from error
            raise
        if not self._alive() and self._find() is not None:
            raise DetectorError("the connection to the detector was lost, and made anew.")
        return stack

    def _find(self) -> tuple[int, int] | None:
        """Find number and identity of the socket; None if there is no connection."""
        for link in psutil.Process().net_connections("tcp"):
            if link.raddr and link.raddr[1] == self._port and link.fd >= 0:
                with contextlib.suppress(OSError):
                    return link.fd, os.fstat(link.fd).st_ino
        return None

    def _alive(self) -> bool:
        """Whether it is the same socket; takes a microsecond."""
        if self._socket is None:
            return False
        number, identity = self._socket
        try:
            return os.fstat(number).st_ino == identity
        except OSError:
            return False


def write_tpx3(path: Path, frames: NDArray[Any], frames_per_chunk: int = 64) -> None:
    """Write a scan as the stream of events that the detector's software sends.

    Parameters
    ----------
    path
        File to write, replaced if it exists.
    frames : (scan rows, scan columns, detector rows, detector columns) unsigned integer or bool
        Counts; LiberTEM-live delivers float32, exact up to 2²⁴. Smaller frames than the detector's
        are put into its middle, so that pixel ``(rows // 2, columns // 2)`` comes to its
        ``(256, 256)``.
    frames_per_chunk
        Frames that are sent together.

    Raises
    ------
    ValueError
        For frames that the format cannot hold; nothing is written then.
    """
    from libertem_asi_tpx3 import make_sim_data

    fits = frames.ndim == 4 and frames.size and np.all(frames.shape[2:] <= np.array(DETECTOR_SHAPE))
    if not fits or max(frames.shape[:2]) >= 2**16:
        raise ValueError(
            f"frames have shape {frames.shape}: expected scan rows and columns, at most 65535 and "
            f"at least 1, and detector rows and columns, at most {DETECTOR_SHAPE}."
        )
    if frames.dtype.kind not in "bu" or frames.dtype.itemsize > 4:
        raise ValueError(
            f"frames have dtype {frames.dtype}: expected counts, unsigned integers of up to 32 "
            "bits or bool."
        )
    if frames_per_chunk < 1:
        raise ValueError(f"frames_per_chunk = {frames_per_chunk}: expected at least 1.")
    ny, nx, rows, cols = frames.shape
    corner = np.array(DETECTOR_SHAPE) // 2 - np.array([rows, cols]) // 2
    flat = frames.reshape(-1, rows, cols)

    def encode(scan: tuple[int, int], part: NDArray[Any]) -> bytes:
        frame, row, col = np.nonzero(part)
        columns = (row + corner[0]) * DETECTOR_SHAPE[1] + col + corner[1]
        bounds = np.searchsorted(frame, np.arange(len(part) + 1))
        arrays = (bounds, columns, part[frame, row, col])
        return bytes(make_sim_data(scan, *(array.astype(np.uint32) for array in arrays)))

    # Of the whole scan come the headers, of its parts the chunks between these.
    around = encode((ny, nx), np.zeros((ny * nx, 1, 1), np.uint8))
    with Path(path).open("wb") as file:
        file.write(around[: 2 * _HEADER])
        for start in range(0, len(flat), frames_per_chunk):
            part = flat[start : start + frames_per_chunk]
            file.write(encode((1, len(part)), part)[2 * _HEADER : -2 * _HEADER])
        file.write(around[-2 * _HEADER :])


class Simulator(NamedTuple):
    """Where a simulator listens: arguments of ``make_connection("asi_tpx3").open``."""

    data_host: str
    data_port: int


@contextlib.contextmanager
def simulator(path: Path, *, seconds: float = 0.0) -> Iterator[Simulator]:
    """Run LiberTEM-live's Timepix3 simulator on loopback, on a free port.

    It sends the scan as soon as somebody connects, and again, until the connection is closed: do
    that before leaving the context. LiberTEM-live fails when it gets more events than its memory
    for them holds: give `seconds` to leave it time.

    Parameters
    ----------
    path
        A stream, for example from `write_tpx3`.
    seconds
        Time for the scan. Default: as fast as it is taken.

    Yields
    ------
    Simulator
        Host and port.
    """
    from libertem_live.detectors.asi_tpx3 import sim

    # That the receiver closes the connection, as it does at the end, is no error.
    sim.logger.setLevel(logging.CRITICAL)
    stop = threading.Event()

    class Paced(sim.BufferedCachedSource):
        def send_data(self, conn: socket.socket) -> int:
            stream = memoryview(self._get_cache_view())
            pieces = range(0, len(stream), _PIECE)
            due = time.monotonic()
            for start in pieces:
                due += seconds / len(pieces)
                if stop.wait(max(0.0, due - time.monotonic())):
                    break
                conn.sendall(stream[start : start + _PIECE])
            return len(stream)

    camera = sim.DataSocketSimulator(
        stop_event=stop,
        host=_HOST,
        port=0,
        sim=sim.TpxSim(sleep=0.0, stop_event=stop, data_source=Paced(paths=[str(path)])),
    )
    camera.daemon = True
    camera.start()
    try:
        camera.wait_for_listen()
        yield Simulator(_HOST, camera.port)
    finally:
        stop.set()
        camera.join(timeout=5.0)
