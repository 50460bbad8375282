"""Who adds the frames: main processes and workers with and without GPUs, in LiberTEM's executors.

The GPUs are stand-ins; processes, resources and scheduling are LiberTEM's.
"""

from __future__ import annotations

import contextlib
import warnings

import libertem.api
import numpy as np
import pytest
from executors import start_dask, start_processes
from helpers import make_events, needs_compiler, write
from libertem.executor.pipelined import PipelinedExecutor
from standin import worker
from standin.worker import TellingUDF

from libertem_parallax.accumulate.cuda import device

pytestmark = needs_compiler

SHAPE = (16, 9, 24, 25)
PARAMETERS = {
    "shape": SHAPE,
    "scan_sampling": (4.1, 3.9),
    "energy": 300e3,
    "semiangle_cutoff": 4.0,
    "angular_sampling": (0.41, 0.37),
    "aberration_coefs": {"C10": -2500.0},
    "upsampling_factor": 2,
}
#: CPUs and GPUs of the workers, and which GPUs there are for CUDA: default, two.
WORKERS: dict = {
    "CPUs": ([0], [], {}),
    "GPUs": ([], [0, 1], {}),
    "both": ([0], [0], {"CUDA_VISIBLE_DEVICES": "1"}),
}
ENVIRONMENTS = [{}, {"LIBERTEM_USE_CUDA": "0"}, {"LIBERTEM_USE_CPU": "0"}]


@contextlib.contextmanager
def pipelined(cpus, gpus):
    spec = PipelinedExecutor.make_spec(cpus=cpus, cudas=gpus, has_cupy=True)
    executor = start_processes(spec, early_setup=worker.use)
    with libertem.api.Context(executor=executor) as ctx:
        yield ctx


@contextlib.contextmanager
def dask(cpus, gpus):
    executor = start_dask(cpus, gpus, "from standin.worker import use; use()")
    with libertem.api.Context(executor=executor) as ctx:
        yield ctx


@contextlib.contextmanager
def started(make, cpus, gpus, **environment):
    """Start workers from a process that has no GPU."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Specifying CUDA workers on system", RuntimeWarning)
        set_environment(patch, environment)
        with make(cpus, gpus) as ctx:
            yield ctx


def set_environment(patch, environment):
    for name in ("LIBERTEM_USE_CUDA", "LIBERTEM_USE_CPU", "CUDA_VISIBLE_DEVICES"):
        patch.delenv(name, raising=False)
    for name, value in environment.items():
        patch.setenv(name, value)


@pytest.fixture(
    scope="module",
    # To start Dask's workers takes longest.
    params=[*((pipelined, kind) for kind in WORKERS), (dask, "both")],
    ids=lambda param: f"{param[0].__name__}-{param[1]}",
)
def cluster(request):
    """Workers of an executor, and the GPUs that they have; -1 for none."""
    make, kind = request.param
    cpus, gpus, environment = WORKERS[kind]
    with started(make, cpus, gpus, **environment) as ctx:
        yield ctx, {*gpus} | ({-1} if cpus else set())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Frames, how to load them dense and as events, and their image."""
    frames = make_events("uint8", SHAPE)
    path = write(tmp_path_factory.mktemp("events"), frames)
    load = {
        "dense": {"filetype": "memory", "data": frames, "sig_dims": 2},
        "events": {"filetype": "raw_csr", "path": path},
    }
    with pytest.MonkeyPatch.context() as patch, libertem.api.Context.make_with("inline") as ctx:
        set_environment(patch, {})
        patch.setattr(worker, "cupy", worker.CuPy())
        image, _ = run(ctx, load["dense"], engine="numba")
    return load, image


def run(ctx, load, **options):
    """Image, and what is told of the frames."""
    udf = TellingUDF.from_parameters(**PARAMETERS, **options)
    ds = ctx.load(**load, num_partitions=8)
    result = {name: buffer.data for name, buffer in ctx.run_udf(ds, udf).items()}
    return result.pop("reconstruction"), result


def assert_added_by(told, gpus):
    """Workers with these GPUs, -1 for none, who used them if they had one, and only then."""
    assert {*told["gpu"].flat} == gpus
    np.testing.assert_array_equal(told["launches"] > 0, told["gpu"] >= 0)


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=repr)
@pytest.mark.parametrize("kind", ["dense", "events"])
def test_all_workers_add_frames_whatever_the_main_process_has(
    cluster, data, environment, kind, monkeypatch
):
    ctx, gpus = cluster
    load, expected = data
    set_environment(monkeypatch, environment)
    for _ in range(10):  # where cores are busy, one worker may be done before the others begin
        image, told = run(ctx, load[kind])
        if {*told["gpu"].flat} == gpus:
            break
    assert_added_by(told, gpus)
    # LiberTEM must not make dense frames of events, on no worker.
    assert {*told["events"].flat} == {kind == "events"}
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("environment", [*ENVIRONMENTS, {"LIBERTEM_USE_CUDA": "1"}], ids=repr)
@pytest.mark.parametrize("executor", ["inline", "threads"])
def test_processes_that_are_their_own_workers(data, executor, environment, monkeypatch, here):
    load, expected = data
    set_environment(monkeypatch, environment)
    here()
    gpu = int(environment.get("LIBERTEM_USE_CUDA", -1))
    with libertem.api.Context.make_with(executor) as ctx:
        for kind in ("dense", "events"):
            image, told = run(ctx, load[kind])
            assert_added_by(told, {gpu})
            assert {*told["events"].flat} == {kind == "events"}
            np.testing.assert_array_equal(image, expected)
    assert {number for number, _ in worker.cupy.compiled} == ({gpu} if gpu >= 0 else set())


@pytest.fixture
def here(monkeypatch):
    """Let this process have the devices that workers have."""
    for module, name in ((device, "importlib"), (device, "_kernels"), (worker, "cupy")):
        monkeypatch.setattr(module, name, getattr(module, name))
    return worker.use


@pytest.mark.parametrize(("gpu", "visible"), [("1", "1"), ("0", "")])
def test_gpus_that_are_not_visible_are_told_and_done_without(data, gpu, visible, monkeypatch, here):
    """CUDA counts those that CUDA_VISIBLE_DEVICES names, from 0 on."""
    load, expected = data
    set_environment(monkeypatch, {"LIBERTEM_USE_CUDA": gpu, "CUDA_VISIBLE_DEVICES": visible})
    here()
    with libertem.api.Context.make_with("inline") as ctx:
        with pytest.warns(RuntimeWarning, match=f"on the CPU, since .*GPU {gpu}: there is no"):
            image, told = run(ctx, load["dense"])
        with pytest.raises(device.CudaError, match="no such GPU"):
            run(ctx, load["dense"], engine="cuda")
    assert not told["launches"].any()
    np.testing.assert_array_equal(image, expected)
