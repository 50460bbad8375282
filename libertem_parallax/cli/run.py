"""What commands share: running a UDF, writing and telling results."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..names import claim, numbered
from .messages import messages_only

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..files import About
    from ..parameters import Parameters


def has_terminal() -> bool:
    """Whether people see LiberTEM's progress bar: elsewhere, every state of it would stay."""
    return sys.stderr is not None and sys.stderr.isatty()


def make_udf(shape: Iterable[int], parameters: Parameters) -> Any:
    """Make the UDF for data of this shape, to be called within `messages_only`."""
    from ..images import STACK_IMAGES
    from ..udf import ParallaxUDF

    # Images of a stack need its geometry only.
    streamed = [name for name in parameters["image"] if name not in STACK_IMAGES]
    udf = ParallaxUDF.from_parameters(shape, **parameters.replace(image=streamed or "parallax"))
    refuse_zero_images(udf, parameters)
    return udf


def refuse_zero_images(udf: Any, parameters: Parameters) -> None:
    """Refuse images in which nothing could be seen, with the reason.

    Raises
    ------
    ValueError
        If there is one of them.
    """
    from ..images import IMAGES

    for name in parameters["image"]:
        if name in IMAGES and (problem := IMAGES[name].problem(udf.params.geometry)):
            raise ValueError(problem)


def run(
    ctx: Any, dataset: Any, udf: Any, region: tuple[slice, slice] | None = None
) -> tuple[dict[str, NDArray[Any]], str]:
    """Run with a progress bar, on a part of the scan; results by name, and how fast they came.

    To be called within `messages_only`.
    """
    import numpy as np

    roi = None
    if region is not None:
        roi = np.zeros(udf.params.geometry.plan.scan_shape, dtype=bool)
        roi[region] = True
    frames = math.prod(udf.params.geometry.plan.scan_shape) if roi is None else int(roi.sum())
    start = time.perf_counter()
    try:
        results = ctx.run_udf(dataset, udf, roi=roi, progress=has_terminal())
    except AssertionError as error:  # of its readers, such as that of raw Merlin files of 1 bit
        raise RuntimeError(
            f"LiberTEM cannot read the frames: {error or 'one of its assertions failed'}. Check "
            "nav_shape, sig_shape and dtype, or convert the file."
        ) from error
    speed = speed_text(frames, time.perf_counter() - start)
    images = {name: buffer.data for name, buffer in results.items()}
    largest = float(np.abs(udf.results.get_buffer("S").raw_data).max(initial=0))
    return without_rounding(images, largest), speed + where(udf)


def without_rounding(images: dict[str, NDArray[Any]], counts: float) -> dict[str, NDArray[Any]]:
    """Make images zero that show no more than rounding errors, and warn of them.

    Parameters
    ----------
    images
        By name.
    counts
        Largest of the frames' sums.
    """
    import numpy as np

    from ..images import words_and_unit

    seen = {}
    for name, image in images.items():
        scale = counts if words_and_unit(name)[1] == "counts" else 1.0  # rad
        rounding = np.abs(image).max() <= np.finfo(np.float32).eps * scale
        seen[name] = np.zeros_like(image) if rounding else image
    if blank := [name for name, image in seen.items() if not image.any()]:
        warnings.warn(
            f"{' and '.join(blank)}: zero everywhere. Either all frames are alike in the bright "
            "field, or empty: check the file, how it was loaded (dtype, shapes), and center. Or "
            "with these parameters they show no more than noise: check the signs of defocus and "
            "rotation.",
            stacklevel=3,
        )
    return seen


def where(udf: Any) -> str:
    """Tell where frames were added: on the GPU that was assigned, if any."""
    from libertem.common.backend import get_use_cuda

    from ..accumulate import fallen_back

    # Where the GPU failed, a part of the frames may have been added there.
    if udf.params.geometry.plan in fallen_back:
        return ""
    engine = udf.params.engine
    on_gpu = engine == "cuda" or (engine == "auto" and get_use_cuda() is not None)
    return f", on the {'GPU' if on_gpu else 'CPU'}"


def default_gpu() -> int | None:
    """Find out which GPU is used unless told otherwise; None for the CPU.

    For what stays there: frames from files or detectors go to a GPU only if LiberTEM has assigned
    it, as the CPU adds them in the time that it takes to get them ready for a GPU.
    """
    from libertem.common.backend import get_use_cuda

    if "LIBERTEM_USE_CUDA" in os.environ or "LIBERTEM_USE_CPU" in os.environ:
        gpu: int | None = get_use_cuda()
        return gpu
    return 0 if count_gpus() else None


def count_gpus() -> int:
    """Count the GPUs that CuPy sees; 0 where it cannot be used."""
    from ..accumulate.cuda import CudaError, describe

    count = 0
    with contextlib.suppress(CudaError):
        while True:
            describe(count)
            count += 1
    return count


def image_pixel_size(udf: Any) -> tuple[float, float]:
    """Height and width of the image's pixels in Å."""
    geometry = udf.params.geometry
    height, width = geometry.scan_sampling
    factor = geometry.plan.upsampling_factor
    return height / factor, width / factor


def image_paths(output: Path | None, stem: str, names: Sequence[str]) -> dict[str, Path]:
    """Tell where images go, by name: all have it in theirs, but for a single one with --output.

    Parameters
    ----------
    output
        Given by the user, if so.
    stem
        What default names start with.
    names
        Of images.

    Raises
    ------
    click.ClickException
        If there is no image of such a name.
    """
    from ..images import check_images

    with messages_only():
        names = check_images(names, stacks=True)
    if output is not None and len(names) == 1:
        return {names[0]: output}
    output = output or Path(f"{stem}.tif")
    return {name: output.with_name(f"{output.stem}_{name}{output.suffix}") for name in names}


def propose(
    words: str, data: Path, params: Path, output: str, images: Sequence[str], *options: str
) -> None:
    """Print a command to be copied, which makes images of data, and replaces none.

    Parameters
    ----------
    words
        What to say before.
    data, params
        What it takes.
    output
        Name that its images get in the current folder; with a number if that is not free.
    images
        Names of these.
    *options
        What else to give it.
    """
    for (name,) in numbered(Path(output)):
        if not any(path.exists() for path in image_paths(name, "", images).values()):
            break
    command = ["reconstruct", str(data), "--params", str(params), "-o", str(name), *options]
    click.echo(f"\n{words}:\n  libertem-parallax {shlex.join(command)}")


def live_paths(output: Path | None, parameters: Parameters) -> tuple[Parameters, dict[str, Path]]:
    """Tell where images of a recording go, by name, and which one grows: parameters name it then.

    It comes first. What is made of a stack is made in the end; without another name, it is the
    phase that grows until then.
    """
    from ..images import IMAGES

    names = image_paths(output, "live", parameters["image"])
    growing = [name for name in names if name in IMAGES] or ["phase"]
    if len(growing) > 1:
        raise click.UsageError(
            f"--image: {', '.join(growing)}: live makes one image that grows, name only one."
        )
    at_end = [name for name in names if name not in IMAGES]
    return parameters.replace(image=growing), image_paths(output, "live", [*growing, *at_end])


def check_output(output: Path, inputs: Iterable[Path], overwrite: bool = False) -> None:
    """Refuse an image, before it is made, that could not be written or would destroy something.

    Parameters
    ----------
    output
        Where it goes.
    inputs
        Files that it is made of.
    overwrite
        Whether it may replace what is no image of this package.

    Raises
    ------
    click.UsageError
        With the reason.
    """
    try:
        problem = _output_problem(output, inputs, overwrite)
    except OSError as error:
        problem = f"cannot write there: {error}; choose another place"
    if problem:
        raise click.UsageError(f"--output {output}: {problem}.")


def _output_problem(output: Path, inputs: Iterable[Path], overwrite: bool) -> str | None:
    from ..files import WRITERS, event_files, try_to_write

    if output.suffix.lower() not in WRITERS:
        return f"expected a name that ends with one of {', '.join(WRITERS)}"
    if not output.parent.is_dir():
        return f"there is no folder {output.parent}; create it first"
    if output.is_dir():
        return "that is a folder; give the name of a file"
    if output.exists() and not os.access(output, os.W_OK):
        return "that is write-protected; choose another name"
    inputs = [file for path in inputs for file in (path, *event_files(path))]
    if output.exists() and any(path.exists() and output.samefile(path) for path in inputs):
        return "that is an input, which would be overwritten; choose another name"
    if problem := replacing_problem(output, overwrite):
        return problem
    try_to_write(output)
    return None


def replacing_problem(path: Path, overwrite: bool) -> str | None:
    """Tell why an image must not go to a file, or None if it may, as far as the user decides."""
    from ..files import is_ours

    if overwrite or not path.exists() or is_ours(path):
        return None
    silent = path.suffix.lower() == ".npy"
    what = "a file that does not say what it is" if silent else "no image of this program"
    return f"that is {what}; choose another name, or replace it with --overwrite"


def about(udf: Any, name: str, parameters: Parameters, **made: Any) -> About:
    """Collect what the file of an image says beside the pixels.

    Parameters
    ----------
    udf
        That made it.
    name
        Of the image.
    parameters
        It was made with.
    **made
        What else to say.
    """
    from ..files import About
    from ..images import STACK_IMAGES, words_and_unit

    plan = udf.params.geometry.plan
    words, unit = words_and_unit(name)
    size = udf.params.geometry.scan_sampling if name in STACK_IMAGES else image_pixel_size(udf)
    values = {**parameters, **parameters.settings, "image": name}
    values |= {key: str(file) for key, file in parameters.files.items()}
    made = {
        "image": name,
        **{key: value for key, value in made.items() if value is not None},
        "scan": plan.scan_shape,
        "detector": plan.detector_shape,
        "bright_field_pixels": len(plan.pixels),
        "parameters": values,
    }
    return About(size, unit, words, made)


def save(
    output: Path, image: NDArray[Any], about: About, problems: list[str], *, new: bool = False
) -> Path:
    """Write the image, somewhere else if need be: it may have taken long, or be of a live scan.

    Parameters
    ----------
    output
        Where it should go.
    image
        What to write.
    about
        What to say of it.
    problems
        Gets a sentence if it went elsewhere.
    new
        Whether it may replace no file.

    Returns
    -------
    pathlib.Path
        Where it is.

    Raises
    ------
    FileExistsError
        If it may not, and there is one.
    click.ClickException
        If it can be written nowhere.
    """
    from .. import files

    try:
        written, problem = files.save_somewhere(output, image, about, new=new)
    except FileExistsError:
        raise
    except (OSError, ValueError) as error:
        raise click.ClickException(f"cannot write {output}: {error}") from error
    if problem is not None:
        problems.append(f"The image could not be written to {output}: {problem}.")
    return written


def save_last(
    output: Path, image: NDArray[Any], about: About, problems: list[str], *, overwrite: bool
) -> Path:
    """Write an image, under another name if a file came meanwhile that it must not replace.

    Parameters
    ----------
    output, image, about, problems
        See `save`.
    overwrite
        See `check_output`, which has found that the image may go there.
    """

    def write(path: Path) -> Path:
        replaced = overwrite or (path.exists() and replacing_problem(path, overwrite) is None)
        return save(path, image, about, problems, new=not replaced)

    _, written = claim(write, output, first=(output,))
    return written


def crop(image: NDArray[Any], udf: Any, region: tuple[slice, slice] | None) -> NDArray[Any]:
    """Cut out of an image what belongs to a part of the scan."""
    if region is None:
        return image
    u = udf.params.geometry.plan.upsampling_factor
    return image[tuple(slice(u * part.start, u * part.stop) for part in region)]


def described(
    udf: Any,
    dtype: Any,
    region: tuple[slice, slice] | None = None,
    names: Sequence[str] = (),
) -> list[tuple[str, str]]:
    """Tell what was reconstructed, these images or the UDF's, in rows for `report`."""
    from ..images import STACK_IMAGES, words_and_unit

    plan = udf.params.geometry.plan
    scan, part = plan.scan_shape, []
    if region is not None:
        rows, cols = region
        scan = (rows.stop - rows.start, cols.stop - cols.start)
        text = f"of these, rows {rows.start} to {rows.stop - 1}, "
        part = [("", text + f"columns {cols.start} to {cols.stop - 1}")]
    sizes: dict[int, list[str]] = {}  # names of images by their upsampling
    for name in names or udf.params.image:
        u = 1 if name in STACK_IMAGES else plan.upsampling_factor
        sizes.setdefault(u, []).append(words_and_unit(name)[0])
    images = [
        f"{' and '.join(words)}, {by(u * n for n in scan)} pixels of "
        f"{by(f'{size / u / 10:.4g}' for size in udf.params.geometry.scan_sampling)} nm"
        for u, words in sizes.items()
    ]
    return [
        ("Data", f"{by(plan.scan_shape)} scan, {by(plan.detector_shape)} detector, {dtype}"),
        *part,
        ("Bright field", f"{len(plan.pixels)} detector pixels"),
        *zip(("Image", ""), images, strict=False),
    ]


def by(values: Iterable[Any]) -> str:
    """Join lengths of axes: 12 x 16."""
    return " x ".join(str(value) for value in values)


def speed_text(frames: int, seconds: float) -> str:
    """Tell how many frames were added in how many seconds."""
    rate = float(f"{frames / seconds:.2g}")
    digits = f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}"
    return f"{frames:,} frames in {digits} s, {rate:,.0f} frames/s"


def report(*rows: tuple[str, str]) -> None:
    """Print a table of names and texts; without a name, a text belongs to that before."""
    click.echo()
    for name, text in rows:
        click.echo(f"{name:<15}{text}")
