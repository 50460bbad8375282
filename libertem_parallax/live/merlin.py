"""Quantum Detectors' Merlin; and, without the detector, its files and a simulator on loopback.

LiberTEM-live, which brings the simulator, is imported where it is needed: writing files is not.
"""

from __future__ import annotations

import functools
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .detector import Address, Detector

__all__ = ["Merlin", "Simulator", "simulator", "write_mib"]

_HOST = "127.0.0.1"
_HEADER = 384  # bytes before every frame
_STOPS = 5.0  # seconds to wait for each of the simulator's threads, which end with the program
# Medipix reads out in words of 64 bits, the last pixel of a word first: how many pixels that is.
_WORD = {1: 64, 6: 8, 12: 4}


class Merlin(Detector):
    """The detector."""

    name = "merlin"
    port, data_port = 6341, 6342
    simulated = True
    counted = False  # its frames have numbers, at which the receiver does not look

    def open(self, builder: Any, address: Address) -> Any:
        """Open a connection."""
        return builder.open(
            api_host=address.host,
            api_port=address.port,
            data_host=address.host,
            data_port=address.data_port,
        )

    def start(self, conn: Any) -> None:
        """Start and trigger."""
        with conn.control() as control:
            control.cmd("STARTACQUISITION")
            control.cmd("SOFTTRIGGER")

    def write(self, folder: Path, frames: NDArray[Any]) -> Path:
        """Write its files."""
        # 12 bits make the frames large enough to be delivered in many bunches of some MB.
        write_mib(folder / "frames.hdr", frames, bits=12)
        return folder / "frames.hdr"

    @contextmanager
    def simulate(self, folder: Path, frames: int, dwell_time: float) -> Iterator[Address]:  # noqa: ARG002
        """Run LiberTEM-live's simulator."""
        with simulator(folder / "frames.hdr", dwelltime=round(1e6 * dwell_time)) as where:
            yield Address(self, where.api_host, where.api_port, where.data_port)


def write_mib(path_hdr: Path, frames: NDArray[Any], bits: int = 12) -> None:
    """Write a scan as the Merlin of a single chip does in raw mode.

    Makes ``NAME.hdr``, which describes the scan, and ``NAME.mib`` with the frames. LiberTEM takes
    all files ``NAME*.mib`` of the folder as parts of the scan: there should be no others.

    Parameters
    ----------
    path_hdr
        ``NAME.hdr``; both files are replaced if they exist.
    frames : (scan rows, scan columns, detector rows, detector columns) integer or bool
        Counts, at most 1, 63 or 4095 for 1, 6 or 12 bits. Detector columns come in multiples of
        64, 8 or 4.
    bits
        Depth of the counters: 1, 6 or 12.

    Raises
    ------
    ValueError
        For frames that the format cannot hold; nothing is written then.
    """
    path_hdr = Path(path_hdr)
    if path_hdr.suffix.lower() != ".hdr":
        raise ValueError(f"path_hdr = {str(path_hdr)!r}: expected a name that ends with .hdr.")
    if bits not in _WORD:
        raise ValueError(f"bits = {bits!r}: expected 1, 6 or 12.")
    if frames.ndim != 4 or frames.size == 0:
        raise ValueError(
            f"frames have shape {frames.shape}: expected scan rows and columns, detector rows and "
            "columns, none of them 0."
        )
    if frames.dtype.kind not in "bui":
        raise ValueError(f"frames have dtype {frames.dtype}: expected counts, integers or bool.")
    *scan, rows, cols = frames.shape
    if cols % _WORD[bits] or max(rows, cols) > 9999:
        raise ValueError(
            f"frames have {rows} rows and {cols} columns: with {bits} bits, the format holds at "
            f"most 9999 of both, and columns in multiples of {_WORD[bits]}."
        )
    low, high = int(frames.min()), int(frames.max())
    if low < 0 or high >= 2**bits:
        raise ValueError(
            f"frames hold counts from {low} to {high}: counters of {bits} bits go from 0 to "
            f"{2**bits - 1}; clip the frames, or choose more bits."
        )

    with path_hdr.with_suffix(".mib").open("wb") as mib:
        for number, frame in enumerate(frames.reshape(-1, rows, cols), start=1):
            mib.write(_frame_header(number, rows, cols, bits))
            mib.write(_encode(frame, bits))
    lines = (
        "HDR,\t",
        f"Frames in Acquisition (Number):\t{scan[0] * scan[1]}",
        f"Frames per Trigger (Number):\t{scan[1]}",
        f"Counter Depth (number):\t{bits}",
        f"ScanX:\t{scan[1]}",
        f"ScanY:\t{scan[0]}",
        "End\t",
    )
    path_hdr.write_bytes("\r\n".join(lines).encode("ascii"))


def _frame_header(number: int, rows: int, cols: int, bits: int) -> bytes:
    """Say what the frame is; times, thresholds and DACs mean nothing."""
    fields = [
        "MQ1", f"{number:06d}", f"{_HEADER:05d}", "01", f"{cols:04d}", f"{rows:04d}", "R64",
        "   1x1", "01", "2000-01-01 00:00:00.000000", "0.001000", "0", "0", "0",
        *["0.000000E+0"] * 8, "3RX", *["000"] * 27,
        "MQ1A", "2000-01-01T00:00:00.000000000Z", "1000000ns", str(bits), "",
    ]  # fmt: skip
    return ",".join(fields).encode("ascii").ljust(_HEADER, b"\0")


def _encode(frame: NDArray[Any], bits: int) -> bytes:
    """Pack the pixels, word by word with the last one first, as big-endian numbers."""
    words = frame.reshape(-1, _WORD[bits])[:, ::-1]
    if bits == 1:
        return np.packbits(words.astype(np.uint8), axis=1).tobytes()
    return words.astype(np.uint8 if bits == 6 else ">u2").tobytes()


class Simulator(NamedTuple):
    """Where a simulator listens: arguments of ``make_connection("merlin").open`` by these names."""

    api_host: str
    api_port: int
    data_host: str
    data_port: int


@contextmanager
def simulator(path_hdr: Path, *, dwelltime: int | None = None) -> Iterator[Simulator]:
    """Run LiberTEM-live's Merlin simulator on loopback, on free ports.

    It sends the whole scan each time it is told to start and then triggered (STARTACQUISITION,
    SOFTTRIGGER on the control port).
    Close connections to it before leaving the context: it does not stop while it waits for somebody
    to take its frames, and is left behind after some seconds.

    Parameters
    ----------
    path_hdr
        A scan with its ``.mib`` files, for example from `write_mib`.
    dwelltime
        Time per frame in µs. Default: as fast as they are taken.

    Yields
    ------
    Simulator
        Hosts and ports.
    """
    from libertem_live.detectors.merlin import sim

    wait = sim.wait_with_socket

    def wait_with_socket(event: threading.Event, connection: socket.socket) -> bool:
        # The event is looked at first, so that whoever reconnects and starts at once would start a
        # scan for the old connection. Told that it is closed, the simulator takes the new one, on
        # which the event is still there.
        return wait(event, connection) and not _closed(connection)

    # Its progress bar would be drawn over that of the one who receives.
    silent = functools.partial(sim.tqdm, disable=True)
    with _replaced(sim, tqdm=silent, wait_with_socket=wait_with_socket):
        camera = sim.CameraSim(
            str(path_hdr), None, host=_HOST, data_port=0, control_port=0, trigger_port=0,
            wait_trigger=True, dwelltime=dwelltime,
        )  # fmt: skip
        camera.start()
        try:
            camera.wait_for_listen()
            yield Simulator(_HOST, camera.control_t.port, _HOST, camera.server_t.port)
        finally:
            # Its own way to stop fails where that takes longer than two seconds, on a busy machine
            # or one that was suspended. The scan, which is complete, would be lost with it.
            camera.stop_event.set()
            for thread in (camera.server_t, camera.control_t, camera.trigger_t):
                thread.join(_STOPS)


def _closed(connection: socket.socket) -> bool:
    """Whether the other side is gone."""
    readable, _, _ = select.select([connection], [], [], 0)
    return bool(readable) and not connection.recv(1, socket.MSG_PEEK)


@contextmanager
def _replaced(module: Any, **replacements: Any) -> Iterator[None]:
    """Let a module use something else for a while."""
    originals = {name: getattr(module, name) for name in replacements}
    try:
        for name, replacement in replacements.items():
            setattr(module, name, replacement)
        yield
    finally:
        for name, original in originals.items():
            setattr(module, name, original)
