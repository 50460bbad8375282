"""Transforms of single pixels' images on a GPU, on a device that stands in; see standin/cupy.py."""

from __future__ import annotations

import gc
import warnings

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import PARAMETERS, Late, error, make_scan, needs_compiler
from scans import KNOWN, bright_field, scan, specimen
from standin.cupy import OutOfMemoryError

from libertem_parallax import Learning, ParallaxUDF, moving_disk, pixel_noise
from libertem_parallax.accumulate import CudaError, Stack, place_stack
from libertem_parallax.accumulate.cuda import stack as cuda_stack
from libertem_parallax.calibration import calibrate_stack, find_beam
from libertem_parallax.calibration.spectra import independent, transform
from libertem_parallax.cli import main
from libertem_parallax.direct import direct_phase
from libertem_parallax.geometry import Geometry
from libertem_parallax.images import IMAGES
from libertem_parallax.likelihood import monomials
from libertem_parallax.parameters import Parameters, load_parameters
from libertem_parallax.show.maker import reconstruct
from libertem_parallax.weak_object import with_rim

pytestmark = needs_compiler

STEP = (4.1, 3.9)


def make(dtype="uint8", part=False, dead=True):
    """Frames as a stack; a pixel counts nothing, and some of the scan is not there yet."""
    frames = make_scan(PARAMETERS["shape"], "uint8").astype(dtype)
    if dead:
        frames[:, :, 12, 12] = 0
    stack = Stack.from_array(frames)
    if part:
        stack.scanned[6:] = False
        stack.frames.reshape(*stack.scan_shape, -1)[6:] = 0
    return stack


def spectra(stack):
    return transform(stack, STEP, independent(stack.scan_shape, STEP, 0.09))


def assert_near(actual, expected):
    """To single precision, as transforms of two libraries are."""
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize(
    ("work", "dtype"), [("early", "uint8"), ("late", "uint16"), ("random", "float32")]
)
def test_spectra_are_those_of_the_cpu(standin, monkeypatch, work, dtype, part):
    """In many blocks, the last of them smaller."""
    monkeypatch.setattr(cuda_stack, "_BLOCK", 7 * 72)
    standin(work=work, devices=2)
    stack = make(dtype, part)
    expected = spectra(stack)
    assert len(expected.pixels) < len(stack.pixels)
    found = spectra(place_stack(stack, "cuda", 1))
    assert (expected.there, found.there.device.id) == (None, 1)
    assert_near(found.images, expected.images)
    assert_near(found.power, expected.power)
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    np.testing.assert_array_equal(found.index, expected.index)
    assert found.noise == pytest.approx(expected.noise, rel=1e-5)
    lowest = found.take(slice(0, 9))
    with found.there.device:
        np.testing.assert_array_equal(found.there.get(), found.images)
        np.testing.assert_array_equal(lowest.there.get(), lowest.images)
    assert found.take([1, 2]).there is found.take(slice(0, 9), [0]).there is None


def test_images_are_those_of_the_pixels_that_are_asked_for(standin):
    standin()
    stack = make()
    columns = np.array([5, 300, 12])
    for placed in (stack, place_stack(stack, "cuda")):
        [(part, images)] = placed.with_images(columns, list)
        assert (part, images.dtype) == (slice(0, 3), np.float32)
        images = images if placed is stack else images.get()
        np.testing.assert_array_equal(images, stack.frames[:, columns].T.reshape(3, 8, 9))


def test_frames_cross_the_bus_once_and_transforms_never(standin, monkeypatch):
    """But for some frequencies, whose noise stands for that of all."""
    monkeypatch.setattr(pixel_noise, "SOME", 10)
    cupy = standin()
    stack = make()
    placed = place_stack(stack, "cuda")
    assert cupy.uploaded == stack.frames.nbytes
    up, down = cupy.uploaded, cupy.downloaded
    direct_phase(placed, PARAMETERS)
    geometry = Geometry.from_parameters(**PARAMETERS)
    M = len(with_rim(geometry).plan.pixels)
    frequencies, terms = 8 * (9 // 2 + 1), len(monomials(5))
    # Of pixels: index, weight and direction; beams of every frequency; which show a disk that
    # moves, those of ramps along rows and columns, of pixels at the rim. And what comes of that.
    distance = np.hypot(*with_rim(geometry).angles.T) - PARAMETERS["semiangle_cutoff"] * 1e-3
    rim, ramps = (abs(distance) < geometry.soft_edge / 2).sum(), 7 + 4
    uploaded = M * (8 + 4 + 8) + frequencies * (2 * terms + 2) * 4 + (rim + ramps) * 8
    assert cupy.uploaded - up == uploaded
    assert cupy.downloaded - down == M * 8 + (10 * M + rim * ramps) * 8 + frequencies * 3 * 4


@pytest.mark.parametrize("part", [False, True])
def test_direct_ptychography_is_that_of_the_cpu(standin, monkeypatch, part):
    """Also where slow changes are taken off, as of a disk that moves."""
    monkeypatch.setattr(cuda_stack, "_BLOCK", 40 * 72)
    monkeypatch.setattr(moving_disk, "_distance", lambda *_: part * 1e-3)
    monkeypatch.setattr(moving_disk, "_BLOCK", 7)
    standin(work="late", order="forward")
    stack = make("uint16", part, dead=False)
    with warnings.catch_warnings(action="ignore"):  # of the disk
        expected = direct_phase(stack, PARAMETERS)
        image = direct_phase(place_stack(stack, "cuda"), PARAMETERS)
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def case():
    data = scan(specimen((24, 24)), flip=False, dose=3000.0)
    parameters = Parameters(**KNOWN)
    return data, parameters, find_beam(data.mean(axis=(0, 1)), parameters)


@pytest.mark.parametrize("given", ["host", "there", "whole detector"])
def test_a_calibration_uploads_pixels_once(standin, monkeypatch, given):
    """Those of the bright field, or none if they are there; it goes to the end on the CPU."""
    cupy = standin(order="forward")
    data, parameters, beam = case()
    stack = bright_field(data, beam.mask)
    runs = []
    if given == "there":
        stack = place_stack(stack, "auto", 0)
    elif given == "whole detector":
        stack = place_stack(Stack.from_array(data), "auto", 0)
    monkeypatch.setattr(cuda_stack._Resident, "upload", recorded(runs))
    launches = cupy.launches
    cupy.faults = Late(cupy, launches + 2, launch=error("cudaErrorIllegalAddress"))
    with pytest.warns(RuntimeWarning, match="likelihood is summed on the CPU from now on"):
        found = calibrate_stack(stack, parameters, beam, device=0)
    assert runs == ([] if given == "there" else [[(0, 24 * 24)]])
    assert cupy.launches == launches + 2
    assert type(found.stack) is Stack
    assert len(found.stack.pixels) == beam.mask.sum()
    uploaded, launches = cupy.uploaded, cupy.launches
    other = calibrate_stack(stack, parameters.replace(engine="numba"), beam, device=0)
    assert (cupy.uploaded, cupy.launches) == (uploaded, launches)
    C10 = other.parameters["aberration_coefs"]["C10"]
    assert found.parameters["aberration_coefs"]["C10"] == pytest.approx(C10, rel=1e-3)


def recorded(runs, upload=cuda_stack._Resident.upload):
    def record(self, what):
        runs.append(what)
        upload(self, what)

    return record


def test_nothing_is_left_behind(standin):
    cupy = standin()
    used = []
    for _ in range(3):
        placed = place_stack(make(), "cuda")
        direct_phase(placed, PARAMETERS)
        spectra(placed)
        del placed
        gc.collect()
        used.append(cupy.pools[0].in_use)
    assert used == [0] * 3


# What goes wrong


@pytest.mark.parametrize("operation", ["compute", "get", "device"])
@pytest.mark.parametrize("what", [spectra, lambda stack: direct_phase(stack, PARAMETERS)])
def test_a_device_that_is_lost_is_an_error_or_the_cpu_goes_on(standin, operation, what):
    cupy = standin(work="late")
    stack = make()
    strict, lenient = place_stack(stack, "cuda", 0), place_stack(stack, "auto", 0)
    expected = what(stack)
    cupy.faults[operation] = error("cudaErrorIllegalAddress")
    with pytest.raises(CudaError, match=r"GPU 0, transforming the images.*IllegalAddress"):
        what(strict)
    with pytest.warns(RuntimeWarning, match=r"stack is used on the CPU from now on.*Illegal") as w:
        found = what(lenient)
    assert len(w) == 1
    cupy.faults.clear()  # but what the device has is not trusted any more
    with warnings.catch_warnings(action="error"):  # one warning will do
        again = what(lenient)
    for one in (found, again):
        for part, right in zip(*(getattr(x, "images", x) for x in (one, expected)), strict=True):
            np.testing.assert_array_equal(part, right)
    with pytest.raises(CudaError, match="GPU 0 failed before"):
        what(strict)


def test_too_little_memory_says_so_and_does_not_lose_the_device(standin):
    """The CPU makes what does not fit; what fits is still made there."""
    cupy = standin()
    stack = make()
    plan = Geometry.from_parameters(**PARAMETERS).plan
    lenient, strict = place_stack(stack, "auto", 0), place_stack(stack, "cuda", 0)
    expected = direct_phase(stack, PARAMETERS)
    cupy.faults["compute"] = OutOfMemoryError("Out of memory allocating 3 bytes")
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match=r"used on the CPU this time. GPU 0, transforming"):
            np.testing.assert_array_equal(direct_phase(lenient, PARAMETERS), expected)
    with pytest.raises(CudaError, match=r"out of memory .Out of memory allocating 3 bytes"):
        direct_phase(strict, PARAMETERS)
    launches = cupy.launches
    for placed in (lenient, strict):
        np.testing.assert_array_equal(placed.add(plan)[0], stack.add(plan)[0])
    assert cupy.launches > launches


def test_sums_of_direct_ptychography_go_on_without_a_device(standin):
    """The CPU makes the transforms again, which never were on the host."""
    cupy = standin(work="late")
    stack = make()
    lenient, strict = place_stack(stack, "auto", 0), place_stack(stack, "cuda", 0)
    cupy.faults["launch"] = error("cudaErrorIllegalAddress")
    with pytest.warns(RuntimeWarning, match=r"likelihood is summed on the CPU from now on"):
        image = direct_phase(lenient, PARAMETERS)
    np.testing.assert_array_equal(image, direct_phase(stack, PARAMETERS))
    with pytest.raises(CudaError, match="summing a likelihood"):
        direct_phase(strict, PARAMETERS)


@pytest.mark.parametrize("operation", ["launch", "compute", "pinned"])
def test_a_calibration_goes_on_without_a_device(standin, operation):
    cupy = standin(order="forward")
    data, parameters, beam = case()
    stack = bright_field(data, beam.mask)
    expected = calibrate_stack(stack, parameters, beam).parameters
    cupy.faults[operation] = error("cudaErrorIllegalAddress")
    with pytest.warns(RuntimeWarning, match="on the CPU") as caught:
        found = calibrate_stack(stack, parameters, beam, device=0).parameters
    assert len({str(warning.message) for warning in caught}) == 1
    assert found["aberration_coefs"] == expected["aberration_coefs"]
    with pytest.raises(CudaError, match=r"GPU 0, .*cudaErrorIllegalAddress"):
        calibrate_stack(stack, parameters.replace(engine="cuda"), beam, device=0)


def test_a_scan_that_is_calibrated_while_it_runs(standin, inline):
    """On the GPU; as that is lost, the CPU goes on, and the image has all frames."""
    cupy = standin(order="forward")
    data, _, _ = case()
    ds = inline.load("memory", data=data, sig_dims=2, num_partitions=2)
    learning = Learning(ds, device=0, **KNOWN)
    cupy.faults["compute"] = error("cudaErrorIllegalAddress")
    results = inline.run_udf_iter(ds, learning.udfs)

    def finish():
        stepped = [(part, learning.step(results)) for part in results]
        return stepped[-1][0]

    with pytest.warns(RuntimeWarning, match=r"on the CPU from now on. GPU 0, transforming"):
        part = finish()
    assert cupy.uploaded
    assert learning.calibration is not None
    udf = ParallaxUDF.from_parameters(ds.shape, **learning.calibration.parameters)
    expected = inline.run_udf(ds, udf)["reconstruction"].data
    np.testing.assert_array_equal(part.buffers[0]["reconstruction"].data, expected)


@pytest.mark.parametrize("command", ["calibrate", "reconstruct"])
def test_commands_go_on_without_a_device_or_say_why_not(standin, monkeypatch, tmp_path, command):
    """As it is lost when images are transformed; or it is asked for, and that is an error."""
    cupy = standin(order="forward")
    monkeypatch.chdir(tmp_path)
    data, parameters, _ = case()
    np.save("scan.npy", data)
    parameters = parameters.replace(angular_sampling=(3.0, 3.0))
    if command == "calibrate":
        command += " scan.npy --params {}.toml -o {}_found.toml"
    else:
        parameters = parameters.replace(aberration_coefs={"C10": -420.0})
        command += " scan.npy --params {}.toml --image direct -o {}.npy"
    cupy.faults["compute"] = error("cudaErrorIllegalAddress")
    results = {}
    for engine in ("numba", "auto", "cuda"):
        parameters.replace(engine=engine).save(f"{engine}.toml")
        results[engine] = CliRunner().invoke(main, command.format(engine, engine).split())
        told = "Warning: the stack is used on the CPU from now on. GPU 0, transforming the images"
        assert (told in results[engine].stderr) == (engine == "auto")
    assert [result.exit_code for result in results.values()] == [0, 0, 1]
    assert "GPU 0, transforming the images of a stack: cudaErrorI" in results["cuda"].stderr
    if "calibrate" in command:
        found = [load_parameters(f"{engine}_found.toml") for engine in ("numba", "auto")]
        assert found[0]["aberration_coefs"] == found[1]["aberration_coefs"]
    else:
        np.testing.assert_array_equal(np.load("numba.npy"), np.load("auto.npy"))


@pytest.mark.gpu
@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_on_a_gpu(monkeypatch, dtype, part):
    """Sums, images, spectra and the sums of these, in several blocks."""
    monkeypatch.setattr(cuda_stack, "_BLOCK", 100 * 72)
    stack = make(dtype, part, dead=False)
    placed = place_stack(stack, "cuda")
    plan = Geometry.from_parameters(**PARAMETERS).plan
    for one, other in zip(placed.add(plan), stack.add(plan), strict=True):
        np.testing.assert_array_equal(one, other)
    parameters = Parameters(**{k: v for k, v in PARAMETERS.items() if k != "shape"})
    for name in IMAGES:
        one, other = (reconstruct(on, parameters, name) for on in (placed, stack))
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())
    found, expected = spectra(placed), spectra(stack)
    np.testing.assert_array_equal(found.there.get(), found.images)
    one, other = found.images, expected.images
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())
    one, other = (direct_phase(on, PARAMETERS) for on in (placed, stack))
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * np.abs(other).max())
