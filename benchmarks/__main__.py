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
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from libertem_parallax.accumulate import CudaError
from libertem_parallax.accumulate.cuda import describe

from . import calibration, known, phase, report
from .report import Row
from .workloads import CURVES, WORKLOADS, Workload, write

_HERE = Path(__file__).resolve().parent

PATHS = (
    "floor",
    "floor, file mapped",
    "NoOpUDF",
    "SumUDF",
    "numba",
    "numba, phase flip",
    "numba, engine alone",
    "numpy",
)
#: Only where they do not: a stack, filled and added again.
STACK = ("numba, filling a stack", "numba, stack", "numba, stack, all cores")
#: Only where frames come as events: the same frames as dense ones, from a file of their own or made
#: by LiberTEM, and what events need at least.
EVENTS = ("numba, dense", "numba, made dense", "scatter floor")
GPU = ("bus floor", "device floor", "cuda", "cuda, phase flip", "cuda, engine alone")
#: Paths of other packages, in environments of their own.
PEERS = {
    "upstream": ("upstream", "upstream, phase flip"),
    "quantEM": ("quantEM", "quantEM, phase flip"),
}
#: Scan positions above which these would take minutes.
_MOST_FRAMES = {
    "upstream, phase flip": 24 * 24,
    **dict.fromkeys(PEERS["quantEM"], 72 * 72),
}

#: A path that has run for so many seconds on a workload, and twice, does not run again.
_PATIENCE = 6.0

#: Of the largest value: by how much images may differ, which are float32.
_TOLERANCE = 1e-5


class Worker:
    """A process that runs the paths of one environment; see `benchmarks.worker`."""

    def __init__(self, python: str = sys.executable) -> None:
        environment = dict(os.environ)
        environment.pop("PYTHONPATH", None)
        if python == sys.executable:
            environment["PYTHONPATH"] = str(_HERE.parent)
        self._process = subprocess.Popen(
            [python, str(_HERE / "worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, question: str | dict[str, Any]) -> Any:
        """Send a question and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(question)}\n")
        self._process.stdin.flush()
        for answer in self._process.stdout:
            if answer.startswith("="):
                return json.loads(answer[1:])
        raise click.ClickException("a process that runs paths ended; see above.")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _difference(path: str, image: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference from the right image, over its largest value."""
    if path.startswith("quantEM"):  # which has units of its own
        image = image * (np.vdot(image, expected) / np.vdot(image, image))
    return float(np.abs(image - expected).max() / np.abs(expected).max())


def measure(
    workload: Workload, workers: Mapping[str, Worker], rounds: int, folder: Path
) -> list[Row]:
    """Time every path in every round, taking turns; a path with a wrong image gets no time.

    Parameters
    ----------
    workload
        What to run.
    workers
        By path; ``numba`` among them, which is what the others have to equal.
    rounds
        Runs of every path; slow ones run less often.
    folder
        For the frames.

    Returns
    -------
    list of Row
        In the order of `workers`.
    """
    question = {**dataclasses.asdict(workload), "file": str(write(workload, folder))}
    answers, images = {}, {}
    for path, worker in workers.items():
        answers[path] = answer = worker.ask({**question, "path": path})
        if answer["image"]:
            images[path] = np.load(answer["image"])
            Path(answer["image"]).unlink()
    correlations: dict[str, float] = {}
    timed = []
    for path in workers:
        if path in images:
            right = images["numba, phase flip" if path.endswith("phase flip") else "numba"]
            correlations[path] = float(np.corrcoef(images[path].ravel(), right.ravel())[0, 1])
        if path not in images or _difference(path, images[path], right) <= _TOLERANCE:
            timed.append(path)
    seconds: dict[str, list[float]] = {path: [] for path in workers}
    for number in range(rounds):
        for path in timed:
            if number < 2 or sum(seconds[path]) < _PATIENCE:
                seconds[path].append(workers[path].ask(path))
    frames = workload.shape[0] * workload.shape[1]
    pixels, electrons = answers["numba"]["pixels"], answers["numba"]["electrons"]
    return [
        Row(
            workload.name,
            path,
            frames,
            pixels,
            electrons,
            times,
            correlations.get(path),
            events=workload.storage == "raw_csr" and not path.endswith("dense"),
        )
        for path, times in seconds.items()
    ]


def _takes_part(path: str, workload: Workload) -> bool:
    """Whether a path can run on a workload, and does not take minutes."""
    frames = workload.shape[0] * workload.shape[1]
    if workload.storage == "raw_csr":
        if path == "numpy":  # 0.2 µs an event
            return workload.electrons <= 0.001
        return not any(path in paths for paths in (STACK, *PEERS.values()))
    return path not in EVENTS and frames <= _MOST_FRAMES.get(path, frames)


def _read(file: Path) -> list[Row]:
    try:
        return [Row(**row) for row in json.loads(file.read_text())["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise click.ClickException(
            f"{file} is no results.json of the benchmarks: {error}"
        ) from error


def _truth(quantem: str | None) -> None:
    """Show how right calibration and phase images are; more of that in modules of their own."""
    peers = {} if quantem is None else {"quantEM search": quantem}
    images = {} if quantem is None else {"quantEM Wiener": quantem}
    with tempfile.TemporaryDirectory() as name:
        for one in known.demo(Path(name), [30.0]):
            for line in calibration.table(one, {"calibrate": sys.executable, **peers}):
                click.echo(line)
            for line in phase.table(one, dict.fromkeys(phase.OURS, sys.executable) | images):
                click.echo(line)


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Runs of every path.")
@click.option(
    "--quick", is_flag=True, help="The two smallest workloads only, three rounds, no curves."
)
@click.option(
    "--upstream",
    metavar="PYTHON",
    help="Interpreter of an environment with libertem-parallax 0.1.2, to compare with.",
)
@click.option(
    "--quantem",
    metavar="PYTHON",
    help="Interpreter of an environment with quantem, whose Montage to compare with.  [default: "
    "this one, if it has it]",
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
    help="Say what became slower or wrong since that results.json; exit with 1 if anything did.",
)
def main(
    rounds: int,
    quick: bool,
    upstream: str | None,
    quantem: str | None,
    output: Path | None,
    old: Path | None,
) -> None:
    """Measure frames per second of every path, each a real Context.run_udf on one core.

    Where there is a GPU, CUDA is one of the paths. Some rows are there to compare with: NoOpUDF and
    SumUDF are LiberTEM's; "engine alone" adds the same frames without LiberTEM and without the last
    step, "filling a stack" keeps the bright field in memory, and "stack" adds that again, on one
    thread or all cores. Those that end in "floor" do what no path can do without: "floor" reads
    every cache line of the bright field once ("file mapped": after mapping the file into memory, as
    every run does), "bus floor" sends the box around it to the GPU, "device floor" adds as often on
    the GPU.

    Where frames come as events, "floor" reads every event and what is to be done with its pixel,
    "scatter floor" adds as often; "dense" are the same frames in full, "made dense" by LiberTEM.

    All paths read the same file, which is in memory after the first run, and take turns; their
    images are compared first. Updates are bright-field pixels that were added, electrons the counts
    in them. Spread is the interquartile range over the median; "x floor" says how many times faster
    than the floor, and so on.

    Last come a calibration and phase images of the demo's specimen, against the truth.
    """
    before = None if old is None else _read(old)
    if output is None:
        output = Path(tempfile.mkdtemp(prefix="libertem-parallax-benchmarks-"))
    output.mkdir(parents=True, exist_ok=True)
    paths: dict[str, tuple[str, ...]] = {sys.executable: PATHS + STACK + EVENTS}
    try:
        gpu = describe()
    except CudaError as error:
        gpu = None
        click.echo(f"cuda: skipped. {error}")
    else:
        paths[sys.executable] += GPU
    if quantem is None and find_spec("quantem"):
        quantem = sys.executable
    for peer, python in (("upstream", upstream), ("quantEM", quantem)):
        if python:
            paths[python] = paths.get(python, ()) + PEERS[peer]
        else:
            click.echo(f"{peer}: skipped. --{peer.lower()} says in which environment it is.")
    click.echo()
    rows: list[Row] = []
    curves: dict[str, list[tuple[float | str, list[Row]]]] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        workers: dict[str, Worker] = {}
        for python, its_paths in paths.items():
            worker = Worker(python)
            stack.callback(worker.close)
            workers |= dict.fromkeys(its_paths, worker)
        for workload in tqdm(WORKLOADS[:2] if quick else WORKLOADS, desc="Tables", disable=quick):
            some = {path: w for path, w in workers.items() if _takes_part(path, workload)}
            found = measure(workload, some, 3 if quick else rounds, folder)
            tqdm.write("\n".join(report.table(found)), file=sys.stdout)
            rows += found
        points = [(title, x, w) for title, curve in CURVES.items() for x, w in curve]
        for title, x, workload in tqdm([] if quick else points, desc="Curves", disable=quick):
            # The floor is that of one core reading one after the other.
            inline = workload.executor == "inline"
            others = ("numba", "numba, stack") if workload.executor == "threads" else ("numba",)
            names = ("floor", "numba", "numba, dense", "cuda") if inline else others
            some = {p: workers[p] for p in names if p in workers and _takes_part(p, workload)}
            curves.setdefault(title, []).append((x, measure(workload, some, 5, folder)))
    if not quick:
        _truth(quantem)
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
        click.echo("\n".join(slower) or "Nothing became slower or wrong.")
        sys.exit(bool(slower))


if __name__ == "__main__":
    main()
