"""An acquisition from start to end: waiting for it, adding frames, pictures, what came of it."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .run import (
    COMPILES,
    assigned,
    default_gpu,
    described,
    image_pixel_size,
    messages_only,
    refuse_zero_images,
    save,
    speed_text,
    warn,
    where,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..parameters import Parameters


class Recording(NamedTuple):
    """How to record: options of `live`, by their names."""

    nav_shape: tuple[int, int] | None
    start: bool
    timeout: float
    silence: float
    frames_per_partition: int | None
    interval: float
    blur: float | None


class _Recorded(NamedTuple):
    """What came of an acquisition."""

    image: NDArray[Any]
    udf: Any
    rows: list[tuple[str, str]]  #: for `report`
    problem: str | None  #: why it is not complete
    window: bool  #: whether a window shows the image

    def end(self) -> None:
        """Wait until the user has seen the image; fail where it is not complete."""
        if self.problem is not None:
            raise click.ClickException(self.problem)
        if self.window:
            from matplotlib import pyplot

            click.echo("\nClose the window to end.")
            pyplot.show()


def record(
    address: Any,
    parameters: Parameters,
    output: Path,
    snapshot: Path | None,
    recording: Recording,
    on_picture: Callable[[int, NDArray[Any]], object] = lambda *_: None,
) -> _Recorded:
    """Reconstruct an acquisition and write the image, as far as it came."""
    from libertem_live.api import LiveContext

    from .. import live
    from ..udf import ParallaxUDF

    with contextlib.ExitStack() as stack:
        stack.enter_context(messages_only())
        gpu = default_gpu() if parameters.get("engine", "auto") == "auto" else None
        stack.enter_context(assigned(gpu))
        # The one executor that keeps what it has when a detector fails.
        ctx = stack.enter_context(LiveContext.make_with("inline"))
        watch = stack.enter_context(live.Watch())
        click.echo(f"Connecting to {address}", err=True)
        conn = stack.enter_context(contextlib.closing(live.connect(ctx, address, watch)))
        events = address.detector.events
        detector_shape, dtype = live.describe(ctx, conn, address.detector, watch)

        def make_udf(shape: tuple[int, ...], parameters: Parameters) -> Any:
            udf = ParallaxUDF.from_parameters(shape, **parameters)
            live.warm_up(ctx, udf, dtype, events=events)
            return udf

        # Whatever takes time or may fail comes before the detector starts, as far as possible:
        # where the shape is not known yet, a small scan on any detector gets everything compiled.
        click.echo(f"Getting ready{COMPILES}", err=True)
        known = recording.nav_shape is not None and not events
        with contextlib.nullcontext() if known else warnings.catch_warnings(action="ignore"):
            anywhere = parameters.replace(center=None, bf_mask=None) if events else parameters
            udf = make_udf((recording.nav_shape or (8, 8)) + detector_shape, anywhere)
            refuse_zero_images(udf, parameters)
        screen, picture = _open_screen(output, snapshot, recording, image_pixel_size(udf))
        acquisition = _await(ctx, conn, watch, address, recording)
        if events or tuple(acquisition.shape) != (recording.nav_shape or ()) + detector_shape:
            udf = make_udf(tuple(acquisition.shape), parameters)
        added = _add(ctx, conn, watch, acquisition, udf, screen, recording, on_picture)
    total = acquisition.shape.nav.size
    if added.results is None:
        raise click.ClickException(
            f"none of {total:,} frames is in the image, which was not written: {added.problem}."
        )
    count, image = screen.show(added.results)
    on_picture(count, image)
    save(output, image, udf)
    problem = None
    if count < total:
        problem = (
            f"{count:,} of {total:,} frames ({count / total:.1%}) are in the image: "
            f"{added.problem}. Only whole partitions count (--frames-per-partition). It was "
            f"written to {output}."
        )
    rows = [
        *described(udf, dtype),
        ("Recorded", speed_text(count, added.seconds) + where(udf, gpu)),
        ("Written to", str(output)),
    ]
    if picture is not None:
        rows.append(("Snapshot", str(picture)))
    return _Recorded(image, udf, rows, problem, window=picture is None)


def _open_screen(
    output: Path, snapshot: Path | None, recording: Recording, pixel_size: tuple[float, float]
) -> tuple[Any, Path | None]:
    """Open a window for the growing image, or choose a file; its path is None for a window."""
    from ..show import screen as screens

    screen = partial(
        screens.Screen,
        interval=recording.interval,
        pixel_size=pixel_size,
        sigma=recording.blur or 0.0,
    )
    window = screens.open_window(str(output)) if snapshot is None else None
    if window is not None:
        return screen(window), None
    folder = snapshot or output.parent
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "live.png"

    def write(image: NDArray[Any], limits: tuple[float, float]) -> None:
        try:
            screens.snapshot(picture, image, limits)
        except OSError as error:
            warn(f"cannot write {picture}: {error}")

    return screen(write), picture


def _await(ctx: Any, conn: Any, watch: Any, address: Any, recording: Recording) -> Any:
    """Start an acquisition, or wait until somebody does."""
    from .. import live

    if recording.start:
        live.start(conn, address.detector, watch)
    else:
        click.echo(
            f"Waiting up to {recording.timeout:g} s for an acquisition to be started (Ctrl-C ends)",
            err=True,
        )
    return live.acquire(
        ctx,
        conn,
        address,
        watch,
        recording.nav_shape,
        recording.timeout,
        recording.frames_per_partition or live.FRAMES_PER_PARTITION,
    )


class _Added(NamedTuple):
    """Frames that were added."""

    results: Any  #: of LiberTEM; None if there are none
    seconds: float  #: since the first one arrived
    problem: str | None  #: why they are not all, if so


def _add(
    ctx: Any,
    conn: Any,
    watch: Any,
    acquisition: Any,
    udf: Any,
    screen: Any,
    recording: Recording,
    on_picture: Callable[[int, NDArray[Any]], object],
) -> _Added:
    """Add frames as they arrive, with a progress bar and pictures, as long as they do."""
    from tqdm import tqdm

    from .. import live

    results = problem = first = None
    with tqdm(total=acquisition.shape.nav.size, desc="Recording", unit=" frames") as bar:

        def arrived(frames: int) -> None:
            nonlocal first
            first = first or time.perf_counter()
            bar.update(frames)

        try:
            for results in live.stream(
                ctx,
                conn,
                acquisition,
                udf,
                watch,
                timeout=recording.timeout,
                silence=recording.silence,
                on_frames=arrived,
            ):
                if screen.due():
                    on_picture(*screen.show(results))
        except live.DetectorError as error:
            problem = str(error).removesuffix(".")
    return _Added(results, time.perf_counter() - (first or 0), problem)
