"""Command line of the benchmarks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from .workloads import WORKLOADS, Workload

_HERE = Path(__file__).resolve().parent

PATHS = ("floor", "numba", "numba phase flip", "numpy", "SumUDF")
UPSTREAM = ("upstream", "upstream phase flip")


class Worker:
    """A path in its own process; see `benchmarks.worker`."""

    def __init__(self, path: str, python: str) -> None:
        self.path = path
        environment = dict(os.environ)
        if path in UPSTREAM:
            environment.pop("PYTHONPATH", None)
        else:
            environment["PYTHONPATH"] = str(_HERE.parent)
        self._process = subprocess.Popen(
            [python, str(_HERE / "worker.py"), path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, line: str) -> str:
        """Send a line and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        for answer in self._process.stdout:
            if answer.startswith("="):
                return answer[1:].strip()
        raise click.ClickException(f"the process for {self.path!r} ended; see above.")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextlib.contextmanager
def _workers(paths: tuple[str, ...], upstream: str | None) -> Iterator[list[Worker]]:
    with contextlib.ExitStack() as stack:
        workers = []
        for path in paths:
            python = upstream if upstream and path in UPSTREAM else sys.executable
            workers.append(Worker(path, python))
            stack.callback(workers[-1].close)
        yield workers


def _write_frames(workload: Workload, file: Path) -> None:
    """Few electrons per pixel, as at low dose."""
    rng = np.random.default_rng(0)
    np.save(file, rng.integers(0, 3, workload.shape, dtype=np.uint8).astype(workload.dtype))


def _prepare(worker: Worker, workload: Workload, frames: Path) -> np.ndarray | None:
    """Let a worker get ready; returns the image, None where there is none."""
    file = worker.ask(json.dumps({**dataclasses.asdict(workload), "file": str(frames)}))
    if not file:
        return None
    image: np.ndarray = np.load(file)
    Path(file).unlink()
    return image


def measure(
    workload: Workload, workers: list[Worker], rounds: int, folder: Path
) -> dict[str, list[float]]:
    """Seconds of every path in every round, interleaved; a wrong image gets no time."""
    frames = folder / "frames.npy"
    _write_frames(workload, frames)
    images = {worker.path: _prepare(worker, workload, frames) for worker in workers}
    seconds: dict[str, list[float]] = {}
    for worker in workers:
        path = worker.path
        expected = images["numba phase flip" if path.endswith("phase flip") else "numba"]
        image = images[path]
        if image is not None and expected is not None and path != "SumUDF":
            error = np.abs(image - expected).max() / np.abs(expected).max()
            if error > 1e-5:
                correlation = np.corrcoef(image.ravel(), expected.ravel())[0, 1]
                click.echo(f"  {path}: wrong, correlation {correlation:.3f}; not timed")
                continue
        seconds[path] = []
    timed = [worker for worker in workers if worker.path in seconds]
    for _ in tqdm(range(rounds), desc=workload.name, leave=False):
        for worker in timed:
            seconds[worker.path].append(float(worker.ask("run")))
    return seconds


def _table(workload: Workload, seconds: dict[str, list[float]]) -> Iterator[str]:
    frames = workload.shape[0] * workload.shape[1]
    yield f"{workload.name}"
    header = f"  {'path':<20}{'frames/s':>12}{'spread':>9}"
    references = [path for path in ("upstream", "SumUDF", "floor") if path in seconds]
    yield header + "".join(f"{'x ' + path:>12}" for path in references)
    for path, times in seconds.items():
        median = statistics.median(times)
        low, high = np.quantile(times, [0.25, 0.75])
        ratios = "".join(
            # Of paired rounds: what slows the machine down slows both.
            f"{statistics.median(a / b for a, b in zip(seconds[r], times, strict=True)):>12.2f}"
            for r in references
        )
        yield (
            f"  {path:<20}{frames / median:>12,.0f}{(high - low) / median:>8.0%} {ratios}".rstrip()
        )


@click.command()
@click.option("--rounds", default=7, show_default=True, help="Runs of every path.")
@click.option("--quick", is_flag=True, help="The smallest workload only, three rounds.")
@click.option(
    "--upstream",
    metavar="PYTHON",
    help="Interpreter of an environment with libertem-parallax 0.1.2, to compare with.",
)
def main(rounds: int, quick: bool, upstream: str | None) -> None:
    """Measure frames per second of every path, each a real Context.run_udf on one core.

    All paths read the same file, which is in memory after the first run, and take turns. "floor"
    is not a reconstruction: it reads every cache line of the bright field once, nothing else.
    """
    paths = PATHS + (UPSTREAM if upstream else ())
    with tempfile.TemporaryDirectory() as folder, _workers(paths, upstream) as workers:
        for number, workload in enumerate(WORKLOADS[:1] if quick else WORKLOADS):
            # Upstream's phase flip takes minutes on all but the smallest.
            some = [w for w in workers if number == 0 or w.path != "upstream phase flip"]
            seconds = measure(workload, some, 3 if quick else rounds, Path(folder))
            click.echo("\n".join(_table(workload, seconds)) + "\n")


if __name__ == "__main__":
    main()
