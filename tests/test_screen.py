"""The image while it grows."""

from __future__ import annotations

import numpy as np
import pytest
from libertem.api import Context
from live_commands import ACQUISITION, SHAPE

from libertem_parallax import ParallaxUDF, throttle
from libertem_parallax.show import screen


def test_pictures_take_a_small_part_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long they take, and they do not come more often than they are wanted."""
    now, drawn = 0.0, 0.0

    def show(seconds: float) -> None:
        nonlocal now, drawn
        now, drawn = now + seconds, drawn + seconds

    monkeypatch.setattr(throttle.time, "perf_counter", lambda: now)
    shape = (*SHAPE[:2], 20, 20)
    with Context.make_with("inline") as ctx:
        dataset = ctx.load("memory", data=np.ones(shape, np.uint8))
        udf = ParallaxUDF.from_parameters(shape, **ACQUISITION)
        *_, results = ctx.run_udf_iter(dataset, udf)
    for seconds, interval, pictures in ((0.001, 2, 500), (1, 2, 48), (0.5, 0, 95)):
        now = drawn = 0
        count = 0
        shown = screen.Screen({"it": lambda _: show(seconds)}, interval)  # noqa: B023
        while now < 1000:
            if shown.due():
                shown.show(results)
                count += 1
            now += 0.01
        assert drawn <= now / 20
        assert count == pytest.approx(pictures, rel=0.03)


def test_contrast_is_that_of_what_was_scanned() -> None:
    """The rest shows as zero, whatever a filter leaves there."""
    scanned = np.zeros((4, 6), bool)
    scanned[:2] = True
    image = np.full((8, 12), 7, np.float32)
    image[:4] = np.random.default_rng(0).uniform(1000, 1001, (4, 12))
    picture, (low, high) = screen.to_gray(screen.Growing(image, scanned), (1.0, 1.0), 0)
    np.testing.assert_array_equal(picture[:4], image[:4])
    assert not picture[4:].any()
    assert 1000 <= low < 1000.1
    assert 1000.9 < high <= 1001
