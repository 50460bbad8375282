"""Work that threads share."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from helpers import PARAMETERS

from libertem_parallax import ParallaxUDF
from libertem_parallax.accumulate.threads import cores, share
from libertem_parallax.images import Imaging, Sums, parallax


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_part_is_taken_once(threads):
    taken = []

    def double(part):
        taken.append(part)
        return 2 * part

    assert share(double, range(100), threads) == list(range(0, 200, 2))
    assert sorted(taken) == list(range(100))


def test_threads_work_side_by_side():
    """Each waits until all have begun."""
    begun = threading.Barrier(cores(), timeout=60)

    def work(_):
        begun.wait()
        return threading.get_ident()

    assert len(set(share(work, range(cores()), cores()))) == cores()


def test_nobody_waits_for_threads_that_have_not_begun():
    """They may have to do other work, which here lasts until the shared one is done."""
    done, begun = threading.Event(), threading.Barrier(cores() + 2, timeout=60)

    def wait(_):
        begun.wait()
        return done.wait(60)

    count = cores() + 1  # with that of the caller
    blocking = threading.Thread(target=share, args=(wait, range(count), count))
    blocking.start()
    begun.wait()
    this = threading.get_ident()
    assert share(lambda _: threading.get_ident(), range(3), 2) == [this] * 3
    done.set()
    blocking.join(60)


@pytest.mark.parametrize("wrong", [0, 9])
def test_errors_come_through(wrong):
    def work(part):
        if part == wrong:
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        share(work, range(10), 2)


@pytest.mark.parametrize("upsampling_factor", [1, 3])
def test_images_have_the_same_bits_with_any_threads(monkeypatch, upsampling_factor):
    parameters = PARAMETERS | {"upsampling_factor": upsampling_factor}
    imaging = Imaging(ParallaxUDF.from_parameters(**parameters).params.geometry)
    rng, plan = np.random.default_rng(0), imaging.geometry.plan
    A, S = (rng.integers(0, 9999, shape) for shape in (plan.folded_shape, plan.scan_shape))
    images = []
    for threads in (1, 2, 4):
        monkeypatch.setattr(parallax, "THREADS", threads)
        monkeypatch.setattr(parallax, "_SHARED", 1)
        images.append(parallax.parallax(Sums(imaging, A, S, np.ones(S.shape, bool))))
    assert images[0].any()
    for image in images[1:]:
        np.testing.assert_array_equal(image, images[0])
