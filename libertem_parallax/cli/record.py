"""An acquisition from start to end: waiting for it, adding frames, pictures, what came of it."""

from __future__ import annotations

import contextlib
import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import click

from .calibrate import described as found_rows
from .run import (
    COMPILES,
    about,
    described,
    image_pixel_size,
    messages_only,
    refuse_zero_images,
    replacing_problem,
    save,
    speed_text,
    where,
)
from .stacked import keep_stack, make_direct

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..accumulate import Stack
    from ..files import About
    from ..parameters import Parameters
    from ..show.page.live import LivePage
    from ..show.screen import Show
    from ..show.window import Window


class Recording(NamedTuple):
    """How to record: options of `live`, by their names."""

    nav_shape: tuple[int, int] | None
    start: bool
    timeout: float
    silence: float
    frames_per_partition: int | None
    interval: float
    blur: float | None
    overwrite: bool
    calibrate: bool
    workers: int | None


class _Recorded(NamedTuple):
    """What came of an acquisition."""

    images: dict[str, NDArray[Any]]  #: by name, first that which grew
    udf: Any
    parameters: Parameters
    rows: list[tuple[str, str]]  #: for `report`
    problem: str | None  #: why it is not complete, or not where it should be
    window: Window | None  #: that shows the image
    page: LivePage | None

    def end(self) -> None:
        """Wait until the user has seen the image; fail where it is not complete."""
        if self.page is not None:
            if self.problem is not None:
                click.echo(f"\n{self.problem}", err=True)
            with contextlib.suppress(KeyboardInterrupt):  # from the moment that it is told
                click.echo(f"\nThe page is still at {self.page.url} (Ctrl-C ends)")
                self.page.wait()
        try:
            if self.problem is not None:
                raise click.ClickException(self.problem)
            if self.window is not None:
                click.echo("\nClose the window to end.")
                self.window.wait()
        finally:
            if self.window is not None:
                self.window.close()


def record(
    address: Any,
    parameters: Parameters,
    outputs: Mapping[str, Path],
    snapshot: Path | None,
    recording: Recording,
    more: Mapping[str, Show] = MappingProxyType({}),
    page: LivePage | None = None,
    asked: Mapping[str, Any] = MappingProxyType({}),
) -> _Recorded:
    """Reconstruct an acquisition and write the image, as far as it came; `more` shows it, too.

    If `outputs` has a place for ``direct``, the bright field is kept, and that is made in the end.
    A `page` gets the frames beside. With ``recording.calibrate``, parameters are found from the
    beginning, as they are `asked` for.
    """
    from .. import files, live
    from ..accumulate.stack import cores
    from ..show.screen import Screen, grown
    from ..udf import ParallaxUDF
    from ..udf.learning import Learning, placeholder

    problems: list[str] = []  # of what is recorded already, which they must not take along
    output, direct = next(iter(outputs.values())), outputs.get("direct")
    if direct is not None and recording.workers not in (None, 1):
        raise click.UsageError(
            f"--workers {recording.workers}: for --image direct, this process keeps the frames. "
            "Leave one of them out."
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stderr(cast(IO[str], _Unbreakable(sys.stderr))))
        stack.enter_context(messages_only())
        ctx = live.make_context(1)
        stack.enter_context(_closed("LiberTEM", ctx, problems))
        watch = stack.enter_context(live.Watch())
        click.echo(f"Connecting to {address}", err=True)
        conn = live.connect(ctx, address, watch)
        stack.enter_context(_closed("the connection", conn, problems))
        events = address.detector.events
        detector_shape, dtype = live.describe(ctx, conn, address.detector, watch)
        workers = recording.workers or 1
        beside = page is not None or recording.calibrate or direct is not None
        if not beside and recording.workers is None:
            size = math.prod(detector_shape) * dtype.itemsize
            workers = live.default_workers(address.detector.rate(conn), size, cores())
        if workers > 1:
            click.echo(f"Starting {workers} workers", err=True)
            ctx = live.make_context(workers)
            stack.enter_context(_closed("workers", ctx, problems))

        def make_udf(shape: tuple[int, ...], parameters: Parameters) -> Any:
            if recording.calibrate:
                parameters = placeholder(parameters, (shape[2], shape[3]))
            udf = ParallaxUDF.from_parameters(shape, **parameters)
            live.warm_up(ctx, udf, dtype, events=events)
            return udf

        # Whatever takes time or may fail comes before the detector starts, as far as possible:
        # where the shape is not known yet, a small scan on any detector gets everything compiled.
        click.echo(f"Getting ready{COMPILES}", err=True)
        known = recording.nav_shape is not None and not events
        sure = known and not recording.calibrate
        with contextlib.nullcontext() if sure else warnings.catch_warnings(action="ignore"):
            anywhere = parameters.replace(center=None, bf_mask=None) if events else parameters
            udf = make_udf((recording.nav_shape or (8, 8)) + detector_shape, anywhere)
            refuse_zero_images(udf, parameters)
        if page is not None:
            page.ready(detector_shape, dtype, parameters)
            click.echo(f"The page is at {page.url}", err=True)
            more = {**more, "the page": page.show}
        shows, window = _shows(output, snapshot, recording, image_pixel_size(udf))
        if window is not None:
            stack.push(lambda kind, *_: window.close() if kind is not None else None)
        acquisition = _await(ctx, conn, watch, address, recording)
        if events or tuple(acquisition.shape) != (recording.nav_shape or ()) + detector_shape:
            with warnings.catch_warnings():
                if recording.calibrate:
                    warnings.simplefilter("ignore")
                udf = make_udf(tuple(acquisition.shape), parameters)
        learning = None
        if recording.calibrate:
            learning = Learning(acquisition, **asked, **parameters)
            udf = learning.image

        udfs, kept = [udf], None if learning is None else learning.stack
        if page is not None:
            kept = page.begin(acquisition)
        elif direct is not None and learning is None:
            kept = keep_stack(acquisition, udf, problems)
        if kept is not None and learning is None:
            udfs.append(kept)
            live.warm_up(ctx, udfs, dtype, events=events)

        def said(frames: int, name: str = parameters["image"][0]) -> About:
            found = learning.calibration if learning is not None else None
            now = parameters if found is None else found.parameters
            return about(udf, name, now, data=str(address), frames=frames)

        # Nothing that comes later can take along the image that is written now and then.
        keep = {str(output): lambda made: files.save(output, made.image, said(made.frames))}
        screen = Screen({**keep, **shows, **more}, recording.interval)
        added = _add(ctx, conn, watch, acquisition, learning or udfs, screen, recording, page)
        if page is not None:
            page.end(added.problem)
        total = acquisition.shape.nav.size
        if added.results is None:
            raise click.ClickException(
                f"none of {total:,} frames is in the image, which was not written: {added.problem}."
            )
        if learning is not None and learning.calibration is None:
            reason = learning.problem or added.problem or "there were too few rows of the scan"
            raise click.ClickException(
                f"no image was written: {reason.removesuffix('.')}. "
                + _kept_frames(learning.stack.stack, output)
            )
        # Before anything is shown or closed, which may fail as well.
        image, count = (made := grown(added.results)).image, made.frames
        written_to = [save(output, image, said(count), problems)]
        Screen({**shows, **more}, 0).show(added.results)
    if count < total:
        reason = added.problem or "the acquisition ended"
        problems.insert(
            0,
            f"{count:,} of {total:,} frames ({count / total:.1%}) are in the image: "
            f"{reason}. Another {max(0, added.arrived - count):,} had arrived: "
            "only whole partitions count (--frames-per-partition).",
        )
        if not address.detector.counted and not reason.startswith("interrupted"):
            problems.insert(
                1,
                "If frames were lost on the way, all that came after them are in wrong places: "
                f"{address.detector.name} frames are taken in the order in which they come.",
            )
    elif added.problem is not None:  # of no consequence any more
        problems.insert(0, f"{added.problem}.")
    found: list[tuple[str, str]] = []
    if learning is not None and learning.calibration is not None:
        scan = tuple(acquisition.shape)[:2]
        found = found_rows(learning.calibration, parameters, scan)
        parameters = learning.calibration.parameters
        sheet = output.with_suffix(".toml")
        try:
            learning.calibration.save(sheet, overwrite=True)
            found.append(("Parameters", str(sheet)))
        except OSError as error:  # the image is written, and where that is has to be told
            problems.insert(0, f"The parameters could not be written to {sheet}: {error}.")
    on = f", by {workers} workers" if workers > 1 else where(udf)
    images = {parameters["image"][0]: image}
    if direct is not None and kept is not None:
        click.echo("Making the direct image", err=True)
        phase = make_direct(kept, udf, parameters, problems)
        if phase is not None:
            images["direct"] = phase
            written_to.append(save(direct, phase, said(count, "direct"), problems))
    rows = [
        *described(udf, dtype, None, tuple(images)),
        *found,
        ("Recorded", speed_text(count, added.seconds) + on),
        *zip(("Written to", ""), map(str, written_to), strict=False),
        *(("Snapshot", name) for name in shows if window is None and Path(name).exists()),
    ]
    places = " and ".join(map(str, written_to))
    problem = " ".join((*problems, f"It was written to {places}.")) if problems else None
    return _Recorded(images, udf, parameters, rows, problem, window, page)


def _kept_frames(stack: Stack, output: Path) -> str:
    """Write the frames of a scan of which no parameters were found; say where they are."""
    from .. import files

    frames = stack.frames.reshape(stack.scan_shape + stack.detector_shape)
    count = int(stack.scanned.sum())
    try:
        path = files.keep_frames(output.with_name(f"{output.stem}_frames.npy"), frames)
    except (OSError, ValueError) as error:
        return f"Its frames could not be written, either: {error}."
    return (
        f"{count:,} frames were written to {path}. Calibrate these with other options: "
        f"libertem-parallax calibrate {path} ..."
    )


class _Unbreakable:
    """Standard error while frames are added, which go on where nobody can read it any more."""

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if self._stream is not None:
            with contextlib.suppress(
                OSError, ValueError
            ):  # a pipe or a terminal is gone, or closed
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()


@contextlib.contextmanager
def _closed(name: str, thing: Any, problems: list[str]) -> Iterator[None]:
    """Close a thing in the end; that this fails is noted, and no reason to lose anything."""
    from ..live.watch import ASKED_TO_END, first_line

    try:
        yield
    finally:
        try:
            thing.close()
        except ASKED_TO_END:
            raise
        except BaseException as error:  # Rust's panics are no Exception
            problems.append(f"Closing {name} failed: {first_line(error)}.")


def _shows(
    output: Path, snapshot: Path | None, recording: Recording, pixel_size: tuple[float, float]
) -> tuple[dict[str, Show], Window | None]:
    """Open a window for the growing image, or choose a file; what shows it, by name."""
    from ..show.screen import snapshots, to_gray
    from ..show.window import open_window

    sigma = recording.blur or 0.0
    window = open_window(str(output)) if snapshot is None else None
    if window is not None:
        return {"the window": lambda made: window.show(*to_gray(made, pixel_size, sigma))}, window
    folder = snapshot or output.parent
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "live.png"
    if picture.resolve() == output.resolve():
        picture = folder / "growing.png"
    if problem := replacing_problem(picture, recording.overwrite):
        raise ValueError(f"the growing image would go to {picture}: {problem}, or --snapshot DIR.")
    return {str(picture): snapshots(picture, pixel_size, sigma)}, None


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
    arrived: int  #: frames, not all of which may be added
    seconds: float  #: since the first one arrived
    problem: str | None  #: why they are not all, if so


def _add(
    ctx: Any,
    conn: Any,
    watch: Any,
    acquisition: Any,
    adding: Any,
    screen: Any,
    recording: Recording,
    page: LivePage | None,
) -> _Added:
    """Add frames as they arrive, with a progress bar and pictures, as long as they do."""
    from tqdm import tqdm

    from .. import live
    from ..udf.learning import Learning

    learning = adding if isinstance(adding, Learning) else None
    handle: list[Any] = []
    results = problem = first = None
    with tqdm(total=acquisition.shape.nav.size, desc="Recording", unit=" frames") as bar:

        def arrived(frames: int) -> None:
            nonlocal first
            first = first or time.perf_counter()
            bar.update(frames)
            if page is not None:
                page.arrived(frames)

        try:
            for results in live.stream(
                ctx,
                conn,
                acquisition,
                adding if learning is None else learning.udfs,
                watch,
                timeout=recording.timeout,
                silence=recording.silence,
                on_frames=arrived,
                on_start=handle.append,
            ):
                if learning is not None:
                    if learning.step(handle[0]):
                        bar.set_description("Recording, calibrated")
                    if learning.calibration is None:
                        continue
                if screen.due():
                    screen.show(results)
        except live.DetectorError as error:
            problem = str(error).removesuffix(".")
    return _Added(results, int(bar.n), time.perf_counter() - (first or 0), problem)
