"""Phase images: how right they are and how long they take, next to a peer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
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


def cost(image: int = 1024, scan: int = 512, rounds: int = 15) -> Iterator[str]:
    """Lines that tell what images cost: the last step, and rates of whole runs.

    Parameters
    ----------
    image
        Rows and columns of the image that the last step makes.
    scan
        Rows and columns of the scan that is run.
    rounds
        How often all take turns.
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

    shape = (scan, scan, 32, 32)
    udfs = [cls.from_parameters(shape, **COST) for cls in (ParallaxUDF, ParallaxPhaseUDF)]
    plan, frames = udfs[0].params.geometry.plan, np.zeros(shape, np.uint8)
    # Something to see: of noise alone, finding signal and noise takes five times as long.
    specimen = gaussian_filter(rng.standard_normal((scan, scan)), 2, mode="wrap")
    expected = 0.7 + 0.5 * specimen  # give or take a tenth
    for (row, column), shift in zip(plan.pixels, plan.shifts, strict=True):
        frames[..., row, column] = rng.poisson(np.roll(expected, shift, (0, 1)))
    yield f"runs, {scan} x {scan} frames of 32 x 32 uint8, {rounds} of each in turn"
    yield f"  {'frames':<16}{'parallax':>12}{'phase':>12}{'of processor time, more':>28}"
    with tempfile.TemporaryDirectory() as name, Context.make_with("inline") as ctx:
        path = Path(name) / "frames.npy"
        np.save(path, frames)
        for source, ds in {
            "in memory": ctx.load("memory", data=frames, sig_dims=2),
            "from a file": ctx.load("npy", path=path),
        }.items():
            runs = np.array([[_run(ctx, ds, udf) for udf in udfs] for _ in range(rounds + 1)])[1:]
            rates = "".join(f"{scan * scan / s:>12,.0f}" for s in np.median(runs[..., 0], axis=0))
            parallax, phase = runs[..., 1].T
            more = (
                f"{1e3 * np.median(phase - parallax):.1f} ms, {np.median(phase / parallax) - 1:.1%}"
            )
            yield f"  {source:<16}{rates}{more:>28}"


def _run(ctx: Context, ds: Any, udf: Any) -> tuple[float, float]:
    """Run and return seconds, and those of processors."""
    start = time.perf_counter(), time.process_time()
    ctx.run_udf(ds, udf)
    return time.perf_counter() - start[0], time.process_time() - start[1]


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
