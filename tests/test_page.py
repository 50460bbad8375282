"""The page in Debian's Chromium, over its real connection."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import io
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from libertem_parallax import Parameters, direct_phase, load_parameters
from libertem_parallax.accumulate import Stack
from libertem_parallax.show.maker import reconstruct
from libertem_parallax.show.notebook import TuningPage
from libertem_parallax.show.tuning import Tuning
from libertem_parallax.simulate import simulate

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing")
pytest.importorskip("bokeh", reason="bokeh is missing, of which the page is made")

from bokeh.util.token import generate_jwt_token  # noqa: E402

from libertem_parallax.show.page.page import Page  # noqa: E402
from libertem_parallax.show.page.server import Access, Background  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium, in which the page is tested"
)

#: So that the browser talks to the page and to nobody else.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as starter:
        browser = starter.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@functools.cache
def simulated():
    """Frames of a scan of a specimen, and its parameters."""
    simulation = simulate(dose=100, seed=3)
    given = {k: v for k, v in simulation.parameters.items() if k != "shape"}
    return simulation.frames, Parameters(**given, image="phase_flip")


@pytest.fixture(scope="module")
def data():
    return simulated()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the page saves."""
    return tmp_path_factory.mktemp("page") / "saved"


@pytest.fixture(scope="module")
def served(data, folder):
    """A page for all tests: what is tuned, and its server."""
    frames, parameters = data
    tuning = Tuning(Stack.from_array(frames), parameters)
    background = Background(lambda: Page(tuning, "scan.h5", folder), Access(port=0))
    yield tuning, background
    background.close()
    tuning.close()


@pytest.fixture
def tuning(served):
    """What is tuned, with the parameters of the beginning."""
    tuning, _ = served
    while tuning.can_undo:
        tuning.undo()
    return tuning


@pytest.fixture
def server(served):
    return served[1].server


class Window:
    """A window of the browser, and what goes wrong in it."""

    def __init__(self, browser, url, width=1400, height=900):
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.wrong, self.requests = [], []
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.requests.append(socket.url))
        self.page.goto(url)
        self.drawn()

    def drawn(self):
        """Wait until there is an image."""
        self.wait("m => m.data.number[0] >= 0", "source")

    def model(self, code, name, argument=None):
        """Evaluate a function of a model of the page by name; "source" is that of the image."""
        return self.page.evaluate(
            f"""([name, argument]) => {{
                const all = Bokeh.documents[0]
                const image = () => all.get_model_by_name("image")?.renderers[0].data_source
                const model = name == "source" ? image() : all.get_model_by_name(name)
                return ({code})(model, argument)
            }}""",
            [name, argument],
        )

    def wait(self, code, name, argument=None):
        end = time.monotonic() + 40
        while time.monotonic() < end:
            with contextlib.suppress(playwright.Error):
                if self.model(code, name, argument):
                    return
            time.sleep(0.02)
        raise AssertionError(f"{name}: {code} did not come true: {self.wrong}")

    def set(self, name, value, what="value"):
        """Turn a knob, as its own code would."""
        self.model(f"(m, value) => {{ m.{what} = value }}", name, value)

    def click(self, name):
        self.model("m => { m.trigger_event(new (class extends Object {})) }", name)

    def press(self, label):
        self.page.get_by_role("button", name=label, exact=True).click()

    def pixels(self):
        """Cut the image out of a screenshot; gray values."""
        box = self.model(
            "m => { const b = Bokeh.index.find_one(m).bbox; const r = Bokeh.index.find_one(m)"
            ".el.getBoundingClientRect(); return [r.x, r.y, r.width, r.height] }",
            "image",
        )
        clip = dict(zip(("x", "y", "width", "height"), box, strict=True))
        shot = self.page.screenshot(clip=clip)
        return np.asarray(Image.open(io.BytesIO(shot)).convert("L")).astype(float)

    def number(self):
        """Get the number of the picture that the browser has."""
        return self.model("m => m.data.number[0]", "source")

    def shown(self):
        """Get the gray values that the browser has."""
        values, rows = self.model(
            "m => { const i = m.data.image[0]; return [Array.from(i), i.shape[0]] }", "source"
        )
        return np.array(values, np.uint8).reshape(rows, -1)

    def close(self):
        self.page.close()
        assert not self.wrong


@pytest.fixture(scope="module")
def only_window(browser, served):
    window = Window(browser, served[1].url)
    yield window
    window.close()


@pytest.fixture
def window(only_window, tuning):
    """The window of all tests, with what the page shows at first."""
    assert_follows(only_window, tuning)
    yield only_window
    assert not only_window.wrong


def gray(image):
    """Gray values as the page's contrast has them, written down plainly; 1 to 255."""
    low, high = np.percentile(image, (0.5, 99.5))
    return np.clip(np.rint((image - low) / (high - low) * 254), 0, 254) + 1


def assert_follows(window, tuning, parameters=None):
    """The page shows the image of the present parameters: in the end, of these."""
    end = time.monotonic() + 30
    while True:
        assert tuning.wait(30)
        picture = tuning.picture
        number, shown = window.number(), window.shown()
        as_asked = parameters is None or parameters(picture.parameters)
        # Nothing came in between.
        if as_asked and number == window.number() == picture.number == tuning.picture.number:
            break
        assert time.monotonic() < end, (number, picture.number)
        time.sleep(0.02)
    if picture.name == "direct":
        expected = direct_phase(tuning.stack, picture.parameters)
    else:
        expected = reconstruct(tuning.stack, picture.parameters, picture.name)
    np.testing.assert_array_equal(picture.image, expected)
    # Where a value lies between two grays, single precision may take either.
    assert np.abs(shown - gray(expected)).max() <= 1


def eventually(true):
    """Wait until something is true: drawing takes a while."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def suppressed(true):
    """False where a parameter is not there yet."""

    def known(parameters):
        with contextlib.suppress(KeyError):
            return true(parameters)
        return False

    return known


def defocused(nm):
    """Whether parameters have this defocus."""
    return lambda parameters: parameters["aberration_coefs"]["C10"] == pytest.approx(-10 * nm)


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

    mouse = window.page.mouse
    window.wait("m => m.renderers[0].data_source.data.dw[0] == 64", "diffraction")
    mouse.move(*place("diffraction", 32, 32))
    mouse.down()
    mouse.move(*place("diffraction", 34, 31), steps=5)
    mouse.up()
    window.wait("m => Math.abs(m.value - 31) < 0.6", "center_row")
    window.wait("m => Math.abs(m.value - 34) < 0.6", "center_col")
    assert_follows(window, tuning)
    row, col = tuning.parameters["center"]
    before = tuning.parameters["semiangle_cutoff"]
    mouse.move(*place("diffraction", col + 13, row))
    mouse.down()
    mouse.move(*place("diffraction", col + 10, row), steps=5)
    mouse.up()
    window.wait("(m, b) => Math.abs(m.value - b + 3 * 0.3076) < 0.2", "semiangle", before)
    assert tuning.parameters["center"] == (row, col)
    mouse.click(*place("astigmatism", 0.5, 0.5))
    window.wait("m => Math.abs(m.value - 0.5) < 0.05", "c12a")
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
    played = [-15000.0]

    def look():
        c10 = round(tuning.parameters["aberration_coefs"]["C10"], 6)
        if c10 != played[-1]:
            played.append(c10)

    stop = tuning.listen(look)
    window.model("m => { m.active = true }", "play")
    first = tuning.picture.number
    window.wait("(m, n) => m.data.number[0] >= n + 5", "source", first)
    window.model("m => { m.active = false }", "play")
    series = [-14800, -15100, -15400, -15100]
    tuning.wait(30)
    time.sleep(0.3)  # what was under way
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


def test_saving_overwrites_nothing(window, tuning, folder):
    window.set("defocus", 1450)
    assert_follows(window, tuning, defocused(1450))
    window.press("Save")
    window.wait("m => m.text.includes('_001')", "told")
    window.press("Save")
    window.wait("m => m.text.includes('_002')", "told")
    assert sorted(path.name for path in folder.iterdir()) == [
        f"scan_phase_flip_00{n}{end}" for n in (1, 2) for end in (".png", ".tif", ".toml")
    ]
    saved = load_parameters(folder / "scan_phase_flip_001.toml")
    assert saved["aberration_coefs"]["C10"] == -14500
    np.testing.assert_array_equal(
        tifffile.imread(folder / "scan_phase_flip_001.tif"),
        reconstruct(tuning.stack, saved, "phase_flip"),
    )


def test_the_script_makes_the_image(window, tuning, data, tmp_path, monkeypatch):
    window.set("rotation", -20)
    window.set("c12a", 30)
    assert_follows(window, tuning, lambda p: "C12" in p["aberration_coefs"])
    window.press("Copy as Python")
    window.wait("m => m.text.includes('-20 degrees')", "script")
    text = window.page.locator("pre", has_text="import libertem_parallax").inner_text()
    window.press("Copy as Python")
    window.wait("m => !m.visible", "script")
    monkeypatch.chdir(tmp_path)
    with h5py.File("scan.h5", "w") as file:
        file["frames"] = data[0]
    text = text.replace("'...'", "'scan.h5'").replace("Context()", 'Context.make_with("inline")')
    names = {"__name__": "__main__"}
    exec(text, names)
    names["ctx"].close()
    np.testing.assert_array_equal(names["image"], tuning.picture.image)


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


def test_a_phone_beside_shows_the_same(window, tuning, browser, served):
    phone = Window(browser, served[1].url, 390, 844)
    window.set("defocus", 1300)
    phone.wait("m => m.value == 1300", "defocus")
    assert_follows(window, tuning, defocused(1300))
    assert_follows(phone, tuning, defocused(1300))
    np.testing.assert_array_equal(window.shown(), phone.shown())
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    x, _, wide, high = phone.model(
        "m => { const r = Bokeh.index.find_one(m).el.getBoundingClientRect();"
        " return [r.x, r.y, r.width, r.height] }",
        "image",
    )
    assert x >= 0
    assert wide == pytest.approx(390, abs=20)
    assert high == pytest.approx(wide, abs=20)
    phone.page.get_by_role("button", name="Twin").scroll_into_view_if_needed()
    phone.press("Twin")
    window.wait("m => m.value == -1300", "defocus")
    phone.close()
    window.set("rotation", 5)
    assert_follows(window, tuning, lambda p: p["rotation_angle"] == pytest.approx(np.radians(5)))


def test_a_notebook(tuning, browser, served):
    """In what a notebook shows, knobs turn."""
    page = TuningPage(tuning, served[1])
    notebook = browser.new_page()
    notebook.set_content(page._repr_html_())
    frame = notebook.frames[1]
    frame.wait_for_function("window.Bokeh?.documents[0]?.get_model_by_name('rotation')")
    frame.evaluate("Bokeh.documents[0].get_model_by_name('rotation').value = 11")
    eventually(lambda: page.parameters["rotation_angle"] == pytest.approx(np.radians(11)))
    notebook.close()


def test_a_lost_connection_comes_back(window, tuning, server):
    assert_follows(window, tuning)
    window.page.evaluate("window.before = true")
    connections = [*server._tornado._clients]
    assert connections
    for connection in connections:
        server.io_loop.add_callback(connection._socket.close)
    tuning.aberrate(defocus=1.23e4)  # meanwhile, elsewhere
    window.wait("m => m.data.number[0] >= 0 && !window.before", "source")
    window.wait("m => m.value == 1230", "defocus")
    assert_follows(window, tuning, defocused(1230))
    window.set("rotation", 7)
    assert_follows(window, tuning, lambda p: p["rotation_angle"] == pytest.approx(np.radians(7)))


def test_nobody_else_is_asked_for_anything(window, server):
    assert len(window.requests) > 3
    for url in window.requests:
        assert url.split("/")[2] == f"127.0.0.1:{server.port}", url


def test_other_origins_are_refused(server):
    def answer(origin):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        headers = {
            "Origin": origin,
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
            "Sec-WebSocket-Protocol": f"bokeh, {generate_jwt_token('a')}",
        }
        connection.request("GET", "/ws", headers=headers)
        with connection.getresponse() as response:
            connection.close()
            return response.status

    assert answer("http://elsewhere.example") == 403
    assert answer(f"http://127.0.0.1:{server.port}") == 101


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
        window.page.get_by_text("Nothing was found").wait_for(timeout=60_000)
        window.press("Leave")
        window.wait("m => m.text == ''", "found")
    finally:
        tuning.grow(specimen, at_once=True)


def test_a_malformed_message_does_no_harm(window, tuning, server):

    async def send(text):
        where = f"127.0.0.1:{server.port}"
        request = HTTPRequest(f"ws://{where}/ws", headers={"Origin": f"http://{where}"})
        protocols = ["bokeh", generate_jwt_token("somebody")]
        connection = await websocket_connect(request, subprotocols=protocols)
        await connection.read_message()
        await connection.write_message(text)
        connection.close()
        while await connection.read_message() is not None:
            pass  # until both sides have closed it

    for text in ("{nonsense", '{"msgid": "1", "msgtype": "PATCH-DOC"}', "x" * 1000):
        with ThreadPoolExecutor(1) as pool:  # Playwright has the loop of this thread
            pool.submit(lambda text=text: asyncio.run(asyncio.wait_for(send(text), 20))).result()
    window.set("defocus", 1350)
    assert_follows(window, tuning, defocused(1350))
