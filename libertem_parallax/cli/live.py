"""``live``: an image while a detector records, or a simulated one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..live import DETECTORS, Address
from .calibrate import NEEDED, hint_options
from .messages import messages_only
from .options import Finite, acquisition_options, blur_option, output_option, overwrite_option
from .outputs import live_paths
from .parameters import check_required, read_parameters
from .record import Recording, record
from .recorded import Recorded
from .run import report
from .sequence import record_all
from .simulated import FOLDER, live_simulated
from .tune import memory_option, open_browser, page_options, read_page_options, warn_of_access

if TYPE_CHECKING:
    from ..parameters import Parameters
    from ..show.page.live import LivePage

_EXAMPLES = """\b
Examples:
  libertem-parallax live --simulate merlin
  libertem-parallax live --simulate asi_tpx3
  libertem-parallax live merlin --host 192.168.0.2 --params scan.toml -o image.tif
  libertem-parallax live dectris --host 192.168.0.3 --nav-shape 512 512 \\
      --params scan.toml -o image.tif
"""

_PORT = click.IntRange(1, 65535)
_SIMULATED = [name for name, detector in DETECTORS.items() if detector.simulated]


@click.command(short_help="Reconstruct while a detector records.", epilog=_EXAMPLES)
@click.argument("detector", required=False, type=click.Choice(list(DETECTORS)))
@click.option(
    "--simulate",
    type=click.Choice(_SIMULATED),
    help="Simulate a specimen and run a detector's simulator on this machine, too. Data and "
    "pictures go to the folder libertem-parallax-live.",
)
@click.option("--host", help="Where the detector's software runs.  [default: 127.0.0.1]")
@click.option(
    "--port",
    type=_PORT,
    help="Its control port, or the only one.  [default: "
    + ", ".join(f"{name} {detector.port}" for name, detector in DETECTORS.items())
    + "]",
)
@click.option(
    "--data-port",
    type=_PORT,
    help="Its data port.  [default: "
    + ", ".join(f"{name} {d.data_port}" for name, d in DETECTORS.items() if d.data_port)
    + "]",
)
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
    "one: arm, and trigger a Merlin. Not for "
    + ", ".join(name for name, detector in DETECTORS.items() if not detector.starts)
    + ".",
)
@click.option(
    "--timeout",
    type=Finite(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds to wait for an acquisition, and then for its first frame.",
)
@click.option(
    "--silence",
    type=Finite(min=0, min_open=True),
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
    "--workers",
    type=click.IntRange(1, 256),
    help="Processes that add frames, on CPUs.  [default: as many as the detector's rate needs, "
    "where it tells that, else 1]",
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
    type=Finite(min=0),
    default=2.0,
    show_default=True,
    help="Seconds between two pictures of the growing image, or longer: they take a twentieth of "
    "the time at most.",
)
@blur_option(
    "Blur these pictures, but not the image that is written, with a Gaussian of this standard "
    "deviation, to see through the noise of few electrons.  [default: 0, with --simulate 6]"
)
@output_option(
    "live_ with the image's name, as live_parallax.tif; with --simulate image.tif in that folder"
)
@overwrite_option
@click.option(
    "--page",
    is_flag=True,
    help="Show the growing image on a page in the browser, where parameters can be tuned while "
    "frames come in, and afterwards, and the next scan is started, until Ctrl-C.",
)
@partial(page_options, prefix="page-")
@memory_option
@click.option(
    "--calibrate",
    is_flag=True,
    help="Find what is not known, such as center, rotation and defocus, from the first part of the "
    "scan, and then make the image; energy, step and semiangle are needed. The parameters are "
    "written next to the image, as .toml.",
)
@hint_options
@acquisition_options
def live(
    detector: str | None,
    simulate: str | None,
    host: str | None,
    port: int | None,
    data_port: int | None,
    output: Path | None,
    params: Path | None,
    snapshot: Path | None,
    page: bool,
    memory: float | None,
    browser: bool | None,
    **options: Any,
) -> None:
    """Reconstruct the parallax image while DETECTOR records, and show it growing.

    Waits for an acquisition, or starts one with --start. After Ctrl-C, or when the detector fails,
    what has arrived is written, and what is missing is told. One --image grows; --image direct is
    made of all frames in the end, while phase or another one grows.

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
            f"give either a DETECTOR, {_either(DETECTORS)}, or --simulate {_either(_SIMULATED)}."
        )
    recording = Recording(*(options.pop(name) for name in Recording._fields))
    access = read_page_options(options, page=page)

    def open_page(output: Path, blur: float | None) -> LivePage | None:
        if access is None:
            return None
        from ..show.page.live import LivePage

        shown = LivePage(
            access,
            None if memory is None else int(memory * 2**30),
            title=str(detector or simulate),
            folder=output.parent,
            sigma=blur or 0.0,
        )
        click.get_current_context().call_on_close(shown.close)

        def opened(where: str) -> None:
            warn_of_access(access, where)
            open_browser(where, wanted=browser)

        shown.on_ready = opened
        return shown

    asked = _asked(options, calibrate=recording.calibrate)
    several = recording.workers not in (None, 1)
    if several and (recording.calibrate or options.get("engine") == "cuda"):
        raise click.UsageError(
            f"--workers {recording.workers}: with --calibrate or --engine cuda, this process adds "
            "the frames. Leave one of them out."
        )
    if simulate is not None:
        meaningless = [
            name
            for name, value in (
                ("--host", host),
                ("--port", port),
                ("--data-port", data_port),
                ("--start", recording.start),
                ("--nav-shape", recording.nav_shape),
            )
            if value
        ]
        if meaningless:
            raise click.UsageError(
                f"{', '.join(meaningless)}: without meaning with --simulate, which runs a detector "
                "of its own. Leave it out, or give a DETECTOR instead."
            )
        if params is not None and params.resolve() == (FOLDER / "params.toml").resolve():
            raise click.UsageError(
                f"--params {params}: --simulate writes that file anew. Give a copy of it."
            )
        live_simulated(
            DETECTORS[simulate], params, options, output, snapshot, recording, open_page, asked
        )
        return
    assert detector is not None
    kind = DETECTORS[detector]
    if recording.start and not kind.starts:
        raise click.UsageError(
            f"--start: {detector} cannot be started from here. Leave it out, and start the "
            "acquisition in the detector's software as soon as this command waits for one."
        )
    if data_port is not None and kind.data_port is None:
        raise click.UsageError(f"--data-port: {detector} has one port only, give it with --port.")
    parameters = read_parameters(params, options)
    check_required(parameters, *(NEEDED if recording.calibrate else ()))
    parameters, outputs = live_paths(output, parameters)
    output = next(iter(outputs.values()))
    inputs = [*([params] if params else []), *parameters.files.values()]
    recording.places(outputs).check(inputs)

    port = port or kind.port
    data_port = data_port or kind.data_port or port
    address = Address(kind, host or "127.0.0.1", port, data_port)
    shown = open_page(output, recording.blur)
    if shown is not None:
        snapshot = snapshot or output.parent

    def once(parameters: Parameters, outputs: Mapping[str, Path], recording: Recording) -> Recorded:
        return record(address, parameters, outputs, snapshot, recording, page=shown, asked=asked)

    record_all(once, lambda done: report(*done.rows), parameters, outputs, recording, shown)


def _asked(options: dict[str, Any], *, calibrate: bool) -> dict[str, Any]:
    """Take out of the options how to calibrate."""
    names = ("search", "defocus_between", "underfocus", "rotation_near")
    search, *hints = given = [options.pop(name) for name in names]
    if not calibrate:
        for name, value in zip(names, given, strict=True):
            if value not in (None, ()):
                raise click.UsageError(
                    f"--{name.replace('_', '-')}: without meaning without --calibrate."
                )
        return {}
    from ..udf.calibration import make_hints

    with messages_only():
        return {"search": search, "hints": make_hints(*hints)}


def _either(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}"
