"""The diffraction pattern on the page: what of it is shown, and the script of a part of a scan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tuned import FRAMES, PARAMETERS

pytest.importorskip("bokeh", reason="bokeh is missing, of which the page is made")

from bokeh.events import PanEnd, PanStart
from numpy.typing import NDArray

from libertem_parallax import ParallaxUDF
from libertem_parallax.accumulate import Stack
from libertem_parallax.geometry import Geometry
from libertem_parallax.show.page.pads import Diffraction
from libertem_parallax.show.page.page import Page
from libertem_parallax.show.tuning import Tuning

RADIUS = 13  # pixels


def geometry(size: int, center: tuple[float, float]) -> Geometry:
    given = {**PARAMETERS, "angular_sampling": (4 / RADIUS, 4 / RADIUS), "center": center}
    del given["image"]
    made = ParallaxUDF.from_parameters((40, 40, size, size), **given).params.geometry
    assert isinstance(made, Geometry)
    return made


def pattern(size: int, center: tuple[float, float]) -> NDArray[np.float64]:
    """A disk on a background that is all in all as bright, and a hot pixel far away."""
    y, x = np.indices((size, size))
    counts = np.where(np.hypot(y - center[0], x - center[1]) <= RADIUS, 3.0, 0.01)
    counts[5, 7] = 1e6
    return counts


def shown(diffraction: Diffraction, size: int) -> NDArray[Any]:
    """Grays where they are on the detector; 0 where it is not shown."""
    data = diffraction.source.data
    image, (x, y) = np.asarray(data["image"][0]), (round(data[a][0] + 0.5) for a in "xy")
    assert image.shape == (data["dh"][0], data["dw"][0])
    grays = np.zeros((size, size), np.uint8)
    grays[y : y + image.shape[0], x : x + image.shape[1]] = image
    return grays


def test_the_surroundings_of_a_small_disk_are_shown() -> None:
    center, hot = (250.0, 262.0), np.array([[5, 7]])
    bright = pattern(512, center) == 3
    diffraction = Diffraction(lambda *_: None)
    diffraction.show_geometry(geometry(512, center))
    diffraction.show_pattern(pattern(512, center), hot)
    grays = shown(diffraction, 512)
    np.testing.assert_array_equal(grays == 255, bright)
    rows, cols = (np.flatnonzero((grays > 0).any(axis=1 - axis)) for axis in (0, 1))
    assert [rows[0], rows[-1], cols[0], cols[-1]] == [211, 289, 223, 301]  # 3 radii around

    # A disk in the wrong place: that which is to be dragged, and where to.
    away = geometry(512, (150.0, 262.0))
    diffraction.plot._trigger_event(PanStart(diffraction.plot, x=262.0, y=250.0))
    diffraction.show_geometry(away)
    np.testing.assert_array_equal(shown(diffraction, 512), grays)  # not under the pointer
    diffraction.plot._trigger_event(PanEnd(diffraction.plot))
    grays = shown(diffraction, 512)
    assert grays[150, 262]
    np.testing.assert_array_equal(grays == 255, bright)
    diffraction.show_geometry(geometry(512, (14.0, 497.0)))
    grays = shown(diffraction, 512)
    assert grays[14, 497]
    np.testing.assert_array_equal(grays == 255, bright)


def test_a_detector_that_the_disk_fills_is_shown_whole() -> None:
    diffraction = Diffraction(lambda *_: None)
    diffraction.show_pattern(pattern(64, (30.0, 30.0)), np.array([[5, 7]]))
    assert (shown(diffraction, 64) > 0).all()  # whatever the parameters are
    diffraction.show_geometry(geometry(64, (30.0, 30.0)))
    diffraction.show_pattern(np.full((64, 64), np.nan), np.empty((0, 2), np.int64))
    assert shown(diffraction, 64).shape == (64, 64)


@pytest.mark.parametrize("rows", [9, 3])
def test_the_script_of_a_part_says_what_it_makes(rows: int) -> None:
    stack = Stack.from_array(FRAMES)
    stack.scanned[rows:] = False
    tuning = Tuning(stack, PARAMETERS)
    try:
        page = Page(tuning)
        assert tuning.wait(60)
        page.copy.active = True
        part = "# Of the whole scan: the page shows 33% of it."
        assert (part in page.script.text) == (rows == 3)
        compile(page.script.text, "script", "exec")
    finally:
        tuning.close()
