"""`live --page`: one acquisition after another, on a page that nobody need look at."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from live_commands import (
    SECONDS,
    Gate,
    Run,
    arguments,
    check_error,
    expected,
    interrupt,
    simulators,
    when,
)
from numpy.typing import NDArray

pytest.importorskip("bokeh", reason="bokeh is missing, of which the page is made")

from libertem_parallax import Parameters, load_parameters, simulate
from libertem_parallax.cli import simulated
from libertem_parallax.live.merlin import Simulator, simulator
from libertem_parallax.show.page.live import LivePage
from libertem_parallax.show.page.server import Access

pytestmark = simulators

#: Of the detector of `small_scan`.
PARAMETERS = Parameters(
    scan_sampling=(4.0, 5.0), energy=200e3, semiangle_cutoff=4.0, angular_sampling=(1.0, 1.0)
)

PAGE = "--page --page-port 0 --no-browser"


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[LivePage]:
    """Of commands that are run, as soon as they are made."""
    made: list[LivePage] = []
    init = LivePage.__init__

    def keep(page: LivePage, *arguments: Any, **more: Any) -> None:
        init(page, *arguments, **more)
        made.append(page)

    monkeypatch.setattr(LivePage, "__init__", keep)
    return made


@contextmanager
def looking(
    pages: list[LivePage], *steps: tuple[Callable[[LivePage], Any], Callable[[LivePage], Any]]
) -> Iterator[None]:
    """Do something when it is time, one after the other; and Ctrl-C in the end."""

    def look() -> None:
        for ready, do in steps:
            done = threading.Event()
            when(
                lambda ready=ready: pages and pages[0].served and ready(pages[0]),
                lambda do=do, done=done: (do(pages[0]), done.set()),
            )
            done.wait(SECONDS)
        interrupt()

    thread = threading.Thread(target=look)
    thread.start()
    yield
    thread.join()


def recorded(count: int) -> Callable[[LivePage], bool]:
    """Whether so many acquisitions are complete."""
    return lambda page: page.stage == "ended" and len(page.thumbnails) == count


def small_scan() -> NDArray[np.uint8]:
    """A bright disk of 4 pixels' radius on a dark detector."""
    y, x = np.indices((12, 12)) - 6
    counts = np.where(np.hypot(y, x) <= 4, 3.0, 0.05)
    return np.random.default_rng(0).poisson(counts, (6, 8, 12, 12)).astype(np.uint8)


def test_the_next_acquisition_has_what_was_tuned(
    run: Run, merlin: Simulator, frames: NDArray[Any], pages: list[LivePage]
) -> None:
    """Its image goes to another file; what was there before is kept."""
    Path("image_2.tif").write_text("mine", encoding="utf-8")
    seen: list[Any] = []

    def tune(page: LivePage) -> None:
        page.tuning.aberrate(C10=-2500.0)
        page.next()

    def look(page: LivePage) -> None:
        page.tuning.wait(SECONDS)
        seen.append(page.tuning.picture.image)  # type: ignore[union-attr]

    with looking(pages, (recorded(1), tune), (recorded(2), look)):
        result = run(arguments(merlin, f"--start {PAGE}"))
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(tifffile.imread("image.tif"), expected(frames))
    assert Path("image_2.tif").read_text(encoding="utf-8") == "mine"
    other = tifffile.imread("image_3.tif")
    np.testing.assert_array_equal(other, expected(frames, aberration_coefs={"C10": -2500.0}))
    np.testing.assert_array_equal(seen[0], other)
    assert [each.name for each in pages[0].thumbnails] == ["image.tif", "image_3.tif"]
    assert "The next acquisition goes to image_3.tif" in result.stderr
    assert result.stdout.count("Written to") == 2


def test_a_page_outlives_what_goes_wrong(
    run: Run, merlin: Simulator, frames: NDArray[Any], pages: list[LivePage]
) -> None:
    """Nobody starts the first one; the second one is stopped while it is awaited, the third not."""
    said: list[str] = []

    def again(page: LivePage) -> None:
        said.append(str(page.progress))
        page.next()

    def stop(page: LivePage) -> None:
        page.stop()
        page.stop()  # impatiently

    failed = "Not recorded"
    with looking(
        pages,
        (lambda page: failed in str(page.progress), again),
        (lambda page: "Waiting" in str(page.progress), stop),
        (lambda page: failed in str(page.progress), again),
        (lambda page: failed in str(page.progress), again),
        (lambda page: "Waiting" in str(page.progress), lambda page: None),
    ):
        result = run(arguments(merlin, f"--timeout 0.5 {PAGE}"))
    check_error(result, "no acquisition was started within 0.5 s")
    assert "no acquisition was started within 0.5 s" in said[0]
    assert "stopped on the page" in said[1]
    assert not Path("image.tif").exists()


def test_the_detector_is_gone(
    run: Run, frames: NDArray[Any], pages: list[LivePage], hdr: Path
) -> None:
    """Nobody answers when the next acquisition is asked for: that is told once for each *Next*."""
    said: list[str] = []

    def told(page: LivePage) -> bool:
        return "Not recorded" in str(page.progress)

    with ExitStack() as stack:
        merlin = stack.enter_context(simulator(hdr))

        def again(page: LivePage) -> None:
            stack.close()
            page.next()

        def once_more(page: LivePage) -> None:
            said.append(str(page.progress))
            page.next()

        with looking(pages, (recorded(1), again), (told, once_more), (told, lambda page: None)):
            result = run(arguments(merlin, f"--start {PAGE}"))
    check_error(result, "no answer from merlin")
    assert "no answer from merlin" in said[0]
    assert result.stderr.count("The next acquisition goes to image_2.tif") == 2, result.stderr
    np.testing.assert_array_equal(tifffile.imread("image.tif"), expected(frames))
    assert not Path("image_2.tif").exists()


def test_stopped_on_the_page(
    run: Run,
    merlin: Simulator,
    frames: NDArray[Any],
    pages: list[LivePage],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What has come is in the image, and the next acquisition is complete."""
    gate = Gate(monkeypatch)

    def again(page: LivePage) -> None:
        gate.opened.set()
        page.next()

    with looking(
        pages,
        (lambda page: Path("live.png").exists(), LivePage.stop),
        (recorded(1), again),
        (recorded(2), lambda page: None),
    ):
        result = run(arguments(merlin, f"--start {PAGE}"))
    assert result.exit_code == 0, result.output
    told = re.search(r"(\d+) of 96 frames .*are in the image: stopped on the page", result.stderr)
    assert told, result.stderr
    first = expected(frames, int(told[1]))
    np.testing.assert_array_equal(tifffile.imread("image.tif"), first)
    assert "frames were lost" not in result.stderr
    np.testing.assert_array_equal(tifffile.imread("image_2.tif"), expected(frames))


def test_stopped_while_connecting(tmp_path: Path) -> None:
    """That holds for the acquisition that is being connected, and for no other."""
    from bokeh.events import ButtonClick

    from libertem_parallax.show.page.page import Page

    page = LivePage(Access(port=0))

    def ready() -> list[str]:
        stopped: list[str] = []
        page.ready((12, 12), np.dtype(np.uint8), PARAMETERS, stopped.append)
        return stopped

    try:
        ready()
        page.fail("nobody answers")
        page.next()
        page.stop()
        assert ready() == ["stopped on the page"]
        page.fail("stopped on the page")
        page.next()
        assert ready() == []
        # There is nothing to be saved yet.
        assert page.tuning.wait(SECONDS)
        shown = Page(page.tuning, folder=tmp_path / "saved", recording=page)
        shown.save._trigger_event(ButtonClick(shown.save))
        assert not (tmp_path / "saved").exists()
    finally:
        page.close()


def test_the_folder_is_gone(
    run: Run,
    merlin: Simulator,
    frames: NDArray[Any],
    pages: list[LivePage],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The image is elsewhere, and the page says where."""
    Path("out").mkdir()
    gate = Gate(monkeypatch)
    said: list[str] = []

    def remove(page: LivePage) -> None:
        Path("out").rename("elsewhere")
        gate.opened.set()

    with looking(
        pages,
        (lambda page: Path("live.png").exists(), remove),
        (recorded(1), lambda page: said.append(str(page.progress))),
    ):
        command = arguments(merlin, f"--start --snapshot . {PAGE}")
        result = run(command.replace("-o image.tif", "-o out/image.tif"))
    check_error(result, "The image could not be written to")
    np.testing.assert_array_equal(tifffile.imread("image.tif"), expected(frames))
    assert said[0].endswith(f"it is {Path('image.tif').absolute()}")


def test_what_a_failed_acquisition_left_is_not_replaced(tmp_path: Path) -> None:
    """The image so far was written while it grew; then even that of the end could not be."""
    import click

    from libertem_parallax.cli.sequence import record_all

    parameters = PARAMETERS.replace(image=("parallax",))
    page = LivePage(Access(port=0))
    page.ready((12, 12), np.dtype(np.uint8), parameters)
    places: list[Path] = []

    def once(parameters: Any, outputs: Any, recording: Any) -> Any:
        places.append(outputs["parallax"])
        if len(places) == 2:
            raise click.ClickException("interrupted")
        places[0].write_bytes(b"the image so far")
        when(lambda: page.stage == "ended", page.next)
        raise click.ClickException("No space left on device")

    outputs = {"parallax": tmp_path / "image.tif"}
    try:
        with pytest.raises(click.ClickException, match="interrupted"):
            record_all(once, print, parameters, outputs, None, page)  # type: ignore[arg-type]
    finally:
        page.close()
    assert [path.name for path in places] == ["image.tif", "image_2.tif"]


def test_memory_and_thumbnails_are_bounded(tmp_path: Path) -> None:
    """Of any number of acquisitions, eight are kept as small pictures, and frames of one."""
    from libertem.api import Context

    from libertem_parallax import ParallaxUDF
    from libertem_parallax.show.screen import Growing

    frames = small_scan()
    page = LivePage(Access(port=0), folder=tmp_path)
    try:
        with Context.make_with("inline") as ctx:
            dataset = ctx.load("memory", data=frames, sig_dims=2)
            page.ready((12, 12), frames.dtype, PARAMETERS)
            kept = []
            udf = ParallaxUDF.from_parameters(
                frames.shape, **PARAMETERS, aberration_coefs={"C10": -2000.0}
            )
            for number in range(10):
                page.ready((12, 12), frames.dtype, PARAMETERS)
                page.tuning.when_idle(itertools.repeat(None))  # a curve of the scan before
                kept.append(page.begin(dataset, udf))
                assert not page.tuning.has_more
                ctx.run_udf(dataset, kept[-1])
                page.end(None)
                image = np.random.default_rng(number).normal(size=(12, 16)).astype(np.float32)
                page.keep(tmp_path / f"image_{number}.tif", Growing(image, np.ones((6, 8), bool)))
                assert page.tuning.wait(SECONDS)
                page.next()
                assert page.wait()
        assert [each.name for each in page.thumbnails] == [
            f"image_{number}.tif" for number in range(2, 10)
        ]
        assert max(len(each.jpeg) for each in page.thumbnails) < 50_000
        assert page.tuning.stack.frames is kept[-1].stack.frames
    finally:
        page.close()


def test_more_frames_than_memory_holds(tmp_path: Path) -> None:
    """The first rows can be tuned; with the parameters of the recording, all frames are shown."""
    from libertem.api import Context

    from libertem_parallax import ParallaxUDF
    from libertem_parallax.accumulate import Stack
    from libertem_parallax.show.maker import reconstruct
    from libertem_parallax.show.screen import grown

    frames = small_scan()
    parameters = PARAMETERS.replace(image="parallax", aberration_coefs={"C10": -2000.0})
    udf = ParallaxUDF.from_parameters(frames.shape, **parameters)
    # Of 6 rows, 4 and a half.
    page = LivePage(Access(port=0), 36 * len(udf.params.geometry.plan.pixels), folder=tmp_path)
    try:
        with Context.make_with("inline") as ctx:
            dataset = ctx.load("memory", data=frames, sig_dims=2, num_partitions=6)
            page.ready((12, 12), frames.dtype, parameters)
            udf = page.begin(dataset, udf)
            assert "the first 4 x 8 of 6 x 8 frames" in page.note
            tuning = page.tuning
            for part in ctx.run_udf_iter(dataset, udf):
                page.show(grown(part))
            page.end(None)
        assert tuning.wait(SECONDS)
        whole = Stack.from_array(frames)
        assert tuning.picture is not None
        np.testing.assert_array_equal(tuning.picture.image, reconstruct(whole, parameters))
        assert tuning.picture.scanned.all()
        tuning.aberrate(C10=-2500.0)
        assert tuning.wait(SECONDS)
        first = Stack.from_array(frames[:4])
        tuned = tuning.parameters
        np.testing.assert_array_equal(tuning.picture.image, reconstruct(first, tuned))
        tuning.undo()
        assert tuning.wait(SECONDS)
        np.testing.assert_array_equal(tuning.picture.image, reconstruct(whole, parameters))
    finally:
        page.close()


def test_calibrated_once(run: Run, pages: list[LivePage], monkeypatch: pytest.MonkeyPatch) -> None:
    """The page has what was found, and so has the next acquisition."""
    plain = simulate.simulate

    def brighter(**how: Any) -> simulate.Simulation:
        more = {} if how["dose"] is None else {"scan_shape": (40, 48), "dose": 60.0}
        return plain(**{**how, **more})

    monkeypatch.setattr(simulate, "simulate", brighter)
    monkeypatch.setattr(simulated, "_DWELL_TIME", 2e-4)
    seen: list[Any] = []

    def again(page: LivePage) -> None:
        seen.append(page.tuning.parameters)
        page.next()

    with looking(pages, (recorded(1), again), (recorded(2), lambda page: None)):
        result = run(f"live --simulate merlin --calibrate --underfocus {PAGE}")
    assert result.exit_code == 0, result.output
    found = load_parameters("libertem-parallax-live/image.toml")
    for name in ("aberration_coefs", "center", "rotation_angle"):
        assert seen[0][name] == found[name]
    assert found["aberration_coefs"]["C10"] == pytest.approx(-1.5e4, rel=0.1)
    assert not Path("libertem-parallax-live/image_2.toml").exists()
    first, second = (
        tifffile.imread(f"libertem-parallax-live/image{end}.tif") for end in ("", "_2")
    )
    np.testing.assert_array_equal(first, second)  # the simulator sends the same


def test_what_is_kept_of_frames_to_come() -> None:
    """All of the detector; where the center is known, 1.25 semiangles around it."""
    from libertem.api import Context

    from libertem_parallax.show.fill import stack_udf

    parameters = Parameters(
        scan_sampling=(4.0, 5.0),
        energy=200e3,
        semiangle_cutoff=4.0,
        angular_sampling=(1.0, 1.0),
        aberration_coefs={"C10": -2000.0},
    )
    with Context.make_with("inline") as ctx:
        dataset = ctx.load("memory", data=small_scan(), sig_dims=2)
        unknown = stack_udf(dataset, parameters, live=True)
        known = stack_udf(dataset, parameters.replace(center=(6.0, 6.0)), live=True)
    assert len(unknown.params.pixels) == 144
    y, x = np.indices((12, 12)) - 6
    np.testing.assert_array_equal(known.params.pixels, np.argwhere(np.hypot(y, x) <= 5))
