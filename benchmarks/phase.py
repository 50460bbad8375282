"""Phase images: how right they are and how long they take, next to a peer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from libertem.api import Context
from scipy.ndimage import gaussian_filter

from libertem_parallax import ParallaxPhaseUDF, ParallaxUDF
from libertem_parallax.geometry import Geometry
from libertem_parallax.images import IMAGES, Imaging, Sums

from . import known
from .calibration import ask, environments, with_peers
from .known import Known

__all__ = ["DOSES", "cost", "main", "table"]

#: Of the demo's specimen, in e/Å².
DOSES = 10.0, 30.0, 300.0

OURS = "phase flip", "phase", "direct"

#: Of an acquisition whose cost is measured: 553 pixels in the bright field.
COST: dict[str, Any] = {
    "scan_sampling": (2.0, 2.0),
    "energy": 300e3,
    "semiangle_cutoff": 4.0,
    "angular_sampling": (0.3, 0.3),
    "aberration_coefs": {"C10": -1.5e4},
}

#: Scans whose runs are timed, from the smallest to the fastest: rows, detector's rows, dtype.
SCANS = (72, 64, "uint8"), (128, 64, "float32"), (256, 64, "uint8"), (512, 32, "uint8")


def table(one: Known, pythons: Mapping[str, str]) -> Iterator[str]:
    """Lines of a table: correlation with the truth and seconds of every path.

    Parameters
    ----------
    one
        Set with known truth.
    pythons
        Interpreters by path.
    """
    yield one.name
    yield f"  {'path':<16}{'correlation':>12}{'seconds':>9}"
    for path, python in pythons.items():
        with tempfile.TemporaryDirectory() as name:
            output = Path(name) / "image.npy"
            answer = ask(python, path, one, output)
            if "error" in answer:
                yield f"  {path:<16}  {answer['error']}"
                continue
            value = known.correlation(np.load(output), one.phase)
        yield f"  {path:<16}{value:>12.3f}{answer['seconds']:>9.2f}"
    yield ""


def cost(
    image: int = 1024, scans: Iterable[tuple[int, int, str]] = SCANS, rounds: int = 15
) -> Iterator[str]:
    """Lines that tell what images cost: the last step, and rates of runs without and with it.

    Parameters
    ----------
    image
        Rows and columns of the image that the last step makes.
    scans
        That are run: rows and columns of the scan, those of the detector, dtype.
    rounds
        How often all take turns; small scans do more often.
    """
    rng = np.random.default_rng(0)
    geometry = Geometry.from_parameters((image, image, 32, 32), **COST)
    A, S = rng.poisson(400, (2, 1, 1, image, image)).astype(np.uint32)
    imaging, seconds = Imaging(geometry), {name: list[float]() for name in IMAGES}
    for _ in range(rounds + 1):
        for name, one in IMAGES.items():
            start = time.perf_counter()
            one.prepare(imaging)
            one.make(Sums(imaging, A, S[0, 0], np.ones((image, image), bool)))
            seconds[name].append(time.perf_counter() - start)
    yield f"last step, {image} x {image}"
    yield f"  {'image':<16}{'first':>8}{'median':>8}{'most':>8}"
    for name, (first, *later) in seconds.items():
        ms = f"{1e3 * first:>8.0f}{1e3 * np.median(later):>8.1f}{1e3 * max(later):>8.1f}"
        yield f"  {name:<16}{ms} ms"

    yield "frames/s until the sums are complete, and of whole runs with the last step; in turns"
    words = "parallax", "phase", "ratio", "within 3 %", "processor time, more"
    yield f"  {'scan, frames':<42}{'':<12}" + "".join(f"{word:>13}" for word in words)
    for scan, detector, dtype in scans:
        yield from _rates(rng, scan, detector, dtype, max(rounds, rounds * 128 // scan))


def _rates(
    rng: np.random.Generator, scan: int, detector: int, dtype: str, rounds: int
) -> Iterator[str]:
    """Lines for a scan of something to see, in memory and, if that can be, from a file."""
    shape = (scan, scan, detector, detector)
    udfs = [cls.from_parameters(shape, **COST) for cls in (_Sums, _PhaseSums, *_WHOLE)]
    plan, frames = udfs[0].params.geometry.plan, np.zeros(shape, dtype)
    specimen = gaussian_filter(rng.standard_normal((scan, scan)), 2, mode="wrap")
    expected = 0.7 + 0.5 * specimen  # give or take a tenth
    for (row, column), shift in zip(plan.pixels, plan.shifts, strict=True):
        frames[..., row, column] = rng.poisson(np.roll(expected, shift, (0, 1)))
    with tempfile.TemporaryDirectory() as name, Context.make_with("inline") as ctx:
        path = Path(name) / "frames.npy"
        np.save(path, frames)
        for source, ds in {
            "memory": ctx.load("memory", data=frames, sig_dims=2),
            "file": ctx.load("npy", path=path),
        }.items():
            what = f"{scan} x {scan}, {detector} x {detector} {dtype} from {source}"
            runs = np.array([[_run(ctx, ds, udf) for udf in udfs] for _ in range(rounds + 1)])[1:]
            for reading, both in {"sums": runs[:, :2], "whole": runs[:, 2:]}.items():
                rates = "".join(f"{scan**2 / s:>13,.0f}" for s in np.median(both[..., 0], axis=0))
                part = round(float(np.median(both[:, 0, 0] / both[:, 1, 0])), 3)  # as it is told
                more = 1e3 * np.median(both[:, 1, 1] - both[:, 0, 1])
                met = "yes" if part >= 0.97 else "no"
                yield f"  {what:<42}{reading:<12}{rates}{part:>13.3f}{met:>13}{more:>18.2f} ms"


def _run(ctx: Context, ds: Any, udf: Any) -> tuple[float, float]:
    """Run and return seconds, and those of processors."""
    start = time.perf_counter(), time.process_time()
    ctx.run_udf(ds, udf)
    return time.perf_counter() - start[0], time.process_time() - start[1]


class _NoLastStep:
    """Ends when the sums are complete."""

    def _images_of(self, *sums: Any) -> dict[str, Any]:
        del sums
        udf: Any = self
        blank = np.broadcast_to(np.float32(0), udf.params.geometry.plan.image_shape)
        return dict.fromkeys(udf._names, blank)


class _Sums(_NoLastStep, ParallaxUDF):
    pass


class _PhaseSums(_NoLastStep, ParallaxPhaseUDF):
    pass


_WHOLE = ParallaxUDF, ParallaxPhaseUDF


@click.command()
@with_peers
@click.option("--cost", "costs", is_flag=True, help="Only what images cost, without peers.")
def main(quantem: str | None, py4dstem: str | None, data: Path | None, costs: bool) -> None:
    """Make images of sets of known truth at the true parameters, one pixel for a scan step.

    The truth is blurred by 0.7 pixels, images are not. Seconds are those of one core, from the file
    to the image, once all is compiled. py4DSTEM makes no such image and is not asked.
    """
    del py4dstem
    if costs:
        for line in cost():
            click.echo(line)
        return
    pythons = environments(OURS, {"quantEM Wiener": quantem})
    more = [] if data is None else known.folder(data)
    with tempfile.TemporaryDirectory() as name:
        for one in [*known.demo(Path(name), DOSES), *more]:
            for line in table(one, pythons):
                click.echo(line)


if __name__ == "__main__":
    main()
