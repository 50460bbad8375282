"""What is tuned in tests, and what must be shown then."""

from __future__ import annotations

import time

import numpy as np

from libertem_parallax import Parameters
from libertem_parallax.show.maker import reconstruct

PARAMETERS = Parameters(
    scan_sampling=(20.0, 25.0),
    angular_sampling=(1.0, 1.1),
    energy=300e3,
    semiangle_cutoff=4.0,
    center=(6.2, 7.1),
    aberration_coefs={"C10": -1.3e4, "C12": 900.0, "phi12": 0.3},
    rotation_angle=0.2,
    upsampling_factor=2,
    image="phase_flip",
)
FRAMES = np.random.default_rng(1).poisson(3, (9, 12, 14, 15)).astype(np.uint16)


def assert_shown(tuning):
    """The picture is that of the present parameters and frames, and nothing is wrong."""
    assert tuning.wait(120)
    assert tuning.problem is None
    picture = tuning.picture
    assert picture.parameters is tuning.parameters
    assert picture.coarse == 1
    np.testing.assert_array_equal(
        picture.image, reconstruct(tuning.stack, tuning.parameters, picture.name)
    )


def eventually(true):
    """Wait until something is true: drawing takes a while, and so does telling who listens."""
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
