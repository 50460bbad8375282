"""Files that LiberTEM-live's simulators send."""

from __future__ import annotations

import inspect

import libertem.api
import numpy as np
import pytest
from detectors import (
    tpx3_detector,
)
from libertem.io.dataset.base import BufferedBackend
from libertem.udf import UDF
from libertem.udf.raw import PickUDF
from libertem_live.api import LiveContext
from libertem_live.detectors.merlin.connection import MerlinConnectionBuilder

from libertem_parallax.live import asi_tpx3, merlin

pytestmark = [
    # LiberTEM says so of the pipelined executor where processors are busy.
    pytest.mark.filterwarnings("ignore:Slow worker startup:RuntimeWarning"),
    # DectrisSim forks for its HTTP server, of which Python 3.12 and 3.13 warn.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    # The Merlin simulator opens its file for every frame and leaves closing to Python.
    pytest.mark.filterwarnings(
        "ignore:unclosed file:ResourceWarning:libertem_live.detectors.merlin.sim"
    ),
]


SCAN = (8, 9)


DETECTOR = (48, 64)


@pytest.mark.parametrize(
    ("bits", "shape"),
    [(1, (3, 4, 5, 64)), (1, (2, 3, 48, 192)), (6, (3, 4, 5, 8)), (6, (2, 3, 48, 72)),
     (12, (3, 4, 5, 4)), (12, (2, 3, 48, 68))],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", ">u2"])
def test_mib_files_hold_the_frames(tmp_path, bits, shape, dtype):
    top = 1 if dtype == "bool" else 2**bits - 1
    top = min(top, 255) if dtype == "uint8" else top
    frames = np.random.default_rng(1).integers(0, top, shape, endpoint=True).astype(dtype)
    merlin.write_mib(tmp_path / "scan.hdr", frames[::-1, :, ::-1], bits)  # not contiguous
    with libertem.api.Context.make_with("inline") as ctx:
        # Memory-mapped, which is the default, LiberTEM 0.16 refuses many 1-bit scans.
        ds = ctx.load("mib", path=str(tmp_path / "scan.hdr"), io_backend=BufferedBackend())
        assert tuple(ds.shape) == shape
        picked = ctx.run_udf(dataset=ds, udf=PickUDF(), roi=np.ones(shape[:2], bool))
    actual = picked["intensity"].data.reshape(shape)
    np.testing.assert_array_equal(actual, frames[::-1, :, ::-1])


@pytest.mark.parametrize(
    ("name", "frames", "bits", "message"),
    [
        ("a.mib", np.zeros((1, 1, 4, 64), int), 12, r"'.*a.mib': expected a name that ends with"),
        ("a.hdr", np.zeros((1, 1, 4, 64), int), 24, "bits = 24: expected 1, 6 or 12"),
        ("a.hdr", np.zeros((1, 4, 64), int), 12, r"shape \(1, 4, 64\): expected scan rows and"),
        ("a.hdr", np.zeros((0, 1, 4, 64), int), 12, r"shape \(0, 1, 4, 64\): expected scan rows"),
        ("a.hdr", np.zeros((1, 1, 4, 64)), 12, "dtype float64: expected counts"),
        ("a.hdr", np.zeros((1, 1, 4, 96), int), 1, "4 rows and 96 columns: .* multiples of 64"),
        ("a.hdr", np.zeros((1, 1, 4, 12), int), 6, "4 rows and 12 columns: .* multiples of 8"),
        ("a.hdr", np.zeros((1, 1, 4, 6), int), 12, "4 rows and 6 columns: .* multiples of 4"),
        ("a.hdr", np.zeros((1, 1, 10000, 4), "u1"), 12, "10000 rows and 4 columns: .* most 9999"),
        ("a.hdr", np.full((1, 1, 4, 64), 2), 1, "counts from 2 to 2: counters of 1 bits .* to 1;"),
        ("a.hdr", np.full((1, 1, 4, 64), 64), 6, "counts from 64 to 64: .* from 0 to 63; clip"),
        ("a.hdr", np.full((1, 1, 4, 64), 4096), 12, "counts from 4096 to 4096: .* 0 to 4095; clip"),
        ("a.hdr", np.full((1, 1, 4, 64), -1), 12, "counts from -1 to -1: .* 0 to 4095; clip"),
    ],
)
def test_frames_that_do_not_fit_the_format_are_refused(tmp_path, name, frames, bits, message):
    with pytest.raises(ValueError, match=message):
        merlin.write_mib(tmp_path / name, frames, bits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "uint32"])
@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (2, 3, 64, 512), (1, 2, 512, 512)])
def test_streams_hold_the_frames(tmp_path, dtype, shape):
    """As LiberTEM-live receives them, smaller frames in the middle."""
    top = min(int(np.iinfo(dtype).max), 2**24) if dtype != "bool" else 1  # exact in float32
    rng = np.random.default_rng(1)
    frames = rng.integers(0, top, shape, endpoint=True) * (rng.random(shape) < 0.1)
    frames = frames.astype(dtype)
    rows, cols = shape[2:]
    row, col = 256 - rows // 2, 256 - cols // 2
    expected = np.zeros((*shape[:2], 512, 512), np.float32)
    expected[..., row : row + rows, col : col + cols] = frames[::-1, :, ::-1]
    source = frames[::-1, :, ::-1]  # not contiguous
    with (
        LiveContext.make_with("inline") as ctx,
        tpx3_detector(tmp_path, source, 4, slot=1 << 20) as detector,
        detector.open(ctx) as conn,
    ):
        detector.trigger(conn)
        pending = conn.wait_for_acquisition(timeout=30)
        assert pending is not None
        aq = ctx.make_acquisition(conn=conn, pending_aq=pending, frames_per_partition=1)
        received = ctx.run_udf(dataset=aq, udf=Densely())
    np.testing.assert_array_equal(received["frames"].data, expected)


class Densely(UDF):
    """Keeps the frames."""

    def get_result_buffers(self):
        shape = tuple(self.meta.dataset_shape.sig)
        return {"frames": self.buffer("nav", extra_shape=shape, dtype=np.float32)}

    def process_frame(self, frame):
        self.results.frames[:] = frame


@pytest.mark.parametrize(
    ("frames", "per_chunk", "message"),
    [
        (np.zeros((1, 4, 64), "u1"), 1, r"shape \(1, 4, 64\): expected scan rows and columns"),
        (np.zeros((0, 1, 4, 4), "u1"), 1, r"shape \(0, 1, 4, 4\)"),
        (np.zeros((1, 1, 513, 4), "u1"), 1, r"\(1, 1, 513, 4\): .* rows and columns, at most"),
        (np.zeros((1, 1, 4, 513), "u1"), 1, r"\(1, 1, 4, 513\): .* rows and columns, at most"),
        (np.zeros((2**16, 1, 1, 1), "u1"), 1, r"\(65536, 1, 1, 1\): .* at most 65535"),
        (np.zeros((1, 1, 4, 4)), 1, "dtype float64: expected counts, unsigned"),
        (np.zeros((1, 1, 4, 4), "i4"), 1, "dtype int32: expected counts, unsigned"),
        (np.zeros((1, 1, 4, 4), "u8"), 1, "dtype uint64: .* up to 32"),
        (np.zeros((1, 1, 4, 4), "u1"), 0, "frames_per_chunk = 0: expected at least 1"),
    ],
)
def test_frames_that_do_not_fit_a_stream_are_refused(tmp_path, frames, per_chunk, message):
    with pytest.raises(ValueError, match=message):
        asi_tpx3.write_tpx3(tmp_path / "scan.tpx3", frames, per_chunk)
    assert not list(tmp_path.iterdir())


def test_ports_are_those_of_the_manufacturer():
    """Which LiberTEM-live has as its defaults: commands go to one, frames come from the other."""
    defaults = inspect.signature(MerlinConnectionBuilder.open).parameters
    ports = merlin.Merlin.port, merlin.Merlin.data_port
    assert ports == (defaults["api_port"].default, defaults["data_port"].default)
