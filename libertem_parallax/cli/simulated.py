"""``live --simulate``: a specimen, a detector's simulator, and what comes of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..live import Detector
from ..parameters import Parameters
from .calibrate import FOUND
from .messages import messages_only
from .outputs import live_paths, propose
from .parameters import read_parameters
from .record import Recording, record
from .recorded import Recorded
from .run import image_pixel_size, refuse_zero_images, report
from .sequence import record_all
from .specimen import (
    check_folder,
    correlation,
    describe_simulation,
    placing,
    resample,
    save_parameters,
    write_overview,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..show.page.live import LivePage
    from ..show.screen import Growing

#: Where all goes.
FOLDER = Path("libertem-parallax-live")

#: Seconds of each frame.
_DWELL_TIME = 1.5e-3


def live_simulated(
    kind: Detector,
    given: Path | None,
    options: dict[str, Any],
    output: Path | None,
    snapshot: Path | None,
    recording: Recording,
    open_page: Callable[[Path, float | None], LivePage | None],
    asked: dict[str, Any],
) -> None:
    """Record what a simulated detector sends; arguments are those of `live`."""
    from tqdm import tqdm

    from ..simulate import simulate

    folder, dose = FOLDER, 30.0
    blur = 6.0 if recording.blur is None else recording.blur
    growth = folder / "growth.png"
    # One frame tells what will be simulated, so that mistakes show before that takes its time.
    simulated = simulate(scan_shape=(1, 1), dose=None).parameters
    shape = simulated.pop("shape")
    parameters = read_parameters(given, options, Parameters(**simulated, image="phase_flip"))
    # What LiberTEM is to be told of other data does not belong to these.
    parameters = parameters.replace(load=None)
    output = output or folder / "image.tif"
    asked_for = output.name
    parameters, outputs = live_paths(output, parameters)
    output = next(iter(outputs.values()))
    if recording.calibrate:
        parameters = parameters.replace(**dict.fromkeys(FOUND))
    else:
        _check_parameters(parameters, kind.shape or shape[2:])
    try:
        check_folder(folder, ["growth.png"], recording.overwrite)
        recording.places(outputs).check([*parameters.files.values()])
        simulation = simulate(
            dose=dose, seed=1, progress=partial(tqdm, desc="Simulating", unit=" rows")
        )
        with placing(folder, recording.overwrite) as made:
            data = folder / kind.write(made, simulation.frames).name
    except OSError as error:
        raise click.ClickException(f"cannot write to {folder}: {error}") from error
    ny, nx = simulation.frames.shape[:2]
    recording = recording._replace(
        start=kind.starts, interval=min(recording.interval, 0.5), blur=blur
    )
    first = True
    grown: dict[int, Growing] = {}  # by the number of frames
    page = open_page(output, blur)
    if page is not None:
        snapshot = snapshot or folder

    def once(parameters: Parameters, outputs: Mapping[str, Path], recording: Recording) -> Recorded:
        grown.clear()

        def keep(made: Growing) -> None:  # LiberTEM goes on filling what is scanned
            grown[made.frames] = made._replace(scanned=made.scanned.copy())

        with messages_only(), kind.simulate(folder, ny * nx, _DWELL_TIME) as address:
            return record(
                address, parameters, outputs, snapshot, recording, {"growth": keep}, page, asked
            )

    def tell(recorded: Recorded) -> None:
        nonlocal first
        plan = recorded.udf.params.geometry.plan
        rows = [
            *(describe_simulation(simulation.parameters, plan, dose) if first else ()),
            *recorded.rows,
            *_agreement(recorded, simulation.truth, blur),
        ]
        if not first:  # the other files are of the first
            report(*rows)
            return
        first = False
        params = save_parameters(recorded.parameters.replace(image=[*outputs]), folder)
        _write_growth(growth, grown, recorded, blur)
        report(*rows, ("As it grew", str(growth)), ("Data", f"{data}, {params}"))
        if recorded.problem is None:
            propose("The same from the files", data, params, asked_for, [*outputs])

    record_all(once, tell, parameters, outputs, recording, page)


def _write_growth(path: Path, grown: dict[int, Growing], recorded: Recorded, blur: float) -> None:
    """Write a picture of how the image grew, which is there by the number of its frames."""
    import numpy as np

    from ..show.screen import to_gray

    pixel_size, total = image_pixel_size(recorded.udf), recorded.grown.scanned.size
    chosen = np.unique(np.linspace(0, len(grown) - 1, 4).round().astype(int))
    write_overview(
        path,
        [
            (
                f"{frames / total:.0%} scanned",
                f"blurred by {blur / 10:g} nm",
                to_gray(made, pixel_size, blur)[0],
                pixel_size,
            )
            for frames, made in (list(grown.items())[i] for i in chosen)
        ],
    )


def _agreement(recorded: Recorded, truth: NDArray[Any], blur: float) -> list[tuple[str, str]]:
    """Tell how well images agree with what was simulated, in rows for `report`."""
    from ..show import pictures

    rows: list[tuple[str, str]] = []
    for name, image in recorded.images.items():
        u = image.shape[0] // recorded.grown.scanned.shape[0]
        step = tuple(size / u for size in recorded.udf.params.geometry.scan_sampling)
        blurred = pictures.blur(image, (step[0], step[1]), blur)
        expected = pictures.blur(resample(truth, image.shape), (step[0], step[1]), blur)
        agree = correlation(blurred, expected)
        text = f"{agree:.2f} with the truth, both blurred by {blur / 10:g} nm"
        several = f"{name}: " if len(recorded.images) > 1 else ""
        rows.append(("" if rows else "Correlation", several + text))
    return rows


def _check_parameters(parameters: Parameters, detector_shape: tuple[int, int]) -> None:
    """Refuse what no scan on such a detector can be reconstructed with."""
    from ..udf import ParallaxUDF

    # A small scan may be exceeded by shifts that the real one is not.
    with messages_only(), warnings.catch_warnings(action="ignore"):
        udf = ParallaxUDF.from_parameters((8, 8, *detector_shape), **parameters)
        refuse_zero_images(udf, parameters)
