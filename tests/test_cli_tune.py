"""The command `tune`: what it refuses, what it says, and that it ends."""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import h5py
import numpy as np
import pytest
from bokeh.util.token import generate_jwt_token
from click.testing import CliRunner
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from libertem_parallax import Parameters
from libertem_parallax.cli import main
from libertem_parallax.show.page.server import Access, is_loopback, url

FRAMES = np.random.default_rng(1).poisson(3, (8, 9, 12, 12)).astype(np.uint8)
PARAMETERS = Parameters(
    scan_sampling=(20.0, 20.0),
    angular_sampling=(1.0, 1.0),
    energy=300e3,
    semiangle_cutoff=4.0,
    aberration_coefs={"C10": -1e4},
)


@pytest.fixture
def scan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with h5py.File("scan.h5", "w") as file:
        file["frames"] = FRAMES
    PARAMETERS.save("scan.toml")


def run(*arguments):
    return CliRunner().invoke(main, ["tune", "scan.h5", "--params", "scan.toml", *arguments])


@contextmanager
def running(*arguments, password=None):
    """Run the command as a process; yields it and where its page is."""
    command = [sys.executable, "-c", "from libertem_parallax.cli import main; main()", "tune"]
    command += ["scan.h5", "--params", "scan.toml", "--no-browser", *arguments]
    environment = os.environ | ({"LIBERTEM_PARALLAX_PASSWORD": password} if password else {})
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            line = process.stdout.readline()
            found = re.search(r"http://([\w.-]+):(\d+)/", line)
            assert found, process.stderr.read()
            yield process, found[1], int(found[2])
        finally:
            process.kill()


def get(host, port, path="/", cookie="", method="GET", body=None, **headers):
    connection = http.client.HTTPConnection(host, port, timeout=60)
    connection.request(method, path, body=body, headers={"Cookie": cookie, **headers})
    response = connection.getresponse()
    status, text = response.status, "" if response.status == 101 else response.read().decode()
    connection.close()
    return status, text, response


async def first_message(host, port, cookie=""):
    """Open the connection that pages have; what is sent first, or None if it is closed."""
    request = HTTPRequest(
        f"ws://{host}:{port}/ws", headers={"Origin": f"http://{host}:{port}", "Cookie": cookie}
    )
    protocols = ["bokeh", generate_jwt_token("a")]
    connection = await websocket_connect(request, subprotocols=protocols)
    message = await connection.read_message()
    connection.close()
    if message is not None:
        while await connection.read_message() is not None:
            pass  # until both sides have closed it
    return message


def run_apart(coroutine):
    """Run it in a thread: here, a loop that others have begun would be dropped, and not closed."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def test_ctrl_c_ends_it_and_a_port_in_use_is_told(scan):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with running("--port", str(port)) as (process, host, other):
            assert host == "127.0.0.1"
            assert other != port
            status, text, _ = get(host, other)
            assert status == 200
            assert "libertem-parallax" in text
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0
            assert f"port {port} is in use" in errors
            assert "Traceback" not in errors


def test_a_password_is_asked_for(scan):
    with running("--listen", "0.0.0.0", "--port", "0", password="open sesame") as (
        process,
        host,
        port,
    ):
        assert not is_loopback(host)
        status, _, response = get(host, port)
        assert status == 302
        assert response.headers["Location"].startswith("/login")
        assert run_apart(first_message(host, port)) is None
        form = {"Content-Type": "application/x-www-form-urlencoded"}

        def log_in(password):
            body = urllib.parse.urlencode({"password": password})
            return get(host, port, "/login", method="POST", body=body, **form)

        assert get(host, port, "/login")[0] == 200
        status, text, response = log_in("sesame")
        assert status == 403
        assert "not the password" in text
        assert response.headers["Set-Cookie"] is None
        status, _, response = log_in("open sesame")
        assert status == 302
        cookie = response.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        cookie = cookie.partition(";")[0]
        status, text, _ = get(host, port, cookie=cookie)
        assert status == 200
        assert "open sesame" not in text
        assert "ACK" in run_apart(first_message(host, port, cookie))
        assert get(host, port, "/", cookie=cookie[:-3] + "abc")[0] == 302
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        assert "Other machines find the page by any name or address of this one" in errors
        assert "not encrypted" in errors


def test_a_name_of_this_machine_that_is_given_is_told():
    access = Access(0, "0.0.0.0", ("microscope.example",), "open sesame")
    assert url(access, 8765) == "http://microscope.example:8765/"
    assert url(Access(0, "::1"), 8765) == "http://[::1]:8765/"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "0.0.0.0"], "Give a password"),
        (["--listen", "192.168.0.1"], "SSH tunnel"),
        (["--listen", "0.0.0.0", "--password-file", "empty.txt"], "expected a password"),
        (["--certificate", "scan.toml"], "scan.toml"),
        (["--listen", "203.0.113.1", "--password-file", "password.txt"], "--listen 203.0.113.1"),
        (["--memory", "1e-9"], "limit"),
        (["--semiangle-cutoff", "-1"], "semiangle_cutoff"),
    ],
)
def test_what_is_refused(scan, arguments, words):
    with open("empty.txt", "w"), open("password.txt", "w") as file:
        file.write("secret\n")
    result = run(*arguments)
    assert result.exit_code != 0
    assert words in result.output
    assert "Traceback" not in result.output


def test_without_the_extra_it_says_how_to_install_it(scan, monkeypatch):
    monkeypatch.setattr("libertem_parallax.cli.tune.find_spec", lambda name: None)
    result = run()
    assert result.exit_code == 1
    assert "pip install 'libertem-parallax[page]'" in result.output


def test_the_stack_has_as_much_of_the_detector_as_memory_allows():
    from libertem.api import Context

    from libertem_parallax.show.fill import fill_stack, part_note

    frames = FRAMES.nbytes
    with Context.make_with("inline") as ctx:
        dataset = ctx.load("memory", data=FRAMES, sig_dims=2)
        stacks = [
            fill_stack(ctx, dataset, PARAMETERS, limit) for limit in (frames, frames - 1, 72 * 50)
        ]
        with pytest.warns(UserWarning, match="the stack is of the middle"):
            stacks.append(fill_stack(ctx, dataset, PARAMETERS, 36 * 49))
    y, x = np.indices((12, 12)) - 6
    radii = np.hypot(y, x)
    for stack, radius in zip(stacks, (99, 5, 4, 4), strict=True):
        np.testing.assert_array_equal(stack.pixels, np.argwhere(radii <= radius))
    assert [stack.scan_shape for stack in stacks[:3]] == [(8, 9)] * 3
    assert np.prod(stacks[3].scan_shape) <= 36
    notes = [part_note(stack, dataset) for stack in stacks]
    assert notes[:3] == [""] * 3
    rows, cols = stacks[3].scan_shape
    assert (
        notes[3] == f"Memory holds the middle {rows} x {cols} of 8 x 9 frames: images are of these."
    )
    rows, cols = stacks[1].pixels.T
    np.testing.assert_array_equal(stacks[1].frames.reshape(8, 9, -1), FRAMES[:, :, rows, cols])
