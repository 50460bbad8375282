"""Acquisitions one after another: the first is the last, unless a page asks for the next."""

from __future__ import annotations

import contextlib
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

__all__ = ["record_all"]

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

    Raises
    ------
    click.ClickException, click.exceptions.Exit
        If the last one is not complete, unless it was stopped on the page.
    """
    if page is None:
        recorded = once(parameters, outputs, recording)
        _leave(recorded.window, _told(recorded, tell))
        return
    names = parameters["image"]
    problem: str | None
    while True:
        try:
            recorded = once(parameters, outputs, recording)
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
            show = partial(_show, page, recorded, problem)
            recording = recording._replace(calibrate=False)  # the page has what was found
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
        recording = recording._replace(overwrite=False)
        click.echo(err=True)
    if problem is not None and not wanted:
        raise click.exceptions.Exit(1)  # it was told


def _show(page: LivePage, recorded: Recorded, problem: str | None) -> None:
    """Show on the page what came of a recording, and what is wrong beside."""
    if problem != recorded.problem:
        page.add("Beside the image, not all could be written: see the terminal")
    page.keep(recorded.written_to[0], recorded.grown, elsewhere=recorded.elsewhere)


def _told(recorded: Recorded, tell: Callable[[Recorded], None]) -> str | None:
    """Tell what came of a recording; in sentences, what is wrong with it, or with that.

    The image is written: nothing else may take along what comes after.
    """
    try:
        tell(recorded)
    except KeyboardInterrupt:
        click.echo(
            f"\nInterrupted. It was written to {' and '.join(map(str, recorded.written_to))}.",
            err=True,
        )
        raise
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
