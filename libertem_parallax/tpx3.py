"""Amsterdam Scientific Instruments' Timepix3 without the detector: its stream, and a simulator.

LiberTEM-live, which brings both, is imported where it is needed.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["DETECTOR_SHAPE", "Simulator", "simulator", "write_tpx3"]

#: Rows and columns of the detector, four chips.
DETECTOR_SHAPE = (512, 512)

_HOST = "127.0.0.1"
# The stream is headers of 32 bytes: of the acquisition, of the scan; for every chunk one that
# tells frames and bytes, before its data; of the end of the scan, of the end of the acquisition.
_HEADER = 32
_PIECE = 1 << 14  # bytes that are sent at once


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


@contextmanager
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
