"""Engines for the tests, the CUDA one on a device that stands in where there is none."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from standin import compiler
from standin.cupy import CuPy

from libertem_parallax.accumulate.cuda import device, upload

#: GPU nodes need not have LiberTEM-live to run the tests that need a GPU.
collect_ignore = [] if find_spec("libertem_live") else ["test_live.py", "test_cli_live.py"]


def pytest_report_header():
    """Say what is left out."""
    return [f"{name} is left out: libertem-live is missing" for name in collect_ignore]


needs_compiler = pytest.mark.skipif(
    not compiler.AVAILABLE, reason="g++ is missing, with which the CUDA kernels run on the CPU"
)


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


@pytest.fixture(
    params=[
        "numba",
        "numpy",
        pytest.param("cuda", id="cuda-on-cpu", marks=needs_compiler),
        pytest.param("cuda", id="cuda", marks=pytest.mark.gpu),
    ]
)
def engine_name(request):
    """Every engine; that for GPUs runs on the CPU, or with ``-m gpu`` on one."""
    if request.param == "cuda" and "gpu" not in request.keywords:
        request.getfixturevalue("standin")()
        # So that some of the tests' small detectors are cut along columns, and some are not.
        request.getfixturevalue("monkeypatch").setattr(upload, "ROW_BYTES", 16)
    return request.param
