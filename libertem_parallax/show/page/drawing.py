"""What all drawings of the page have in common: colors, grays, plain figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from bokeh.models import Column, ColumnDataSource, DataRange1d, Div, LinearColorMapper
from bokeh.plotting import figure
from numpy.typing import NDArray

__all__ = [
    "BACK",
    "GRAYS",
    "LINE",
    "MARK",
    "TEXT",
    "WARM",
    "draw",
    "field",
    "gray",
    "limits",
    "plain",
    "ranges",
    "set_new",
    "titled",
]

BACK, LINE, TEXT, MARK, WARM, RED = (
    "#15171b", "#3a404a", "#8c939e", "#6aa9e0", "#f0b35a", "#e06c75",
)  # fmt: skip

#: Gray values; the first is for what there is none of.
GRAYS = ["#262b33", *(f"#{g:02x}{g:02x}{g:02x}" for g in np.linspace(0, 255, 255).astype(int))]

#: Pixels of an image from which its contrast is chosen.
_SAMPLE = 1 << 15


def gray(
    values: NDArray[Any], between: tuple[float, float], shown: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """Turn values into indices of grays: 1 for the lower limit and below, 0 for none."""
    low, high = between
    scaled = (values - np.float32(low)) * np.float32(254 / (high - low))
    index = np.clip(scaled + np.float32(1.5), 1, 255)
    if shown is not None:
        index[~shown] = 0
    whole: NDArray[np.uint8] = index.astype(np.uint8)
    return whole


def plain(**options: Any) -> Any:
    """Make a figure without axes, that fills its place."""
    plot = figure(
        toolbar_location=None,
        sizing_mode="stretch_both",
        min_border=0,
        border_fill_color=None,
        background_fill_color=None,
        outline_line_color=None,
        **{"tools": "", "width": None, "height": None, **options},
    )
    plot.grid.visible = False
    return plot


def field(rows: float, cols: float) -> dict[str, list[Any]]:
    """Make the data of a source: an image of one pixel, over a field from the origin on."""
    return {
        "image": [np.zeros((1, 1), np.uint8)],
        "x": [0.0], "y": [0.0], "dw": [cols], "dh": [rows], "number": [-1],
    }  # fmt: skip


def ranges() -> dict[str, Any]:
    """Ranges of a figure that shows a whole image, first row above, with square pixels."""
    return {
        "x_range": DataRange1d(range_padding=0),
        "y_range": DataRange1d(range_padding=0, flipped=True),
        "match_aspect": True,
    }


def limits(values: NDArray[Any], percentiles: tuple[float, float]) -> tuple[float, float]:
    """Choose values to be black and white by percentiles, of a sample where there are many."""
    sample = values.reshape(-1)[:: math.ceil(values.size / _SAMPLE) or 1]
    low, high = np.percentile(sample, percentiles) if sample.size else (0.0, 1.0)
    return float(low), float(high if high > low else low + 1)


def draw(plot: Any, source: ColumnDataSource) -> None:
    """Draw the image of a source, in grays."""
    mapper = LinearColorMapper(palette=GRAYS, low=0, high=255)
    plot.image("image", "x", "y", "dw", "dh", source=source, color_mapper=mapper)


def on_change(model: Any, name: str, follow: Callable[[Any], object]) -> None:
    """Have something follow whenever a property changes: it takes the new value."""

    def changed(_attr: str, _old: Any, new: Any) -> None:
        follow(new)

    model.on_change(name, changed)


def set_new(model: Any, name: str, value: Any) -> None:
    """Set a property, unless it is that already."""
    if getattr(model, name) != value:
        setattr(model, name, value)


def titled(title: str, plot: Any) -> Column:
    """Make a square drawing below its title."""
    plot.update(sizing_mode="stretch_width", css_classes=["square"])
    return Column(
        Div(text=title, css_classes=["heading"]), plot,
        css_classes=["grow"], sizing_mode="stretch_width",
    )  # fmt: skip
