"""`live --page`: one acquisition after another, on a page that nobody need look at."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from live_commands import (
    ACQUISITION,
    SECONDS,
    Run,
    arguments,
    expected,
    simulators,
)
from live_pages import (  # noqa: F401 - a fixture, too
    PAGE,
    PARAMETERS,
    looking,
    pages,
    recorded,
    small_scan,
)
from numpy.typing import NDArray

from libertem_parallax import Parameters, direct_phase, load_parameters, simulate
from libertem_parallax.accumulate import Stack
from libertem_parallax.cli import simulated
from libertem_parallax.live.merlin import Merlin, Simulator
from libertem_parallax.show.page.live import LivePage
from libertem_parallax.show.page.server import Access

pytestmark = simulators
# ruff: noqa: F811


def test_the_next_acquisition_has_what_was_tuned(
    run: Run, merlin: Simulator, frames: NDArray[Any], pages: list[LivePage]
) -> None:
    """Its image goes to another file; what was there before is kept."""
    Path("image_2.tif").write_text("mine", encoding="utf-8")
    seen: list[Any] = []

    def tune(page: LivePage) -> None:
        page.tuning.aberrate(C10=-2500.0)
        page.next()

    def look(page: LivePage) -> None:
        page.tuning.wait(SECONDS)
        seen.append(page.tuning.picture.image)  # type: ignore[union-attr]

    with looking(pages, (recorded(1), tune), (recorded(2), look)):
        result = run(arguments(merlin, f"--start {PAGE}"))
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(tifffile.imread("image.tif"), expected(frames))
    assert Path("image_2.tif").read_text(encoding="utf-8") == "mine"
    other = tifffile.imread("image_3.tif")
    np.testing.assert_array_equal(other, expected(frames, aberration_coefs={"C10": -2500.0}))
    np.testing.assert_array_equal(seen[0], other)
    assert [each.name for each in pages[0].thumbnails] == ["image.tif", "image_3.tif"]
    assert "This acquisition goes to image_3.tif" in result.stderr
    assert result.stdout.count("Written to") == 2


def test_memory_and_thumbnails_are_bounded(tmp_path: Path) -> None:
    """Of any number of acquisitions, eight are kept as small pictures, and frames of one."""
    from libertem.api import Context

    from libertem_parallax import ParallaxUDF
    from libertem_parallax.show.screen import Growing

    frames = small_scan()
    page = LivePage(Access(port=0), folder=tmp_path)
    try:
        with Context.make_with("inline") as ctx:
            dataset = ctx.load("memory", data=frames, sig_dims=2)
            page.ready((12, 12), frames.dtype, PARAMETERS)
            kept = []
            udf = ParallaxUDF.from_parameters(
                frames.shape, **PARAMETERS, aberration_coefs={"C10": -2000.0}
            )
            for number in range(10):
                page.ready((12, 12), frames.dtype, PARAMETERS)
                page.tuning.when_idle(itertools.repeat(None))  # a curve of the scan before
                kept.append(page.begin(dataset, udf))
                assert not page.tuning.has_more
                ctx.run_udf(dataset, kept[-1])
                page.end(None)
                image = np.random.default_rng(number).normal(size=(12, 16)).astype(np.float32)
                page.keep(tmp_path / f"image_{number}.tif", Growing(image, np.ones((6, 8), bool)))
                assert page.tuning.wait(SECONDS)
                page.next()
                assert page.wait()
        assert [each.name for each in page.thumbnails] == [
            f"image_{number}.tif" for number in range(2, 10)
        ]
        assert max(len(each.jpeg) for each in page.thumbnails) < 50_000
        assert page.tuning.stack.frames is kept[-1].stack.frames
    finally:
        page.close()


def test_more_frames_than_memory_holds(tmp_path: Path) -> None:
    """Tuning starts from now: with the latest frames, to which all that come are added."""
    from libertem.api import Context

    from libertem_parallax import ParallaxUDF
    from libertem_parallax.accumulate import Stack
    from libertem_parallax.show.maker import reconstruct

    frames = small_scan()
    parameters = PARAMETERS.replace(image="parallax", aberration_coefs={"C10": -2000.0})
    udf = ParallaxUDF.from_parameters(frames.shape, **parameters)
    # Of 6 rows in as many partitions, 2 and a half.
    page = LivePage(Access(port=0), 20 * len(udf.params.geometry.plan.pixels), folder=tmp_path)
    notes = []
    try:
        with Context.make_with("inline") as ctx:
            dataset = ctx.load("memory", data=frames, sig_dims=2, num_partitions=6)
            page.ready((12, 12), frames.dtype, parameters)
            udf = page.begin(dataset, udf)
            notes.append(page.note)
            tuning = page.tuning

            def shown(since: int, until: int, parameters: Parameters) -> None:
                """The picture is what a run over these frames makes with these parameters."""
                assert tuning.wait(SECONDS)
                picture = tuning.picture
                assert picture is not None
                assert picture.parameters == parameters
                there = np.arange(48).reshape(6, 8)
                there = (there >= since) & (there < until)
                np.testing.assert_array_equal(picture.scanned, there)
                made = ParallaxUDF.from_parameters(frames.shape, **parameters)
                result = ctx.run_udf(dataset, made, roi=there)[picture.name].data
                np.testing.assert_array_equal(picture.image, result)

            for rows, _ in enumerate(ctx.run_udf_iter(dataset, udf), 1):
                page.arrived(8)
                page.show()
                notes.append(page.note)
                if rows == 4:
                    shown(0, 32, parameters)
                    tuning.change(image="phase_flip")  # of the same sums
                    shown(0, 32, tuning.parameters)
                    tuning.aberrate(C10=-2500.0)
                    shown(12, 32, tuning.parameters)
            page.end(None)
            shown(12, 48, tuning.parameters)
            notes.append(page.note)
            tuning.aberrate(C10=-2600.0)
            shown(28, 48, tuning.parameters)
            tuning.aberrate(C10=-2000.0)
            shown(0, 48, tuning.parameters)
            while tuning.can_undo:
                tuning.undo()
            assert tuning.parameters == parameters
            shown(0, 48, parameters)
            assert tuning.picture is not None
            whole = reconstruct(Stack.from_array(frames), parameters)
            np.testing.assert_array_equal(tuning.picture.image, whole)
    finally:
        page.close()
    assert all("Memory holds 20 of 48 frames" in note for note in notes[:3])
    assert all("re-tuning starts from now, with the latest 20" in note for note in notes[3:7])
    assert "Memory holds the latest 20 of 48 frames" in notes[7]


def test_calibrated_once(run: Run, pages: list[LivePage], monkeypatch: pytest.MonkeyPatch) -> None:
    """The page has what was found, and so has the next acquisition; memory holds 34 of 40 rows.

    The one after that, of which the simulator does not start, is told on the page, which stays.
    """
    plain = simulate.simulate

    def brighter(**how: Any) -> simulate.Simulation:
        more = {} if how["dose"] is None else {"scan_shape": (40, 48), "dose": 60.0}
        return plain(**{**how, **more})

    monkeypatch.setattr(simulate, "simulate", brighter)
    monkeypatch.setattr(simulated, "_DWELL_TIME", 2e-4)
    seen: list[Any] = []

    def again(page: LivePage) -> None:
        seen.append(page.tuning.parameters)
        assert "Memory holds the latest 1,640 of" in page.note
        assert page.tuning.stack.scanned[-34:].all()
        page.next()

    def never(*_: Any) -> Any:
        raise RuntimeError("the simulator failed to start")

    def in_vain(page: LivePage) -> None:
        monkeypatch.setattr(Merlin, "simulate", never)
        page.next()

    def told(page: LivePage) -> bool:
        return str(page.progress) == "Not recorded: the simulator failed to start"

    with looking(pages, (recorded(1), again), (recorded(2), in_vain), (told, lambda page: None)):
        memory = 1640 * 64 * 64 * 2 / 2**30
        result = run(f"live --simulate merlin --calibrate --underfocus {PAGE} --memory {memory}")
    assert result.exit_code == 1, result.output
    assert "Error: the simulator failed to start" in result.stderr
    found = load_parameters("libertem-parallax-live/image.toml")
    for name in ("aberration_coefs", "center", "rotation_angle"):
        assert seen[0][name] == found[name]
    assert found["aberration_coefs"]["C10"] == pytest.approx(-1.5e4, rel=0.1)
    assert not Path("libertem-parallax-live/image_2.toml").exists()
    first, second = (
        tifffile.imread(f"libertem-parallax-live/image{end}.tif") for end in ("", "_2")
    )
    np.testing.assert_array_equal(first, second)  # the simulator sends the same


def test_what_is_kept_of_frames_to_come() -> None:
    """4 semiangles around the middle; where the center is known, 1.25 around it."""
    from libertem.api import Context

    from libertem_parallax.show.fill import live_selection, stack_udf

    parameters = Parameters(
        scan_sampling=(4.0, 5.0),
        energy=200e3,
        semiangle_cutoff=4.0,
        angular_sampling=(1.0, 1.0),
        aberration_coefs={"C10": -2000.0},
    )
    with Context.make_with("inline") as ctx:
        dataset = ctx.load("memory", data=small_scan(), sig_dims=2)
        unknown = live_selection(dataset, parameters)
        small = live_selection(dataset, parameters.replace(semiangle_cutoff=1.1))
        offline = stack_udf(dataset, parameters.replace(semiangle_cutoff=1.1)).selection
        known = live_selection(dataset, parameters.replace(center=(6.0, 6.0)))
    assert len(offline.pixels) == 144
    assert len(unknown.pixels) == 144
    y, x = np.indices((12, 12)) - 6
    np.testing.assert_array_equal(known.pixels, np.argwhere(np.hypot(y, x) <= 5))
    np.testing.assert_array_equal(small.pixels, np.argwhere(np.hypot(y, x) <= 4.4))


def test_whole_rows_are_kept_of_what_could_not_be_calibrated(tmp_path: Path) -> None:
    """Memory holds two rows and a half."""
    from libertem.api import Context

    from libertem_parallax import ParallaxUDF, StackUDF
    from libertem_parallax.cli.recorded import kept_frames

    frames = small_scan()
    with Context.make_with("inline") as ctx:
        dataset = ctx.load("memory", data=frames, sig_dims=2, num_partitions=6)
        selection = StackUDF.for_dataset(dataset).selection.within(20 * 144)
        udf = ParallaxUDF.from_parameters(
            frames.shape, **PARAMETERS, aberration_coefs={"C10": -2000.0}
        ).keeping(selection)
        ctx.run_udf(dataset, udf)
        told = kept_frames(udf, tmp_path / "image.tif", PARAMETERS)
        assert told.startswith("16 frames, as many as memory holds, were written to")
        np.testing.assert_array_equal(np.load(tmp_path / "image_frames.npy"), frames[:2])
        # And without that limit, of a scan that was interrupted there.
        roi = np.arange(frames.shape[0] * 8).reshape(-1, 8) < 20
        udf = udf.keeping(StackUDF.for_dataset(dataset).selection)
        ctx.run_udf(dataset, udf, roi=roi)
    told = kept_frames(udf, tmp_path / "part.tif", PARAMETERS)
    assert told.startswith("20 frames were written to")
    assert told.endswith("--roi 0 0 2 8")
    kept = np.load(tmp_path / "part_frames.npy")
    np.testing.assert_array_equal(kept, np.where(roi[:3, :, None, None], frames[:3], 0))


def test_workers_keep_frames(
    run: Run, merlin: Simulator, frames: NDArray[Any], pages: list[LivePage]
) -> None:
    """They send what this process keeps, for the page and for direct ptychography."""
    seen: list[Any] = []

    def look(page: LivePage) -> None:
        page.tuning.aberrate(C10=-2500.0)
        page.tuning.wait(SECONDS)
        seen.append(page.tuning.picture.image)  # type: ignore[union-attr]

    with looking(pages, (recorded(1), look)):
        command = f"--start --workers 2 --image direct --image parallax {PAGE}"
        result = run(arguments(merlin, command))
    assert result.exit_code == 0, result.output
    assert ", by 2 workers" in result.stdout
    np.testing.assert_array_equal(tifffile.imread("image_parallax.tif"), expected(frames))
    np.testing.assert_array_equal(seen[0], expected(frames, aberration_coefs={"C10": -2500.0}))
    phase = direct_phase(Stack.from_array(frames), ACQUISITION)
    np.testing.assert_allclose(tifffile.imread("image_direct.tif"), phase, atol=1e-6)


def test_what_is_not_scanned_is_marked_in_small_pictures() -> None:
    """In the color that it has on the page, whatever the image is there."""
    from PIL import Image

    from libertem_parallax.show.page.thumbnails import thumbnail
    from libertem_parallax.show.screen import Growing

    image = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    scanned = np.repeat([True, False], 4)[:, None].repeat(8, axis=1)
    jpeg = thumbnail(Path("image.tif"), Growing(image, scanned), (1.0, 1.0), 0.0).jpeg
    colors = np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)
    assert np.abs(colors[200:] - [0x26, 0x2B, 0x33]).max() < 10
    assert np.ptp(colors[:120], axis=2).max() < 10  # gray
