"""Detectors for the tests of live processing: LiberTEM-live's simulators, on loopback."""

from __future__ import annotations

import gc
import itertools
import json
import struct
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest

from libertem_parallax.live import asi_tpx3, merlin


class Detector(NamedTuple):
    """A simulator that runs, and how to use it."""

    open: Callable[[Any], Any]  # makes a connection from a context
    hooks: Callable[[Any], Any]  # for active acquisitions, from a connection
    trigger: Callable[[Any], None]  # what starts a passive acquisition, elsewhere in real life
    knows_nav_shape: bool  # in passive mode


@contextmanager
def merlin_detector(path, frames, bits):
    """A Merlin that sends these frames; writes files in the folder."""
    hdr = path / "merlin.hdr"
    merlin.write_mib(hdr, frames, bits)
    with merlin.simulator(hdr) as simulator:

        def trigger(conn):
            soft_trigger(conn).on_ready_for_data(None)

        yield Detector(
            open=lambda ctx: ctx.make_connection("merlin").open(**simulator._asdict()),
            hooks=soft_trigger,
            trigger=trigger,
            knows_nav_shape=True,
        )


def soft_trigger(conn):
    """Hooks that start and trigger an active acquisition over a Merlin's control port."""
    from libertem_live.hooks import Hooks

    class SoftTrigger(Hooks):
        def on_ready_for_data(self, env):
            with conn.control() as control:
                control.cmd("STARTACQUISITION")
                control.cmd("SOFTTRIGGER")

    return SoftTrigger()


@contextmanager
def dectris_simulator(
    path, frames, compression="bslz4", *, triggered=True, dies_after=None, damages=None
):
    """LiberTEM-live's simulator with these frames; writes a file in the folder.

    If it is not triggered, the detector is armed and announces the scan, and waits for that. It
    can die after so many frames, or send one that cannot be decoded.
    """
    # Flask is an extra of LiberTEM-live, which those who test something else need not have.
    from libertem_live.detectors.dectris.connection import DectrisDetectorConnection
    from libertem_live.detectors.dectris.sim import DectrisSim, StopException

    dump = path / "dectris.bin"
    write_dectris(dump, frames, compression, triggered=triggered)
    sent = itertools.count()

    def fail(message):
        number = next(sent)  # two in the beginning, and four for each frame, its data the third
        if dies_after is not None and number == 2 + 4 * dies_after:
            raise StopException
        if damages is not None and number == 4 + 4 * damages:
            return message[:20] + b"\xff" * (len(message) - 20)
        return message

    simulator = DectrisSim(
        path=str(dump),
        port=0,
        zmqport=0,
        verbose=False,
        data_filter=None if dies_after is None and damages is None else fail,
    )
    # It forks. Connections of before that nobody uses any more must not be collected in that
    # process: without their threads they would abort it.
    gc.collect()
    gc.freeze()
    try:
        simulator.start()
    finally:
        gc.unfreeze()
    try:
        simulator.wait_for_listen()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DectrisDetectorConnection, "start_series", _start_series)
            yield simulator
    finally:
        simulator.stop()


def _start_series(conn, series):
    """Start as LiberTEM-live does, which gives its thread a tenth of a second to say so.

    Where cores are busy, that is too little.
    """
    conn._ensure_basic_settings()
    conn._conn.start(series, 30.0)


@contextmanager
def dectris_detector(path, frames, compression):
    """A DECTRIS detector that sends these frames; writes a file in the folder."""
    with dectris_simulator(path, frames, compression) as simulator:
        yield Detector(
            open=lambda ctx: ctx.make_connection("dectris").open(
                api_host="127.0.0.1",
                api_port=simulator.port,
                data_host="127.0.0.1",
                data_port=simulator.zmqport,
                buffer_size=16,
                bytes_per_frame=2 * frames[0, 0].nbytes,  # these are not compressed in fact
            ),
            hooks=lambda conn: None,
            trigger=lambda conn: conn.get_api_client().sendDetectorCommand("arm"),
            knows_nav_shape=False,
        )


@contextmanager
def tpx3_detector(path, frames, frames_per_chunk, slot=1 << 18):
    """A Timepix3 that sends these frames, so many together; writes a file in the folder.

    They are received by bunches of at most `slot` bytes, and of the partition's frames.
    """
    stream = path / "scan.tpx3"
    asi_tpx3.write_tpx3(stream, frames, frames_per_chunk)
    # Again and again without a pause, it would soon fill the memory for what is not taken yet.
    with asi_tpx3.simulator(stream, seconds=0.2) as simulator:
        yield Detector(
            open=lambda ctx: ctx.make_connection("asi_tpx3").open(
                **simulator._asdict(), buffer_size=32, bytes_per_chunk=slot, chunks_per_stack=1
            ),
            hooks=lambda conn: None,
            trigger=lambda conn: None,  # it sends to whoever connects
            knows_nav_shape=True,
        )


@contextmanager
def memory_detector(path, frames, partitions):
    """An array in place of a detector."""
    yield Detector(
        open=lambda ctx: ctx.make_connection("memory").open(
            data=frames, extra_kwargs={"num_partitions": partitions}
        ),
        hooks=lambda conn: None,
        trigger=lambda conn: None,
        knows_nav_shape=True,
    )


def write_dectris(path, frames, compression, *, triggered=True):
    """Write what a DECTRIS detector would send, message by message: "lz4" or "bslz4".

    Triggered from outside for each frame, or waiting for one trigger by software.
    """
    *scan, rows, cols = frames.shape
    bits = 8 * frames.itemsize
    encode, encoding = {"lz4": (lz4, "lz4<"), "bslz4": (bslz4, f"bs{bits}-lz4<")}[compression]
    config = {
        "bit_depth_image": bits,
        "compression": compression,
        "nimages": 1 if triggered else scan[0] * scan[1],
        "ntrigger": scan[0] * scan[1] if triggered else 1,
        "trigger_mode": "exte" if triggered else "ints",
        "x_pixels_in_detector": cols,
        "y_pixels_in_detector": rows,
    }
    series = {"series": 1}
    messages = [{"htype": "dheader-1.0", "header_detail": "basic", **series}, config]
    for number, frame in enumerate(frames.reshape(-1, rows, cols)):
        data = encode(np.ascontiguousarray(frame))
        messages += [
            {"htype": "dimage-1.0", "frame": number, "hash": "0", **series},
            {
                "htype": "dimage_d-1.0",
                "shape": [cols, rows],
                "type": frame.dtype.name,
                "encoding": encoding,
                "size": len(data),
            },
            data,
            {"htype": "dconfig-1.0", "start_time": 0, "stop_time": 0, "real_time": 0},
        ]
    messages.append({"htype": "dseries_end-1.0", **series})
    with path.open("wb") as file:
        for message in messages:
            raw = message if isinstance(message, bytes) else json.dumps(message).encode("ascii")
            file.write(struct.pack("<q", len(raw)) + raw)


def lz4(frame):
    return literals(frame.tobytes())


def bslz4(frame):
    """Blocks of 8 kB, in which first come the lowest bits of all pixels, then the next ones."""
    blocks = []
    pixels = 8192 // frame.itemsize
    for first in range(0, frame.size, pixels):
        block = frame.reshape(-1)[first : first + pixels]  # the last one may be shorter
        octets = block.view(np.uint8).reshape(len(block), -1)
        bits = np.unpackbits(octets, axis=1, bitorder="little")
        data = literals(np.packbits(bits.T, bitorder="little").tobytes())
        blocks.append(struct.pack(">I", len(data)) + data)
    return struct.pack(">QI", frame.nbytes, 8192) + b"".join(blocks)


def literals(data):
    """LZ4 that copies: a token, the length, the bytes. No compressor is needed for that."""
    more, rest = divmod(len(data) - 15, 255)
    return b"\xf0" + b"\xff" * more + bytes([rest]) + data
