"""What came of an acquisition: how much of it is in the image, where that is, what to tell."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..names import claim, frames_of
from .calibrate import NEEDED
from .calibrate import described as found_rows
from .parameters import option_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..parameters import Parameters
    from ..show.screen import Growing
    from ..show.window import Window
    from ..udf import ParallaxUDF
    from ..udf.learning import Learning
    from .places import Places

__all__ = ["Added", "Recorded", "kept_frames", "missing_frames", "save_found"]


class Added(NamedTuple):
    """Frames that were added."""

    results: Any  #: of LiberTEM; None if there are none
    arrived: int  #: frames, not all of which may be added
    seconds: float  #: since the first one arrived
    problem: str | None  #: why they are not all, if so


class Recorded(NamedTuple):
    """What came of an acquisition."""

    images: dict[str, NDArray[Any]]  #: by name, first that which grew
    udf: Any
    parameters: Parameters
    rows: list[tuple[str, str]]  #: for `report`
    problem: str | None  #: why it is not complete, or not where it should be
    wanted: bool  #: whether that is just what was asked for on the page
    written_to: list[Path]  #: where they are, in that order
    elsewhere: bool  #: whether the first one could not be written where it should go
    grown: Growing  #: the first one, and which frames it is of
    window: Window | None  #: that shows the image


def missing_frames(added: Added, count: int, total: int, detector: Any) -> list[str]:
    """Tell in sentences what is missing of an image of so many frames, and why.

    Parameters
    ----------
    added
        What came.
    count, total
        Frames in the image, and of the scan.
    detector
        That sent them.
    """
    if count == total:  # then the problem is of no consequence any more
        return [] if added.problem is None else [f"{added.problem}."]
    reason = added.problem or "the acquisition ended"
    arrived = "had arrived: only whole partitions count (--frames-per-partition)."
    if not count:
        sentences = [f"none of {total:,} frames is in the image, which was not written: {reason}."]
        return sentences + ([f"{added.arrived:,} {arrived}"] if added.arrived else [])
    sentences = [
        f"{count:,} of {total:,} frames ({count / total:.1%}) are in the image: "
        f"{reason}. Another {max(0, added.arrived - count):,} {arrived}"
    ]
    if not detector.counted and not reason.startswith(("interrupted", "stopped")):
        sentences.append(
            "If frames were lost on the way, all that came after them are in wrong places: "
            f"{detector.name} frames are taken in the order in which they come."
        )
    return sentences


def save_found(
    learning: Learning, places: Places, given: Parameters, scan: Any, problems: list[str]
) -> list[tuple[str, str]]:
    """Write parameters that were found next to the image; rows for `report`."""
    calibration, sheet = learning.calibration, places.sheet
    assert calibration is not None
    rows = found_rows(calibration, given, scan)
    try:
        if places.overwrite:
            calibration.save(sheet, overwrite=True)
        else:
            [sheet], _ = claim(calibration.save, sheet)
        rows.append(("Parameters", str(sheet)))
    except OSError as error:  # the image is written, and where that is has to be told
        problems.insert(0, f"The parameters could not be written to {sheet}: {error}.")
    return rows


def kept_frames(udf: ParallaxUDF, output: Path, given: Parameters) -> str:
    """Write the frames of a scan of which no parameters were found; say where they are."""
    import numpy as np

    from .. import files

    stack = udf.stack
    frames = stack.frames.reshape(stack.scan_shape + stack.detector_shape)
    scanned = stack.scanned
    whole, some = (np.flatnonzero(those(axis=1)) for those in (scanned.all, scanned.any))
    # Rows that did not come are left out, and what memory did not hold but for whole rows.
    rows = some if udf.params.keep.complete or not len(whole) else whole
    frames, scanned = (each[: 1 + rows.max(initial=-1)] for each in (frames, scanned))
    count = int(scanned.sum())
    try:
        path = files.keep_frames(frames_of(output), frames)
    except (OSError, ValueError) as error:
        return f"Its frames could not be written, either: {error}."
    fitting = "" if udf.params.keep.complete else ", as many as memory holds,"
    command = ["libertem-parallax", "calibrate", str(path)]
    for name in NEEDED:
        values = given[name] if isinstance(given[name], tuple) else (given[name],)
        command += [option_name(name), *map(str, values)]
    until = int(np.append(scanned.all(axis=1), False).argmin())
    if 0 < until < len(scanned):  # what follows has frames that did not come, which are zeros
        command += ["--roi", "0", "0", str(until), str(scanned.shape[1])]
    return (
        f"{count:,} frames{fitting} were written to {path}. Calibrate these with other options:\n"
        f"  {shlex.join(command)}"
    )
