"""How a page follows, without a browser."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import tifffile
from tuned import FRAMES, PARAMETERS, eventually

pytest.importorskip("bokeh", reason="bokeh is missing, of which the page is made")

from bokeh.document import Document
from bokeh.events import ButtonClick
from bokeh.server.callbacks import TimeoutCallback

from libertem_parallax.accumulate import Stack
from libertem_parallax.show.page.page import Page
from libertem_parallax.show.tuning import Tuning


def test_every_window_gets_the_whole_curve() -> None:
    """Though they have it made by one thread, which leaves out what another one asked for."""
    tuning = Tuning(Stack.from_array(FRAMES), PARAMETERS)
    try:
        assert tuning.wait(60)
        pages = [Page(tuning), Page(tuning)]

        def complete(page: Page) -> bool:
            page.follow()
            return len(page.knobs.curve.source.data["x"]) == 61

        end = time.monotonic() + 60
        while not all([complete(page) for page in pages]):  # noqa: C419 - all are to follow
            assert time.monotonic() < end, [
                len(page.knobs.curve.source.data["x"]) for page in pages
            ]
            time.sleep(0.01)
        assert not tuning.has_more
    finally:
        tuning.close()


def test_other_threads_set_no_timers() -> None:
    """They do not wake the server's loop: the image would come with what wakes it next."""
    tuning = Tuning(Stack.from_array(FRAMES), PARAMETERS)
    try:
        page, document = Page(tuning), Document()
        page.add_to(document)
        page.follow()  # another round follows only after a while
        tuning.change(upsampling_factor=2)
        assert tuning.wait(60)
        timers = [c for c in document.session_callbacks if isinstance(c, TimeoutCallback)]
        assert not timers
        assert len(document.session_callbacks) > 1
    finally:
        tuning.close()


def test_a_window_that_was_closed_long_ago(caplog: pytest.LogCaptureFixture) -> None:
    """Bokeh takes its document apart first: what changes then fails nowhere."""
    tuning = Tuning(Stack.from_array(FRAMES), PARAMETERS)
    try:
        page, document = Page(tuning), Document()
        page.add_to(document)
        page.follow()
        document.callbacks.destroy()
        page._scheduled = False  # as after a round, whatever has come since
        tuning.change(upsampling_factor=2)
        assert tuning.wait(60)
        assert not tuning._listeners
    finally:
        tuning.close()
    assert not caplog.text


def test_what_was_done_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the next picture comes at once; the one after that takes its place."""
    tuning = Tuning(Stack.from_array(FRAMES), PARAMETERS)
    try:
        page = Page(tuning, "scan.h5", tmp_path, note="Half of it.")
        assert tuning.wait(60)
        page.follow()
        assert "Half of it." in page._told.text
        for factor in (2, 3, 4):
            tuning.change(upsampling_factor=factor)
            assert tuning.wait(60)
            if factor == 2:
                page.save._trigger_event(ButtonClick(page.save))
            if factor == 4:
                monkeypatch.setattr("libertem_parallax.show.page.page._READ", 0.0)
            for _ in range(3):
                page.seen.number = tuning.picture.number  # nobody else tells what was seen
                page.follow()
            assert ("Saved as" in page._told.text) == (factor < 4)
    finally:
        tuning.close()


def test_what_was_done_is_told_no_longer_than_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the picture after it came while it was read, and no other follows."""
    read = "libertem_parallax.show.page.page._READ"
    monkeypatch.setattr(read, 600.0)
    stack = Stack.from_array(FRAMES)
    stack.scanned[3:] = False
    tuning = Tuning(stack, PARAMETERS)
    try:
        assert tuning.wait(60)
        page, document = Page(tuning, "scan.h5", tmp_path), Document()
        page.add_to(document)
        page.follow()
        page.save._trigger_event(ButtonClick(page.save))
        [timer] = [c for c in document.session_callbacks if isinstance(c, TimeoutCallback)]
        page.follow()
        assert "Saved 33% of the scan as" in page._told.text
        with tifffile.TiffFile(tmp_path / "scan_phase_flip_001.tif") as tif:
            assert '"frames": 36, "scan": [9, 12]' in tif.pages[0].description
        tuning.change(upsampling_factor=2)
        assert tuning.wait(60)
        page.seen.number = tuning.picture.number
        page.follow()
        assert "Saved" in page._told.text
        monkeypatch.setattr(read, 0.0)
        document.remove_timeout_callback(timer)
        timer.callback()  # as the server does, then
        page.follow()
        assert "Saved" not in page._told.text
        assert "bright field" in page._told.text
    finally:
        tuning.close()


def test_calibration_that_fails_tells_how_many_frames_it_had() -> None:
    """Too few may be all that is wrong."""
    stack = Stack.from_array(FRAMES)  # nothing but noise
    stack.scanned[5:] = False
    tuning = Tuning(stack, PARAMETERS)
    try:
        calibrator = Page(tuning).calibrator
        calibrator.button._trigger_event(ButtonClick(calibrator.button))
        eventually(lambda: calibrator._said.startswith("Not calibrated"))
        calibrator.show()
        assert "Only 60 of the scan&#x27;s 108 frames were used." in calibrator._told.text
    finally:
        tuning.close()
