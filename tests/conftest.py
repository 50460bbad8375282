"""Fixtures of several test modules: engines, contexts, commands, and a detector for them."""

from __future__ import annotations

import shlex
import signal
import socket
from importlib.util import find_spec
from types import SimpleNamespace

import compile_once
import file_commands
import libertem.api
import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from executors import start_dask, start_processes
from helpers import needs_compiler
from numba.core.dispatcher import Dispatcher
from standin.cupy import CuPy

from libertem_parallax.accumulate import ENGINES
from libertem_parallax.accumulate.cuda import device, upload
from libertem_parallax.cli import main

#: GPU nodes need not have LiberTEM-live to run the tests that need a GPU.
collect_ignore_glob = [] if find_spec("libertem_live") else ["test_live*.py", "test_cli_live*.py"]


def pytest_report_header():
    """Say what is left out."""
    return [f"{name} is left out: libertem-live is missing" for name in collect_ignore_glob]


@pytest.fixture
def standin(monkeypatch):
    """Let the package find CuPy and a device that stand in; call it for others than the usual."""

    def use(**options):
        cupy = CuPy(**options)
        importer = SimpleNamespace(import_module=lambda _: cupy)
        monkeypatch.setattr(device, "importlib", importer)
        monkeypatch.setattr(device, "_kernels", {})
        return cupy

    return use


def pytest_xdist_auto_num_workers(config):
    """Several for all tests; those of named files, and those that need a GPU, run in this one.

    More than there are cores, since many tests wait: for detectors, browsers and processes.
    """
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return 0
    return 0 if "not gpu" not in config.option.markexpr else min(psutil.cpu_count() + 2, 4)


@pytest.fixture(scope="session", autouse=True)
def compiled_once(request, tmp_path_factory):
    """Let processes that share the tests compile together; with an empty cache, that is much."""
    if not hasattr(request.config, "workerinput"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dispatcher, "compile", Dispatcher.compile)  # in the end, as it was
        patch.setenv(compile_once.FOLDER, str(tmp_path_factory.getbasetemp().parent))
        compile_once.install()
        yield


def engines():
    """All of them; that for GPUs runs on the CPU, or with ``-m gpu`` on a GPU."""
    for name in ENGINES:
        if name == "cuda":
            yield pytest.param("cuda", id="cuda-on-cpu", marks=needs_compiler)
            yield pytest.param("cuda", id="cuda", marks=pytest.mark.gpu)
        else:
            yield name


@pytest.fixture(params=engines())
def engine_name(request):
    """Every engine: who adds one to `ENGINES` has it tested."""
    if request.param == "cuda" and request.node.get_closest_marker("gpu") is None:
        request.getfixturevalue("standin")()
        # So that some of the tests' small detectors are cut along columns, and some are not.
        request.getfixturevalue("monkeypatch").setattr(upload, "ROW_BYTES", 16)
    return request.param


@pytest.fixture
def engine(engine_name):
    return ENGINES[engine_name]


@pytest.fixture(scope="session")
def inline():
    with libertem.api.Context.make_with("inline") as ctx:
        yield ctx


# Workers take seconds to start, so all modules share them: pytest runs the tests of one executor
# after another. The first one leaves compiled code for the others, of which those that have
# processes are gone before other tests look for some.
@pytest.fixture(scope="session", params=["inline", "dask", "pipelined", "threads"])
def ctx(request):
    make = libertem.api.Context.make_with
    with {
        "inline": lambda: make("inline"),
        "threads": lambda: make("threads", cpus=2),
        "dask": lambda: libertem.api.Context(executor=start_dask()),
        "pipelined": lambda: libertem.api.Context(executor=start_processes()),
    }[request.param]() as ctx:
        yield ctx


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in a folder of its own; it leaves neither processes nor a handler."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    before = set(psutil.Process().children(recursive=True))
    handler = signal.getsignal(signal.SIGINT)
    yield lambda command: CliRunner().invoke(main, shlex.split(command))
    assert signal.getsignal(signal.SIGINT) is handler
    left = set(psutil.Process().children(recursive=True)) - before
    # In that one, Python keeps account of shared memory.
    assert not [child for child in left if "resource_tracker" not in " ".join(child.cmdline())]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with the data in another one, and an environment that says nothing."""
    monkeypatch.chdir(tmp_path)
    for name in ("LIBERTEM_USE_CUDA", "LIBERTEM_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    data = tmp_path / "data"
    data.mkdir()
    np.save(data / "scan.npy", file_commands.frames())
    np.save(data / "mask.npy", file_commands.mask())
    (data / "scan.toml").write_text(file_commands.TOML, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="session")
def frames():
    """What the simulated detectors send."""
    from live_commands import SHAPE

    return np.random.default_rng(1).poisson(3, SHAPE).astype(np.uint16)


@pytest.fixture(scope="session")
def hdr(frames, tmp_path_factory):
    """A Merlin's file of them."""
    from libertem_parallax.live.merlin import write_mib

    path = tmp_path_factory.mktemp("merlin") / "scan.hdr"
    write_mib(path, frames, bits=12)
    return path


@pytest.fixture
def merlin(hdr):
    from libertem_parallax.live.merlin import simulator

    with simulator(hdr) as where:
        yield where


@pytest.fixture
def operator(monkeypatch):
    """Start an acquisition as soon as somebody waits for one; the commands can be changed."""
    from libertem_live.detectors.merlin.connection import MerlinDetectorConnection
    from live_commands import command

    commands = ["STARTACQUISITION", "SOFTTRIGGER"]
    wait = MerlinDetectorConnection.wait_for_acquisition

    def start_and_wait(conn, timeout=None):
        command(conn._api_port, *commands)
        return wait(conn, timeout)

    monkeypatch.setattr(MerlinDetectorConnection, "wait_for_acquisition", start_and_wait)
    return commands


@pytest.fixture
def silent():
    """Give a port that somebody listens on who never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed():
    """Give a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
