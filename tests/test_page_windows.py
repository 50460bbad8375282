"""The page in Debian's Chromium: what it writes, who is connected, and other browsers."""

from __future__ import annotations

import asyncio
import http.client
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
import tifffile

pytest.importorskip("bokeh", reason="bokeh is missing, of which the page is made")
from bokeh.util.token import generate_jwt_token
from browser import (  # noqa: F401 - fixtures, too
    Window,
    assert_follows,
    browser,
    data,
    defocused,
    folder,
    needs_chromium,
    only_window,
    served,
    server,
    tuning,
    window,
)
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect
from tuned import eventually

from libertem_parallax import load_parameters
from libertem_parallax.show.maker import reconstruct
from libertem_parallax.show.notebook import TuningPage

pytestmark = needs_chromium
# ruff: noqa: F811


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
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
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
            pool.submit(lambda text=text: asyncio.run(asyncio.wait_for(send(text), 60))).result()
    window.set("defocus", 1350)
    assert_follows(window, tuning, defocused(1350))
