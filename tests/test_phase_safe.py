"""Phase images that must not wait for the compiler, nor spread what has no scale."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from helpers import PARAMETERS, make_scan, run_udf

from libertem_parallax import ParallaxPhaseUDF, Parameters
from libertem_parallax.images import Imaging, Sums, wiener
from libertem_parallax.images.phase import phase
from libertem_parallax.show.page.live import LivePage
from libertem_parallax.show.page.server import Access


@pytest.fixture
def calls(monkeypatch):
    """Compiled functions of the filter that are called, with the types of their arguments."""
    calls = set()
    for name in ("fit", "ratio"):
        compiled = getattr(wiener, name)

        def watched(*args, name=name, compiled=compiled):
            calls.add((name, *map(numba.typeof, args)))
            return compiled(*args)

        monkeypatch.setattr(wiener, name, watched)
    return calls


def test_what_images_need_is_compiled_before_the_first_frame(inline, calls, tmp_path):
    """A run on empty frames calls compiled functions with all types that others do; so do pages."""
    udf = ParallaxPhaseUDF.from_parameters(**PARAMETERS)
    frames = make_scan(PARAMETERS["shape"], "uint8")
    run_udf(inline, np.zeros_like(frames), udf)
    before = calls.copy()
    calls.clear()
    run_udf(inline, frames, udf)
    assert calls == before
    calls.clear()
    page = LivePage(Access(port=0), folder=tmp_path)
    try:
        parameters = {k: v for k, v in PARAMETERS.items() if k != "shape"}
        page.ready(PARAMETERS["shape"][2:], frames.dtype, Parameters(**parameters))
        assert calls == before
    finally:
        page.close()


@pytest.mark.parametrize("regularization", ["auto", 30.0])
@pytest.mark.parametrize("rest", [1e-2, 1e-8, 1e-16])
def test_values_that_cancel_out_make_no_phase(rest, regularization):
    """As what rounding leaves where the mean of all frames was taken off."""
    geometry = ParallaxPhaseUDF.from_parameters(**PARAMETERS).params.geometry
    A = np.random.default_rng(0).normal(size=geometry.plan.folded_shape)
    S = np.full(PARAMETERS["shape"][:2], rest)
    imaging = Imaging(geometry, regularization=regularization)
    assert not phase(Sums(imaging, A, S, np.ones(S.shape, bool))).any()


@pytest.mark.parametrize("u", [1, 2, 3, 4])
def test_what_all_frames_share_shows_nothing(inline, u):
    """Between scan positions, too, where different pixels are. Only the unit changes: I0."""
    frames = make_scan(PARAMETERS["shape"], "uint8").astype(np.int64)
    shared = np.random.default_rng(0).integers(0, 1000, frames.shape[2:])
    parameters = {**PARAMETERS, "upsampling_factor": u, "regularization": 30.0}
    udf = ParallaxPhaseUDF.from_parameters(**parameters)
    pixels = tuple(udf.params.geometry.plan.pixels.T)
    expected, found = (
        run_udf(inline, values, udf)["phase"] * values[:, :, *pixels].sum()
        for values in (frames, frames + shared)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * abs(expected).max())
