"""`live --image direct`: one image grows, the other is made of all frames in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile
from libertem.api import Context
from live_commands import (
    ACQUISITION,
    FRAMES,
    SHAPE,
    Gate,
    Run,
    arguments,
    check_error,
    simulators,
)
from numpy.typing import NDArray

import libertem_parallax as prlx
from libertem_parallax import direct
from libertem_parallax.live.merlin import Simulator
from libertem_parallax.udf import stack

pytestmark = simulators


def offline(frames: NDArray[Any], count: int = FRAMES) -> tuple[NDArray[Any], NDArray[Any]]:
    """Phase, and direct ptychography, of the first frames."""
    roi = (np.arange(FRAMES) < count).reshape(SHAPE[:2])
    udf = prlx.ParallaxPhaseUDF.from_parameters(shape=SHAPE, **ACQUISITION)
    with Context.make_with("inline") as ctx:
        dataset = ctx.load("memory", data=frames, sig_dims=2)
        keeping = prlx.StackUDF.for_dataset(dataset)
        phase = ctx.run_udf(dataset, udf, roi=roi)["phase"].data
        ctx.run_udf(dataset, keeping, roi=roi)
    return phase, prlx.direct_phase(keeping.stack, ACQUISITION)


def check(frames: NDArray[Any], count: int = FRAMES, *, made: bool = True) -> None:
    phase, expected = offline(frames, count)
    np.testing.assert_allclose(tifffile.imread("image_phase.tif"), phase, atol=1e-5)
    assert Path("image_direct.tif").exists() == made
    if made:
        np.testing.assert_array_equal(tifffile.imread("image_direct.tif"), expected)


def test_it_is_that_of_the_file(run: Run, merlin: Simulator, frames: NDArray[Any]) -> None:
    result = run(arguments(merlin, "--start --image direct"))
    assert result.exit_code == 0, result.output
    for text in (
        "phase, 16 x 24 pixels of 0.2 x 0.25 nm\n",
        "direct ptychography, 8 x 12 pixels of 0.4 x 0.5 nm\n",
        "image_phase.tif",
        "image_direct.tif",
    ):
        assert text in result.stdout
    check(frames)


def test_of_a_scan_that_is_broken_off(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Gate(monkeypatch, "disconnect")
    result = run(arguments(merlin, "--start --image direct --image phase"))
    written = "It was written to image_phase.tif and image_direct.tif"
    check_error(result, "48 of 96 frames", written)
    check(frames, 48)


def test_memory_does_not_hold_the_frames(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told before the first frame, and in the end."""
    with monkeypatch.context() as patch:
        patch.setattr(stack, "_SHARE", 4000 / psutil.virtual_memory().available)
        result = run(arguments(merlin, "--start --image direct"))
    message = "The direct image was not made: the bright field of 8 x 12 frames, "
    check_error(result, message, "It was written to image_phase.tif")
    assert result.stderr.index(message) < result.stderr.index("Recording")
    check(frames, made=False)


@pytest.mark.parametrize("error", [MemoryError("not enough"), KeyboardInterrupt()])
def test_it_fails(
    run: Run,
    merlin: Simulator,
    frames: NDArray[Any],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    """The image that has grown is there."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(direct, "direct_phase", fail)
        result = run(arguments(merlin, "--start --image direct"))
    check_error(result, f"The direct image was not made: {str(error) or 'interrupted'}.")
    check(frames, made=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--image direct --image phase --image parallax", "phase, parallax: live makes one image"),
    ],
)
def test_usage(run: Run, merlin: Simulator, options: str, message: str) -> None:
    result = run(arguments(merlin, f"--start {options}"))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
