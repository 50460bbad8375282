"""The page in Debian's Chromium: knobs are turned, and what is shown follows."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from browser import (  # noqa: F401 - fixtures, too
    assert_follows,
    browser,
    data,
    defocused,
    folder,
    needs_chromium,
    only_window,
    served,
    server,
    suppressed,
    tuning,
    window,
)
from tuned import eventually

from libertem_parallax.accumulate import Stack

pytestmark = needs_chromium
# ruff: noqa: F811


def test_a_knob_is_turned_and_the_image_follows(window, tuning):
    eventually(lambda: window.pixels().std() > 20)
    before = window.pixels()
    handle = window.page.locator(".noUi-handle").nth(3)  # after contrast and blur: coarse
    handle.focus()
    for _ in range(8):
        window.page.keyboard.press("ArrowLeft")
    c10 = tuning.parameters["aberration_coefs"]["C10"]
    assert_follows(window, tuning)
    eventually(lambda: np.abs(window.pixels() - before).mean() > 5)
    assert tuning.parameters["aberration_coefs"]["C10"] > -1.5e4, c10
    window.press("Undo")
    window.wait("m => m.value == 1500", "defocus")
    assert_follows(window, tuning)
    eventually(lambda: np.abs(window.pixels() - before).mean() < 1)


def test_every_knob(window, tuning):
    for name, value, what, expected in (
        ("rotation", 30, "value", lambda p: p["rotation_angle"] == pytest.approx(np.pi / 6)),
        ("semiangle", 3.5, "value", lambda p: p["semiangle_cutoff"] == 3.5),
        ("center_row", 31.5, "value", lambda p: p["center"] == (31.5, 32.0)),
        ("upsampling", 2, "active", lambda p: p["upsampling_factor"] == 3),
        ("orders", [1], "active", lambda p: p["detector_flip_cols"]),
        ("image_name", 0, "active", lambda p: p["image"] == ("parallax",)),
        ("c12b", 20, "value", lambda p: p["aberration_coefs"]["C12"] == pytest.approx(200)),
        ("defocus", 1400, "value", lambda p: p["aberration_coefs"]["C10"] == -14000),
        ("fine", 12.5, "value", lambda p: p["aberration_coefs"]["C10"] == -14125),
        ("C30", 1000, "value", lambda p: p["aberration_coefs"]["C30"] == 10000),
        (
            "phi21",
            90,
            "value",
            lambda p: p["aberration_coefs"]["phi21"] == pytest.approx(np.pi / 2),
        ),
    ):
        window.set(name, value, what)
        with_it = suppressed(expected)
        eventually(lambda true=with_it: true(tuning.parameters))
    assert_follows(window, tuning)
    assert np.degrees(tuning.parameters["aberration_coefs"]["phi12"]) == pytest.approx(45)
    before = tuning.parameters
    window.press("Twin")
    window.wait("m => m.value == -1412.5", "defocus")
    assert tuning.parameters["rotation_angle"] == pytest.approx(np.pi / 6 - np.pi)
    window.press("Undo")
    window.wait("m => m.value == 1412.5", "defocus")
    assert dict(tuning.parameters) == dict(before)
    window.set("image_name", 3, "active")
    assert_follows(window, tuning, lambda p: p["image"] == ("direct",))
    assert tuning.picture.image.shape == tuning.stack.scan_shape


def test_a_thousand_moves_leave_nothing_behind(window, tuning, server):
    assert_follows(window, tuning)

    def move(count):
        window.model(
            """async (m, count) => {
                for (let i = 0; i < count; i++) {
                    m.value = 1400 + i % 100
                    if (i % 10 == 0) await new Promise(done => setTimeout(done, 1))
                }
                m.value = 1600 + count
            }""",
            "coarse",
            count,
        )
        assert_follows(window, tuning, defocused(1600 + count))
        counts = window.page.evaluate("Bokeh.documents[0]._all_models.size")
        session = next(s for s in server.get_sessions("/") if s.connection_count)
        # One is there at all times.
        eventually(lambda: len(session.document.session_callbacks) == 1)
        return counts, len(tuning._past)

    before = move(10)
    after = move(1000)
    assert after[0] == before[0]
    assert after[1] <= before[1] + 3


def test_pointing(window, tuning):
    """The disk is dragged, the pad and the curve are clicked, the wheel is turned on the curve."""

    def place(name, x, y):
        """Find where on the window a point of a drawing is."""
        return window.model(
            """(m, [x, y]) => {
                const view = Bokeh.index.find_one(m)
                view.el.scrollIntoView({block: "nearest"})
                const box = view.canvas_view.el.getBoundingClientRect()
                const {x_scale, y_scale} = view.frame
                return [box.x + x_scale.compute(x), box.y + y_scale.compute(y)]
            }""",
            name,
            [x, y],
        )

    def drag(begin, end):
        """Slowly: the pointer rests before it is moved."""
        begin, end = (place("diffraction", *at) for at in (begin, end))
        mouse.move(*begin)
        time.sleep(0.1)  # or the pointer may be pressed before it is known to be there
        mouse.down()
        time.sleep(0.4)
        mouse.move(*end, steps=5)
        mouse.up()

    mouse = window.page.mouse
    window.wait("m => m.renderers[0].data_source.data.dw[0] == 64", "diffraction")
    drag((32, 32), (34, 31))
    window.wait("m => Math.abs(m.value - 31) < 0.6", "center_row")
    window.wait("m => Math.abs(m.value - 34) < 0.6", "center_col")
    assert_follows(window, tuning)
    row, col = tuning.parameters["center"]
    before = tuning.parameters["semiangle_cutoff"]
    drag((col + 13, row), (col + 10, row))
    window.wait("(m, b) => Math.abs(m.value - b + 3 * 0.3076) < 0.2", "semiangle", before)
    assert tuning.parameters["center"] == (row, col)
    mouse.click(*place("astigmatism", 0.5, 0.5))
    window.wait("m => Math.abs(m.value - 0.5) < 0.05", "c12a")
    coefs = tuning.parameters["aberration_coefs"]
    words = f"{coefs['C12'] / 10:.1f} nm at {np.degrees(coefs['phi12']):.1f}°"
    window.wait("(m, words) => m.text == words", "astigmatism_words", words)
    mouse.click(*place("curve", 1000, 0.5))
    window.wait("m => Math.abs(m.value - 1000) < 30", "defocus")
    assert_follows(window, tuning)
    for up, steps in ((3, 3), (-1, 2)):
        if up == 3:
            here = -tuning.parameters["aberration_coefs"]["C10"] / 10
            step = window.model("m => m.end", "coarse") / 400
        for _ in range(abs(up)):
            mouse.wheel(0, -100 if up > 0 else 100)
        window.wait("(m, v) => Math.abs(m.value - v) < 1e-3", "defocus", here + steps * step)
    assert_follows(window, tuning, defocused(here + 2 * step))


def test_a_depth_series_is_played(window, tuning):
    """Forth and back around the present defocus, each of them shown, until it is stopped."""
    for name, value in (("depth_from", -20), ("depth_to", 40), ("depth_steps", 3)):
        window.set(name, value)
    played, looking = [-15000.0], threading.Lock()

    def look():
        with looking:  # two threads do: what one has read must not come after what the other read
            c10 = round(tuning.parameters["aberration_coefs"]["C10"], 6)
            if c10 != played[-1]:
                played.append(c10)

    stop = tuning.listen(look)
    window.model("m => { m.active = true }", "play")
    first = tuning.picture.number
    window.wait("m => m.value == 1540", "defocus")  # the field shows what is on the screen
    window.wait("(m, n) => m.data.number[0] >= n + 5", "source", first)
    window.model("m => { m.active = false }", "play")
    series = [-14800, -15100, -15400, -15100]
    # The server takes that before anything later.
    window.set("rotation", 4)
    eventually(lambda: tuning.parameters["rotation_angle"] == pytest.approx(np.radians(4)))
    stop()
    assert len(played) > 5
    assert played[1:] == [series[i % 4] for i in range(len(played) - 1)]
    assert_follows(window, tuning, lambda p: p["aberration_coefs"]["C10"] == played[-1])


def test_the_curve_is_highest_at_the_defocus(window):
    window.wait("m => m.renderers[0].data_source.data.x.length == 61", "curve")
    x, y = window.model(
        "m => { const d = m.renderers[0].data_source.data; return [[...d.x], [...d.y]] }", "curve"
    )
    assert abs(x[np.argmax(y)] - 1500) <= x[1] - x[0]


def test_contrast_and_blur_are_for_the_eye_only(window, tuning):
    assert_follows(window, tuning)
    image, before = tuning.picture.image, window.shown()
    window.set("blur", 0.6)
    eventually(lambda: not np.array_equal(window.shown(), before))
    blurred = window.shown()
    assert (
        np.abs(np.diff(blurred.astype(float))).mean()
        < np.abs(np.diff(before.astype(float))).mean() / 2
    )
    assert tuning.picture.image is image
    window.set("blur", 0)
    eventually(lambda: np.array_equal(window.shown(), before))


def test_what_is_calibrated_is_shown_and_then_taken(window, tuning):
    tuning.change(center=(31.0, 33.0), rotation_angle=0.0)
    tuning.aberrate(C10=-1.2e4)
    assert_follows(window, tuning, defocused(1200))
    before = tuning.parameters
    window.press("Calibrate")
    window.page.get_by_text("calibrated", exact=True).wait_for(timeout=60_000)
    assert tuning.parameters is before
    # Phase objects do not tell from which side: one of the two it is.
    underfocus = "Defocus in nm<td>1200<td>1" in window.model("m => m.text", "found")
    window.press("Take" if underfocus else "Take the twin")
    assert_follows(window, tuning, lambda p: p["center"] != (31.0, 33.0))
    found = tuning.parameters
    assert found["center"] == pytest.approx((32, 32), abs=0.05)
    assert found["aberration_coefs"]["C10"] == pytest.approx(-1.5e4, rel=0.03)
    assert found["rotation_angle"] == pytest.approx(np.radians(-15), abs=0.03)
    window.press("Undo")
    assert_follows(window, tuning, defocused(1200))
    assert dict(tuning.parameters) == dict(before)


def test_what_cannot_be_calibrated_is_told(window, tuning):
    noise = np.random.default_rng(0).poisson(0.1, (8, 9, 64, 64)).astype(np.uint8)
    specimen = tuning.stack
    tuning.grow(Stack.from_array(noise), at_once=True)
    try:
        window.press("Calibrate")
        window.page.get_by_text("Not calibrated").wait_for(timeout=60_000)
        window.press("Close")
        window.wait("m => m.text == ''", "found")
    finally:
        tuning.grow(specimen, at_once=True)
