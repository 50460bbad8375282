"""Images made on a GPU of a stack's sums, on a device that stands in; see standin/cupy.py."""

from __future__ import annotations

import contextlib
import gc
import warnings

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from helpers import PARAMETERS, make_scan, needs_compiler
from standin.cupy import CUDARuntimeError, OutOfMemoryError

from libertem_parallax import Parameters
from libertem_parallax.accumulate import CudaError, Stack, place_stack
from libertem_parallax.cli import main
from libertem_parallax.direct import direct_phase
from libertem_parallax.geometry import Geometry
from libertem_parallax.images import IMAGES, Imaging, Sums
from libertem_parallax.show import maker
from libertem_parallax.show.maker import reconstruct
from libertem_parallax.show.tuning import Tuning

pytestmark = needs_compiler


def make(shape=PARAMETERS["shape"], dtype="uint8", **options):
    """Frames as a stack, and what images of them depend on beside these."""
    geometry = Geometry.from_parameters(**{**PARAMETERS, "shape": shape, **options})
    return Stack.from_array(make_scan(shape, dtype)), Imaging(geometry)


def image(stack, imaging, name="parallax"):
    """As whoever has a stack makes it."""

    def made(A, S):
        return Sums(imaging, A, S, stack.scanned).once(IMAGES[name].make)

    return stack.make(imaging.geometry.plan, made)


def assert_equal(actual, expected):
    """To single precision, as transforms of two libraries are."""
    assert type(actual) is np.ndarray
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("work", ["early", "late"])
@pytest.mark.parametrize(
    ("scan", "u", "dtype"), [((8, 9), 1, "uint8"), ((7, 8), 2, "uint16"), ((8, 9), 3, "float32")]
)
def test_images_are_those_of_the_cpu(standin, name, work, scan, u, dtype):
    standin(work=work, devices=2)
    stack, imaging = make((*scan, 24, 25), dtype, upsampling_factor=u)
    placed = place_stack(stack, "cuda", 1)
    assert np.ptp(image(stack, imaging, name)) > 0
    for _ in range(2):
        assert_equal(image(placed, imaging, name), image(stack, imaging, name))


@pytest.mark.parametrize("name", IMAGES)
def test_only_pictures_come_back(standin, name):
    cupy = standin()
    stack, imaging = make()
    placed = place_stack(stack, "cuda")
    image(placed, imaging, name)
    up, down = cupy.uploaded, cupy.downloaded
    picture = image(placed, imaging, name)
    # The phase needs to know how many counts there are.
    assert cupy.downloaded - down == picture.nbytes + (8 if name == "phase" else 0)
    u, count = PARAMETERS["upsampling_factor"], len(stack.select(bright(imaging)).pixels)
    assert cupy.uploaded - up == 4 * (u * u + 1 + 3 * count)  # where pixels go; no filter again


def bright(imaging):
    mask = np.zeros(imaging.geometry.plan.detector_shape, bool)
    mask[tuple(imaging.geometry.plan.pixels.T)] = True
    return mask


def test_nothing_is_left_behind(standin):
    cupy = standin()
    stack, imaging = make()
    used = []
    for _ in range(4):
        placed = place_stack(stack, "cuda")
        image(placed, Imaging(imaging.geometry), "phase_flip")
        del placed
        gc.collect()
        used.append(cupy.pools[0].in_use)
    assert used == [0] * 4


# What goes wrong


@pytest.mark.parametrize("operation", ["launch", "compute", "get"])
def test_a_device_that_is_lost_is_an_error_or_the_cpu_goes_on(standin, operation):
    cupy = standin(work="late")
    stack, imaging = make()
    strict, lenient = place_stack(stack, "cuda", 0), place_stack(stack, "auto", 0)
    expected = image(stack, imaging)
    assert_equal(image(lenient, imaging), expected)
    cupy.faults[operation] = CUDARuntimeError("cudaErrorIllegalAddress: some words")
    with pytest.raises(CudaError, match=r"GPU 0, .*stack: cudaErrorIllegalAddress"):
        image(strict, imaging)
    with pytest.warns(RuntimeWarning, match=r"on the CPU from now on. GPU 0.*IllegalAddress"):
        np.testing.assert_array_equal(image(lenient, imaging), expected)
    cupy.faults.clear()  # but what the device has is not trusted any more
    with pytest.raises(CudaError, match="GPU 0 failed before"):
        image(strict, imaging)
    with warnings.catch_warnings(action="error"):  # one warning will do
        np.testing.assert_array_equal(image(lenient, imaging), expected)


def test_too_little_memory_for_the_image_says_so_and_the_cpu_makes_it(standin):
    cupy = standin()
    stack, imaging = make()
    placed = place_stack(stack, "auto", 0)
    cupy.faults["compute"] = OutOfMemoryError("Out of memory allocating 3 bytes")
    with pytest.warns(RuntimeWarning, match=r"making an image of a stack: out of memory \(Out"):
        np.testing.assert_array_equal(image(placed, imaging), image(stack, imaging))


def test_values_that_are_refused_do_not_lose_the_device(standin):
    standin()
    stack, imaging = make(dtype="float64")
    placed = place_stack(stack, "auto", 0)

    def refuse(_A, _S):
        raise ValueError("something")

    with pytest.raises(ValueError, match="something"):
        placed.make(imaging.geometry.plan, refuse)
    with warnings.catch_warnings(action="error"):
        assert_equal(image(placed, imaging), image(stack, imaging))


def test_sums_that_are_too_large_are_an_error_with_their_place(standin):
    standin()
    shape = PARAMETERS["shape"]
    frames = np.ones(shape)
    frames[2, 1] = 1e30
    _, imaging = make()
    placed = place_stack(Stack.from_array(frames), "cuda")
    with pytest.raises(ValueError, match=r"sum of the frame at scan position \(2, 1\) is"):
        image(placed, imaging)


# As parameters are tuned


def tune(device=0, frames=None, **parameters):
    names = "scan_sampling", "energy", "semiangle_cutoff", "angular_sampling", "aberration_coefs"
    given = {name: PARAMETERS[name] for name in names} | {"image": "phase_flip"} | parameters
    if frames is None:
        frames = make_scan(PARAMETERS["shape"], "uint8")
    return Tuning(Stack.from_array(frames), Parameters(**given), device)


def assert_shown(tuning):
    assert tuning.wait(60)
    assert tuning.problem is None
    name, parameters = tuning.picture.name, tuning.picture.parameters
    assert parameters is tuning.parameters
    assert_equal(tuning.picture.image, reconstruct(tuning.stack, parameters, name))


def test_tuning_uploads_frames_once(standin, monkeypatch):
    monkeypatch.setattr(maker, "_AT_ONCE", 1)  # a GPU needs no coarse picture first
    cupy = standin()
    with contextlib.closing(tune()) as tuning:
        assert_shown(tuning)
        before = cupy.uploaded
        for turn in (0.1, 0.2):
            tuning.change(rotation_angle=turn)
            assert_shown(tuning)
        tables = 4 * (1 + 1 + 3 * len(tuning.picture.geometry.plan.pixels))
        filters = 8 * 8 * 5 * 2 + 4 * 8 * 5  # of the background, and of the phase flip
        assert cupy.uploaded - before == 2 * (tables + filters)
        launches = cupy.launches
        tuning.change(engine="numba")
        assert_shown(tuning)
        assert cupy.launches == launches


def test_tuning_a_stack_that_is_on_a_gpu(standin):
    """As `fill_stack` places it."""
    cupy = standin()
    frames = make_scan(PARAMETERS["shape"], "uint8")
    with contextlib.closing(tune(None)) as tuning:
        tuning.grow(place_stack(Stack.from_array(frames), "auto", 0))
        assert_shown(tuning)
        down = cupy.downloaded
        tuning.change(rotation_angle=0.1)
        assert tuning.wait(60)
        assert cupy.downloaded - down == tuning.picture.image.nbytes
        assert_shown(tuning)


def test_direct_ptychography_of_a_stack_that_is_on_a_gpu(standin):
    cupy = standin(order="forward")
    stack, imaging = make(upsampling_factor=1)
    parameters = imaging.geometry.parameters
    expected = direct_phase(stack, parameters)
    assert cupy.launches == 0
    placed = place_stack(stack, "cuda")
    before = cupy.launches
    assert_equal(direct_phase(placed, parameters), expected)
    assert cupy.launches > before


def test_commands_put_stacks_on_a_gpu(standin, monkeypatch, tmp_path):
    """A series, which takes its images and what says how sharp they are from there."""
    cupy = standin(order="forward")
    monkeypatch.chdir(tmp_path)
    np.save("scan.npy", make_scan(PARAMETERS["shape"], "uint8"))
    given = {name: value for name, value in PARAMETERS.items() if name != "shape"}
    Parameters(**given).save("p.toml")
    images = []
    for engine in ("numba", "auto"):
        command = "reconstruct scan.npy --params p.toml --defocus-series 2300 2700 2"
        command += f" --engine {engine} -o {engine}.tif"
        result = CliRunner().invoke(main, command.split())
        assert result.exit_code == 0, result.output
        assert (cupy.launches > 0) == (engine == "auto")
        images.append(tifffile.imread(f"{engine}.tif"))
    assert_equal(*images)


def test_tuning_a_stack_that_grows(standin):
    cupy = standin(work="late")
    frames = make_scan(PARAMETERS["shape"], "uint8")
    with contextlib.closing(tune(frames=np.zeros_like(frames))) as tuning:
        stack = tuning.stack
        stack.scanned[...] = False
        assert tuning.wait(60)
        for rows in (slice(0, 3), slice(3, 8)):
            stack.frames.reshape(frames.shape)[rows] = frames[rows]
            stack.scanned[rows] = True
            before = cupy.uploaded
            tuning.grow(stack, at_once=True)
            assert_shown(tuning)
            assert frames[rows].nbytes < cupy.uploaded - before < 2 * frames[rows].nbytes
            np.testing.assert_array_equal(tuning.picture.scanned, stack.scanned)


@pytest.mark.parametrize("operation", ["launch", "get"])
def test_tuning_goes_on_without_a_device_that_is_lost(standin, operation):
    cupy = standin()
    with contextlib.closing(tune()) as tuning:
        assert_shown(tuning)
        cupy.faults[operation] = CUDARuntimeError("cudaErrorIllegalAddress: some words")
        for turn in (0.1, 0.2):
            tuning.change(rotation_angle=turn)
            assert_shown(tuning)
            notes = [note for note in tuning.picture.notes if "on the CPU from now on" in note]
            assert len(notes) == 1


@pytest.mark.parametrize(
    ("operation", "fault", "words"),
    [
        (
            "compute",
            OutOfMemoryError("Out of memory allocating 3 bytes"),
            "CPU this time. GPU 0, tr",
        ),
        ("launch", CUDARuntimeError("cudaErrorIllegalAddress: no"), "from now on. GPU 0, summing"),
    ],
)
def test_tuning_direct_ptychography_without_a_device(standin, operation, fault, words):
    cupy = standin()
    with contextlib.closing(tune(image="direct")) as tuning:
        assert tuning.wait(60)
        cupy.faults[operation] = fault
        for turn in (0.1, 0.2):
            tuning.change(rotation_angle=turn)
            assert tuning.wait(60)
            assert tuning.problem is None
            picture = tuning.picture
            assert_equal(picture.image, direct_phase(tuning.stack, picture.parameters))
            assert len([note for note in picture.notes if words in note]) == 1


def test_tuning_without_enough_memory(standin):
    standin(memory=1000)
    with contextlib.closing(tune()) as tuning:
        for turn in (0.1, 0.2):
            tuning.change(rotation_angle=turn)
            assert_shown(tuning)
            notes = [note for note in tuning.picture.notes if "on the CPU, since" in note]
            assert len(notes) == 1
        tuning.change(engine="cuda")
        assert tuning.wait(60)
        assert "out of memory" in tuning.problem
