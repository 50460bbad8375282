"""What is kept of a tuned image: files that never take the place of others, and a script."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ... import aberrations, files
from ...images import STACK_IMAGES, words_and_unit
from ...parameters import Parameters
from ..maker import Picture
from ..pictures import blur

__all__ = ["save", "script"]

_STREAMED = """\
    udf = prlx.ParallaxUDF.from_parameters(
        shape=ds.shape,
        image={name!r},
{body}
    )
    image = ctx.run_udf(dataset=ds, udf=udf)[{name!r}].data
"""

_DIRECT = """\
    parameters = prlx.Parameters(
{body}
    )
    udf = prlx.StackUDF.for_dataset(ds)
    ctx.run_udf(dataset=ds, udf=udf)
    image = prlx.direct_phase(udf.stack, parameters{regularization})
"""

#: Parameters that are of other images; and one that is an argument.
_NOT_DIRECT = frozenset({"suppress_Nyquist_noise", "upsampling_factor", "regularization"})


def save(folder: Path, stem: str, picture: Picture, sigma: float = 0.0) -> list[Path]:
    """Write an image as TIFF, a picture of it as PNG, and its parameters as TOML.

    Parameters
    ----------
    folder
        Where to. It is made if there is none.
    stem
        What names start with. The image's name and a number follow, with which there is no file.
    picture
        With the image.
    sigma
        Standard deviation in Å of a Gaussian that blurs the PNG.

    Returns
    -------
    list
        Of files that were written.

    Raises
    ------
    OSError, ValueError
        If they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{Path(stem).name}_{picture.name}"
    number = 1
    there = [path.name for path in folder.iterdir()]
    while any(name.startswith(f"{stem}_{number:03d}") for name in there):
        number += 1
    tif, png, toml = (folder / f"{stem}_{number:03d}{end}" for end in (".tif", ".png", ".toml"))
    picture.parameters.replace(image=picture.name).save(toml)
    image, (words, unit) = picture.image, words_and_unit(picture.name)
    values = {**picture.parameters, **picture.parameters.files, "image": picture.name}
    values = {key: value for key, value in values.items() if not isinstance(value, np.ndarray)}
    scanned = picture.scanned  # the scan, or what is there of it
    made = {"frames": int(scanned.sum()), "scan": scanned.shape, "parameters": values}
    about = files.About(picture.pixel_size, unit, words, made)
    files.save(tif, image, about)
    if sigma:
        image = blur(image, picture.pixel_size, sigma)
        about = about._replace(made={**about.made, "blur": sigma})
    files.save(png, image, about)
    return [tif, png, toml]


def script(parameters: Parameters, name: str, source: Mapping[str, Any], part: float = 1.0) -> str:
    """Write the Python that makes an image.

    Parameters
    ----------
    parameters
        Of the acquisition.
    name
        Of the image.
    source
        What to tell LiberTEM about the data: ``Context.load(**source)``.
    part
        Of the scan, which is shown. The script makes the image of all of it, and says so.

    Returns
    -------
    str
        A script. It names a mask that came from a file, and leaves out any other.
    """
    lines = []
    direct = name in STACK_IMAGES
    for key, value in parameters.items():
        if key in ("image", "engine") or (direct and key in _NOT_DIRECT):
            continue
        if key == "bf_mask":
            if key in parameters.files:
                lines.append(f"bf_mask={str(parameters.files[key].absolute())!r},")
            else:
                lines.append("bf_mask=...,  # a mask that is in no file")
        elif key == "rotation_angle":
            lines.append(f"rotation_angle={value!r},  # {math.degrees(value):.4g} degrees")
        elif key == "aberration_coefs":
            lines.append("aberration_coefs={")
            lines += [
                f"    {symbol!r}: {number!r},  # {aberrations.unit(symbol)}"
                for symbol, number in value.items()
            ]
            lines.append("},")
        else:
            lines.append(f"{key}={value!r},")
    body = "\n".join(f"        {line}" for line in lines)
    make = _DIRECT if direct else _STREAMED
    load = ", ".join(f"{key}={value!r}" for key, value in source.items())
    regularization = parameters.get("regularization", "auto")
    argument = "" if regularization == "auto" else f", regularization={regularization!r}"
    note = f"\n# Of the whole scan: the page shows {part:.0%} of it.\n" if part < 1 else ""
    return f"""import libertem.api
import libertem_parallax as prlx
{note}
if __name__ == "__main__":
    ctx = libertem.api.Context()
    ds = ctx.load({load})
{make.format(name=name, body=body, regularization=argument)}"""
