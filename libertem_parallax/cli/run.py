"""What commands share: running a UDF, and telling of it."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
