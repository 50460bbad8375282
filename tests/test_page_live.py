"""The page while a simulated detector records, in Chromium."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import tifffile

pytest.importorskip("libertem_live", reason="libertem-live is missing")
from test_page import Window, browser, pytestmark  # noqa: F401 - one browser for all

from libertem_parallax import ParallaxUDF, load_parameters


@pytest.fixture
def live(tmp_path, monkeypatch):
    """Run the command as a process; yields it, and where its page is."""
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-c", "from libertem_parallax.cli import main; main()", "live"]
    command += ["--simulate", "merlin", "--page", "--page-port", "0", "--no-browser"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        try:
            seen = []
            for line in process.stderr:
                seen.append(line)
                if found := re.search(r"The page is at (http://[\d.:]+/)", line):
                    break
            else:
                raise AssertionError("".join(seen))
            yield process, found[1]
        finally:
            process.kill()


def ended(process):
    """Press Ctrl-C once all is done; what was said."""
    said = []
    for line in process.stdout:
        said.append(line)
        if "still at" in line:
            break
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    return "".join(said) + output, errors


def by_the_udf(data, parameters):
    from libertem.api import Context

    with Context.make_with("inline") as ctx, warnings.catch_warnings(action="ignore"):
        dataset = ctx.load("mib", path=data)
        udf = ParallaxUDF.from_parameters(dataset.shape, **parameters)
        return ctx.run_udf(dataset, udf)["phase_flip"].data


def test_knobs_are_turned_while_it_records(live, browser, tmp_path):  # noqa: F811
    process, url = live
    window = Window(browser, url)
    window.wait("m => m.text.includes('Recording')", "told")
    assert window.model("m => m.visible", "stop")
    # In the middle of the scan: another window, the first one anew, and a knob.
    other = Window(browser, url, 390, 844)
    window.page.reload()
    window.drawn()
    window.set("defocus", 1490)
    other.wait("m => m.value == 1490", "defocus")
    unscanned = (window.shown() == 0).mean()
    text = window.model("m => m.text", "told")
    assert "Recording" in text, text
    assert 0 < unscanned < 1
    assert re.search(r"\d+% of 5,184 frames", text)
    # To the end.
    window.wait("m => m.text.includes('Recorded')", "told")
    window.wait("m => m.data.image[0].every(v => v > 0)", "source")
    assert not window.model("m => m.visible", "stop")
    other.close()
    window.press("Save")
    window.wait("m => m.text.includes('_001')", "told")
    window.close()
    output, errors = ended(process)
    assert process.returncode == 0, errors
    assert "5,184 frames" in output
    folder = tmp_path / "libertem-parallax-live"
    saved = load_parameters(folder / "merlin_phase_flip_001.toml")
    assert saved["aberration_coefs"]["C10"] == -14900
    data = folder / "frames.hdr"
    image = tifffile.imread(folder / "merlin_phase_flip_001.tif")
    np.testing.assert_array_equal(image, by_the_udf(data, saved))
    # What the command was asked for is as without a page.
    given = load_parameters(folder / "params.toml")
    np.testing.assert_array_equal(tifffile.imread(folder / "image.tif"), by_the_udf(data, given))


def test_it_is_stopped_from_the_page(live, browser):  # noqa: F811
    process, url = live
    window = Window(browser, url)
    window.wait("m => m.text.includes('Recording')", "told")
    window.press("Stop")
    window.wait("m => m.text.includes('Not complete: interrupted')", "told")
    window.set("defocus", 1400)
    window.wait("m => m.data.image[0].some(v => v > 0)", "source")
    window.close()
    _, errors = ended(process)
    assert process.returncode == 1
    assert "of 5,184 frames" in errors
