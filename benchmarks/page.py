"""How soon the page follows, in Chromium, and what it costs a recording.

``python -m benchmarks.page`` needs the extra ``page``, Playwright and Chromium.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from libertem_parallax.accumulate import Stack
from libertem_parallax.geometry import Geometry
from libertem_parallax.live.merlin import write_mib
from libertem_parallax.parameters import Parameters
from libertem_parallax.show.page.live import LivePage
from libertem_parallax.show.page.server import Access

PARAMETERS = Parameters(
    scan_sampling=(3.5, 3.5),
    angular_sampling=(0.3076, 0.3076),
    energy=300e3,
    semiangle_cutoff=4.0,
    aberration_coefs={"C10": -1.5e4},
    image="phase_flip",
)

#: Moves the slider and waits for what follows: milliseconds to the first and to the last image, on
#: the screen (two frames of the browser after the data have come).
_MOVE = """async ([value, last]) => {
  const models = Bokeh.documents[0]
  const slider = models.get_model_by_name("coarse")
  const source = models.get_model_by_name("image").renderers[0].data_source
  const start = performance.now(), number = source.data.number[0]
  const painted = () => new Promise(done =>
    requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start))))
  slider.value = value
  const times = []
  while (true) {
    await new Promise(done => {
      const see = () => { source.disconnect(source.properties.data.change, see); done() }
      source.connect(source.properties.data.change, see)
    })
    if (source.data.number[0] <= number) continue
    times.push(await painted())
    if (source.data.image[0].shape[0] >= last) return times
  }
}"""


#: Of the disk in pixels.
_RADIUS = 4.0 / 0.3076

#: Frames of one.
_PARTITION = 512

#: Seconds between two pictures of a recording, as `live` has by default.
_INTERVAL = 2.0

#: Turns the knob every second.
_TURN = """() => {
  window.turning = setInterval(() => {
    Bokeh.documents[0].get_model_by_name("coarse").value = 1400 + Date.now() % 200
  }, 1000)
}"""


@contextlib.contextmanager
def opened(page: LivePage) -> Iterator[Any]:
    """Open a page in Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as starter:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = starter.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        window = browser.new_page(viewport={"width": 1400, "height": 900})
        window.goto(page.url)
        time.sleep(3)
        yield window
        browser.close()


def latency(scan: int, u: int, moves: int) -> None:
    """Time moves of the slider, from the move to the new image on the screen."""
    parameters = PARAMETERS.replace(upsampling_factor=u)
    pixels = Geometry.from_parameters((scan, scan, 64, 64), **parameters).plan.pixels
    frames = np.random.default_rng(0).poisson(0.3, (scan * scan, len(pixels))).astype(np.uint8)
    page = LivePage(Access(port=0), title="benchmark")
    page.ready((64, 64), frames.dtype, parameters)
    scanned = np.ones((scan, scan), bool)
    page.tuning.grow(Stack(frames, pixels, (scan, scan), (64, 64), scanned))
    page.tuning.wait()
    with opened(page) as window:
        page.tuning.when_idle(None)  # no curve meanwhile
        times = []
        for i in range(moves + 3):
            if i == 3:
                before = _busy()
            times.append(window.evaluate(_MOVE, [1400 + 7 * i % 200, scan * u]))
            time.sleep(0.2)
        server, browser = (
            (now - then) / moves * 1e3 for now, then in zip(_busy(), before, strict=True)
        )
    page.close()
    for what, which in (("first", 0), ("last", -1)):
        found = [move[which] for move in times[3:]]
        middle, most = np.percentile(found, (50, 95))
        print(f"{scan} x {scan}, u = {u}: {what} image {middle:.0f} ms, 95 % in {most:.0f} ms")
    print(
        f"  of cores, {server:.0f} ms in the server and {browser:.0f} ms in the browser for a move"
    )


def _busy() -> tuple[float, float]:
    """Seconds of cores that were used: by this process, and by those of the browser."""
    browser = 0.0
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            used = child.cpu_times()
            browser += used.user + used.system
    return time.process_time(), browser


def _centered(detector: int) -> Parameters:
    return PARAMETERS.replace(center=(detector / 2, detector / 2))


@contextlib.contextmanager
def _loaded(shape: tuple[int, int, int, int], *, decoded: bool) -> Iterator[tuple[Any, Any]]:
    """Load a scan from memory, where frames are as they are, or as a Merlin sends them."""
    from libertem.api import Context

    ny, nx, height, width = shape
    radii = np.hypot(*np.ogrid[-height / 2 : height / 2, -width / 2 : width / 2])
    counts = np.where(radii <= _RADIUS, 0.3, 0.01)
    rows = np.random.default_rng(0).poisson(counts, (8, *shape[1:])).astype(np.uint8)
    frames = np.concatenate([rows] * (ny // len(rows)))
    load: dict[str, Any] = {"filetype": "memory", "data": frames, "sig_dims": 2}
    with Context.make_with("inline") as ctx, tempfile.TemporaryDirectory() as folder:
        if decoded:
            path = Path(folder) / "frames.hdr"
            write_mib(path, frames, bits=6)
            load = {"filetype": "mib", "path": str(path)}
        yield ctx, ctx.load(**load, num_partitions=ny * nx // _PARTITION)


def keeping(scan: int, detector: int, rounds: int, *, decoded: bool) -> None:
    """Compare the processor time of a frame, in turns: without keeping it, and with."""
    from libertem_parallax import ParallaxUDF
    from libertem_parallax.show.fill import live_selection
    from libertem_parallax.udf import StackUDF

    shape, parameters = (scan, scan, detector, detector), _centered(detector)
    alone = ParallaxUDF.from_parameters(shape, **parameters)
    with _loaded(shape, decoded=decoded) as (ctx, dataset):
        keep = live_selection(dataset, parameters)
        two = [alone, StackUDF(keep.shape, keep.dtype, keep.pixels, keep.region)]
        latest = keep.within(keep.nbytes // 10, latest=True)
        ways = {"alone": alone, "one UDF that keeps": alone.keeping(keep),
                "... the latest tenth": alone.keeping(latest), "two UDFs": two}  # fmt: skip
        used: dict[str, list[float]] = {how: [] for how in ways}
        for _ in range(rounds + 1):
            for how, udf in ways.items():
                start = time.process_time()
                for _ in ctx.run_udf_iter(dataset=dataset, udf=udf):
                    pass
                used[how].append((time.process_time() - start) / scan**2 * 1e6)
    print(f"{detector} x {detector} pixels, {'' if decoded else 'not '}decoded, us a frame:")
    for how, of in used.items():
        print(f"  {how}: {min(of[1:]):.2f} at least, {np.median(of[1:]):.2f} in the middle")


def recording(
    scan: int,
    detector: int,
    rounds: int,
    seconds: float,
    *,
    decoded: bool,
    most: float = math.inf,
) -> None:
    """Compare rates in turns: alone, with page, with knobs.

    Frames come from memory, where they are as they are, or as a Merlin sends them: as fast as they
    can be had, or as from a detector that takes `most` a second.
    """
    from libertem_parallax import ParallaxUDF

    shape, parameters = (scan, scan, detector, detector), _centered(detector)
    page = LivePage(Access(port=0), title="benchmark")
    page.ready(shape[2:], np.dtype(np.uint8), parameters)
    rates: dict[str, list[float]] = {"alone": [], "with a page": [], "while a knob is turned": []}
    used: dict[str, list[float]] = {how: [] for how in rates}
    with _loaded(shape, decoded=decoded) as (ctx, dataset), opened(page) as window:
        for _ in range(rounds + 1):
            for how in rates:
                if how == "while a knob is turned":
                    window.evaluate(_TURN)
                udf = ParallaxUDF.from_parameters(shape, **parameters)
                if how != "alone":
                    udf = page.begin(dataset, udf)
                count, busy, start = 0, -_busy()[0], time.perf_counter()
                shown, elapsed = start, 0.0
                while elapsed < seconds:  # the same frames again and again
                    for _ in ctx.run_udf_iter(dataset=dataset, udf=udf):
                        if how != "alone" and time.perf_counter() - shown > _INTERVAL:
                            page.show()
                            shown = time.perf_counter()
                        count += _PARTITION
                        time.sleep(max(0, start + count / most - time.perf_counter()))
                    elapsed = time.perf_counter() - start
                busy += _busy()[0]
                rates[how].append(count / elapsed)
                used[how].append(busy / count * 1e6)
                if how != "alone":
                    page.end(None)
                window.evaluate("clearInterval(window.turning)")
                time.sleep(1)
    page.close()
    alone = np.median(rates["alone"][1:])
    what = f"{scan} x {scan} frames of {detector} x {detector}, {'' if decoded else 'not '}decoded"
    limit = "" if math.isinf(most) else f", no more than {most:,.0f} frames/s"
    print(f"{what}{limit}, {alone * detector**2 / 1e9:.2f} GB/s:")
    for how, of in rates.items():
        rate, cores = np.median(of[1:]), np.median(used[how][1:])
        print(f"  {how}: {rate:,.0f} frames/s, {rate / alone:.2f}; {cores:.1f} us of cores a frame")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moves", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each recording")
    parser.add_argument(
        "what",
        nargs="*",
        default=["256", "1024", "recording"],
        help="or memory: a recording without anything to decode; or keeping: processor time",
    )
    chosen = parser.parse_args()
    if "256" in chosen.what:
        latency(256, 2, chosen.moves)
    if "1024" in chosen.what:
        latency(1024, 1, chosen.moves // 3)
    if "recording" in chosen.what:
        for most in (math.inf, 30_000):
            recording(128, 256, chosen.rounds, chosen.seconds, decoded=True, most=most)
    if "keeping" in chosen.what:
        keeping(128, 256, 5 * chosen.rounds, decoded=True)
        keeping(256, 64, 5 * chosen.rounds, decoded=False)
    if "memory" in chosen.what:
        recording(256, 64, chosen.rounds, chosen.seconds, decoded=False)
