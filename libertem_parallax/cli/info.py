"""``info``: versions, and which engines and GPUs work."""

from __future__ import annotations

import contextlib
import platform
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from .messages import messages_only
from .run import count_gpus, default_gpu

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: Of a stack that is to show what fits a GPU.
_PIXELS = 500


@click.command(short_help="Show versions, and which engines and GPUs work.")
def info() -> None:
    """Show versions, and which engines and GPUs work: each one is tried on a few frames.

    Takes seconds the first time, when code is compiled.
    """
    from libertem.common.backend import get_use_cuda

    from ..accumulate.cuda import describe, memory

    with messages_only():
        default, gpus = default_gpu(), count_gpus()
    alone = default is None or default == get_use_cuda()
    rows = [("Versions", ", ".join(_versions())), ("", ""), ("Engine", "Status")]
    for device in sorted({*range(gpus), default or 0}):
        problem = _gpu_problem(device)
        used = "" if device != default else "all" if alone else "stacks and calibration"
        text = _status(problem, used)
        name = f"cuda, GPU {device}" if gpus else "cuda"
        rows.append((name, text if problem else f"{text}: {describe(device)}"))
        if not problem:
            free, total = memory(device)
            rows.append(
                (
                    "",
                    f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB are free: enough for a stack of"
                    f" {free // _PIXELS:,} frames with {_PIXELS} bright-field pixels of 8 bits",
                )
            )
    on_cpu = "all" if default is None else "" if alone else "frames from files and detectors"
    rows += [
        ("numba", _status(_problem("numba"), on_cpu)),
        ("numpy", f"{_status(_problem('numpy'))}; slow, for comparison"),
        ("", ""),
        ("In Python", 'use the GPU with engine="cuda", or let LiberTEM assign it:'),
        ("", 'libertem.api.Context.make_with("dask", gpus=1, cpus=0)'),
    ]
    for name, text in rows:
        click.echo(
            textwrap.fill(
                text,
                width=79,
                initial_indent=f"{name:<15}",
                subsequent_indent=" " * 15,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )


def _versions() -> Iterator[str]:
    from importlib.metadata import PackageNotFoundError, version

    # CuPy's package is named after the CUDA that it is for.
    cupy = ("cupy", "cupy-cuda12x", "cupy-cuda13x")
    for package in ("libertem-parallax", "libertem", "numpy", "numba", *cupy):
        with contextlib.suppress(PackageNotFoundError):
            yield f"{package} {version(package)}"
    yield f"Python {platform.python_version()}"


def _gpu_problem(device: int) -> str | None:
    """Add and transform on a GPU as NumPy does; what is wrong, or None where it works."""
    from ..accumulate.cuda import check
    from ..likelihood.cuda import check as check_likelihood

    try:
        wrong = check(device) + check_likelihood(device)
    except Exception as error:  # as below
        return str(error) or repr(error)
    return f"its {' and '.join(wrong)} differ from NumPy's." if wrong else None


def _problem(engine: str) -> str | None:
    """Add a few frames with an engine; what is wrong, or None where it works."""
    import numpy as np

    from ..accumulate import Plan, accumulator_dtype, make_engine

    plan = Plan((2, 3), (2, 2), 2, np.array([[0, 1], [1, 0]]), np.array([[0, 0], [3, -1]]))
    frames = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)

    def added(engine: str) -> NDArray[Any]:
        A = np.zeros(plan.accumulator_shape, accumulator_dtype(frames.dtype, len(plan.pixels)))
        worker = make_engine(engine, plan, frames.dtype, np.arange(6), A, np.zeros(6, A.dtype))
        worker.add(frames)
        worker.finish()
        return A

    try:
        if np.array_equal(added(engine), added("numpy")):
            return None
        return "its sums differ from those of the engine numpy."
    # Drivers, compilers and libraries have many ways to fail.
    except Exception as error:
        return str(error) or repr(error)


def _status(problem: str | None, used: str = "") -> str:
    """Say whether something works, and what it would be used for: "all", some or nothing."""
    if problem:
        return f"{'would be tried first, but fails' if used else 'not available'}: {problem}"
    purpose = "" if used == "all" else f" for {used}"
    return f"works; would be used{purpose}" if used else "works"
