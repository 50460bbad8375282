"""Parameters that change while a run goes on, and plots of what there is so far."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import PARAMETERS, make_scan, run_udf, sums

from libertem_parallax import ParallaxPhaseFlipUDF, ParallaxUDF


def test_finishing_follows_changed_parameters(inline):
    frames = make_scan(PARAMETERS["shape"], "uint8")
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    noisy = ParallaxUDF.from_parameters(**PARAMETERS, suppress_Nyquist_noise=False)
    ds = inline.load("memory", data=frames, sig_dims=2, num_partitions=2)
    parts = inline.run_udf_iter(dataset=ds, udf=udf)
    for number, part in enumerate(parts):
        image = part.buffers[0]["reconstruction"].data
        if number == 0:
            parts.update_parameters_experimental([{"suppress_Nyquist_noise": False}])
    np.testing.assert_array_equal(image, run_udf(inline, frames, noisy)["reconstruction"])


def retune(ctx, frames, udf, after, **changes):
    """Run in 8 partitions; change parameters after some; yields the image after every one."""
    ds = ctx.load("memory", data=frames, sig_dims=2, num_partitions=8)
    results = ctx.run_udf_iter(dataset=ds, udf=udf)
    for number, part in enumerate(results, 1):
        yield part.buffers[0]["reconstruction"].data.copy()
        if number == after:
            other = type(udf).from_parameters(**{**PARAMETERS, "shape": frames.shape, **changes})
            results.update_parameters_experimental([{"geometry": other.params.geometry}])
            yield udf.get_results()["reconstruction"]


@pytest.mark.parametrize("udf_class", [ParallaxUDF, ParallaxPhaseFlipUDF])
def test_another_geometry_restarts_the_image(inline, udf_class):
    """What was added before is left out, and never mixed with what comes after."""
    frames = make_scan((8, 9, 24, 25), "uint16")
    udf = udf_class.from_parameters(**PARAMETERS)
    changes = {"aberration_coefs": {"C10": -1500.0}, "rotation_angle": 0.4}
    images = list(retune(inline, frames, udf, 3, **changes))
    late = np.where(np.arange(8)[:, None, None, None] >= 3, frames, 0).astype(np.uint16)
    expected = udf_class.from_parameters(**{**PARAMETERS, **changes})
    image = run_udf(inline, late, expected)["reconstruction"]
    assert not images[3].any()
    np.testing.assert_array_equal(images[-1], image)
    for one, other in zip(sums(udf), sums(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    first = np.where(np.arange(8)[:, None, None, None] < 3, frames, 0).astype(np.uint16)
    before = run_udf(inline, first, udf_class.from_parameters(**PARAMETERS))["reconstruction"]
    np.testing.assert_array_equal(images[2], before)


def test_a_geometry_with_the_same_shifts_goes_on(inline):
    frames = make_scan((8, 9, 24, 25), "uint16")
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    *_, image = retune(inline, frames, udf, 3)
    expected = run_udf(inline, frames, ParallaxUDF.from_parameters(**PARAMETERS))
    np.testing.assert_array_equal(image, expected["reconstruction"])


def test_partitions_with_the_old_geometry_are_left_out(inline):
    """As queued executors deliver them after the change."""
    frames = make_scan((8, 9, 24, 25), "uint16")
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    ds = inline.load("memory", data=frames, sig_dims=2, num_partitions=8)
    other = ParallaxUDF.from_parameters(**{**PARAMETERS, "aberration_coefs": {"C10": -1500.0}})
    for part in inline.run_udf_iter(dataset=ds, udf=udf):
        # On the main node only: workers go on with the old one.
        udf._update_parameters_patch({"geometry": other.params.geometry})
        image = part.buffers[0]["reconstruction"].data
    assert not image.any()


def test_another_upsampling_is_refused_while_running(inline):
    frames = make_scan((8, 9, 24, 25), "uint16")
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    with pytest.raises(ValueError, match="the upsampling factor must stay"):
        list(retune(inline, frames, udf, 3, upsampling_factor=3))


# LiberTEM's plots make NumPy say this.
@pytest.mark.filterwarnings("ignore:Warning. 'partition' will ignore the 'mask':UserWarning")
def test_plots_do_not_make_an_image_for_every_partition(inline, monkeypatch):
    """Only as many as there is time for; without plots, all; the last one is always made."""
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda *_, **__: None)
    monkeypatch.setattr("libertem_parallax.udf.parallax._PLOT_SHARE", 1e-9)
    frames = make_scan((8, 9, 24, 25), "uint16")
    ds = inline.load("memory", data=frames, sig_dims=2, num_partitions=8)
    udf = ParallaxPhaseFlipUDF.from_parameters(**PARAMETERS)
    made = []
    make = udf._make_images
    monkeypatch.setattr(udf, "_make_images", lambda: made.append(1) or make())

    expected = inline.run_udf(dataset=ds, udf=udf)["reconstruction"].data
    assert len(made) == 1
    made.clear()
    image = inline.run_udf(dataset=ds, udf=udf, plots=True)["reconstruction"].data
    plt.close("all")
    np.testing.assert_array_equal(image, expected)
    assert len(made) <= 5  # before the first frame, after it, and complete
    # A later run does not show images of an earlier one, and plots are forgotten.
    before = len(made)
    made.clear()
    inline.run_udf(dataset=ds, udf=udf, plots=True)
    plt.close("all")
    assert len(made) == before
    inline.run_udf(dataset=ds, udf=udf, roi=np.zeros((8, 9), bool))
    made.clear()
    images = [part.buffers[0]["reconstruction"].data for part in inline.run_udf_iter(ds, udf)]
    assert len(made) == len(images) == 8
    np.testing.assert_array_equal(images[-1], expected)


@pytest.mark.filterwarnings("ignore:Warning. 'partition' will ignore the 'mask':UserWarning")
def test_plots_show_nothing_of_an_earlier_run(inline, monkeypatch):
    """However long images of that one would have been kept."""
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda *_, **__: None)
    monkeypatch.setattr("libertem_parallax.udf.parallax._PLOT_SHARE", 1e-9)
    udf = ParallaxUDF.from_parameters(**PARAMETERS)
    get, shown = udf.get_results, []
    monkeypatch.setattr(udf, "get_results", lambda: shown.append(get()) or shown[-1])
    frames = make_scan((8, 9, 24, 25), "uint16")
    # Before the first frame there is nothing, and then an image of the first ones.
    for data, expected in (
        (frames, [False, True]),
        (0 * frames, [False] * 2),
        (frames, [False, True]),
    ):
        shown.clear()
        ds = inline.load("memory", data=data, sig_dims=2, num_partitions=8)
        inline.run_udf(dataset=ds, udf=udf, plots=True)
        plt.close("all")
        assert len(shown) > 8
        assert [images["reconstruction"].any() for images in shown[:2]] == expected
