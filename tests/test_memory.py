"""Estimates of memory are near what is taken."""

import tracemalloc

import numpy as np
import pytest

from libertem_parallax import ParallaxUDF
from libertem_parallax.images import IMAGES
from libertem_parallax.memory import image_memory

PARAMETERS = {
    "scan_sampling": (1.0, 1.0),
    "energy": 300e3,
    "semiangle_cutoff": 3.0,
    "angular_sampling": (1.0, 1.0),
}


def peak_of(ctx, ds, udf):
    """Bytes that a run takes at most."""
    tracemalloc.start()
    try:
        ctx.run_udf(ds, udf)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize(
    ("scan", "u", "defocus", "parts"), [(128, 8, 1e3, 1), (384, 1, 2e3, 20), (200, 3, 4e4, 1)]
)
@pytest.mark.filterwarnings("ignore:the frames show", "ignore:shifts")
def test_estimates_are_within_half_of_what_is_taken(inline, image, scan, u, defocus, parts):
    """The last has a halo as large as the scan. Sums of 32-bit integers have 64 bits."""
    frames = np.broadcast_to(np.ones((1, 1, 1, 1), np.uint32), (scan, scan, 7, 7))
    ds = inline.load("memory", data=frames, sig_dims=2, num_partitions=parts)
    udf, other = (
        ParallaxUDF.from_parameters(
            ds.shape,
            **PARAMETERS,
            upsampling_factor=u,
            aberration_coefs={"C10": -defocus},
            image=image,
        )
        for _ in range(2)
    )
    inline.run_udf(ds, other)  # compiles
    peak = peak_of(inline, ds, udf)
    copied = frames.nbytes // parts  # by LiberTEM, for the partition
    estimate = image_memory(udf.params.geometry.plan, IMAGES[image].memory)
    assert estimate / 1.5 < peak - copied < estimate * 1.5


@pytest.mark.filterwarnings("ignore:shifts")
def test_the_accumulator_is_counted():
    """Its halo is what a small scan with large shifts has most of."""
    plan = ParallaxUDF.from_parameters(
        (64, 64, 7, 7), **PARAMETERS, upsampling_factor=3, aberration_coefs={"C10": -4e4}
    ).params.geometry.plan
    A = np.zeros(plan.accumulator_shape, np.int64)
    assert A.size > 3 * np.prod(plan.image_shape)
    assert image_memory(plan, 0) > A.nbytes


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.filterwarnings("ignore:shifts")
def test_frames_of_large_disks_that_wait_are_counted(inline, dtype):
    """Detectors send a frame a tile."""
    frames = np.broadcast_to(np.ones((1, 1, 1, 1), dtype), (12, 12, 256, 256))
    ds = inline.load("memory", data=frames, sig_dims=2, num_partitions=1, tileshape=(1, 256, 256))
    parameters = {**PARAMETERS, "angular_sampling": (0.025,) * 2, "aberration_coefs": {"C10": -1e3}}
    udf, other = (ParallaxUDF.from_parameters(ds.shape, **parameters) for _ in range(2))
    inline.run_udf(ds, other)  # compiles
    peak = peak_of(inline, ds, udf)
    estimate = image_memory(udf.params.geometry.plan, IMAGES["parallax"].memory)
    assert estimate / 1.5 < peak < estimate * 1.5
