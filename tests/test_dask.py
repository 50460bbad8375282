"""On several machines: a Dask scheduler and LiberTEM's workers, as processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import distributed
import libertem.api
import numpy as np
import pytest
from libertem.executor.dask import DaskJobExecutor
from libertem.udf import UDF

from libertem_parallax import ParallaxPhaseFlipUDF

SHAPE = (24, 20, 32, 33)
TIMEOUT = 60  # seconds


class WorkerUDF(UDF):
    """Process that was given the partition of each frame; the first waits for a second.

    Else one worker may have taken all partitions before the other has its first.
    """

    def __init__(self, folder):
        super().__init__(folder=folder)

    def get_result_buffers(self):
        return {"process": self.buffer("nav", dtype=np.int64)}

    def process_partition(self, partition):
        folder = Path(self.params.folder)
        (folder / str(os.getpid())).touch()
        end = time.monotonic() + TIMEOUT
        while len(list(folder.iterdir())) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        self.results.process[:] = os.getpid()


def computing_process(dask_worker):
    """Process of a worker; None for those that LiberTEM keeps for other things."""
    return os.getpid() if "compute" in dask_worker.state.total_resources else None


@contextlib.contextmanager
def process(*command, **options):
    """Run Python; it ends with the block, with all its children."""
    # Workers need not have the package installed, or this module.
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(here.parent), str(here)])
    started = subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
        **options,
    )
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait(TIMEOUT)


@pytest.fixture
def scheduler(tmp_path):
    """Address of a scheduler with two LiberTEM workers, as README.md has it."""
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(
            process(
                *("-m", "distributed.cli.dask_scheduler"),
                *("--host", "127.0.0.1", "--port", "0", "--no-dashboard"),
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(running.stderr.close)
        said = []
        while not said or "Scheduler at:" not in said[-1]:
            said.append(running.stderr.readline())
            assert said[-1], f"the scheduler ended: {''.join(said)}"
        address = said[-1].split()[-1]
        for name in ("one", "two"):
            stack.enter_context(
                process(
                    *("-c", "from libertem.executor.cli import main; main()", address),
                    *("--name", name, "--n-cpus", "1", "--cudas", "", "--log-level", "critical"),
                    *("--local-directory", str(tmp_path / name)),
                )
            )
        with distributed.Client(address, set_as_default=False) as client:
            client.wait_for_workers(4, timeout=TIMEOUT)  # each also has one for other things
        yield address


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="POSIX ends processes with their children")
def test_two_workers_give_the_same_bits_as_one(scheduler, tmp_path) -> None:
    frames = np.random.default_rng(0).poisson(3, SHAPE).astype(np.uint16)
    file = tmp_path / "frames.npy"
    np.save(file, frames)
    (tmp_path / "took_part").mkdir()

    def run(ctx):
        udf = ParallaxPhaseFlipUDF.from_parameters(
            shape=SHAPE,
            scan_sampling=(4.1, 3.9),
            angular_sampling=(0.41, 0.37),
            energy=300e3,
            semiangle_cutoff=4.0,
            aberration_coefs={"C10": -3000.0},
            upsampling_factor=2,
        )
        ds = ctx.load("npy", path=file, num_partitions=8)
        images, workers = ctx.run_udf(dataset=ds, udf=[udf, WorkerUDF(str(tmp_path / "took_part"))])
        sums = [udf.results.get_buffer(name).raw_data.copy() for name in "AS"]
        images = [images[name].data for name in ("parallax", "reconstruction")]
        return sums + images, set(workers["process"].data.reshape(-1))

    with libertem.api.Context(executor=DaskJobExecutor.connect(scheduler)) as ctx:
        actual, took_part = run(ctx)
        computing = set(ctx.executor.client.run(computing_process).values()) - {None}
    with libertem.api.Context.make_with("inline") as ctx:
        expected, _ = run(ctx)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    A, S = actual[:2]
    assert A.sum() == S.sum() > 0  # everything was added, and once
    assert len(computing) == 2
    assert took_part == computing
