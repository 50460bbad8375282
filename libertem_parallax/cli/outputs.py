"""Where images go: names, what may be replaced, and how they are written."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..names import claim, numbered
from .messages import messages_only
from .run import image_pixel_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..files import About
    from ..parameters import Parameters


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
    from ..event_files import event_files
    from ..files import WRITERS, try_to_write

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
    from ..files import said

    if overwrite or not path.exists():
        return None
    made = said(path)
    if made is None:
        silent = path.suffix.lower() == ".npy"
        what = "a file that does not say what it is" if silent else "no image of this program"
    elif {"data", "frames"} <= made.keys():
        what = "the image of a scan that was recorded, which may not be repeated"
    else:
        return None
    return f"that is {what}; choose another name, or replace it with --overwrite"


def is_replaced(path: Path, overwrite: bool) -> bool:
    """Tell whether there is a file that an image may replace."""
    return overwrite or (path.exists() and replacing_problem(path, overwrite) is None)


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
        return save(path, image, about, problems, new=not is_replaced(path, overwrite))

    _, written = claim(write, output, first=(output,))
    return written
