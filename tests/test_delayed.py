"""LiberTEM's executor "delayed": results are Dask arrays, as those of LiberTEM's own UDFs."""

import dask.array
import libertem.api
import numpy as np
import pytest

from libertem_parallax import ParallaxPhaseFlipUDF, StackUDF

SHAPE = (12, 9, 16, 16)
PARAMETERS = {
    "scan_sampling": (4.0, 4.0),
    "energy": 300e3,
    "semiangle_cutoff": 6.0,
    "angular_sampling": (1.0, 1.0),
    "aberration_coefs": {"C10": -2000.0},
    "upsampling_factor": 2,
}


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("part", [False, True])
def test_images_are_those_of_other_executors(inline, dtype, part):
    frames = np.random.default_rng(0).integers(0, 9, SHAPE).astype(dtype)
    roi = None
    if part:
        roi = np.zeros(SHAPE[:2], bool)
        roi[2:11, 1:7] = True
    udf = ParallaxPhaseFlipUDF.from_parameters(SHAPE, **PARAMETERS)
    expected = inline.run_udf(
        inline.load("memory", data=frames, sig_dims=2, num_partitions=4), udf, roi=roi
    )
    with libertem.api.Context.make_with("delayed") as ctx:
        lazy = dask.array.from_array(frames, chunks=(3, 9, 16, 16))
        ds = ctx.load("dask", lazy, sig_dims=2, min_size=1)
        results = ctx.run_udf(ds, udf, roi=roi)
        for channel in ("reconstruction", "parallax"):
            assert isinstance(results[channel].delayed_data, dask.array.Array)
            image, wanted = np.asarray(results[channel].data), expected[channel].data
            assert image.dtype == np.float32
            np.testing.assert_allclose(image, wanted, atol=1e-5 * np.abs(wanted).max())


def test_stacks_are_refused():
    """Nothing would be in them, without a word."""
    frames = np.ones(SHAPE, np.uint8)
    with libertem.api.Context.make_with("delayed") as ctx:
        lazy = dask.array.from_array(frames, chunks=(3, 9, 16, 16))
        ds = ctx.load("dask", lazy, sig_dims=2, min_size=1)
        stack = StackUDF.for_dataset(ds)
        both = ParallaxPhaseFlipUDF.from_parameters(SHAPE, **PARAMETERS).keeping(stack.selection)
        for udf in (stack, both):
            with pytest.raises(ValueError, match=r'"delayed".* no stack\. Use another'):
                ctx.run_udf(ds, udf)
