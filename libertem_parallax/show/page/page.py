"""The page: what is where, and how it follows a `Tuning`."""

from __future__ import annotations

import html
import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bokeh.core.properties import Int
from bokeh.model import DataModel
from bokeh.models import (
    Button,
    Column,
    CustomJS,
    Div,
    InlineStyleSheet,
    PreText,
    RangeSlider,
    Row,
    Slider,
    Toggle,
    UIElement,
)

from ...calibration import mean_pattern
from ..maker import Picture
from ..patterns import odd_pixels
from ..tuning import Tuning
from .calibrator import Calibrator
from .drawing import MARK, on_change, set_new, titled
from .figures import ImageView, Spectrum
from .focus import Depth, Sharpness
from .knobs import Knobs, drawer
from .pads import drag_slowly
from .recording import Recording
from .saving import save, script
from .thumbnails import Thumbnail, written

__all__ = ["Page"]

_CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")

#: Seconds after which a picture counts as seen, whatever the browser says.
_LOST = 3.0

#: Seconds between two rounds: in between, messages of a slider are taken.
_ROUND = 0.02

_RELOAD = """
const again = () => fetch("static/js/bokeh.min.js", {method: "HEAD", cache: "no-store"})
    .then(() => location.reload(), () => setTimeout(again, 1000))
again()
"""

#: Seconds that a message can be read, whatever comes next.
_READ = 5.0

#: Seconds between two diffraction patterns while frames come in.
_PATTERN = 2.0

#: Frames of which they are the mean: enough to see the disk.
_PATTERN_FRAMES = 4096


class Seen(DataModel):
    """What the browser has received: no more is sent before."""

    number = Int(default=-1)


class Page:
    """Shows a `Tuning` in one browser window, or one output of a notebook.

    Parameters
    ----------
    tuning
        What to show. Other pages may show it, too.
    title
        Of the data.
    folder
        Where images are saved.
    source
        What LiberTEM is told about the data, for the script.
    sigma
        Standard deviation in Å of a Gaussian to blur with at first.
    recording
        How far it is, if frames are still to come.
    note
        What has to be known of the frames.
    """

    def __init__(
        self,
        tuning: Tuning,
        title: str = "parallax",
        folder: Path = Path(),
        source: Mapping[str, Any] | None = None,
        sigma: float = 0.0,
        recording: Recording | None = None,
        note: str = "",
    ) -> None:
        self._tuning, self._title, self._folder = tuning, title, folder
        self._source = source or {"filetype": "auto", "path": "..."}
        self._recording, self._note = recording, note
        self._document: Any = None
        self._lock = threading.Lock()
        self._scheduled = False
        self._sent: Picture | None = None
        self._sent_at = self._followed_at = -math.inf
        self._spectrum_of: Picture | None = None
        self._pattern_of: Any = None
        self._pattern_at = -math.inf
        self._message, self._said_at, self._said_of = "", -math.inf, self._shown
        self._build(sigma)
        self._stop = tuning.listen(self._schedule)

    def add_to(self, document: Any) -> None:
        """Show it in a document of Bokeh's server, as long as that is open."""
        self._document = document
        document.title = f"{self._title} - libertem-parallax"
        document.add_root(self.root)
        # Bokeh 3.9 cannot take up a session that has arrays (its issue 15347): the page is loaded
        # anew, as soon as there is somebody to answer.
        document.config.reconnect_session = False
        document.js_on_event("connection_lost", CustomJS(code=_RELOAD))
        document.js_on_event("document_ready", drag_slowly(self.knobs.diffraction.plot))
        document.on_session_destroyed(lambda _: self.close())
        # The first picture comes with the document, and is no change of it.
        document.on_event("document_ready", lambda _: self._schedule(seen=True))
        # Should a message be lost with its connection, the next round makes up for it.
        document.add_periodic_callback(self.follow, 1000)
        self._schedule()

    def close(self) -> None:
        """Listen no more."""
        self._stop()
        self.depth.stop()

    # What is where

    def _build(self, sigma: float) -> None:
        self.seen = Seen()
        self._told = Div(text="", css_classes=["told", "words"], sizing_mode="stretch_width",
                         name="told")  # fmt: skip
        self._pointed = Div(text="", css_classes=["told"], name="pointed")
        self.image = ImageView(lambda text: self._pointed.update(text=text))
        # The few lines of JavaScript: say what has arrived; copy a text.
        self.image.source.js_on_change(
            "data",
            CustomJS(args={"seen": self.seen}, code="seen.number = cb_obj.data.number[0]"),
        )
        on_change(self.seen, "number", lambda _: self._schedule())
        self.spectrum = Spectrum()
        self.knobs = Knobs(self._tuning, self._say)
        self.sharpness = Sharpness(self._tuning, self.knobs)
        self.depth = Depth(self._tuning)
        self.contrast = RangeSlider(
            start=0, end=100, step=0.1, value=(0.5, 99.5), title="Contrast, %", bar_color=MARK,
            name="contrast", sizing_mode="stretch_width", css_classes=["wide"],
        )  # fmt: skip
        self.hold = Toggle(label="Hold", name="hold", width=56)
        self.blur = Slider(
            start=0, end=max(2.0, sigma / 5), step=0.02, value=sigma / 10, title="Blur, nm",
            name="blur", bar_color=MARK, sizing_mode="stretch_width", css_classes=["wide"],
        )  # fmt: skip
        self._limits: tuple[float, float] | None = None
        on_change(self.hold, "active", lambda on: self._hold(on=on))
        for widget in (self.contrast, self.blur):
            on_change(widget, "value", lambda _: self._look())
        self.calibrator = Calibrator(self._tuning, self._schedule)
        # Both keep their places: who presses one as the scan ends is not to hit the other.
        live = self._recording is not None
        self.stop = Button(label="Stop", name="stop", visible=live)
        self.next = Button(label="Next scan", name="next", visible=live, disabled=True,
                           button_type="success")  # fmt: skip
        self.before = Div(text="", css_classes=["strip"], sizing_mode="stretch_width",
                          name="before", visible=False)  # fmt: skip
        self._before: tuple[Thumbnail, ...] = ()
        if self._recording is not None:
            self._press(self.stop, self._recording.stop)
            self._press(self.next, self._recording.next)
        self.undo = Button(label="Undo", name="undo")
        self.undo.on_click(self._tuning.undo)
        self.save = Button(label="Save", name="save", button_type="primary")
        self.save.on_click(self._save)
        # Texts that change take the browser long: this one is written where it is to be seen.
        self.script = PreText(text="", css_classes=["script"], sizing_mode="stretch_width",
                              name="script", visible=False)  # fmt: skip
        self.script.js_on_change(
            "text",
            CustomJS(
                code="if (cb_obj.text) navigator.clipboard?.writeText(cb_obj.text).catch(() => {})"
            ),
        )
        self.copy = Toggle(label="Copy as Python", name="copy")
        on_change(self.copy, "active", lambda _: self._write_script())
        head = Row(
            Div(text=html.escape(self._title), css_classes=["name"]),
            self._told, self._pointed, self.stop, self.next,
            self.calibrator.button, self.undo, self.copy, self.save,
            css_classes=["head"], sizing_mode="stretch_width",
        )  # fmt: skip
        looks = Row(
            titled("Fourier transform", self.spectrum.plot),
            titled("Diffraction", self.knobs.diffraction.plot),
            titled("Astigmatism", self.knobs.pad.plot),
            css_classes=["card", "pair"], sizing_mode="stretch_width",
        )  # fmt: skip
        picture = Column(
            self.knobs.image,
            Row(self.contrast, self.blur, self.hold, css_classes=["pair", "low", "wrap"],
                sizing_mode="stretch_width"),
            css_classes=["card"], sizing_mode="stretch_width",
        )  # fmt: skip
        drawers = Column(
            *drawer("Higher orders", *self.knobs.higher_lines),
            *drawer("Depth series", self.depth.row),
            css_classes=["card"],
            sizing_mode="stretch_width",
        )
        side = Column(
            self.script, self.calibrator.card, self.before, looks, picture, self.knobs.focus_card,
            self.knobs.optics_card, self.knobs.detector_card, drawers,
            css_classes=["side"], sizing_mode="stretch_both",
        )  # fmt: skip
        page = Column(
            head, self.image.plot, side, css_classes=["page"], sizing_mode="stretch_width"
        )
        self.root = Column(page, css_classes=["frame"], sizing_mode="stretch_width")
        sheet = InlineStyleSheet(css=_CSS)
        for model in self.root.references():
            if isinstance(model, UIElement):
                model.stylesheets = [*model.stylesheets, sheet]

    # What follows from changes

    def _schedule(self, *, seen: bool = False) -> None:
        """Have the page follow soon; may be called in any thread, as often as it is."""
        with self._lock:
            if seen:
                self._sent_at = -math.inf
            if self._scheduled or self._document is None:
                return
            self._scheduled = True
        try:
            self._document.add_next_tick_callback(self._follow_soon)
        except (AttributeError, RuntimeError):  # Bokeh has taken it apart, and will tell next
            self._stop()

    def _follow_soon(self) -> None:
        """Follow, but not too often; in the server's thread, as timers of others do not wake it."""
        wait = self._followed_at + _ROUND - time.monotonic()
        if wait <= 0:
            self.follow()
        else:
            self._document.add_timeout_callback(self.follow, math.ceil(1e3 * wait))

    def follow(self) -> None:
        """Show the present state, as far as the browser has seen what was sent before."""
        with self._lock:
            self._scheduled = False
            self._followed_at = time.monotonic()
        tuning = self._tuning
        picture = tuning.picture
        self.knobs.show(tuning.parameters)
        set_new(self.undo, "disabled", not tuning.can_undo)
        self._tell(picture)
        self._show_recording()
        self.calibrator.show()
        if not self._is_recording:  # it would take the time of frames
            self.sharpness.follow()
        if picture is None:
            return
        sent = self._sent
        seen = sent is None or self.seen.number >= sent.number
        if not seen and time.monotonic() - self._sent_at < _LOST:
            return
        if picture is not sent:
            self._send(picture)
        elif picture is not self._spectrum_of and picture.coarse == 1:
            # When nothing else is to be done.
            self._spectrum_of = picture
            self.spectrum.show(picture)
            self._write_script()
        if picture is self._sent:
            self.depth.follow()

    def _send(self, picture: Picture) -> None:
        percentiles = self.contrast.value
        self.image.show(picture, percentiles, 10 * self.blur.value, self._limits)
        self._sent, self._sent_at = picture, time.monotonic()
        if picture.coarse == 1:
            self.knobs.show_geometry(picture.geometry)
            now = time.monotonic()
            often = self._is_recording and now - self._pattern_at < _PATTERN
            if self._pattern_of is not self._tuning.stack and not often:
                self._pattern_of, self._pattern_at = self._tuning.stack, now
                with self._tuning.stack.reading() as stack:
                    pattern = mean_pattern(stack, _PATTERN_FRAMES)
                self.knobs.diffraction.show_pattern(pattern, odd_pixels(pattern))

    def _look(self) -> None:
        """Show the same image with other contrast or blur."""
        if self._sent is not None:
            self._limits = None if not self.hold.active else self._limits
            self.image.show(self._sent, self.contrast.value, 10 * self.blur.value, self._limits)

    def _hold(self, *, on: bool) -> None:
        self._limits = self.image.limits if on else None
        self._look()

    def _say(self, text: str) -> None:
        """Tell of something that was done, or not, until something else is shown."""
        self._message, self._said_at, self._said_of = text, time.monotonic(), self._shown
        self._schedule()
        if self._document is not None:  # for what is shown while the message is read
            self._document.add_timeout_callback(self._schedule, math.ceil(1e3 * _READ) + 100)

    @property
    def _shown(self) -> tuple[Picture | None, str]:
        stage = "" if self._recording is None else self._recording.stage
        return self._tuning.picture, stage

    def _tell(self, picture: Picture | None) -> None:
        if self._shown != self._said_of and time.monotonic() - self._said_at > _READ:
            self._message = ""
        problem = self._tuning.problem
        if problem is not None:
            text = f'<span class="problem">{html.escape(problem)}</span>'
        elif self._message:
            text = html.escape(self._message)
        elif picture is None:
            text = "Making the image …"
        else:
            text = html.escape(self._state(picture))
            own = self._note if self._recording is None else self._recording.note
            # There is room for one that comes with the picture.
            for note in filter(None, (own, *picture.notes[:1])):
                text += f'<br><span class="problem">{html.escape(note)}</span>'
        set_new(self._told, "text", text)

    def _state(self, picture: Picture) -> str:
        """Tell what is shown, or how far a recording is."""
        if self._recording is not None and (self._is_recording or not picture.scanned.any()):
            return str(self._recording.progress)
        rows, cols = picture.image.shape
        text = f"{rows} x {cols} pixels, {len(picture.geometry.plan.pixels)} in the bright field"
        if not picture.scanned.all():
            text += f", {picture.scanned.mean():.0%} of the scan"
        if self._recording is not None:
            text = f"{str(self._recording.progress).removesuffix('.')}. {text}".replace("?.", "?")
        return text

    def _press(self, button: Button, act: Callable[[], None]) -> None:
        """Have a button act, and the page follow."""

        def pressed() -> None:
            act()
            self._message = ""  # what comes of that is told
            self._schedule()

        button.on_click(pressed)

    def _show_recording(self) -> None:
        """Show what can be done about a recording, and those before."""
        if self._recording is None:
            return
        stage, before = self._recording.stage, tuple(self._recording.thumbnails)
        set_new(self.stop, "disabled", stage == "ended")
        set_new(self.next, "disabled", stage != "ended")
        if before != self._before:
            self._before = before
            self.before.update(text=written(before), visible=True)

    @property
    def _is_recording(self) -> bool:
        return self._recording is not None and bool(self._recording.progress.running)

    def _write_script(self) -> None:
        """Write the script, or hide it."""
        picture = self._tuning.picture
        text = ""
        if self.copy.active and picture is not None:
            part = picture.scanned.mean()
            text = script(picture.parameters, picture.name, self._source, part)
        set_new(self.script, "text", text)
        set_new(self.script, "visible", bool(text))

    def _save(self) -> None:
        picture = self._tuning.picture
        if picture is None or picture.coarse > 1 or not picture.scanned.any():
            self._say("There is no image yet.")
            return
        try:
            tif, *_ = save(self._folder, Path(self._title).stem, picture, 10 * self.blur.value)
        except (OSError, ValueError) as error:
            self._say(f"It could not be saved: {error}")
        else:
            there = picture.scanned.mean()
            part = f"{there:.0%} of the scan " if there < 1 else ""
            self._say(f"Saved {part}as {tif.with_suffix('')}.tif, .png and .toml")
