"""Command line of the benchmarks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from libertem_parallax.accumulate import CudaError
from libertem_parallax.accumulate.cuda import describe

from . import report
from .report import Row
from .workloads import CURVES, WORKLOADS, Workload

_HERE = Path(__file__).resolve().parent

PATHS = ("floor", "numba", "numba phase flip", "numpy", "SumUDF")
GPU = ("cuda", "cuda phase flip")
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

    def ask(self, line: str) -> Any:
        """Send a line and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        for answer in self._process.stdout:
            if answer.startswith("="):
                return json.loads(answer[1:])
        raise click.ClickException(f"the process for {self.path!r} ended; see above.")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextlib.contextmanager
def _workers(paths: Sequence[str], upstream: str | None) -> Iterator[list[Worker]]:
    with contextlib.ExitStack() as stack:
        workers = []
        for path in paths:
            python = upstream if upstream and path in UPSTREAM else sys.executable
            workers.append(Worker(path, python))
            stack.callback(workers[-1].close)
        yield workers


def _frames(workload: Workload, folder: Path) -> Path:
    """File with few electrons per pixel, as at low dose; the last one is used again if it fits."""
    name = "x".join(map(str, workload.shape)) + f"_{workload.dtype}.npy"
    if not (folder / name).exists():
        for other in folder.iterdir():
            other.unlink()
        rng = np.random.default_rng(0)
        frames = rng.integers(0, 3, workload.shape, dtype=np.uint8)
        np.save(folder / name, frames.astype(workload.dtype))
    return folder / name


def measure(workload: Workload, workers: Sequence[Worker], rounds: int, folder: Path) -> list[Row]:
    """Time every path in every round, taking turns; a path with a wrong image gets no time."""
    question = {**dataclasses.asdict(workload), "file": str(_frames(workload, folder))}
    images = {}
    pixels = 0
    for worker in workers:
        answer = worker.ask(json.dumps(question))
        pixels = answer["pixels"] or pixels
        if answer["image"]:
            images[worker.path] = np.load(answer["image"])
            Path(answer["image"]).unlink()
    timed = []
    for worker in workers:
        path = worker.path
        if path in images and path != "SumUDF":
            image = images[path]
            expected = images["numba phase flip" if path.endswith("phase flip") else "numba"]
            if np.abs(image - expected).max() > 1e-5 * np.abs(expected).max():
                correlation = np.corrcoef(image.ravel(), expected.ravel())[0, 1]
                click.echo(f"{path}: wrong, correlation {correlation:.3f}; not timed")
                continue
        timed.append(worker)
    seconds: dict[str, list[float]] = {worker.path: [] for worker in timed}
    for _ in range(rounds):
        for worker in timed:
            seconds[worker.path].append(worker.ask("run"))
    frames = workload.shape[0] * workload.shape[1]
    return [Row(workload.name, path, frames, pixels, times) for path, times in seconds.items()]


def _read(file: Path) -> list[Row]:
    try:
        return [Row(**row) for row in json.loads(file.read_text())["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise click.ClickException(
            f"{file} is no results.json of the benchmarks: {error}"
        ) from error


@click.command()
@click.option("--rounds", default=7, show_default=True, help="Runs of every path.")
@click.option("--quick", is_flag=True, help="The smallest workload only, three rounds, no curves.")
@click.option(
    "--upstream",
    metavar="PYTHON",
    help="Interpreter of an environment with libertem-parallax 0.1.2, to compare with.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder for results.json and curves.png.  [default: a new temporary folder]",
)
@click.option(
    "--compare",
    "old",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="OLD.json",
    help="Say what became slower than in that results.json; exit with 1 if anything did.",
)
def main(
    rounds: int, quick: bool, upstream: str | None, output: Path | None, old: Path | None
) -> None:
    """Measure frames per second of every path, each a real Context.run_udf on one core.

    Where there is a GPU, CUDA is one of the paths.

    All paths read the same file, which is in memory after the first run, and take turns. "floor"
    is not a reconstruction: it reads every cache line of the bright field once, nothing else.
    """
    before = None if old is None else _read(old)
    if output is None:
        output = Path(tempfile.mkdtemp(prefix="libertem-parallax-benchmarks-"))
    output.mkdir(parents=True, exist_ok=True)
    paths = PATHS + (UPSTREAM if upstream else ())
    try:
        gpu = describe()
    except CudaError as error:
        gpu = None
        click.echo(f"cuda: skipped. {error}\n")
    else:
        paths += GPU
    rows: list[Row] = []
    curves: dict[str, list[tuple[float, list[Row]]]] = {}
    with tempfile.TemporaryDirectory() as name, _workers(paths, upstream) as workers:
        folder = Path(name)
        for number, workload in enumerate(WORKLOADS[:1] if quick else WORKLOADS):
            # Upstream's phase flip takes minutes on all but the smallest.
            some = [w for w in workers if number == 0 or w.path != "upstream phase flip"]
            found = measure(workload, some, 3 if quick else rounds, folder)
            click.echo("\n".join(report.table(found)))
            rows += found
        some = [w for w in workers if w.path in ("floor", "numba", "cuda")]
        points = [(title, x, w) for title, curve in CURVES.items() for x, w in curve]
        for title, x, workload in tqdm([] if quick else points, desc="Curves", disable=quick):
            # The floor is that of one core reading one after the other.
            which = some if workload.executor == "inline" else some[1:]
            curves.setdefault(title, []).append((x, measure(workload, which, 5, folder)))
    results = {
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("libertem", "numba", "numpy", "scipy")},
            "gpu": gpu,
        },
        "rows": [dataclasses.asdict(row) for row in rows],
        "curves": {
            title: [[x, [dataclasses.asdict(row) for row in found]] for x, found in points]
            for title, points in curves.items()
        },
    }
    (output / "results.json").write_text(json.dumps(results, indent=1))
    click.echo(f"Written to {output / 'results.json'}")
    if curves:
        report.plot(output / "curves.png", curves)
        click.echo(f"           {output / 'curves.png'}")
    if before is not None:
        slower = report.compare(before, rows)
        click.echo("\n".join(slower) or "Nothing became slower.")
        sys.exit(bool(slower))


if __name__ == "__main__":
    main()
