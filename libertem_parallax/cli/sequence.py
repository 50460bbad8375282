"""Acquisitions one after another: the first is the last, unless a page asks for the next."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .record import Recording
from .recorded import Recorded

if TYPE_CHECKING:
    from ..parameters import Parameters
    from ..show.page.live import LivePage
    from ..show.window import Window

__all__ = ["free_outputs", "record_all"]

#: Where the terminal is gone, or the system ends the program, that is not for the page to outlive.
_ENDED = "interrupted by SIG"

Once = Callable[["Parameters", Mapping[str, Path], Recording], Recorded]


def record_all(
    once: Once,
    tell: Callable[[Recorded], None],
    parameters: Parameters,
    outputs: Mapping[str, Path],
    recording: Recording,
    page: LivePage | None,
    *,
    new: bool = False,
) -> None:
    """Record an acquisition; with a page, others as they are asked for there, until Ctrl-C.

    Those that follow have the parameters of the page, and their images go to new files. What goes
    wrong with one of them is told on the page, which stays.

    Parameters
    ----------
    once
        Records an acquisition.
    tell
        Tells what came of it.
    parameters, outputs, recording
        Of the first one.
    page
        Where it is shown, if so.
    new
        Whether the image of the first one goes to a new file, too, if there is one of its name, or
        parameters that are found would replace others.

    Raises
    ------
    click.ClickException, click.exceptions.Exit
        If the last one is not complete, unless it was stopped on the page.
    """
    places = outputs
    if new and (there := _there(outputs, recording)):
        places = free_outputs(outputs)
        where = " and ".join(map(str, places.values()))
        click.echo(f"There is {there[0]} already. This acquisition goes to {where}", err=True)
    if page is None:
        recorded = once(parameters, places, recording)
        _leave(recorded.window, _told(recorded, tell))
        return
    names = parameters["image"]
    problem: str | None
    while True:
        try:
            recorded = once(parameters, places, recording)
        except click.ClickException as error:
            text = error.message
            if not page.served or text.startswith("interrupted") or _ENDED in text:
                raise
            wanted = page.STOPPED in text
            problem = f"Not recorded: {text.removesuffix('.')}" if wanted else text
            show: Callable[[], None] = partial(page.fail, text)
        else:
            problem = _told(recorded, tell)
            wanted = recorded.wanted and problem == recorded.problem
            show = partial(_show, page, recorded, problem, list(places.values()))
            recording = recording._replace(calibrate=False)  # the page has what was found
            places = {}
        if problem is not None:
            click.echo(f"\n{'' if wanted else 'Error: '}{problem}", err=True)
            if _ENDED in problem:
                break
        again = False
        with contextlib.suppress(KeyboardInterrupt):  # from the moment that the page shows it
            show()
            click.echo(f"\nThe page is still at {page.url} (Ctrl-C ends it)")
            again = page.wait()
        if not again:
            break
        parameters = page.parameters.replace(image=names)
        # Of an acquisition that failed in the end, something may have been written on the way.
        if not places or any(path.exists() for path in places.values()):
            places = free_outputs(outputs)
        where = " and ".join(map(str, places.values()))
        click.echo(f"\nThe next acquisition goes to {where}", err=True)
    if problem is not None and not wanted:
        raise click.exceptions.Exit(1)  # it was told


def _show(page: LivePage, recorded: Recorded, problem: str | None, places: list[Path]) -> None:
    """Show on the page what came of a recording, and what is wrong beside."""
    if problem != recorded.problem:
        page.add("Beside the image, not all could be written: see the terminal")
    path = recorded.written_to[0]
    page.keep(path, recorded.grown, elsewhere=path not in places)


def _there(outputs: Mapping[str, Path], recording: Recording) -> list[Path]:
    """Tell which files there are already, of those that a recording writes."""
    images = [*outputs.values()]
    found = [images[0].with_suffix(".toml")] if recording.calibrate else []
    return [path for path in images + found if path.exists()]


def free_outputs(outputs: Mapping[str, Path]) -> dict[str, Path]:
    """Append a number to names of images, with which there are none yet, nor parameters beside."""
    for number in itertools.count(2):
        places = {
            name: path.with_name(f"{path.stem}_{number}{path.suffix}")
            for name, path in outputs.items()
        }
        beside = (path.with_suffix(".toml") for path in places.values())
        if not any(path.exists() for path in (*places.values(), *beside)):
            return places
    raise AssertionError  # numbers do not end


def _told(recorded: Recorded, tell: Callable[[Recorded], None]) -> str | None:
    """Tell what came of a recording; in sentences, what is wrong with it, or with that.

    The image is written: nothing else may take along what comes after.
    """
    try:
        tell(recorded)
    except (OSError, ValueError, click.ClickException) as error:
        text = error.message if isinstance(error, click.ClickException) else str(error)
        problem = f"Beside the image, not all could be written: {text}."
        return " ".join(filter(None, (recorded.problem, problem)))
    return recorded.problem


def _leave(window: Window | None, problem: str | None) -> None:
    """Wait until the user has seen the image; fail where it is not complete."""
    try:
        if problem is not None:
            raise click.ClickException(problem)
        if window is not None:
            click.echo("\nClose the window to end.")
            window.wait()
    finally:
        if window is not None:
            window.close()
