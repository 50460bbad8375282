"""Knobs for parameters, in a microscopist's units: nm, mrad, degrees."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from bokeh.models import (
    Button,
    CheckboxButtonGroup,
    Column,
    Div,
    NumericInput,
    RadioButtonGroup,
    Row,
    Slider,
    Spinner,
    Toggle,
)

from ...aberrations import SYMBOLS
from ...geometry import Geometry
from ...images import IMAGES, STACK_IMAGES
from ...parameters import DEFAULTS, Parameters
from ..tuning import Tuning
from .drawing import MARK, on_change
from .pads import Curve, Diffraction, Pad

__all__ = ["Knobs", "drawer"]

#: Defocus in nm that the slider reaches at least.
_LEAST_REACH = 20.0

_IMAGES = (*IMAGES, *STACK_IMAGES)

_ORDERS = ("detector_flip_rows", "detector_flip_cols", "detector_transpose")

#: Those that have no knob of their own.
_HIGHER = tuple(name for name in SYMBOLS if name[-2:] not in ("10", "12"))


def drawer(title: str, *content: Any, is_open: bool = False) -> list[Any]:
    """Make a button that shows and hides what belongs to it, and that."""
    inside = Column(*content, sizing_mode="stretch_width", visible=is_open)
    button = Toggle(
        label=title, active=is_open, sizing_mode="stretch_width", css_classes=["drawer"]
    )
    button.js_link("active", inside, "visible")
    return [button, inside]


class Knobs:
    """Widgets that change the parameters of a `Tuning`, and show them.

    Parameters
    ----------
    tuning
        Whose parameters to change.
    tell
        Takes what was wrong with a value.
    """

    def __init__(self, tuning: Tuning, tell: Callable[[str], None]) -> None:
        self._tuning, self._tell = tuning, tell
        self._quiet = False
        self.reach = 0.0  #: of the defocus in nm, to both sides
        self._base = math.nan  # defocus in nm from which the fine slider counts
        self._shown: Parameters | None = None
        self._focus()
        self._astigmatism()
        self._detector()
        self._others()

    def show(self, parameters: Parameters) -> None:
        """Show parameters, if they are others than before."""
        if parameters is self._shown:
            return
        self._shown = parameters
        coefs = parameters.get("aberration_coefs", {})
        with self._showing():
            self._show_focus(-coefs.get("C10", 0.0) / 10)
            c12, phi12 = coefs.get("C12", 0.0) / 10, coefs.get("phi12", 0.0)
            a, b = c12 * math.cos(2 * phi12), c12 * math.sin(2 * phi12)
            self.pad.show(a, b, _polar(a, b))
            _set(self.c12a, a)
            _set(self.c12b, b)
            degrees = math.degrees(parameters.get("rotation_angle", 0.0))
            _set(self.rotation, degrees)
            _set(self.rotation_slider, (degrees + 180) % 360 - 180)
            _set(self.semiangle, parameters["semiangle_cutoff"])
            u = parameters.get("upsampling_factor", DEFAULTS["upsampling_factor"])
            self.upsampling.active = u - 1 if u <= len(self.upsampling.labels) else None
            self.orders.active = [i for i, name in enumerate(_ORDERS) if parameters.get(name)]
            self.image.active = _IMAGES.index(parameters["image"][0])
            for name, widget in self.higher.items():
                value = coefs.get(name)
                if value is not None:
                    value = math.degrees(value) if name.startswith("phi") else value / 10
                _set(widget, value)

    def show_geometry(self, geometry: Geometry) -> None:
        """Show what follows from the parameters."""
        self.diffraction.show_geometry(geometry)
        with self._showing():
            for widget, value in zip(self.center, geometry.center, strict=True):
                _set(widget, value)

    @contextmanager
    def _showing(self) -> Iterator[None]:
        """While widgets are set, they turn nothing."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def _try(self, change: Callable[..., None], **values: Any) -> None:
        if self._quiet:
            return
        try:
            change(**values)
        except ValueError as error:
            self._tell(str(error))
            self._shown = None  # so that widgets go back

    def _on(self, widget: Any, turn: Callable[[Any], None], what: str = "value") -> Any:
        """Have a widget turn something, when somebody turns it."""

        def turned(new: Any) -> None:
            if not self._quiet and new is not None:
                turn(new)

        on_change(widget, what, turned)
        return widget

    def _set_parameter(self, **values: Any) -> None:
        self._try(self._tuning.change, **values)

    # Focus

    def _focus(self) -> None:
        self.defocus = self._on(
            Spinner(step=1, format="0[.]00", width=105, name="defocus", title="Defocus, nm"),
            self._set_defocus,
        )
        self.coarse = self._on(
            Slider(start=-1, end=1, value=0, step=0.01, title="", show_value=False,
                   tooltips=False, bar_color=MARK, name="coarse", sizing_mode="stretch_width"),
            self._set_defocus,
        )  # fmt: skip
        self.fine = self._on(
            Slider(start=-1, end=1, value=0, step=0.01, title="", show_value=False,
                   tooltips=False, bar_color=MARK, name="fine", sizing_mode="stretch_width"),
            lambda value: self._set_defocus(self._base + value, fine=True),
        )  # fmt: skip
        self.curve = Curve(self._set_defocus, self._turn_wheel)
        self.twin = Button(label="Twin", name="twin", width=64)
        self.twin.on_click(self._take_twin)
        coarse = Row(Div(text="coarse", width=44, css_classes=["heading"]), self.coarse)
        fine = Row(Div(text="fine", width=44, css_classes=["heading"]), self.fine)
        for row in (coarse, fine):
            row.update(css_classes=["line"], sizing_mode="stretch_width")
        self.focus_card = Column(
            Row(
                self.defocus,
                Column(coarse, fine, sizing_mode="stretch_width", css_classes=["grow"]),
                css_classes=["line"], sizing_mode="stretch_width",
            ),
            self.curve.plot,
            css_classes=["card"], sizing_mode="stretch_width",
        )  # fmt: skip

    def _show_focus(self, defocus: float) -> None:
        if abs(defocus) > self.reach or not self.reach:
            self.reach = _nice(max(2 * abs(defocus), self._usual()))
            step = _nice(self.reach / 4000)
            self.coarse.update(start=-self.reach, end=self.reach, step=step)
            self.fine.update(start=-self.reach / 20, end=self.reach / 20, step=step / 10)
            self.defocus.step = 2 * step
            self.curve.reach(self.reach)
        if not math.isclose(self._base + self.fine.value, defocus, abs_tol=1e-6):
            self._base = defocus
            self.fine.value = 0
        _set(self.defocus, defocus)
        _set(self.coarse, defocus)
        if self.curve.marker.location != defocus:
            self.curve.marker.location = defocus

    def _usual(self) -> float:
        """Defocus in nm that shifts images by a quarter of the scan, or at least not by none."""
        parameters = self._tuning.parameters
        scan, steps = self._tuning.stack.scan_shape, parameters["scan_sampling"]
        field = min(n * step for n, step in zip(scan, steps, strict=True))
        return float(max(field / 4 / parameters["semiangle_cutoff"] * 1e3 / 10, _LEAST_REACH))

    def _set_defocus(self, value: float, *, fine: bool = False) -> None:
        if not fine:
            self._base = value
            if self.fine.value:
                with self._showing():
                    self.fine.value = 0
        self._try(self._tuning.aberrate, C10=-10 * value)

    def _turn_wheel(self, steps: float) -> None:
        coefs = self._tuning.parameters.get("aberration_coefs", {})
        self._set_defocus(-coefs.get("C10", 0.0) / 10 + steps * self.reach / 400)

    def _take_twin(self) -> None:
        """Take the other solution, in which the contrast is inverted."""
        coefs = dict(self._tuning.parameters.get("aberration_coefs", {}))
        for name in ("C10", "C12"):
            if name in coefs:
                coefs[name] = -coefs[name]
        rotation = self._tuning.parameters.get("rotation_angle", 0.0)
        rotation += -math.pi if rotation > 0 else math.pi
        self._set_parameter(aberration_coefs=coefs, rotation_angle=rotation)

    # Astigmatism and rotation

    def _astigmatism(self) -> None:
        self.pad = Pad("astigmatism", self._set_c12)
        self.c12a, self.c12b = (
            Spinner(step=1, format="0[.]00", title=title, name=name, sizing_mode="stretch_width")
            for title, name in (("C12a, nm", "c12a"), ("C12b, nm", "c12b"))
        )
        self._on(self.c12a, lambda a: self._set_c12(a, self.c12b.value or 0.0))
        self._on(self.c12b, lambda b: self._set_c12(self.c12a.value or 0.0, b))
        self.rotation = self._on(
            Spinner(step=0.1, format="0[.]00", title="Rotation, degrees", name="rotation",
                    sizing_mode="stretch_width"),
            lambda degrees: self._set_parameter(rotation_angle=math.radians(degrees)),
        )  # fmt: skip
        self.rotation_slider = self._on(
            Slider(start=-180, end=180, step=0.1, value=0, title="", show_value=False,
                   tooltips=False, bar_color=MARK, name="rotation_slider",
                   sizing_mode="stretch_width"),
            lambda degrees: self._set_parameter(rotation_angle=math.radians(degrees)),
        )  # fmt: skip
        self.optics_card = Column(
            Row(
                self.c12a, self.c12b, self.rotation, self.twin,
                css_classes=["pair", "low"], sizing_mode="stretch_width",
            ),
            Row(
                Div(text="rotation", width=52, css_classes=["heading"]), self.rotation_slider,
                css_classes=["line"], sizing_mode="stretch_width",
            ),
            css_classes=["card"], sizing_mode="stretch_width",
        )  # fmt: skip

    def _set_c12(self, a: float, b: float) -> None:
        c12, phi12 = 10 * math.hypot(a, b), math.atan2(b, a) / 2
        self._try(self._tuning.aberrate, C12=c12, phi12=phi12)

    # Detector

    def _detector(self) -> None:
        self.diffraction = Diffraction(self._set_disk)
        self.semiangle = self._on(
            Spinner(step=0.05, low=0.001, format="0[.]000", title="Semiangle, mrad",
                    name="semiangle", sizing_mode="stretch_width"),
            lambda value: self._set_parameter(semiangle_cutoff=value),
        )  # fmt: skip
        self.center = [
            Spinner(step=0.1, format="0[.]00", title=title, name=name, sizing_mode="stretch_width")
            for title, name in (("Center row", "center_row"), ("Center column", "center_col"))
        ]
        for widget in self.center:
            self._on(widget, lambda _: self._set_center())
        self.upsampling = self._on(
            RadioButtonGroup(labels=["1", "2", "3", "4"], name="upsampling", css_classes=["tight"]),
            lambda active: self._set_parameter(upsampling_factor=active + 1),
            "active",
        )
        self.orders = self._on(
            CheckboxButtonGroup(
                labels=["flip rows", "flip columns", "transpose"], name="orders",
                css_classes=["tight"],
            ),
            lambda active: self._set_parameter(
                **{name: i in active for i, name in enumerate(_ORDERS)}
            ),
            "active",
        )  # fmt: skip
        self.detector_card = Column(
            Row(self.semiangle, *self.center, css_classes=["pair"], sizing_mode="stretch_width"),
            Row(
                self.orders,
                Div(text="pixels per step", css_classes=["heading", "right"]),
                self.upsampling,
                css_classes=["line", "wrap"], sizing_mode="stretch_width",
            ),
            css_classes=["card"], sizing_mode="stretch_width",
        )  # fmt: skip

    def _set_disk(self, center: tuple[float, float], semiangle: float) -> None:
        self._set_parameter(center=center, semiangle_cutoff=semiangle)

    def _set_center(self) -> None:
        row, col = (widget.value for widget in self.center)
        if row is not None and col is not None:
            self._set_parameter(center=(row, col))

    # What there is an image of, and higher orders

    def _others(self) -> None:
        self.image = self._on(
            RadioButtonGroup(labels=[name.replace("_", " ") for name in _IMAGES], name="image_name",
                             sizing_mode="stretch_width"),
            lambda active: self._set_parameter(image=_IMAGES[active]),
            "active",
        )  # fmt: skip
        self.higher = {
            name: NumericInput(
                title=f"{name}, {'degrees' if name.startswith('phi') else 'nm'}", mode="float",
                format="0[.]000", name=name, sizing_mode="stretch_width",
            )
            for name in _HIGHER
        }  # fmt: skip
        for name, widget in self.higher.items():
            on_change(widget, "value", partial(self._set_higher, name))
        lines, line = [], []
        for name in _HIGHER:
            line.append(self.higher[name])
            if name.startswith("phi") or name[2] == "0":
                lines.append(Row(*line, css_classes=["pair"], sizing_mode="stretch_width"))
                line = []
        self.higher_lines = lines

    def _set_higher(self, name: str, value: float | None) -> None:
        if value is not None:
            value = math.radians(value) if name.startswith("phi") else 10 * value
        self._try(self._tuning.aberrate, **{name: value})


def _set(widget: Any, value: float | None) -> None:
    """Set a widget, unless it shows that already: it may be under somebody's finger."""
    old = widget.value
    if value is None or old is None:
        if value is not old:
            widget.value = value
    elif not math.isclose(old, value, rel_tol=1e-9, abs_tol=1e-9):
        widget.value = round(value, 6)


def _polar(a: float, b: float) -> str:
    """Write astigmatism as magnitude and azimuth, between -90° and 90°; half a turn is the same."""
    return f"{math.hypot(a, b):.1f} nm at {math.degrees(math.atan2(b, a) / 2):.1f}°"


def _nice(value: float) -> float:
    """Round up to a digit and a power of ten."""
    magnitude = 10.0 ** math.floor(math.log10(value))
    return next(
        n * magnitude for n in (1, 2, 3, 4, 5, 6, 8, 10) if n * magnitude >= value * (1 - 1e-9)
    )
