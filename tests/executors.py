"""LiberTEM's executors that have processes, for machines that are busy with tests."""

from __future__ import annotations

import compile_once
import distributed
from libertem.executor.dask import DaskJobExecutor, cluster_spec
from libertem.executor.pipelined import PipelinedExecutor


def start_processes(spec=None, **options):
    """Start "pipelined", by default with two processes.

    They may take more than half a minute to start, and take the cores that there are.
    """
    spec = spec or PipelinedExecutor.make_spec(cpus=2, cudas=[])
    options = {"early_setup": compile_once.install, **options}
    return PipelinedExecutor(spec, pin_workers=False, startup_timeout=200, **options)


def start_dask(cpus=(0, 1), gpus=(), *preload):
    """Start "dask", with code that its workers are to run first."""
    spec = cluster_spec(
        cpus=cpus,
        cudas=gpus,
        has_cupy=True,
        num_service=0,
        preload=("from compile_once import install; install()", *preload),
    )
    # Its page on any port: there may be other clusters on this machine.
    scheduler = {"cls": distributed.Scheduler, "options": {"dashboard_address": ":0"}}
    return DaskJobExecutor.make_local(spec=spec, cluster_kwargs={"scheduler": scheduler})
