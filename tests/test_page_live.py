"""The page while a simulated detector records, in Chromium."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import tifffile

pytest.importorskip("libertem_live", reason="libertem-live is missing")
from browser import (  # noqa: F401 - fixtures, too
    Window,
    assert_follows,
    browser,
    defocused,
    needs_chromium,
    simulated,
)
from libertem.api import Context

from libertem_parallax import ParallaxUDF, load_parameters
from libertem_parallax.show.page.live import LivePage
from libertem_parallax.show.page.server import Access

pytestmark = needs_chromium


@pytest.fixture
def live(tmp_path, monkeypatch):
    """Run the command as a process; yields it, and where its page is."""
    monkeypatch.chdir(tmp_path)
    code = (
        "from functools import partial; from libertem_parallax import cli, simulate\n"
        "simulate.simulate = partial(simulate.simulate, scan_shape=(24, 40))\n"
        "cli.main()"
    )
    command = [sys.executable, "-c", code, "live", "--simulate", "merlin"]
    command += ["--page", "--page-port", "0", "--no-browser"]
    log = tmp_path / "errors.txt"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1
        ) as process,
    ):
        try:
            while not (found := re.search(r"The page is at (http://[\d.:]+/)", log.read_text())):
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
            yield process, found[1]
        finally:
            process.kill()
            sys.stderr.write(log.read_text()[-5000:])  # is shown if the test fails


def ended(process, count):
    """Press Ctrl-C once so many acquisitions are done; what was said."""
    said = []
    for line in process.stdout:
        said.append(line)
        if "".join(said).count("still at") == count:
            break
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    return "".join(said) + output


def by_the_udf(data, parameters):
    with Context.make_with("inline") as ctx, warnings.catch_warnings(action="ignore"):
        dataset = ctx.load("mib", path=data)
        udf = ParallaxUDF.from_parameters(dataset.shape, **parameters)
        return ctx.run_udf(dataset, udf)["phase_flip"].data


def test_knobs_are_turned_while_it_records(browser, tmp_path):  # noqa: F811
    """Partition by partition, so that the middle of the scan lasts as long as it is looked at."""
    frames, parameters = simulated()
    shape = frames.shape
    page = LivePage(Access(port=0), title="detector", folder=tmp_path)
    stopped = threading.Event()
    try:
        with Context.make_with("inline") as ctx:
            dataset = ctx.load("memory", data=frames, sig_dims=2, num_partitions=8)
            page.ready(shape[2:], frames.dtype, parameters, lambda _: stopped.set())
            window = Window(browser, page.url)
            window.wait("m => m.text.includes('Waiting for an acquisition')", "told")
            before = places(window)
            udf = page.begin(dataset, ParallaxUDF.from_parameters(shape, **parameters))
            results = ctx.run_udf_iter(dataset=dataset, udf=udf)
            for number, part in enumerate(results, start=1):
                last = part
                page.arrived(shape[0] * shape[1] // 8)
                page.show()
                if number == 4:
                    look_at_the_middle(window, browser, page)
                    window.press("Stop")
                    assert stopped.wait(60)
            page.end(None)
            window.wait("m => m.text.includes('Recorded')", "told")
            window.wait("m => m.disabled", "stop")
            window.wait("m => !m.disabled", "next")
            window.set("told", "long " * 50, "text")
            assert places(window) == before
            assert_follows(window, page.tuning, defocused(1490))
            assert (window.shown() > 0).all()
            changed = parameters.replace(aberration_coefs={"C10": -14900})
            udf = ParallaxUDF.from_parameters(shape, **changed)
            expected = ctx.run_udf(dataset, udf)["phase_flip"].data
            np.testing.assert_array_equal(page.tuning.picture.image, expected)
            # The image of the recording had nothing to do with that.
            udf = ParallaxUDF.from_parameters(shape, **parameters)
            expected = ctx.run_udf(dataset, udf)["phase_flip"].data
            np.testing.assert_array_equal(last.buffers[0]["phase_flip"].data, expected)
            window.close()
    finally:
        page.close()


def places(window):
    """Where that is which one may be about to press, whatever is told beside."""
    return [
        window.model(
            "m => JSON.stringify(Bokeh.index.find_one(m).el.getBoundingClientRect())", name
        )
        for name in ("stop", "next", "calibrate", "undo", "save", "image_name", "coarse")
    ]


def look_at_the_middle(window, browser, page):  # noqa: F811
    """Of the scan: another window, the first one anew, and a knob."""
    window.wait("m => m.text.includes('Recording 50% of 2,304 frames')", "told")
    assert window.model("m => m.disabled", "next")
    other = Window(browser, page.url, 390, 844)
    window.page.reload()
    window.drawn()
    window.set("defocus", 1490)
    other.wait("m => m.value == 1490", "defocus")
    for each in (window, other):
        each.wait("(m, n) => m.data.number[0] >= n", "source", page.tuning._number)
        assert 0.4 < (each.shown() == 0).mean() < 0.6
    other.close()


def test_a_simulated_detector(live, browser, tmp_path):  # noqa: F811
    process, url = live
    window = Window(browser, url)
    window.set("defocus", 1490)
    window.wait("m => m.text.includes('Recorded')", "told")
    window.wait("m => m.data.image[0].every(v => v > 0)", "source")
    window.press("Save")
    window.wait("m => m.text.includes('_001')", "told")
    window.press("Next scan")
    window.wait("m => m.text.includes('>image_2.tif<') && m.text.includes('>image.tif<')", "before")
    assert window.page.locator("figure img").count() == 2
    window.wait("m => !m.disabled", "next")
    window.close()
    output = ended(process, 2)
    assert process.returncode == 0
    assert output.count("960 frames") == 2
    folder = tmp_path / "libertem-parallax-live"
    saved = load_parameters(folder / "merlin_phase_flip_001.toml")
    assert saved["aberration_coefs"]["C10"] == -14900
    data = folder / "frames.hdr"
    image = tifffile.imread(folder / "merlin_phase_flip_001.tif")
    np.testing.assert_array_equal(image, by_the_udf(data, saved))
    # What the command was asked for is as without a page.
    given = load_parameters(folder / "params.toml")
    np.testing.assert_array_equal(tifffile.imread(folder / "image.tif"), by_the_udf(data, given))
    # The next one has what was tuned.
    np.testing.assert_array_equal(tifffile.imread(folder / "image_2.tif"), image)
