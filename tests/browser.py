"""Debian's Chromium with the page, over its real connection: what its tests share."""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
import time
import warnings

import numpy as np
import pytest
from PIL import Image

from libertem_parallax import Parameters, direct_phase
from libertem_parallax.accumulate import Stack
from libertem_parallax.show.maker import reconstruct
from libertem_parallax.show.tuning import Tuning
from libertem_parallax.simulate import simulate

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing")
pytest.importorskip("bokeh", reason="bokeh is missing, of which the page is made")


from libertem_parallax.show.page.page import Page  # noqa: E402
from libertem_parallax.show.page.server import Access, Background  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
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
    simulation = simulate((48, 48), dose=100, seed=3)
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
        end = time.monotonic() + 120
        while time.monotonic() < end:
            with contextlib.suppress(playwright.Error):
                if self.model(code, name, argument):
                    return
            time.sleep(0.02)
        raise AssertionError(f"{name}: {code} did not come true: {self.wrong}\n{self.says()}")

    def says(self):
        """Tell what there is to be read on the page."""
        with contextlib.suppress(playwright.Error):
            return self.page.locator("body").inner_text(timeout=5000)
        return "The page says nothing."

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
        # As a text, as Playwright takes long for many numbers.
        values, rows = self.model(
            "m => { const i = m.data.image[0]; return"
            " [Array.from(i, v => String.fromCharCode(v)).join(''), i.shape[0]] }",
            "source",
        )
        return np.frombuffer(values.encode("latin-1"), np.uint8).reshape(rows, -1)

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
    end = time.monotonic() + 120
    while True:
        assert tuning.wait(120)
        picture = tuning.picture
        number, shown = window.number(), window.shown()
        as_asked = parameters is None or parameters(picture.parameters)
        # Nothing came in between.
        if as_asked and number == window.number() == picture.number == tuning.picture.number:
            break
        assert time.monotonic() < end, (number, picture.number)
        time.sleep(0.02)
    if picture.name == "direct":
        with warnings.catch_warnings(action="ignore"):  # of a disk that knobs made another
            expected = direct_phase(tuning.stack, picture.parameters)
    else:
        expected = reconstruct(tuning.stack, picture.parameters, picture.name)
    np.testing.assert_array_equal(picture.image, expected)
    # Where a value lies between two grays, single precision may take either.
    assert np.abs(shown - gray(expected)).max() <= 1


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
