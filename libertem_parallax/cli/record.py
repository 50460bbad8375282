"""An acquisition from start to end: waiting for it, adding frames, pictures, what came of it."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import click

from ..names import claim
from .connection import Link, Unbreakable, linked
from .messages import messages_only
from .outputs import about, replacing_problem, save
from .places import Places
from .recorded import Added, Recorded, kept_frames, missing_frames, save_found
from .run import default_gpu, described, image_pixel_size, refuse_zero_images, speed_text, where
from .stacked import keep_stack, make_direct

if TYPE_CHECKING:
    from ..files import About
    from ..parameters import Parameters
    from ..show.page.live import LivePage
    from ..show.screen import Growing, Show
    from ..show.window import Window
    from ..udf import ParallaxUDF
    from ..udf.learning import Learning

__all__ = ["Recording", "record"]


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

    def places(self, outputs: Mapping[str, Path]) -> Places:
        """Choose names for images, which are asked for by these."""
        return Places(outputs, calibrate=self.calibrate, overwrite=self.overwrite)


def record(
    address: Any,
    parameters: Parameters,
    outputs: Mapping[str, Path],
    snapshot: Path | None,
    recording: Recording,
    more: Mapping[str, Show] = MappingProxyType({}),
    page: LivePage | None = None,
    asked: Mapping[str, Any] = MappingProxyType({}),
) -> Recorded:
    """Reconstruct an acquisition and write the image, as far as it came; `more` shows it, too.

    If `outputs` has a place for ``direct``, the bright field is kept, and that is made in the end.
    A `page` gets the frames beside. With ``recording.calibrate``, parameters are found from the
    beginning, as they are `asked` for.
    """
    from .. import files
    from ..live.watch import first_line
    from ..show.screen import Screen, grown
    from ..udf.learning import placeholder

    problems: list[str] = []  # of what is recorded already, which they must not take along
    places = recording.places(outputs)
    places.tell()
    last: list[tuple[Path, int]] = []  # where the image was written last, and of how many frames
    with contextlib.ExitStack() as stack:
        stack.enter_context(_told_where(last))
        stack.enter_context(contextlib.redirect_stderr(cast(IO[str], Unbreakable(sys.stderr))))
        stack.enter_context(messages_only())
        workers = recording.workers or (1 if recording.calibrate else None)
        link = stack.enter_context(linked(address, workers, problems))
        udf = _get_ready(link, parameters, recording)
        if page is not None:
            first = not page.served
            shown = parameters
            if recording.calibrate:
                shown = placeholder(parameters, link.detector_shape)
            page.ready(link.detector_shape, link.dtype, shown, link.watch.stop)
            if first:
                click.echo(f"The page is at {page.url}", err=True)
            more = {**more, "the page": lambda _: page.show()}
        shows, window = _shows(
            places.paths[0], outputs.values(), snapshot, recording, image_pixel_size(udf)
        )
        if window is not None:
            stack.push(lambda kind, *_: window.close() if kind is not None else None)
        acquisition = _await(link, recording)
        total = acquisition.shape.nav.size
        udf, learning = _adding(link, acquisition, udf, parameters, recording, asked, page,
                                problems, keep="direct" in outputs)  # fmt: skip

        def said(frames: int, name: str = parameters["image"][0]) -> About:
            found = learning.calibration if learning is not None else None
            now = parameters if found is None else found.parameters
            return about(udf, name, now, data=str(address), frames=frames)

        def keep(made: Growing) -> None:
            image, what = made.image, said(made.frames)
            places.write(lambda path, old: files.save(path, image, what, new=not old))
            last[:] = [(places.paths[0], made.frames)]

        # Nothing that comes later can take along the image that is written now and then.
        screen = Screen({str(places.paths[0]): keep, **shows, **more}, recording.interval)
        added = _add(link, acquisition, udf, learning, screen, recording, page)
        if page is not None:
            try:
                page.end(added.problem)
            except Exception as error:  # as memory that runs out: the image is not written yet
                why = first_line(error).removesuffix(".")
                problems.append(f"The page could not show all: {why}.")
        if added.results is None:
            raise click.ClickException(" ".join(missing_frames(added, 0, total, address.detector)))
        if learning is not None and learning.calibration is None:
            reasons = [text.removesuffix(".") for text in (learning.problem, added.problem) if text]
            reason = ". ".join(reasons) or "there were too few rows of the scan"
            raise click.ClickException(
                f"no image was written: {reason}. "
                + kept_frames(learning.image, places.paths[0], parameters)
            )
        # Before anything is shown or closed, which may fail as well.
        image, count = (made := grown(added.results)).image, made.frames
        what = said(count)
        written_to = [
            places.write(lambda path, old: save(path, image, what, problems, new=not old))
        ]
        elsewhere = written_to[0] != places.paths[0]
        last[:] = [(written_to[0], count)]
        Screen({**shows, **more}, 0).show(added.results)
    missing = missing_frames(added, count, total, address.detector)
    problems[:0] = missing
    found: list[tuple[str, str]] = []
    if learning is not None and learning.calibration is not None:
        scan = tuple(acquisition.shape)[:2]
        found = save_found(learning, places, parameters, scan, problems)
        parameters = learning.calibration.parameters
    on = f", by {link.workers} workers" if link.workers > 1 else where(udf)
    images = {parameters["image"][0]: image}
    if "direct" in outputs and udf.params.keep is not None:
        click.echo("Making the direct image", err=True)
        with _told_where(last):
            phase = make_direct(udf, parameters, problems)
        if phase is not None:
            images["direct"], what = phase, said(count, "direct")
            at = places.of("direct")
            if places.overwrite:
                at = save(at, phase, what, problems)
            else:
                _, at = claim(lambda path: save(path, phase, what, problems, new=True), at)
            written_to.append(at)
    rows = [
        *described(udf, link.dtype, None, tuple(images)),
        *found,
        ("Recorded", speed_text(count, added.seconds) + on),
        *zip(("Written to", ""), map(str, written_to), strict=False),
        *(("Snapshot", name) for name in shows if window is None and Path(name).exists()),
    ]
    where_to = " and ".join(map(str, written_to))
    problem = " ".join((*problems, f"It was written to {where_to}.")) if problems else None
    wanted = page is not None and added.problem == page.STOPPED and problems == missing
    return Recorded(
        images, udf, parameters, rows, problem, wanted, written_to, elsewhere, made, window
    )


@contextlib.contextmanager
def _told_where(last: list[tuple[Path, int]]) -> Iterator[None]:
    """Say where the last image is, if the recording ends at once; no more is done then."""
    try:
        yield
    except KeyboardInterrupt:
        text = "no image was written"
        for path, frames in last:
            text = f"the image of {frames:,} frames that was written last is {path}"
        click.echo(f"\nInterrupted: {text}.", err=True)
        raise


def _make_udf(
    link: Link, shape: tuple[int, ...], parameters: Parameters, recording: Recording
) -> Any:
    """Make the UDF of the image, and have everything compiled that it needs."""
    from .. import live
    from ..udf import ParallaxUDF
    from ..udf.learning import placeholder

    if recording.calibrate:
        parameters = placeholder(parameters, (shape[2], shape[3]))
    udf = ParallaxUDF.from_parameters(shape, **parameters)
    live.warm_up(link.ctx, udf, link.dtype, events=link.address.detector.events)
    return udf


def _get_ready(link: Link, parameters: Parameters, recording: Recording) -> Any:
    """Do what takes time or may fail before the detector starts, as far as possible.

    Where the shape is not known yet, a small scan on any detector gets everything compiled.
    """
    click.echo("Getting ready", err=True)
    events = link.address.detector.events
    sure = recording.nav_shape is not None and not events and not recording.calibrate
    with contextlib.nullcontext() if sure else warnings.catch_warnings(action="ignore"):
        anywhere = parameters.replace(center=None, bf_mask=None) if events else parameters
        shape = (recording.nav_shape or (8, 8)) + link.detector_shape
        udf = _make_udf(link, shape, anywhere, recording)
        refuse_zero_images(udf, parameters)
    return udf


def _shows(
    output: Path,
    asked: Iterable[Path],
    snapshot: Path | None,
    recording: Recording,
    pixel_size: tuple[float, float],
) -> tuple[dict[str, Show], Window | None]:
    """Open a window for the growing image, or choose a file; what shows it, by name."""
    from ..files import said
    from ..show.screen import snapshots, to_gray
    from ..show.window import open_window

    sigma = recording.blur or 0.0
    window = open_window(str(output)) if snapshot is None else None
    if window is not None:
        return {"the window": lambda made: window.show(*to_gray(made, pixel_size, sigma))}, window
    folder = snapshot or output.parent
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "live.png"
    # An image, of this scan or another, is more than a picture of one that grows.
    images = {path.resolve() for path in (output, *asked)}
    another = picture.exists() and "image" in (said(picture) or {}) and not recording.overwrite
    if picture.resolve() in images or another:
        picture = folder / "growing.png"
    if problem := replacing_problem(picture, recording.overwrite):
        raise ValueError(f"the growing image would go to {picture}: {problem}, or --snapshot DIR.")
    return {str(picture): snapshots(picture, pixel_size, sigma)}, None


def _await(link: Link, recording: Recording) -> Any:
    """Start an acquisition, or wait until somebody does."""
    from .. import live

    if recording.start:
        live.start(link.conn, link.address.detector, link.watch)
    else:
        click.echo(
            f"Waiting up to {recording.timeout:g} s for an acquisition to be started (Ctrl-C ends "
            "all)",
            err=True,
        )
    return live.acquire(
        link.ctx,
        link.conn,
        link.address,
        link.watch,
        recording.nav_shape,
        recording.timeout,
        recording.frames_per_partition or live.FRAMES_PER_PARTITION,
    )


def _adding(
    link: Link,
    acquisition: Any,
    udf: Any,
    parameters: Parameters,
    recording: Recording,
    asked: Mapping[str, Any],
    page: LivePage | None,
    problems: list[str],
    *,
    keep: bool,
) -> tuple[ParallaxUDF, Learning | None]:
    """Choose what to make of the frames of an acquisition; `udf` is made for what was known."""
    from .. import live
    from ..udf.learning import Learning

    events, shape = link.address.detector.events, tuple(acquisition.shape)
    if events or shape != (recording.nav_shape or ()) + link.detector_shape:
        with warnings.catch_warnings():
            if recording.calibrate:
                warnings.simplefilter("ignore")
            udf = _make_udf(link, shape, parameters, recording)
    if recording.calibrate:
        limit = None if page is None else page.limit
        gpu = default_gpu()
        learning = Learning(acquisition, **asked, limit=limit, device=gpu, **parameters)
        if page is not None:
            page.begin(acquisition, learning.image)
        return learning.image, learning
    if page is not None:
        udf = page.begin(acquisition, udf)
    elif keep:
        udf = keep_stack(acquisition, udf, problems)
    if udf.params.keep is not None:
        live.warm_up(link.ctx, udf, link.dtype, events=events)
    return udf, None


def _add(
    link: Link,
    acquisition: Any,
    udf: ParallaxUDF,
    learning: Learning | None,
    screen: Any,
    recording: Recording,
    page: LivePage | None,
) -> Added:
    """Add frames as they arrive, with a progress bar and pictures, as long as they do."""
    from tqdm import tqdm

    from .. import live
    from ..live.watch import first_line

    handle: list[Any] = []
    results = problem = first = None
    written = "what has come is written" + ("" if page is None else ", and the page stays")
    click.echo(f"Ctrl-C ends the scan: {written}", err=True)
    with tqdm(total=acquisition.shape.nav.size, desc="Recording", unit=" frames") as bar:

        def arrived(frames: int) -> None:
            nonlocal first
            first = first or time.perf_counter()
            bar.update(frames)
            if page is not None:
                page.arrived(frames)

        try:
            for results in live.stream(
                link.ctx,
                link.conn,
                acquisition,
                udf,
                link.watch,
                timeout=recording.timeout,
                silence=recording.silence,
                on_frames=arrived,
                on_start=handle.append,
            ):
                if learning is not None:
                    if learning.step(handle[0]):
                        bar.set_description("Recording, calibrated")
                        if page is not None and learning.calibration is not None:
                            page.found(learning.calibration.parameters)
                    if learning.calibration is None:
                        continue
                if screen.due():
                    screen.show(results)
        except live.DetectorError as error:
            problem = str(error).removesuffix(".")
        except Exception as error:  # of what is done beside: what has come is not lost by it
            problem = f"it could not go on: {first_line(error).removesuffix('.')}"
    return Added(results, int(bar.n), time.perf_counter() - (first or 0), problem)
