"""Behind LiberTEM-live's simulators, the results are those of offline processing, bit for bit."""

from __future__ import annotations

import itertools
import threading
import time
from types import SimpleNamespace

import libertem.api
import numpy as np
import psutil
import pytest
from detectors import (
    dectris_detector,
    memory_detector,
    merlin_detector,
    soft_trigger,
    tpx3_detector,
)
from executors import start_processes
from libertem.executor.inline import InlineJobExecutor
from libertem_live.api import LiveContext
from libertem_live.detectors.merlin import sim

from libertem_parallax import ParallaxPhaseFlipUDF
from libertem_parallax.live import asi_tpx3, merlin
from libertem_parallax.simulate import simulate

pytestmark = [
    # DectrisSim forks for its HTTP server, of which Python 3.12 and 3.13 warn.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    # The Merlin simulator opens its file for every frame and leaves closing to Python.
    pytest.mark.filterwarnings(
        "ignore:unclosed file:ResourceWarning:libertem_live.detectors.merlin.sim"
    ),
]

SCAN = (8, 9)
DETECTOR = (48, 64)
PARAMETERS = {
    "shape": SCAN + DETECTOR,
    "scan_sampling": (4.1, 3.9),
    "energy": 300e3,
    "semiangle_cutoff": 4.0,
    "angular_sampling": (0.21, 0.19),
    "aberration_coefs": {"C10": -2500.0, "C12": 300.0, "phi12": 0.4},
    "rotation_angle": -0.26,
    "upsampling_factor": 2,
}
# Not a divisor of 72 frames, nor a multiple of the scan's rows.
FRAMES_PER_PARTITION = 20
TIMEOUT = 30  # s, for what takes milliseconds

DETECTORS = {
    "merlin-1": (merlin_detector, "uint8", 1, 1),
    "merlin-6": (merlin_detector, "uint8", 63, 6),
    "merlin-12": (merlin_detector, "uint16", 4095, 12),
    "dectris-lz4-16": (dectris_detector, "uint16", 2**16 - 1, "lz4"),
    "dectris-bslz4-8": (dectris_detector, "uint8", 2**8 - 1, "bslz4"),
    "dectris-bslz4-16": (dectris_detector, "uint16", 2**16 - 1, "bslz4"),
    "dectris-bslz4-32": (dectris_detector, "uint32", 2**31, "bslz4"),
    "memory-16": (memory_detector, "uint16", 2**16 - 1, 5),
}
EVENTS = {"tpx3": (tpx3_detector, "uint16", 3, 16)}
ONE_OF_EACH = ["merlin-12", "dectris-bslz4-16", "memory-16"]


@pytest.fixture(scope="module", params=["inline", "pipelined"])
def ctx(request):
    executor = InlineJobExecutor() if request.param == "inline" else start_processes()
    with LiveContext(executor) as ctx:
        yield ctx


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request):
    """Whatever a test starts, processes and threads, it has ended."""
    if "ctx" in request.fixturenames:
        request.getfixturevalue("ctx")  # lives on; its workers are not the test's
    processes, threads = children(), set(threading.enumerate())
    yield
    assert children() <= processes
    # tqdm and multiprocessing keep theirs.
    names = {thread.name for thread in set(threading.enumerate()) - threads}
    assert names <= {"tqdm_monitor", "QueueFeederThread"}


def children():
    """Processes below this one, but for the one in which Python keeps account of shared memory."""
    return {
        process
        for process in psutil.Process().children(recursive=True)
        if "resource_tracker" not in " ".join(process.cmdline())
    }


def make_frames(dtype, top):
    return np.random.default_rng(0).integers(0, top, SCAN + DETECTOR, dtype, endpoint=True)


@pytest.fixture
def frames(request):
    _, dtype, top, _ = {**DETECTORS, **EVENTS}[request.getfixturevalue("name")]
    return make_frames(dtype, top)


@pytest.fixture
def detector(name, frames, tmp_path):
    make, _, _, argument = {**DETECTORS, **EVENTS}[name]
    with make(tmp_path, frames, argument) as detector:
        yield detector


def acquire(ctx, conn, detector, mode, nav_shape=SCAN, frames_per_partition=FRAMES_PER_PARTITION):
    if mode == "active":
        return ctx.make_acquisition(
            conn=conn,
            nav_shape=nav_shape,
            hooks=detector.hooks(conn),
            frames_per_partition=frames_per_partition,
        )
    detector.trigger(conn)
    pending = conn.wait_for_acquisition(timeout=TIMEOUT)
    assert pending is not None
    if detector.knows_nav_shape and nav_shape == SCAN:
        nav_shape = None
    return ctx.make_acquisition(
        conn=conn,
        nav_shape=nav_shape,
        pending_aq=pending,
        frames_per_partition=frames_per_partition,
    )


def run(ctx, ds, udf=None):
    """Sums and images."""
    udf = udf or ParallaxPhaseFlipUDF.from_parameters(**PARAMETERS, engine="numba")
    images = ctx.run_udf(dataset=ds, udf=udf)
    return {
        **{name: udf.results.get_buffer(name).raw_data.copy() for name in "AS"},
        **{name: images[name].data.copy() for name in ("reconstruction", "parallax")},
    }


def offline(frames):
    """In one piece, where there is nothing to merge."""
    with libertem.api.Context.make_with("inline") as ctx:
        return run(ctx, ctx.load("memory", data=frames, sig_dims=2, num_partitions=1))


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype, name
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


@pytest.mark.parametrize("mode", ["active", "passive"])
@pytest.mark.parametrize("name", DETECTORS)
def test_live_is_offline_to_the_last_bit(ctx, detector, frames, mode):
    with detector.open(ctx) as conn:
        assert_same_bits(run(ctx, acquire(ctx, conn, detector, mode)), offline(frames))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_one_connection_serves_many_acquisitions(ctx, detector, frames):
    """With one UDF, too: nothing of the scan before is left in it."""
    expected = offline(frames)
    udf = ParallaxPhaseFlipUDF.from_parameters(**PARAMETERS)
    with detector.open(ctx) as conn:
        for mode in ("active", "active", "passive", "passive", "active"):
            assert_same_bits(run(ctx, acquire(ctx, conn, detector, mode), udf), expected)


@pytest.mark.parametrize("mode", ["active", "passive"])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_another_nav_shape_is_refused_and_the_next_acquisition_works(ctx, detector, frames, mode):
    message = (
        r"data set has shape \(9, 8, 48, 64\), the UDF was made for \(8, 9, 48, 64\): "
        r"construct it with shape=dataset.shape"
    )
    with detector.open(ctx) as conn:
        with pytest.raises(ValueError, match=message):
            run(ctx, acquire(ctx, conn, detector, mode, nav_shape=(9, 8)))
        if mode == "passive":
            # The frames that nobody wanted are still coming in on the connection.
            conn.close()
            conn.__enter__()
        assert_same_bits(run(ctx, acquire(ctx, conn, detector, mode)), offline(frames))


@pytest.mark.parametrize("executor", ["inline", "pipelined"])
def test_after_a_detector_is_lost_another_connection_works(executor, tmp_path, monkeypatch):
    """With the same context, whose processes end with it."""

    def lost(camera, chunks=sim.DataSocketSimulator.get_chunks):
        yield from itertools.islice(chunks(camera), SCAN[0] * SCAN[1])  # two for each frame
        raise BrokenPipeError

    frames, before = make_frames("uint16", 4095), children()
    make = {
        "inline": InlineJobExecutor,
        # By default it waits for 10 s for workers that wait for frames.
        "pipelined": lambda: start_processes(cleanup_timeout=0.5),
    }[executor]
    with merlin_detector(tmp_path, frames, 12) as detector, LiveContext(make()) as ctx:
        assert len(children() - before) == {"inline": 0, "pipelined": 2}[executor]
        with monkeypatch.context() as patch, detector.open(ctx) as conn:
            patch.setattr(sim.DataSocketSimulator, "get_chunks", lost)
            acquisition = acquire(ctx, conn, detector, "active")
            with pytest.raises(Exception, match=r"connection error|in-flight tasks") as error:
                run(ctx, acquisition)
        assert "connection error: EOF" in f"{error.value} {error.value.__cause__}"
        with detector.open(ctx) as conn:
            assert_same_bits(run(ctx, acquire(ctx, conn, detector, "active")), offline(frames))


@pytest.mark.parametrize("name", ["merlin-12", "dectris-bslz4-16", "tpx3"])
def test_simulators_listen_on_loopback_only(detector):
    this = psutil.Process()
    listening = [
        connection.laddr
        for process in (this, *this.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {address.ip for address in listening} == {"127.0.0.1"}


@pytest.fixture(scope="module")
def specimen():
    """A scan of the demo's specimen, with empty frames, and what it comes to on a Timepix3."""
    frames, _, parameters = simulate(scan_shape=SCAN, dose=3)
    frames[2, 3:8] = frames[0, 0] = frames[-1, -1] = 0
    detected = np.zeros(SCAN + asi_tpx3.DETECTOR_SHAPE, np.uint8)
    detected[..., 224:288, 224:288] = frames
    parameters = {**parameters, "shape": detected.shape, "aberration_coefs": {"C10": -2500.0}}
    return frames, detected, ParallaxPhaseFlipUDF.from_parameters(**parameters, engine="numba")


def offline_tpx3(specimen):
    """From dense frames; LiberTEM calls the values of events, which are integers, float32."""
    _, detected, udf = specimen
    with libertem.api.Context.make_with("inline") as ctx:
        sums = run(ctx, ctx.load("memory", data=detected, sig_dims=2, num_partitions=1), udf)
    assert sums["A"].any()
    return {**sums, "A": sums["A"].astype(float), "S": sums["S"].astype(float)}


# Partitions have 20 frames, or 24 and 24 and 24: LiberTEM makes them equal.
@pytest.mark.parametrize("frames_per_chunk", [1, 5, 20, 64, 100])
def test_events_live_are_frames_offline_to_the_last_bit(ctx, specimen, tmp_path, frames_per_chunk):
    """And one connection serves many acquisitions."""
    frames, _, udf = specimen
    expected = offline_tpx3(specimen)
    with tpx3_detector(tmp_path, frames, frames_per_chunk) as detector, detector.open(ctx) as conn:
        for _ in range(3):
            acquisition = acquire(ctx, conn, detector, "passive")
            assert tuple(acquisition.shape) == SCAN + asi_tpx3.DETECTOR_SHAPE
            assert_same_bits(run(ctx, acquisition, udf), expected)


def test_events_in_small_bunches(ctx, specimen, tmp_path):
    """Several to a partition, which end anywhere in it."""
    frames, _, udf = specimen
    with (
        tpx3_detector(tmp_path, frames, 3, slot=4096) as detector,
        detector.open(ctx) as conn,
    ):
        acquisition = acquire(ctx, conn, detector, "passive", frames_per_partition=36)
        assert_same_bits(run(ctx, acquisition, udf), offline_tpx3(specimen))


def test_another_nav_shape_of_events_is_refused_and_the_next_acquisition_works(
    ctx, specimen, tmp_path
):
    frames, _, udf = specimen
    other = np.ascontiguousarray(frames.reshape(9, 8, 64, 64))
    with (
        tpx3_detector(tmp_path, other, 20) as detector,
        detector.open(ctx) as conn,
        pytest.raises(ValueError, match=r"has shape \(9, 8, 512, 512\), the UDF was made for"),
    ):
        run(ctx, acquire(ctx, conn, detector, "passive", nav_shape=None), udf)
    with tpx3_detector(tmp_path, frames, 20) as detector, detector.open(ctx) as conn:
        acquisition = acquire(ctx, conn, detector, "passive")
        assert_same_bits(run(ctx, acquisition, udf), offline_tpx3(specimen))


def test_the_time_of_a_scan_of_events_is_kept(specimen, tmp_path):
    """No less than asked for: a slow machine does not break it."""
    frames, _, udf = specimen
    asi_tpx3.write_tpx3(tmp_path / "scan.tpx3", frames)
    with (
        LiveContext.make_with("inline") as ctx,
        asi_tpx3.simulator(tmp_path / "scan.tpx3", seconds=0.5) as where,
    ):
        start = time.monotonic()
        with ctx.make_connection("asi_tpx3").open(**where._asdict(), buffer_size=32) as conn:
            aq = ctx.make_acquisition(
                conn=conn, pending_aq=conn.wait_for_acquisition(TIMEOUT), frames_per_partition=20
            )
            actual = run(ctx, aq, udf)
        assert time.monotonic() - start >= 0.4  # the first piece comes at once
    assert_same_bits(actual, offline_tpx3(specimen))


def test_the_dwell_time_is_kept(ctx, tmp_path):
    """No frame comes before its time: a lower bound, which a slow machine does not break."""
    frames = make_frames("uint16", 4095)
    merlin.write_mib(tmp_path / "scan.hdr", frames)
    with (
        merlin.simulator(tmp_path / "scan.hdr", dwelltime=5000) as simulator,
        ctx.make_connection("merlin").open(**simulator._asdict()) as conn,
    ):
        aq = ctx.make_acquisition(conn=conn, nav_shape=SCAN, hooks=soft_trigger(conn))
        start = time.monotonic()
        actual = run(ctx, aq)
        assert time.monotonic() - start >= 0.005 * (SCAN[0] * SCAN[1] - 2)
    assert_same_bits(actual, offline(frames))


def test_the_simulator_may_be_slow_to_stop(tmp_path, monkeypatch):
    """As on a busy machine: what was recorded is not lost with it."""
    merlin.write_mib(tmp_path / "scan.hdr", make_frames("uint8", 1), 6)
    hasty = SimpleNamespace(sleep=time.sleep, monotonic=itertools.count(step=10).__next__)
    with merlin.simulator(tmp_path / "scan.hdr"):
        monkeypatch.setattr(sim, "time", hasty)


def test_the_simulator_is_silent_and_says_where_it_is(ctx, tmp_path, capfd):
    frames = make_frames("uint8", 1)
    with merlin_detector(tmp_path, frames, 1) as detector, detector.open(ctx) as conn:
        run(ctx, acquire(ctx, conn, detector, "active"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_another_geometry_while_a_detector_sends(ctx, name, detector, frames):
    """The image is that of the frames that were added after the change, and of no others."""
    changed = {**PARAMETERS, "aberration_coefs": {"C10": -1500.0}}
    geometry = ParallaxPhaseFlipUDF.from_parameters(**changed).params.geometry
    udf = ParallaxPhaseFlipUDF.from_parameters(**PARAMETERS, engine="numba")
    with detector.open(ctx) as conn:
        acquisition = acquire(ctx, conn, detector, "active", frames_per_partition=4)
        results = ctx.run_udf_iter(dataset=acquisition, udf=udf)
        next(results)
        results.update_parameters_experimental([{"geometry": geometry}])
        for part in results:
            image = part.buffers[0]["reconstruction"].data
    new = udf.results.get_buffer("told").raw_data["part"][0, 0] == geometry.plan.digest
    if "Inline" in type(ctx.executor).__name__:
        assert new
    if not new:  # workers had all partitions when it changed
        assert not image.any()
        return
    added = udf.results.get_buffer("S").raw_data > 0
    assert 0 < added.sum() < 72
    with libertem.api.Context.make_with("inline") as offline_ctx:
        ds = offline_ctx.load("memory", data=frames, sig_dims=2)
        expected = ParallaxPhaseFlipUDF.from_parameters(**changed, engine="numba")
        images = offline_ctx.run_udf(dataset=ds, udf=expected, roi=added.reshape(SCAN))
    np.testing.assert_array_equal(image, images["reconstruction"].data)
    A = expected.results.get_buffer("A").raw_data
    np.testing.assert_array_equal(udf.results.get_buffer("A").raw_data, A)
