"""The command line ``libertem-parallax``: a demo, files, detectors, what works."""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import math
import os
import platform
import shlex
import textwrap
import time
import tomllib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

# What takes long to import (LiberTEM, Numba, Matplotlib) is imported where it is used.
if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["main"]

_NUMBER = (int, float)

#: What a parameter file may contain: the TOML types of each key, and what is expected in words.
#: The keys that are also options have the option's name, with _ for -.
PARAMETERS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "scan_sampling": ((list,), "step of the scan along rows and columns, two numbers in Å"),
    "energy": (_NUMBER, "energy of the electrons, a number in eV"),
    "semiangle_cutoff": (_NUMBER, "semiangle of the bright field, a number in mrad"),
    "reciprocal_sampling": ((list,), "detector pixel along rows and columns, two numbers in 1/Å"),
    "angular_sampling": ((list,), "detector pixel along rows and columns, two numbers in mrad"),
    "aberration_coefs": ((dict,), "a table of aberration coefficients in Å and azimuths in rad"),
    "rotation_angle": (
        (*_NUMBER, str),
        'rotation of the detector, a number in rad or a text like "-15deg"',
    ),
    "upsampling_factor": ((int,), "pixels of the image per scan step, an integer"),
    "suppress_Nyquist_noise": ((bool,), "true or false"),
    "detector_flip_cols": ((bool,), "true or false"),
    "center": ((list,), "row and column of the beam, two numbers in detector pixels"),
    "bf_mask": ((str,), "name of a .npy file, relative to the parameter file"),
    "phase_flip": ((bool,), "true or false"),
    "engine": ((str,), 'a text: "auto", "cuda", "numba" or "numpy"'),
    "load": ((dict,), "a table of what to tell LiberTEM about the data"),
}

_REQUIRED = ("scan_sampling", "energy", "semiangle_cutoff")
_SAMPLINGS = ("angular_sampling", "reciprocal_sampling")
_ENGINES = ("auto", "cuda", "numba", "numpy")

_COMPILES = " (the first time, code is compiled, which takes some seconds)"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="libertem-parallax")
def main() -> None:
    """Parallax (tilt-corrected bright-field) images of 4D-STEM data with LiberTEM."""


def _parse_angle(text: str) -> float:
    number = text.strip()
    degrees = number.removesuffix("deg")
    return float(number) if degrees == number else math.radians(float(degrees))


def _angle_option(_ctx: click.Context, _param: click.Parameter, text: str | None) -> float | None:
    try:
        return None if text is None else _parse_angle(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither a number in rad nor one in degrees like -15deg."
        ) from None


def _split_pairs(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise click.BadParameter(f"{text!r}: expected a name, = and a value.")
        yield name.strip(), value.strip()


def _aberration_option(
    _ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]
) -> dict[str, float]:
    coefs: dict[str, float] = {}
    for name, value in _split_pairs(texts):
        if name in coefs:
            raise click.BadParameter(f"{name} is given twice.")
        try:
            coefs[name] = float(value)
        except ValueError:
            raise click.BadParameter(
                f"{name}={value}: expected a number after =, such as C10=-1.5e4."
            ) from None
    return coefs


def _load_option(
    _ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]
) -> dict[str, Any]:
    load: dict[str, Any] = {}
    for name, value in _split_pairs(texts):
        if name in load:
            raise click.BadParameter(f"{name} is given twice.")
        load[name] = _parse_toml_value(value)
    return load


def _parse_toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


#: Options that describe an acquisition, and how to make its image.
_ACQUISITION_OPTIONS = (
    click.option(
        "--params",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="TOML file with parameters. Its keys are the names of the options with _ for -: "
        "scan_sampling = [3.5, 3.5]; aberrations are a table [aberration_coefs], what to tell "
        "LiberTEM is a table [load]. Options override it.",
    ),
    click.option(
        "--phase-flip/--no-phase-flip",
        default=None,
        help="Undo the contrast reversals by defocus.  [default: no]",
    ),
    click.option(
        "--scan-sampling",
        type=(float, float),
        metavar="Y X",
        help="Step of the scan along rows and columns in Å.  [required]",
    ),
    click.option("--energy", type=float, help="Energy of the electrons in eV.  [required]"),
    click.option(
        "--semiangle-cutoff",
        type=float,
        help="Semiangle of the bright field in mrad; pixels up to it are used.  [required]",
    ),
    click.option(
        "--angular-sampling",
        type=(float, float),
        metavar="Y X",
        help="Size of a detector pixel along rows and columns in mrad.  "
        "[this or --reciprocal-sampling required]",
    ),
    click.option(
        "--reciprocal-sampling",
        type=(float, float),
        metavar="Y X",
        help="Size of a detector pixel along rows and columns in 1/Å.",
    ),
    click.option(
        "--aberration",
        "aberration_coefs",
        multiple=True,
        callback=_aberration_option,
        metavar="NAME=VALUE",
        help="Aberration coefficient in Å or azimuth in rad: C10, C12, phi12, ... phi56, or names "
        "such as defocus (= -C10), astigmatism, coma, Cs. Repeat it for more.",
    ),
    click.option(
        "--rotation-angle",
        callback=_angle_option,
        metavar="ANGLE",
        help="Rotation of the detector against the scan in rad, or in degrees as in -15deg.  "
        "[default: 0]",
    ),
    click.option(
        "--upsampling-factor", type=int, help="Pixels of the image per scan step.  [default: 1]"
    ),
    click.option(
        "--center",
        type=(float, float),
        metavar="ROW COLUMN",
        help="Beam center in detector pixels as stored, counted from 0, fractions allowed.  "
        "[default: the middle]",
    ),
    click.option(
        "--detector-flip-cols/--no-detector-flip-cols",
        default=None,
        help="Read the frames' columns from right to left.  [default: no]",
    ),
    click.option(
        "--bf-mask",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE.npy",
        help="Boolean array of the detector's shape: False for dead pixels and beam stops.",
    ),
    click.option(
        "--suppress-nyquist-noise/--no-suppress-nyquist-noise",
        "suppress_Nyquist_noise",
        default=None,
        help="Zero the Nyquist frequencies of the image where the rounding of shifts to pixels "
        "fills them with noise: of the parallax image if it is upsampled, of the phase-flipped one "
        "always.  [default: yes]",
    ),
    click.option(
        "--engine",
        type=click.Choice(_ENGINES),
        help="What adds the frames: a GPU, compiled code on the CPU, or slow code for comparison. "
        "All give the same.  [default: auto: the GPU where one works, else the CPU]",
    ),
)


def _output_option(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make the option for the image; the default is told in words."""
    return click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        metavar="IMAGE",
        help="Where to write the image: .tif (float32, with the pixel size for ImageJ), .npy "
        f"(float32) or .png (8-bit gray, to look at).  [default: {default}]",
    )


def _acquisition_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that describe an acquisition."""
    for option in reversed(_ACQUISITION_OPTIONS):
        command = option(command)
    return command


_EXAMPLES = """\b
Examples:
  libertem-parallax reconstruct scan.h5 --params scan.toml -o image.tif
  libertem-parallax reconstruct scan.npy --energy 300e3 --semiangle-cutoff 4 \\
      --scan-sampling 3.5 3.5 --angular-sampling 0.3 0.3 --aberration C10=-1.5e4
"""


@main.command(short_help="Reconstruct an image from a 4D-STEM data set.", epilog=_EXAMPLES)
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@_output_option("DATA's name with _parallax.tif, in the current folder")
@_acquisition_options
@click.option(
    "--load",
    multiple=True,
    callback=_load_option,
    metavar="KEY=VALUE",
    help="Tell LiberTEM about the data, such as type=raw, dtype=uint16, "
    "'nav_shape=[256, 256]', 'sig_shape=[64, 64]'; VALUE as in TOML, or plain text. "
    "Repeat it for more.  [default: type=auto]",
)
def reconstruct(data: Path, params: Path | None, output: Path | None, **options: Any) -> None:
    """Reconstruct the parallax image of DATA, any 4D-STEM data set that LiberTEM opens.

    Parameters come from options, from a TOML file, or both.
    """
    output = output or Path(f"{data.stem}_parallax.tif")
    parameters = _merge({} if params is None else _read_parameters(params), options)
    _check_required(parameters)
    inputs = [data, params, parameters.get("bf_mask")]
    _check_output(output, [path for path in inputs if path is not None])
    load = parameters["load"]
    phase_flip, parameters = _split(parameters)

    from libertem.api import Context

    with Context.make_with("threads") as ctx:
        dataset = _load(ctx, data, load)
        udf = _make_udf({**parameters, "shape": dataset.shape}, phase_flip=phase_flip)
        click.echo(f"Reconstructing{_COMPILES}", err=True)
        results, speed = _run(ctx, dataset, udf)
    _save(output, results["reconstruction"], udf)
    _report(
        *_described(udf, dataset.dtype),
        ("Time", speed),
        ("Written to", str(output)),
    )


@main.command(short_help="Simulate a specimen and reconstruct it.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("libertem-parallax-demo"),
    show_default=True,
    metavar="DIR",
    help="Folder for pictures, data and parameters; created where it does not exist.",
)
def demo(output: Path) -> None:
    """Simulate protein shells in ice, reconstruct them, and show the result next to the truth.

    Takes seconds (longer the first time, when code is compiled). The data and parameters are
    kept, to go on with `libertem-parallax reconstruct`.
    """
    import h5py
    from libertem.api import Context
    from tqdm import tqdm

    from . import images
    from .simulate import simulate

    frames_path, params_path, picture_path = (
        output / name for name in ("frames.h5", "params.toml", "demo.png")
    )
    dose = 30.0
    try:
        output.mkdir(parents=True, exist_ok=True)
        # LiberTEM compiles for seconds before it first reads a .npy file, but not for HDF5.
        with h5py.File(frames_path, "w") as file:
            simulation = simulate(
                dose=dose, seed=1, progress=partial(tqdm, desc="Simulating", unit=" rows")
            )
            file["frames"] = simulation.frames
    except OSError as error:
        raise click.ClickException(f"--output: cannot write to {output}: {error}") from error
    parameters = simulation.parameters
    params_path.write_text(_to_toml(parameters), encoding="utf-8")

    with Context.make_with("threads") as ctx:
        dataset = ctx.load("hdf5", path=frames_path, ds_path="/frames")
        udf = _make_udf(parameters, phase_flip=False)
        click.echo(f"Reconstructing{_COMPILES}", err=True)
        parallax = _run(ctx, dataset, udf)[0]["reconstruction"]
        # The second run is the one to be timed: there is nothing to compile any more.
        udf = _make_udf(parameters, phase_flip=True)
        results, speed = _run(ctx, dataset, udf)
        flipped = results["reconstruction"]
    plan = udf.params.geometry.plan
    rows, cols = plan.pixels.T
    bright_field = simulation.frames[..., rows, cols].mean(axis=-1)

    blur = 6.0
    scan_sampling, pixel_size = parameters["scan_sampling"], _pixel_size(udf)
    truth = images.blur(_resample(simulation.truth, flipped.shape), pixel_size, blur)
    parallax, flipped = (images.blur(image, pixel_size, blur) for image in (parallax, flipped))
    bright_field = images.blur(bright_field, scan_sampling, blur)
    images.overview(
        picture_path,
        [
            (title, f"blurred by {blur:g} Å", image, size)
            for title, image, size in (
                ("Mean bright field", bright_field, scan_sampling),
                ("Parallax", parallax, pixel_size),
                ("Parallax, phase-flipped", flipped, pixel_size),
                ("True phase of the specimen", truth, pixel_size),
            )
        ],
    )

    _report(
        *_simulated(parameters, plan, dose),
        ("Reconstructed", speed),
        ("", f"parallax with and without phase flip, {_by(flipped.shape)} pixels"),
        (
            "Correlation",
            f"{_correlation(flipped, truth):.2f} of the phase-flipped image with "
            f"the truth, both blurred by {blur:g} Å",
        ),
        ("", f"{_correlation(parallax, truth):.2f} without phase flip: the contrast is inverted"),
        ("Pictures", str(picture_path)),
        ("Data", f"{frames_path}, {params_path}"),
    )
    command = ["reconstruct", str(frames_path), "--params", str(params_path)]
    click.echo("\nTry next:")
    click.echo(f"  libertem-parallax {shlex.join(command)} -o image.tif --phase-flip")


def _simulated(parameters: Mapping[str, Any], plan: Any, dose: float) -> list[tuple[str, str]]:
    """Tell what was simulated, in rows for `_report`."""
    steps = zip(plan.scan_shape, parameters["scan_sampling"], strict=True)
    field = (n * size / 10 for n, size in steps)
    return [
        ("Simulated", f"apoferritin-like shells in ice, {_by(f'{n:.1f}' for n in field)} nm"),
        (
            "",
            f"{_by(plan.scan_shape)} scan, {_by(plan.detector_shape)} detector, "
            f"binary counts, {dose:g} e/Å²",
        ),
        (
            "",
            f"{parameters['energy'] / 1e3:g} keV, {parameters['semiangle_cutoff']:g} mrad, "
            f"defocus {-parameters['aberration_coefs']['C10'] / 1e4:g} µm",
        ),
    ]


_LIVE_EXAMPLES = """\b
Examples:
  libertem-parallax live --simulate merlin
  libertem-parallax live --simulate asi_tpx3
  libertem-parallax live merlin --host 192.168.0.2 --params scan.toml -o image.tif
  libertem-parallax live dectris --host 192.168.0.3 --nav-shape 512 512 \\
      --params scan.toml -o image.tif
"""


@main.command(short_help="Reconstruct while a detector records.", epilog=_LIVE_EXAMPLES)
@click.argument("detector", required=False, type=click.Choice(["merlin", "dectris", "asi_tpx3"]))
@click.option(
    "--simulate",
    type=click.Choice(["merlin", "asi_tpx3"]),
    help="Simulate a specimen and run a detector's simulator on this machine, too. Data and "
    "pictures go to the folder libertem-parallax-live.",
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Where the detector's software runs."
)
@click.option(
    "--port",
    type=int,
    help="Its control port, for asi_tpx3 the only one.  "
    "[default: merlin 6341, dectris 80, asi_tpx3 8283]",
)
@click.option("--data-port", type=int, help="Its data port.  [default: merlin 6342, dectris 9999]")
@click.option(
    "--nav-shape",
    type=(click.IntRange(min=1), click.IntRange(min=1)),
    metavar="Y X",
    help="Scan rows and columns.  [default: what the detector says, where it knows]",
)
@click.option(
    "--start",
    is_flag=True,
    help="Start the acquisition that is set up in the detector's software, instead of waiting for "
    "one: arm, and trigger a Merlin. Not for asi_tpx3.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds to wait for an acquisition, and then for its first frame.",
)
@click.option(
    "--silence",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds without any frame after which the acquisition counts as broken off.",
)
@click.option(
    "--frames-per-partition",
    type=click.IntRange(min=1),
    help="Frames to be added at a time.  [default: 512]",
)
@click.option(
    "--snapshot",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Show the growing image as the file DIR/live.png, written anew every --interval seconds, "
    "and not in a window.  [default: where there is no display, next to the image]",
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    help="Seconds between two pictures of the growing image, or longer: they take a twentieth of "
    "the time at most.",
)
@click.option(
    "--blur",
    type=click.FloatRange(min=0),
    metavar="Å",
    help="Blur these pictures, but not the image that is written, with a Gaussian of this standard "
    "deviation, to see through the noise of few electrons.  [default: 0, with --simulate 6]",
)
@_output_option("live_parallax.tif, with --simulate image.tif in that folder")
@_acquisition_options
def live(
    detector: str | None,
    simulate: str | None,
    host: str,
    port: int | None,
    data_port: int | None,
    output: Path | None,
    params: Path | None,
    snapshot: Path | None,
    **options: Any,
) -> None:
    """Reconstruct the parallax image while DETECTOR records, and show it growing.

    Waits for an acquisition, or starts one with --start. After Ctrl-C, or when the detector fails,
    what has arrived is written, and what is missing is told.

    Parameters come from options, from a TOML file, or both.
    """
    try:
        import libertem_live.api  # noqa: F401
    except ImportError as error:
        raise click.ClickException(
            "LiberTEM-live is missing, which talks to detectors. Install it with: "
            f"python -m pip install 'libertem-parallax[live]' ({error})"
        ) from error
    if (detector is None) == (simulate is None):
        raise click.UsageError(
            "give either a DETECTOR, merlin, dectris or asi_tpx3, or --simulate merlin or asi_tpx3."
        )
    given = {} if params is None else _read_parameters(params)
    recording = _Recording(*(options.pop(name) for name in _Recording._fields))
    if simulate is not None:
        _live_simulated(simulate, given, options, output, snapshot, recording)
        return
    assert detector is not None
    if detector == "asi_tpx3" and recording.start:
        raise click.UsageError(
            "--start: asi_tpx3 cannot be started from here. Leave it out, and start the "
            "acquisition in the detector's software as soon as this command waits for one."
        )
    if detector == "asi_tpx3" and data_port is not None:
        raise click.UsageError("--data-port: asi_tpx3 has one port only, give it with --port.")
    parameters = _merge(given, options)
    _check_required(parameters)
    output = output or Path("live_parallax.tif")
    _check_output(output, [path for path in (params, parameters.get("bf_mask")) if path])

    from .live import PORTS, Address

    default_port, default_data_port = PORTS[detector]
    port = port or default_port
    data_port = port if detector == "asi_tpx3" else data_port or default_data_port
    address = Address(detector, host, port, data_port)
    recorded = _record(address, parameters, output, snapshot, recording)
    _report(*recorded.rows)
    recorded.end()


class _Recording(NamedTuple):
    """How to record: options of `live`, by their names."""

    nav_shape: tuple[int, int] | None
    start: bool
    timeout: float
    silence: float
    frames_per_partition: int | None
    interval: float
    blur: float | None


class _Recorded(NamedTuple):
    """What came of an acquisition."""

    image: NDArray[Any]
    udf: Any
    rows: list[tuple[str, str]]  #: for `_report`
    problem: str | None  #: why it is not complete
    window: bool  #: whether a window shows the image

    def end(self) -> None:
        """Wait until the user has seen the image; fail where it is not complete."""
        if self.problem is not None:
            raise click.ClickException(self.problem)
        if self.window:
            from matplotlib import pyplot

            click.echo("\nClose the window to end.")
            pyplot.show()


def _write_for_detector(detector: str, folder: Path, frames: NDArray[Any]) -> Path:
    """Write what a simulated detector sends, and return a file with the same for LiberTEM."""
    import numpy as np
    from scipy.sparse import csr_array

    from . import merlin, tpx3
    from .live import write_events

    if detector == "merlin":
        # 12 bits make the frames large enough to be delivered in many bunches of some MB.
        merlin.write_mib(folder / "frames.hdr", frames, bits=12)
        return folder / "frames.hdr"
    tpx3.write_tpx3(folder / "frames.tpx3", frames)
    # The stream has them in the middle of a larger detector, and so has the file.
    ny, nx, rows, cols = frames.shape
    events = csr_array(frames.reshape(ny * nx, rows * cols))
    row, col = np.divmod(events.indices, cols)
    height, width = tpx3.DETECTOR_SHAPE
    pixels = (row + (height // 2 - rows // 2)) * width + col + (width // 2 - cols // 2)
    events = csr_array((events.data, pixels, events.indptr), shape=(ny * nx, height * width))
    return write_events(folder, (ny, nx), tpx3.DETECTOR_SHAPE, events)


@contextlib.contextmanager
def _simulated_detector(detector: str, folder: Path, frames: int) -> Iterator[Any]:
    """Run a detector that sends what was written, 1.5 ms per frame; its address."""
    from . import merlin, tpx3
    from .live import Address

    if detector == "merlin":
        with merlin.simulator(folder / "frames.hdr", dwelltime=1500) as where:
            yield Address(detector, where.api_host, where.api_port, where.data_port)
    else:
        with tpx3.simulator(folder / "frames.tpx3", seconds=1.5e-3 * frames) as port:
            yield Address(detector, port.data_host, port.data_port, port.data_port)


def _live_simulated(
    detector: str,
    given: dict[str, Any],
    options: dict[str, Any],
    output: Path | None,
    snapshot: Path | None,
    recording: _Recording,
) -> None:
    import numpy as np
    from tqdm import tqdm

    from . import images
    from .simulate import simulate
    from .tpx3 import DETECTOR_SHAPE

    folder, dose = Path("libertem-parallax-live"), 30.0
    blur = 6.0 if recording.blur is None else recording.blur
    params, growth = folder / "params.toml", folder / "growth.png"
    output = output or folder / "image.tif"
    # One frame tells what will be simulated, so that mistakes show before that takes its time.
    simulated = simulate(scan_shape=(1, 1), dose=None).parameters
    parameters = _merge(_merge({**simulated, "phase_flip": True}, given), options)
    shape = parameters.pop("shape")
    detector_shape = DETECTOR_SHAPE if detector == "asi_tpx3" else shape[2:]
    _check_parameters(parameters, detector_shape)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_output(output, [parameters["bf_mask"]] if "bf_mask" in parameters else [])
        simulation = simulate(
            dose=dose, seed=1, progress=partial(tqdm, desc="Simulating", unit=" rows")
        )
        params.write_text(_to_toml(parameters), encoding="utf-8")
        data = _write_for_detector(detector, folder, simulation.frames)
    except OSError as error:
        raise click.ClickException(f"cannot write to {folder}: {error}") from error
    ny, nx = simulation.frames.shape[:2]
    recording = recording._replace(
        start=detector == "merlin", interval=min(recording.interval, 0.5), blur=blur
    )
    pictures: list[tuple[int, NDArray[Any]]] = []
    with _simulated_detector(detector, folder, ny * nx) as address:
        recorded = _record(
            address,
            parameters,
            output,
            snapshot,
            recording,
            on_picture=lambda *picture: pictures.append(picture),
        )
    image, udf = recorded.image, recorded.udf
    pixel_size, plan = _pixel_size(udf), udf.params.geometry.plan
    chosen = np.unique(np.linspace(0, len(pictures) - 1, 4).round().astype(int))
    images.overview(
        growth,
        [
            (
                f"{frames / (ny * nx):.0%} scanned",
                f"blurred by {blur:g} Å",
                images.blur(picture, pixel_size, blur),
                pixel_size,
            )
            for frames, picture in (pictures[i] for i in chosen)
        ],
    )
    truth = images.blur(_resample(simulation.truth, image.shape), pixel_size, blur)
    _report(
        *_simulated(simulation.parameters, plan, dose),
        *recorded.rows,
        (
            "Correlation",
            f"{_correlation(images.blur(image, pixel_size, blur), truth):.2f} with the truth, both "
            f"blurred by {blur:g} Å",
        ),
        ("As it grew", str(growth)),
        ("Data", f"{data}, {params}"),
    )
    if recorded.problem is None:
        command = ["reconstruct", str(data), "--params", str(params)]
        click.echo("\nThe same from the files:")
        click.echo(f"  libertem-parallax {shlex.join(command)} -o image.tif")
    recorded.end()


def _record(
    address: Any,
    parameters: dict[str, Any],
    output: Path,
    snapshot: Path | None,
    recording: _Recording,
    on_picture: Callable[[int, NDArray[Any]], object] = lambda *_: None,
) -> _Recorded:
    """Reconstruct an acquisition and write the image, as far as it came."""
    import numpy as np
    from libertem_live.api import LiveContext

    from . import live
    from .tpx3 import DETECTOR_SHAPE

    phase_flip, parameters = _split(parameters)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_messages_only())
        gpu = _default_gpu() if parameters.get("engine", "auto") == "auto" else None
        stack.enter_context(_assigned(gpu))
        # The one executor that keeps what it has when a detector fails.
        ctx = stack.enter_context(LiveContext.make_with("inline"))
        watch = stack.enter_context(live.Watch())
        click.echo(f"Connecting to {address}", err=True)
        conn = stack.enter_context(contextlib.closing(live.connect(ctx, address, watch)))
        events = address.detector == "asi_tpx3"
        if events:  # it does not tell before the acquisition starts
            detector_shape, dtype = DETECTOR_SHAPE, np.dtype(np.float32)
        else:
            detector_shape, dtype = live.describe(ctx, conn, watch)

        def make_udf(shape: tuple[int, ...], **parameters: Any) -> Any:
            udf = _udf_class(phase_flip).from_parameters(shape, **parameters)
            live.warm_up(ctx, udf, dtype, events=events)
            return udf

        # Whatever takes time or may fail comes before the detector starts, as far as possible:
        # where the shape is not known yet, a small scan on any detector gets everything compiled.
        click.echo(f"Getting ready{_COMPILES}", err=True)
        known = recording.nav_shape is not None and not events
        with contextlib.nullcontext() if known else warnings.catch_warnings(action="ignore"):
            anywhere = {**parameters, "center": None, "bf_mask": None} if events else parameters
            udf = make_udf((recording.nav_shape or (8, 8)) + detector_shape, **anywhere)
        screen, picture = _open_screen(output, snapshot, recording, _pixel_size(udf))
        acquisition = _await(ctx, conn, watch, address, recording)
        if events or tuple(acquisition.shape) != (recording.nav_shape or ()) + detector_shape:
            udf = make_udf(tuple(acquisition.shape), **parameters)
        added = _add(ctx, conn, watch, acquisition, udf, screen, recording, on_picture)
    total = acquisition.shape.nav.size
    if added.results is None:
        raise click.ClickException(
            f"none of {total:,} frames is in the image, which was not written: {added.problem}."
        )
    count, image = screen.show(added.results)
    on_picture(count, image)
    _save(output, image, udf)
    problem = None
    if count < total:
        problem = (
            f"{count:,} of {total:,} frames ({count / total:.1%}) are in the image: "
            f"{added.problem}. It was written to {output}."
        )
    rows = [
        *_described(udf, dtype),
        ("Recorded", _speed(count, added.seconds) + _where(udf, gpu)),
        ("Written to", str(output)),
    ]
    if picture is not None:
        rows.append(("Snapshot", str(picture)))
    return _Recorded(image, udf, rows, problem, window=picture is None)


def _open_screen(
    output: Path, snapshot: Path | None, recording: _Recording, pixel_size: tuple[float, float]
) -> tuple[Any, Path | None]:
    """Open a window for the growing image, or choose a file; its path is None for a window."""
    from . import images, live

    screen = partial(
        live.Screen,
        interval=recording.interval,
        pixel_size=pixel_size,
        sigma=recording.blur or 0.0,
    )
    window = live.open_window(str(output)) if snapshot is None else None
    if window is not None:
        return screen(window), None
    folder = snapshot or output.parent
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "live.png"

    def write(image: NDArray[Any], limits: tuple[float, float]) -> None:
        try:
            images.snapshot(picture, image, limits)
        except OSError as error:
            _warn(f"cannot write {picture}: {error}")

    return screen(write), picture


def _await(ctx: Any, conn: Any, watch: Any, address: Any, recording: _Recording) -> Any:
    """Start an acquisition, or wait until somebody does."""
    from . import live

    if recording.start:
        live.start(conn, address.detector, watch)
    else:
        click.echo(
            f"Waiting up to {recording.timeout:g} s for an acquisition to be started (Ctrl-C ends)",
            err=True,
        )
    return live.acquire(
        ctx,
        conn,
        address,
        watch,
        recording.nav_shape,
        recording.timeout,
        recording.frames_per_partition or live.FRAMES_PER_PARTITION,
    )


class _Added(NamedTuple):
    """Frames that were added."""

    results: Any  #: of LiberTEM; None if there are none
    seconds: float  #: since the first one arrived
    problem: str | None  #: why they are not all, if so


def _add(
    ctx: Any,
    conn: Any,
    watch: Any,
    acquisition: Any,
    udf: Any,
    screen: Any,
    recording: _Recording,
    on_picture: Callable[[int, NDArray[Any]], object],
) -> _Added:
    """Add frames as they arrive, with a progress bar and pictures, as long as they do."""
    from tqdm import tqdm

    from . import live

    results = problem = first = None
    with tqdm(total=acquisition.shape.nav.size, desc="Recording", unit=" frames") as bar:

        def arrived(frames: int) -> None:
            nonlocal first
            first = first or time.perf_counter()
            bar.update(frames)

        try:
            for results in live.stream(
                ctx,
                conn,
                acquisition,
                udf,
                watch,
                timeout=recording.timeout,
                silence=recording.silence,
                on_frames=arrived,
            ):
                if screen.due():
                    on_picture(*screen.show(results))
        except live.DetectorError as error:
            problem = str(error).removesuffix(".")
    return _Added(results, time.perf_counter() - (first or 0), problem)


@main.command(short_help="Show versions, and which engines and GPUs work.")
def info() -> None:
    """Show versions, and which engines and GPUs work: each one is tried on a few frames.

    Takes seconds the first time, when code is compiled.
    """
    from .accumulate.cuda import describe

    with _messages_only():
        default, gpus = _default_gpu(), _count_gpus()
    rows = [("Versions", ", ".join(_versions())), ("", ""), ("Engine", "Status")]
    for device in sorted({*range(gpus), default or 0}):
        problem = _problem("cuda", device)
        text = _status(problem, used=device == default)
        name = f"cuda, GPU {device}" if gpus else "cuda"
        rows.append((name, text if problem else f"{text}: {describe(device)}"))
    rows += [
        ("numba", _status(_problem("numba"), used=default is None)),
        ("numpy", f"{_status(_problem('numpy'))}; slow, for comparison"),
        ("", ""),
        ("In Python", 'use the GPU with engine="cuda", or let LiberTEM assign it:'),
        ("", 'libertem.api.Context.make_with("dask", gpus=1, cpus=0)'),
    ]
    for name, text in rows:
        click.echo(
            textwrap.fill(
                text,
                width=79,
                initial_indent=f"{name:<15}",
                subsequent_indent=" " * 15,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )


def _versions() -> Iterator[str]:
    from importlib.metadata import PackageNotFoundError, version

    # CuPy's package is named after the CUDA that it is for.
    cupy = ("cupy", "cupy-cuda12x", "cupy-cuda13x")
    for package in ("libertem-parallax", "libertem", "numpy", "numba", *cupy):
        with contextlib.suppress(PackageNotFoundError):
            yield f"{package} {version(package)}"
    yield f"Python {platform.python_version()}"


def _count_gpus() -> int:
    from .accumulate.cuda import CudaError, describe

    count = 0
    with contextlib.suppress(CudaError):
        while True:
            describe(count)
            count += 1
    return count


def _default_gpu() -> int | None:
    """Find out which GPU is used unless told otherwise; None for the CPU."""
    from libertem.common.backend import get_use_cuda

    if "LIBERTEM_USE_CUDA" in os.environ or "LIBERTEM_USE_CPU" in os.environ:
        gpu: int | None = get_use_cuda()
        return gpu
    return 0 if _count_gpus() else None


def _problem(engine: str, device: int = 0) -> str | None:
    """Add a few frames with an engine; what is wrong, or None where it works."""
    import numpy as np

    from .accumulate import Plan, accumulator_dtype, make_engine

    plan = Plan((2, 3), (2, 2), 2, np.array([[0, 1], [1, 0]]), np.array([[0, 0], [3, -1]]))
    frames = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)

    def added(engine: str) -> NDArray[Any]:
        A = np.zeros(plan.accumulator_shape, accumulator_dtype(frames.dtype, len(plan.pixels)))
        worker = make_engine(
            engine, plan, frames.dtype, np.arange(6), A, np.zeros(6, A.dtype), device
        )
        worker.add(frames)
        worker.finish()
        return A

    try:
        if np.array_equal(added(engine), added("numpy")):
            return None
        return "its sums differ from those of the engine numpy."
    # Drivers, compilers and libraries have many ways to fail.
    except Exception as error:
        return str(error) or repr(error)


def _status(problem: str | None, *, used: bool = False) -> str:
    if problem:
        return f"{'would be tried first, but fails' if used else 'not available'}: {problem}"
    return f"works{'; would be used' if used else ''}"


def _read_parameters(path: Path) -> dict[str, Any]:
    """Read a parameter file and check names and types; values are checked by the library."""
    try:
        parameters = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{path}: cannot be read as TOML: {error}") from error
    for key, value in parameters.items():
        if key not in PARAMETERS:
            near = difflib.get_close_matches(key, PARAMETERS, n=1, cutoff=0)[0]
            raise click.ClickException(
                f"{path}: unknown key {key!r}; the nearest known one is {near!r}. "
                f"Known: {', '.join(PARAMETERS)}."
            )
        kinds, expected = PARAMETERS[key]
        # To Python, True is an int.
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise click.ClickException(f"{path}: {key} = {value!r}: expected {expected}.")
    if isinstance(angle := parameters.get("rotation_angle"), str):
        try:
            parameters["rotation_angle"] = _parse_angle(angle)
        except ValueError:
            expected = PARAMETERS["rotation_angle"][1]
            raise click.ClickException(
                f"{path}: rotation_angle = {angle!r}: expected {expected}."
            ) from None
    if "bf_mask" in parameters:
        parameters["bf_mask"] = path.parent / parameters["bf_mask"]
    return parameters


def _merge(parameters: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Combine parameters, as of a file, with those of the command line, which win."""
    from .aberrations import ALIASES

    given = {name: value for name, value in changes.items() if value is not None}
    merged = {**parameters, **given}
    # Coefficients stay, except those given anew, by whatever name.
    coefs, new = (source.get("aberration_coefs", {}) for source in (parameters, given))
    anew = {ALIASES.get(name, name) for name in new}
    merged["aberration_coefs"] = {
        **{name: value for name, value in coefs.items() if ALIASES.get(name, name) not in anew},
        **new,
    }
    merged["load"] = {**parameters.get("load", {}), **given.get("load", {})}
    # One sampling describes the detector: what is given replaces whichever there was.
    if any(name in given for name in _SAMPLINGS):
        for name in set(_SAMPLINGS) - set(given):
            merged.pop(name, None)
    return merged


def _check_required(parameters: Mapping[str, Any]) -> None:
    missing = [name for name in _REQUIRED if name not in parameters]
    if not any(name in parameters for name in _SAMPLINGS):
        missing += _SAMPLINGS
    if missing:
        lines = [
            f"  {'or ' if name == _SAMPLINGS[1] else ''}--{name.replace('_', '-')}: "
            f"{PARAMETERS[name][1]}"
            for name in missing
        ]
        raise click.UsageError(
            "\n".join(
                [
                    "parameters are missing:",
                    *lines,
                    f"Give them as options or as keys of the file for --params: {missing[0]} = ...",
                ]
            )
        )


def _check_output(output: Path, inputs: Iterable[Path]) -> None:
    from .images import WRITERS, try_to_write

    problem = None
    if output.suffix.lower() not in WRITERS:
        problem = f"expected a name that ends with one of {', '.join(WRITERS)}"
    elif not output.parent.is_dir():
        problem = f"there is no folder {output.parent}; create it first"
    elif output.is_dir():
        problem = "that is a folder; give the name of a file"
    elif output.exists() and not os.access(output, os.W_OK):
        problem = "that is write-protected; choose another name"
    elif output.exists() and any(path.exists() and output.samefile(path) for path in inputs):
        problem = "that is an input, which would be overwritten; choose another name"
    else:
        try:
            try_to_write(output)
        except OSError as error:
            problem = f"cannot write there: {error}; choose another place"
    if problem:
        raise click.UsageError(f"--output {output}: {problem}.")


def _read_mask(path: Path) -> NDArray[Any]:
    import numpy as np

    try:
        mask: NDArray[Any] = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise click.ClickException(
            f"bf_mask: {path} cannot be read as a .npy file: {error}"
        ) from error
    return mask


def _load(ctx: Any, data: Path, load: Mapping[str, Any]) -> Any:
    arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in load.items()}
    kind = arguments.pop("type", "auto")
    if not isinstance(kind, str):
        raise click.ClickException(f"load: type = {kind!r}: expected a text, such as 'raw'.")
    try:
        # While LiberTEM finds the type out, it prints what the file is not.
        with contextlib.redirect_stdout(io.StringIO()):
            dataset = ctx.load(kind, str(data), **arguments)
    # Every format has its own way to fail.
    except Exception as error:
        described = ", ".join(f"{key} = {value!r}" for key, value in load.items())
        raise click.ClickException(
            f"LiberTEM cannot open {data} with {described or 'type = auto'}: {error}. "
            "Describe the data with --load KEY=VALUE or a table [load] in the parameter file, for "
            "instance type, nav_shape, sig_shape and dtype for raw files."
        ) from error
    if (dataset.shape.nav.dims, dataset.shape.sig.dims) != (2, 2):
        raise click.ClickException(
            f"{data} has the shape {tuple(dataset.shape)}: expected four axes, scan rows, scan "
            "columns, detector rows and detector columns. Give the missing shape with "
            "--load 'nav_shape=[ROWS, COLUMNS]' or sig_shape."
        )
    missing = sum(
        count
        for name, count in dataset.get_sync_offset_info().items()
        if name.startswith("frames_inserted")
    )
    if missing:
        _warn(
            f"{data} has no frames for {missing:,} of {dataset.shape.nav.size:,} scan positions. "
            "Check nav_shape, sig_shape, dtype and sync_offset."
        )
    return dataset


def _warn(message: str) -> None:
    from tqdm import tqdm

    # On a line of its own, also where a progress bar is under way.
    with tqdm.external_write_mode():
        click.echo(f"Warning: {message}", err=True)


@contextlib.contextmanager
def _messages_only() -> Iterator[None]:
    """Show what the library says of input and GPU without tracebacks and lines of code."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _warn(str(message))

    try:
        with warnings.catch_warnings(action="once", category=UserWarning):
            warnings.simplefilter("once", RuntimeWarning)
            warnings.showwarning = show
            yield
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def _check_parameters(parameters: Mapping[str, Any], detector_shape: tuple[int, int]) -> None:
    """Refuse what no scan on such a detector can be reconstructed with."""
    phase_flip, checked = _split(parameters)
    # A small scan may be exceeded by shifts that the real one is not.
    with _messages_only(), warnings.catch_warnings(action="ignore"):
        _udf_class(phase_flip).from_parameters((8, 8, *detector_shape), **checked)


def _split(parameters: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Tell which UDF is to be made and with which parameters; reads the mask."""
    arguments = {name: value for name, value in parameters.items() if name != "load"}
    phase_flip = arguments.pop("phase_flip", False)
    if "bf_mask" in arguments:
        arguments["bf_mask"] = _read_mask(arguments["bf_mask"])
    return phase_flip, arguments


def _make_udf(parameters: Mapping[str, Any], *, phase_flip: bool) -> Any:
    with _messages_only():
        return _udf_class(phase_flip).from_parameters(**parameters)


def _udf_class(phase_flip: bool) -> Any:
    from .udf import ParallaxPhaseFlipUDF, ParallaxUDF

    return ParallaxPhaseFlipUDF if phase_flip else ParallaxUDF


def _run(ctx: Any, dataset: Any, udf: Any) -> tuple[dict[str, NDArray[Any]], str]:
    """Run with a progress bar; results by name, and how fast they were made."""
    engine, plan = udf.params.engine, udf.params.geometry.plan
    with _messages_only():
        gpu = _default_gpu() if engine == "auto" else None
        with _assigned(gpu):
            start = time.perf_counter()
            results = ctx.run_udf(dataset, udf, progress=True)
            seconds = time.perf_counter() - start
    speed = _speed(math.prod(plan.scan_shape), seconds)
    return {name: buffer.data for name, buffer in results.items()}, speed + _where(udf, gpu)


def _where(udf: Any, gpu: int | None) -> str:
    """Tell where frames were added, with the GPU that was assigned if any."""
    from .accumulate import fallen_back

    # Where the GPU failed, a part of the frames may have been added there.
    if udf.params.geometry.plan in fallen_back:
        return ""
    return f", on the {'CPU' if gpu is None and udf.params.engine != 'cuda' else 'GPU'}"


@contextlib.contextmanager
def _assigned(gpu: int | None) -> Iterator[None]:
    """Assign a GPU, if any, to this process's workers as LiberTEM does to those of its own."""
    from libertem.common.backend import get_use_cuda, set_use_cuda

    if gpu is None or gpu == get_use_cuda():
        yield
        return
    set_use_cuda(gpu)
    try:
        yield
    finally:
        del os.environ["LIBERTEM_USE_CUDA"]


def _pixel_size(udf: Any) -> tuple[float, float]:
    """Height and width of the image's pixels in Å."""
    geometry = udf.params.geometry
    height, width = geometry.scan_sampling
    factor = geometry.plan.upsampling_factor
    return height / factor, width / factor


def _save(output: Path, image: NDArray[Any], udf: Any) -> None:
    from . import images

    try:
        images.save(output, image, _pixel_size(udf))
    except (OSError, ValueError) as error:
        raise click.ClickException(f"cannot write {output}: {error}") from error


def _described(udf: Any, dtype: Any) -> list[tuple[str, str]]:
    """Tell what was reconstructed, in rows for `_report`."""
    from .udf import ParallaxPhaseFlipUDF

    plan = udf.params.geometry.plan
    kind = "phase-flipped parallax" if isinstance(udf, ParallaxPhaseFlipUDF) else "parallax"
    pixel_size = _by(f"{size / 10:.4g}" for size in _pixel_size(udf))
    return [
        ("Data", f"{_by(plan.scan_shape)} scan, {_by(plan.detector_shape)} detector, {dtype}"),
        ("Bright field", f"{len(plan.pixels)} detector pixels"),
        ("Image", f"{kind}, {_by(plan.image_shape)} pixels of {pixel_size} nm"),
    ]


def _to_toml(parameters: Mapping[str, Any]) -> str:
    """Write the parameters of an acquisition as a file for --params."""
    lines, tables = [], []
    for name, value in parameters.items():
        if name in ("shape", "load"):  # come with the data
            continue
        if isinstance(value, Mapping):
            tables += ["", f"[{name}]", *(f"{key} = {float(v)!r}" for key, v in value.items())]
        else:
            # Numbers, lists, true, false and texts are written in TOML as in JSON.
            text = json.dumps(
                str(value.absolute()) if isinstance(value, Path) else value, ensure_ascii=False
            )
            lines.append(f"{name} = {text}  # {PARAMETERS[name][1]}")
    return "\n".join([*lines, *tables, ""])


def _resample(image: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Sample a periodic image at another number of points, with the same first point."""
    import scipy.signal

    for axis, count in enumerate(shape):
        image = scipy.signal.resample(image, count, axis=axis)
    return image


def _correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    import numpy as np

    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def _by(values: Iterable[Any]) -> str:
    return " x ".join(str(value) for value in values)


def _speed(frames: int, seconds: float) -> str:
    rate = float(f"{frames / seconds:.2g}")
    digits = f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}"
    return f"{frames:,} frames in {digits} s, {rate:,.0f} frames/s"


def _report(*rows: tuple[str, str]) -> None:
    click.echo()
    for name, text in rows:
        click.echo(f"{name:<15}{text}")
