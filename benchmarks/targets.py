"""What is asked of the speed, and what there is: ``python -m benchmarks.targets``, ten minutes."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import click
from libertem.udf.base import NoOpUDF

from libertem_parallax import ParallaxUDF
from libertem_parallax.accumulate.threads import cores

from . import growth, live
from .worker import fill_stack, make_engine_run, make_floor, make_udf, prepare
from .workloads import Workload, events, radius, write

#: A path that has run for so many seconds on a workload, and three times, does not run again.
_PATIENCE = 4.0

#: Frames per second of 192 x 192 that this detector sends.
_ARINA = 120_000

_FLOATS = {
    f"{n} x {n} scan, 64 x 64 {dtype}": Workload("", (n, n, 64, 64), dtype)
    for dtype, n in (("float32", 128), ("float32", 256), ("float64", 128))
}
_LARGE = {
    "128 x 128 scan, 192 x 192 uint16, radius 30": Workload(
        "", (128, 128, 192, 192), "uint16", radius(30)
    ),
    "64 x 64 scan, 512 x 512 uint16, radius 30": Workload(
        "", (64, 64, 512, 512), "uint16", radius(30), lit=128
    ),
}
_EVENTS = events(128, 0.01)
_SMALL = Workload("", (72, 72, 64, 64), storage="memory", partitions=1)
_WIDE = Workload("", (256, 256, 16, 16), parameters=growth.bright(6), storage="memory")


class Ratio(NamedTuple):
    """How many times faster than another path one has to be."""

    what: str
    path: str
    than: str
    wanted: float | None = None


def _alone(name: str, wanted: float) -> list[Ratio]:
    return [
        Ratio(f"{name}: engine alone, of the floor", "numba, engine alone", "floor", wanted),
        Ratio(f"{name}: ..., with lines asked for", "numba, engine alone", "floor, asked"),
    ]


def _floats(name: str) -> list[Ratio]:
    at_floor = [_at_floor(name, "SumUDF")] if "float32" in name else []
    return [
        *_alone(name, 0.5),
        Ratio(f"{name}: from a file, times SumUDF", "numba", "SumUDF", 1.5),
        *at_floor,
        Ratio(f"{name}: ..., of the floor that maps the file", "numba", "floor, file mapped"),
    ]


def _large(name: str) -> list[Ratio]:
    return [
        *_alone(name, 0.6),
        Ratio(
            f"{name}: from a file, of the floor that maps the file",
            "numba",
            "floor, file mapped",
            0.4,
        ),
        _at_floor(name, "floor, file mapped"),
        Ratio(f"{name}: ..., of the floor", "numba", "floor"),
    ]


def _memory(name: str, than: str, wanted: float) -> list[Ratio]:
    return [
        Ratio(f"{name}: from memory, {_WORDS[than]}", "numba", than, wanted),
        *([] if "float64" in name else [_at_floor(name, than)]),
        Ratio(f"{name}: ..., NoOpUDF, {_WORDS[than]}", "NoOpUDF", than),
    ]


_WORDS = {
    "SumUDF": "times SumUDF",
    "floor": "of the floor",
    "floor, file mapped": "of the floor that maps the file",
}


def _at_floor(name: str, than: str) -> Ratio:
    """Ask what there would be if the engine took no longer than the floor, and all else as long."""
    what = f"{name}: ..., with an engine at the floor, {_WORDS[than]}"
    return Ratio(what, "numba, at the floor", than)


#: Workloads, and the rows that are measured on each.
RATIOS: list[tuple[Workload, list[Ratio]]] = [
    *((workload, _floats(name)) for name, workload in _FLOATS.items()),
    *(
        (dataclasses.replace(workload, storage="memory"), _memory(name, "SumUDF", 1.5))
        for name, workload in _FLOATS.items()
    ),
    *((workload, _large(name)) for name, workload in _LARGE.items()),
    *(
        (dataclasses.replace(workload, storage="memory"), _memory(name, "floor", 0.4))
        for name, workload in _LARGE.items()
    ),
    (
        _EVENTS,
        [
            Ratio("events at 1 %: times dense frames of a file", "numba", "numba, dense", 8.0),
            Ratio("events at 1 %: times LiberTEM's densifying", "numba", "numba, made dense", 15.0),
            Ratio("events at 1 %: of the floor", "numba", "floor"),
            Ratio("events at 1 %: engine alone, of the floor", "numba, engine alone", "floor"),
            Ratio("events at 1 %: NoOpUDF, of the floor", "NoOpUDF", "floor"),
        ],
    ),
    (
        dataclasses.replace(_EVENTS, partitions=1),
        [Ratio("events at 1 %, one partition: times dense frames", "numba", "numba, dense")],
    ),
]


def take_turns(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every run, all of which take part in every round; slow ones in the first three."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, run in runs.items():
            if number < 3 or sum(seconds[name]) < _PATIENCE:
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(path: list[float], than: list[float]) -> float:
    """How many times faster than another; median of paired rounds."""
    return statistics.median(b / a for a, b in zip(path, than, strict=False))


def make_runs(workload: Workload, paths: list[str], folder: Path) -> dict[str, Callable[[], Any]]:
    """Get paths of `benchmarks.worker` ready; each has run once."""
    question = dataclasses.asdict(workload) | {"file": str(write(workload, folder))}
    return {path: prepare(path, question)[0] for path in paths}


def row(what: str, wanted: str, measured: str, met: bool | None) -> str:
    """Line of the table."""
    return f"| {what} | {wanted} | {measured} | {'' if met is None else 'yes' if met else 'no'} |"


def ratio_rows(workload: Workload, ratios: list[Ratio], rounds: int) -> Iterator[str]:
    """Rows of the paths on one workload."""
    paths = list(dict.fromkeys(path for each in ratios for path in (each.than, each.path)))
    with tempfile.TemporaryDirectory() as folder:
        seconds = take_turns(make_runs(workload, paths, Path(folder)), rounds)
    for what, path, than, wanted in ratios:
        found = ratio(seconds[path], seconds[than])
        yield row(
            what,
            "" if wanted is None else f"{wanted:g}",
            f"{found:.2f} ({1e3 * statistics.median(seconds[path]):.1f} ms)",
            None if wanted is None else found >= wanted,
        )


def fixed_rows(rounds: int) -> Iterator[str]:
    """Rows of what a run and a partition cost beyond NoOpUDF."""
    pair = ["NoOpUDF", "numba"]
    with tempfile.TemporaryDirectory() as folder:
        seconds = take_turns(make_runs(_SMALL, pair, Path(folder)), 4 * rounds)
    more = 1e3 * statistics.median(
        b - a for a, b in zip(seconds["NoOpUDF"], seconds["numba"], strict=True)
    )
    yield row("72 x 72 scan: ms more than NoOpUDF", "2", f"{more:.2f}", more <= 2)
    counts = 4, 64
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            f"{path} {n}": run
            for n in counts
            for path, run in make_runs(
                dataclasses.replace(_WIDE, partitions=n), pair, Path(folder)
            ).items()
        }
        best = {name: min(times) for name, times in take_turns(runs, rounds).items()}
    few, many = (best[f"numba {n}"] - best[f"NoOpUDF {n}"] for n in counts)
    each = 1e3 * (many - few) / (counts[1] - counts[0])
    what = "image of 512 x 512: ms more than NoOpUDF for each partition"
    yield row(what, "0.5", f"{each:.2f}", each <= 0.5)


def thread_rows(rounds: int) -> Iterator[str]:
    """Rows of several threads against one: each adds frames of its own, or a part of them."""
    n = cores()
    if n == 1:
        yield row("threads", "", "one core only", None)
        return
    large = Workload("", (512, 256, 64, 64))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(n) as pool:

        def together(runs: list[Callable[[], Any]]) -> Callable[[], Any]:
            return lambda: list(pool.map(lambda run: run(), runs))

        question = dataclasses.asdict(large) | {"file": str(write(large, Path(folder)))}
        plan = make_udf("numba", question).params.geometry.plan
        for what, path, make, wanted in (
            ("bandwidth: the floor", "floor", make_floor, None),
            ("engine alone", "numba, engine alone", make_engine_run, 0.9),
        ):
            one = make(path, plan, question)
            parts = [make(path, plan, question | {"part": (i, n)}) for i in range(n)]
            # Each has frames of its own: of the same ones, all but the first find them in a cache.
            runs = {"one": one, "all": together(parts)}
            take_turns(runs, 1)  # compiles
            seconds = take_turns(runs, 4 * rounds)
            found = ratio(seconds["all"], seconds["one"]) / n
            yield row(
                f"{n} threads, {what}: times {n} x one",
                _of(wanted),
                f"{found:.2f}",
                _met(found, wanted),
            )
        for k in (256, 512):
            square = Workload("", (k, k, 64, 64))
            asked = dataclasses.asdict(square) | {"file": str(write(square, Path(folder)))}
            udf = make_udf("numba", asked)
            add = functools.partial(fill_stack(udf, asked)[1].add, udf.params.geometry.plan)
            by = {"one": functools.partial(add, 1), "all": functools.partial(add, n)}
            seconds = take_turns(by, 4 * rounds)
            found = ratio(seconds["all"], seconds["one"]) / n
            what = f"{n} threads, a stack of {k} x {k} frames: times {n} x one"
            yield row(what, "0.9", f"{found:.2f}", found >= 0.9)
        threads = dataclasses.replace(large, executor="threads", workers=n)

        def executors(path: str) -> dict[str, Callable[[], Any]]:
            both = {"inline": large, "threads": threads}
            return {
                name: make_runs(each, [path], Path(folder))[path] for name, each in both.items()
            }

        runs = executors("numba")
        # In the first runs LiberTEM looks for libraries' threads, for 5 ms, until it finds the
        # same ones twice.
        take_turns(runs, 10)
        seconds = take_turns(runs, 4 * rounds)
        found = ratio(seconds["threads"], seconds["inline"]) / n
        yield row(f"{n} threads, executor: times {n} x inline", "0.8", f"{found:.2f}", found >= 0.8)
        for path, pair in {"numba": runs, "NoOpUDF": executors("NoOpUDF")}.items():
            (_, alone, _), (before, shared, after) = (
                spans(path, run, 4 * rounds) for run in pair.values()
            )
            yield row(
                f"{n} threads, executor: {path}, before the first tile, until the last, after it",
                "",
                f"{before:.1f} + {shared:.1f} ({alone / shared / n:.2f} of {n} x) + {after:.1f} ms",
                None,
            )


def spans(path: str, run: Callable[[], Any], rounds: int) -> tuple[float, float, float]:
    """Milliseconds before the first tile of a run, until the end of the last one, and after it."""
    cls = NoOpUDF if path == "NoOpUDF" else ParallaxUDF
    tiles: list[tuple[float, float]] = []
    process = cls.process_tile

    def timed(self: Any, tile: Any) -> None:
        start = time.perf_counter()
        process(self, tile)
        tiles.append((start, time.perf_counter()))

    parts = []
    with mock.patch.object(cls, "process_tile", timed):
        for _ in range(rounds):
            tiles.clear()
            start = time.perf_counter()
            run()
            stop = time.perf_counter()
            first, last = min(tiles)[0], max(end for _, end in tiles)
            parts.append((first - start, last - first, stop - last))
    before, between, after = (1e3 * statistics.median(part) for part in zip(*parts, strict=True))
    return before, between, after


def _of(wanted: float | None) -> str:
    return "" if wanted is None else f"{wanted:g}"


def _met(found: float, wanted: float | None) -> bool | None:
    return None if wanted is None else found >= wanted


def live_rows(rounds: int) -> Iterator[str]:
    """Rows of live runs, and how many cores a detector needs."""
    for tiles, wanted in ((", decoded in tiles of 14", None), ("", 0.9)):
        rates = live.measure(rounds, decoded=bool(tiles))
        for workers in sorted({workers for workers, _ in rates}):
            ours, nothing = rates[workers, "parallax"], rates[workers, "NoOpUDF"]
            found = statistics.median(a / b for a, b in zip(ours, nothing, strict=True))
            rate = statistics.median(ours)
            what = f"live{tiles}, {workers} worker{'s' * (workers > 1)}: of NoOpUDF's rate"
            measured = f"{found:.2f} ({rate:,.0f} frames/s)"
            yield row(what, _of(wanted), measured, _met(found, wanted))
    # By one process: what LiberTEM-live takes for itself, and what comes on top.
    receive = _ARINA / statistics.median(rates[1, "NoOpUDF"])
    add = _ARINA / statistics.median(rates[1, "parallax"]) - receive
    yield row(
        f"live, {_ARINA:,} frames/s: cores, on paper",
        "",
        f"{receive:.1f} to receive, {add:.1f} to add",
        None,
    )


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Runs of every path.")
@click.option("--only", help="Part of the table: ratios, fixed, threads, live or growth.")
def main(rounds: int, only: str | None) -> None:
    """Print what is asked of the speed, and what is measured, as tables in Markdown.

    Paths and floors are those of `python -m benchmarks`; those of a row take turns. Needs 5 GB on
    disk and in memory.
    """
    warnings.filterwarnings("ignore")
    parts: dict[str, Callable[[], Iterator[str]]] = {
        "ratios": lambda: (line for each in RATIOS for line in ratio_rows(*each, rounds)),
        "fixed": lambda: fixed_rows(rounds),
        "threads": lambda: thread_rows(rounds),
        "live": lambda: live_rows(rounds),
    }
    click.echo("| what | wanted | measured | met |\n|---|---|---|---|")
    for name, lines in parts.items():
        if only in (None, name):
            for line in lines():
                click.echo(line)
    if only in (None, "growth"):
        click.echo()
        for line in growth.tables(min(rounds, 3)):
            click.echo(line)


if __name__ == "__main__":
    main()
