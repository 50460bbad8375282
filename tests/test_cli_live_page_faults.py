"""`live --page`: what goes wrong with an acquisition is told on the page, which stays."""

from __future__ import annotations

import re
import socket
from contextlib import ExitStack
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
from live_pages import (  # noqa: F401 - a fixture, too
    PAGE,
    PARAMETERS,
    looking,
    pages,
    recorded,
    small_scan,
)
from numpy.typing import NDArray

from libertem_parallax.cli import live, sequence
from libertem_parallax.cli.recorded import Recorded
from libertem_parallax.live.merlin import Simulator, simulator
from libertem_parallax.show.page.live import LivePage
from libertem_parallax.show.page.server import Access
from libertem_parallax.show.screen import Screen

pytestmark = simulators
# ruff: noqa: F811


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
    taken = socket.create_server(("127.0.0.1", 0))
    with (
        taken,
        looking(
            pages,
            (lambda page: failed in str(page.progress), again),
            (lambda page: "Waiting" in str(page.progress), stop),
            (lambda page: failed in str(page.progress), again),
            (lambda page: failed in str(page.progress), again),
            (lambda page: "Waiting" in str(page.progress), lambda page: None),
        ),
    ):
        port = taken.getsockname()[1]
        result = run(arguments(merlin, f"--timeout 2 {PAGE} --page-port {port}"))
    assert f"port {port} is in use; the page is served on another" in result.stderr
    check_error(result, "no acquisition was started within 2 s")
    assert "no acquisition was started within 2 s" in said[0]
    assert "stopped on the page" in said[1]
    assert "\nNot recorded: stopped on the page\n" in result.stderr  # no error
    assert not Path("image.tif").exists()


def test_ctrl_c_as_soon_as_an_image_is_shown(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the command as it does later on."""
    keep = LivePage.keep

    def keep_and_interrupt(page: LivePage, *arguments: Any, **more: Any) -> None:
        keep(page, *arguments, **more)
        interrupt()

    monkeypatch.setattr(LivePage, "keep", keep_and_interrupt)
    result = run(arguments(merlin, f"--start {PAGE}"))
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(tifffile.imread("image.tif"), expected(frames))

    def fail(*arguments: Any, **more: Any) -> None:
        raise MemoryError("not enough")

    # Nor does a page that cannot show the end take along the image.
    monkeypatch.setattr(LivePage, "show", fail)
    monkeypatch.setattr(Screen, "due", lambda _: False)  # none was written before
    result = run(arguments(merlin, f"--start {PAGE} --overwrite"))
    check_error(result, "The page could not show all: not enough")
    np.testing.assert_array_equal(tifffile.imread("image.tif"), expected(frames))


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
    check_error(result, "Error: no answer from merlin")
    assert result.stderr.count("no answer from merlin") == 2  # for two acquisitions
    assert "no answer from merlin" in said[0]
    assert result.stderr.count("This acquisition goes to image_2.tif") == 2, result.stderr
    np.testing.assert_array_equal(tifffile.imread("image.tif"), expected(frames))
    assert not Path("image_2.tif").exists()


def test_stopped_on_the_page(
    run: Run,
    merlin: Simulator,
    frames: NDArray[Any],
    pages: list[LivePage],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What has come is in the image, the next acquisition is complete; and that is no error."""
    gate = Gate(monkeypatch)

    def again(page: LivePage) -> None:
        gate.opened.set()
        page.next()

    def once_more(page: LivePage) -> None:
        gate.opened.clear()
        page.next()

    def growing(page: LivePage) -> bool:
        return page.stage == "recording" and bool(page.tuning.stack.scanned.any())

    with looking(
        pages,
        (lambda page: Path("live.png").exists(), LivePage.stop),
        (recorded(1), again),
        (recorded(2), once_more),
        (growing, LivePage.stop),
        (recorded(3), lambda page: None),
    ):
        result = run(arguments(merlin, f"--start {PAGE}"))
    assert result.exit_code == 0, result.output
    assert "Error" not in result.stderr
    assert result.stderr.count("are in the image: stopped on the page") == 2
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
        assert page.wait()
        page.stop()
        assert ready() == ["stopped on the page"]
        page.fail("stopped on the page")
        page.next()
        page.fail("it could not be written")  # after the end that the page had shown
        assert page.stage == "waiting"  # so another press does nothing
        assert page.wait()
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


def test_what_a_failed_acquisition_left_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image so far was written while it grew; then even that of the end could not be."""
    import click

    from libertem_parallax.cli.record import Recording
    from libertem_parallax.cli.sequence import record_all

    parameters = PARAMETERS.replace(image=("parallax",))
    page = LivePage(Access(port=0))
    page.ready((12, 12), np.dtype(np.uint8), parameters)
    places: list[Path] = []

    def once(parameters: Any, outputs: Any, recording: Any) -> Any:
        places.extend(recording.places(outputs).paths)
        if len(places) == 2:
            raise click.ClickException("interrupted")
        places[0].write_bytes(b"the image so far")
        (tmp_path / "image_2.tif").write_text("mine")
        when(lambda: page.stage == "ended", page.next)
        raise click.ClickException("No space left on device")

    def ended(*_: Any) -> Any:
        raise click.ClickException("none of 9 frames is in the image: interrupted by SIGHUP.")

    outputs = {"parallax": tmp_path / "image.tif"}
    recording = Recording(
        nav_shape=None, start=True, timeout=1.0, silence=1.0, frames_per_partition=None,
        interval=0.0, blur=None, overwrite=True, calibrate=False, workers=1,
    )  # fmt: skip
    try:
        # A terminal that is closed ends the page, too.
        with monkeypatch.context() as patch:
            patch.setattr(page, "wait", lambda: pytest.fail("the page stays"))
            with pytest.raises(click.ClickException, match="SIGHUP"):
                record_all(ended, print, parameters, outputs, recording, page)
        with pytest.raises(click.ClickException, match="interrupted"):
            record_all(once, print, parameters, outputs, recording, page)
    finally:
        page.close()
    assert [path.name for path in places] == ["image.tif", "image_3.tif"]


def test_what_is_beside_the_image_cannot_be_written(
    run: Run, frames: NDArray[Any], pages: list[LivePage], hdr: Path
) -> None:
    """Such as the overview of a simulated scan: the page goes on, and tells it."""
    said: list[str] = []
    told: list[Recorded] = []

    def tell(recorded: Recorded) -> None:
        told.append(recorded)
        if len(told) == 1:
            raise OSError(28, "No space left on device")

    def again(page: LivePage) -> None:
        said.append(str(page.progress))
        page.next()

    record_all = sequence.record_all

    def with_it(once: Any, _: Any, *more: Any, **options: Any) -> None:
        record_all(once, tell, *more, **options)

    with (
        pytest.MonkeyPatch.context() as patch,
        simulator(hdr) as merlin,
        looking(pages, (recorded(1), again), (recorded(2), lambda page: None)),
    ):
        patch.setattr(live, "record_all", with_it)
        result = run(arguments(merlin, f"--start {PAGE}"))
    assert result.exit_code == 0, result.output
    message = "Beside the image, not all could be written"
    assert f"Error: {message}: [Errno 28] No space left on device." in result.stderr
    assert said[0].endswith(f"{message}: see the terminal")
    assert len(told) == 2
    for name in ("image.tif", "image_2.tif"):
        np.testing.assert_array_equal(tifffile.imread(name), expected(frames))
