"""What is made of all frames at once, when they are there: a stack of the bright field."""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..names import claim
from .messages import messages_only, warn
from .outputs import about, check_output, is_replaced
from .run import by, default_gpu, has_terminal, speed_text, without_rounding

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..accumulate import Stack
    from ..geometry import Geometry
    from ..parameters import Parameters
    from ..udf import ParallaxUDF, StackUDF


#: Images of a series, at most.
MOST = 10_000


def fill_stack(ctx: Any, dataset: Any, made_for: Any) -> tuple[Stack, str]:
    """Read the bright field of all frames and its rim, with a progress bar.

    It goes on the GPU if there is one. Returns the stack, how fast it was read, and where it is.

    Raises
    ------
    click.ClickException
        If memory does not hold it.
    """
    from ..accumulate import CudaStack

    udf = _stack_udf(dataset, made_for)
    start = time.perf_counter()
    ctx.run_udf(dataset, udf, progress=has_terminal())
    speed = speed_text(math.prod(udf.scan_shape), time.perf_counter() - start)
    stack = _placed(udf.stack, made_for)
    return stack, f"{speed}, on the {'GPU' if isinstance(stack, CudaStack) else 'CPU'}"


def _stack_udf(dataset: Any, made_for: Any) -> StackUDF:
    """Make the UDF that keeps the bright field and its rim, or say that memory does not hold it."""
    from ..memory import check_direct
    from ..stack_problems import BEYOND
    from ..udf import StackUDF
    from ..weak_object import with_rim

    cutoff = made_for.params.geometry.parameters["semiangle_cutoff"]
    rim = with_rim(made_for.params.geometry)
    plan = rim.plan
    with warnings.catch_warnings(action="ignore"):  # of a part, which is refused
        # Of a large detector, a little more, to see whether the disk ends there.
        wide = max(rim.parameters["semiangle_cutoff"], cutoff * (1 + BEYOND))
        mask = made_for.params.geometry.replace(semiangle_cutoff=wide).plan.lookup >= 0
        udf = StackUDF.for_dataset(dataset, mask)
    size = udf.params.dtype.itemsize
    if udf.roi is not None:
        needed = math.prod(plan.scan_shape) * len(plan.pixels) * size
        raise click.ClickException(
            f"the bright field of {by(plan.scan_shape)} frames, {len(plan.pixels)} pixels each, "
            f"takes {needed / 2**30:.3g} GiB, more than a quarter of the memory that is free. Use "
            "--bf-mask to take fewer pixels, or make an image that needs no stack, such as phase."
        )
    check_direct(plan.scan_shape, len(plan.pixels), size)
    return udf


def _placed(stack: Stack, made_for: Any) -> Stack:
    """Put a stack on the GPU, if there is one."""
    from ..accumulate import place_stack

    engine = made_for.params.engine
    return place_stack(stack, "numba" if engine == "numpy" else engine, default_gpu())


def keep_stack(acquisition: Any, udf: ParallaxUDF, problems: list[str]) -> ParallaxUDF:
    """Have a UDF keep the bright field for `make_direct`.

    If memory does not hold that, it is told at once, and `problems` gets a sentence.
    """
    try:
        return udf.keeping(_stack_udf(acquisition, udf).selection)
    except (ValueError, click.ClickException) as error:
        problems.append(_not_made(error))
        warn(problems[-1])
        return udf


def make_direct(
    udf: ParallaxUDF, parameters: Parameters, problems: list[str]
) -> NDArray[Any] | None:
    """Make the direct image of what a detector sent; if that fails, `problems` gets a sentence."""
    from ..direct import direct_phase

    try:
        if not udf.params.keep.complete:
            raise ValueError("memory holds a part of the frames only")
        with messages_only():
            return direct_phase(_placed(udf.stack, udf), parameters)
    # The image that has grown must not be lost by it.
    except (Exception, KeyboardInterrupt) as error:
        problems.append(_not_made(error))
        return None


def _not_made(error: BaseException) -> str:
    text = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or repr(error)
    return f"The direct image was not made: {text.removesuffix('.')}."


def make_images(
    stack: Stack, geometry: Geometry, parameters: Parameters
) -> dict[str, NDArray[Any]]:
    """Make all images of a stack that the parameters name."""
    import numpy as np

    from ..direct import direct_phase
    from ..images import IMAGES, Imaging, Sums

    regularization = parameters.get("regularization", "auto")
    A, S = stack.add(geometry.plan)
    suppress = parameters.get("suppress_Nyquist_noise", True)
    sums = Sums(Imaging(geometry, suppress, regularization), A, S, stack.scanned)
    images = {
        name: direct_phase(stack, parameters) if name == "direct" else sums.once(IMAGES[name].make)
        for name in parameters["image"]
    }
    return without_rounding(images, float(np.abs(S).max(initial=0)))


def check_series(
    series: tuple[float, float, int], outputs: dict[str, Path], *, overwrite: bool
) -> Path:
    """Refuse a series that makes no sense or could not be written; where its curve goes."""
    first, last, count = series
    told = f"--defocus-series {first:g} {last:g} {count}"
    finite = math.isfinite(first) and math.isfinite(last)
    if not (finite and first < last and 2 <= count <= MOST):
        raise click.UsageError(
            f"{told}: expected two defoci in Å, the smaller one first, and a number of images, 2 "
            f"to {MOST:,}."
        )
    if len(outputs) > 1:
        raise click.UsageError(f"{told}: expected a single --image, got {', '.join(outputs)}.")
    [path] = outputs.values()
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise click.UsageError(f"--output {path}: a series is written as .tif.")
    curve = path.with_name(f"{path.stem}_sharpness.png")
    check_output(curve, [], overwrite)
    return curve


def focused(parameters: Parameters, defocus: float) -> Parameters:
    """Replace C10 by what a defocus in Å says."""
    coefs = {**parameters.get("aberration_coefs", {}), "C10": -defocus}
    return parameters.replace(aberration_coefs=coefs)


def write_series(
    stack: Stack,
    udf: Any,
    parameters: Parameters,
    series: tuple[float, float, int],
    path: Path,
    curve: Path,
    *,
    overwrite: bool,
    **made: Any,
) -> list[tuple[str, str]]:
    """Make a defocus series of a stack and write it, with a curve; rows for `report`.

    Both get another name if a file came meanwhile that they must not replace.
    """
    import numpy as np

    from .. import files
    from ..series import defocus_series
    from ..show.curves import sharpness_figure

    [name] = parameters["image"]
    found = defocus_series(stack, parameters, np.linspace(*series), name)
    said = about(udf, name, parameters, defocus_series=list(series), **made)

    def write(name: Path) -> None:
        new = not is_replaced(name, overwrite)
        files.save_series(name, found.images, said, found.defocus, new=new)

    def draw(name: Path) -> None:
        with files.replacing(name, new=not is_replaced(name, overwrite)) as file:
            metadata = dict(said.texts())
            sharpness_figure(found).savefig(file, format="png", dpi=120, metadata=metadata)

    try:
        (path, curve), _ = claim(write, path, curve, first=(path, curve))
        (curve,), _ = claim(draw, curve, first=(curve,))
    except (OSError, ValueError) as error:
        raise click.ClickException(f"cannot write {path}: {error}") from error
    times, best = found.sharpness.max(), int(found.sharpness.argmax())
    at_end = "; beyond may be sharper ones" if best in (0, len(found.sharpness) - 1) else ""
    return [
        ("Defocus", f"{series[2]} images from {series[0] / 10:g} to {series[1] / 10:g} nm"),
        ("Sharpest", f"at {found.sharpest / 10:.4g} nm, {times:.3g} times noise of counts{at_end}"),
        ("Written to", str(path)),
        ("", str(curve)),
    ]
