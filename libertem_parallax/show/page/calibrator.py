"""The button that calibrates, and what was found before it is taken."""

from __future__ import annotations

import html
import logging
import math
import threading
from collections.abc import Callable

from bokeh.models import Button, Column, Div, Row

from ...calibration import Calibration, CalibrationError
from ...parameters import Parameters
from ..calibrating import calibrate_tuned, changes
from ..digits import plus_minus
from ..tuning import Tuning

__all__ = ["Calibrator"]

_log = logging.getLogger(__name__)


class Calibrator:
    """Widgets that calibrate in a thread, show what was found, and take it if that is wanted.

    Parameters
    ----------
    tuning
        What to calibrate.
    schedule
        Has `show` called soon, in the page's own thread.
    """

    def __init__(self, tuning: Tuning, schedule: Callable[[], None]) -> None:
        self._tuning, self._schedule = tuning, schedule
        self._thread: threading.Thread | None = None
        self._said = ""
        self._found: Calibration | None = None
        self._changed = False
        self.button = Button(label="Calibrate", name="calibrate", width=86)
        self.button.on_click(self._start)
        self._told = Div(text="", css_classes=["told"], sizing_mode="stretch_width", name="found")
        self._take, self._take_twin, self._leave = (
            Button(label=label, name=name)
            for label, name in (
                ("Take", "take"), ("Take the twin", "take_twin"), ("Close", "leave"),
            )
        )  # fmt: skip
        self._take.button_type = "primary"
        self._take.on_click(lambda: self._choose(0))
        self._take_twin.on_click(lambda: self._choose(1))
        self._leave.on_click(lambda: self._choose(None))
        self._buttons = Row(
            self._take, self._take_twin, self._leave, css_classes=["pair"], visible=False
        )
        self.card = Column(
            self._told, self._buttons,
            css_classes=["card"], sizing_mode="stretch_width", visible=False,
        )  # fmt: skip

    def show(self) -> None:
        """Show how far it is, or what was found."""
        if not self._changed:
            return
        self._changed = False
        running = self._thread is not None and self._thread.is_alive()
        found = None if running else self._found
        self.button.disabled = running
        self._told.text = self._said if found is None else _table(found, self._tuning.parameters)
        self.card.visible = bool(self._told.text)
        self._buttons.visible = bool(self._told.text) and not running
        self._take.visible = found is not None
        self._take_twin.visible = found is not None and bool(found.alternatives)

    def _start(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        self._found = None
        self._say("Calibrating …")
        self._thread = threading.Thread(target=self._run, name="calibration", daemon=True)
        self._thread.start()

    def _say(self, text: str) -> None:
        self._said, self._changed = html.escape(text), True
        self._schedule()

    def _run(self) -> None:
        tuning, part = self._tuning, ""
        try:
            if not tuning.stack.scanned.any():
                raise CalibrationError("no frame has come yet.")
            with tuning.stack.reading() as stack:
                if not (scanned := stack.scanned).all():
                    part = (
                        f" Only {scanned.sum():,} of the scan's {scanned.size:,} frames were used."
                    )
                self._found = calibrate_tuned(
                    stack,
                    tuning.parameters,
                    lambda share, what: self._say(f"Calibrating: {what}, {share:.0%}"),
                )
            text = ""
        # Whatever it is, people are told, and can go on.
        except Exception as error:
            if not isinstance(error, CalibrationError | ValueError | MemoryError):
                _log.exception("Calibration failed.")
            text = f"Not calibrated: {error}{part}"
        self._thread = None
        self._say(text)

    def _choose(self, which: int | None) -> None:
        """Take what was found, or its first alternative, or leave it."""
        found, self._found = self._found, None
        self._say("")
        if found is not None and which is not None:
            chosen = [found.parameters, *(other.parameters for other in found.alternatives)]
            self._tuning.change(**changes(chosen[which]))


def _table(found: Calibration, now: Parameters) -> str:
    """Write what was found beside what is set now."""
    coefs, before = found.parameters["aberration_coefs"], now.get("aberration_coefs", {})
    errors = found.uncertainties
    rows = [("Defocus in nm", -before.get("C10", 0) / 10, -coefs["C10"] / 10, "C10", 0.1)]
    rows += [
        (f"{name} in nm", before.get(name, 0) / 10, value / 10, name, 0.1)
        for name, value in coefs.items()
        if name != "C10" and not name.startswith("phi")
    ]
    rows += [
        (f"{name} in degrees", math.degrees(before.get(name, 0)), math.degrees(value), name,
         math.degrees(1))
        for name, value in coefs.items()
        if name.startswith("phi") and coefs.get(f"C{name[-2:]}")
    ]  # fmt: skip
    turned = (
        math.degrees(now.get("rotation_angle", 0)),
        math.degrees(found.parameters["rotation_angle"]),
    )
    rows.append(("Rotation in degrees", *turned, "rotation_angle", math.degrees(1)))
    lines = []
    for words, old, new, name, scale in rows:
        error = errors.get(name)
        text = f"{new:.5g}" if error is None else plus_minus([new], [float(error) * scale])
        lines.append(f"<tr><td>{words}<td>{old:.5g}<td>{text}</tr>")
    old_center = now.get("center")
    center = plus_minus(found.parameters["center"], errors.get("center", (0, 0)))
    lines.append(
        "<tr><td>Center<td>"
        + ("" if old_center is None else "{:.2f}, {:.2f}".format(*old_center))
        + f"<td>{center}</tr>"
    )
    flips = [bool(p.get("detector_flip_cols")) for p in (now, found.parameters)]
    if flips[0] != flips[1]:
        lines.append("<tr><td>Flip columns<td>{}<td>{}</tr>".format(*flips))
    notes = [found.decided and f"Of the twins, {found.decided} decided.", *found.notes]
    if found.alternatives and not found.decided:
        notes.append("The data cannot tell it from its twin, whose contrast is inverted.")
    text = "".join(f"<p>{html.escape(note)}</p>" for note in notes if note)
    head = "<tr><th>Found<th>now<th>calibrated</tr>"
    return f"<table>{head}{''.join(lines)}</table>{text}"
