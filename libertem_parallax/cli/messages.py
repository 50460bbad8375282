"""What commands tell people while they work: warnings, errors, and why nothing moves."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import click


def warn(message: str) -> None:
    """Tell people of something that does not stop the command."""
    tell(f"Warning: {message}")


def tell(message: str) -> None:
    """Tell people something on a line of its own, also where a progress bar is under way."""
    from tqdm import tqdm

    with tqdm.external_write_mode():
        click.echo(message, err=True)


@contextlib.contextmanager
def messages_only(strict: bool = False) -> Iterator[None]:
    """Show what the library says of input and GPU without tracebacks and lines of code.

    It says so as well when code is compiled.

    Parameters
    ----------
    strict
        Make errors of warnings.
    """
    told = set()

    # Python forgets what it has shown once wherever warnings are caught meanwhile.
    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in told:
            told.add(str(message))
            warn(str(message))

    try:
        action: Literal["error", "always"] = "error" if strict else "always"
        with _compiling_is_told(), warnings.catch_warnings(action=action, category=UserWarning):
            warnings.simplefilter(action, RuntimeWarning)
            warnings.showwarning = show
            yield
    except (UserWarning, RuntimeWarning) as warning:
        raise click.ClickException(f"{warning} This is an error with --strict.") from warning
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from error


class _Compiling(logging.Handler):
    """Tells people why nothing moves for some seconds."""

    told = False

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002
        """Tell it once."""
        if not self.told:
            self.told = True
            tell("Compiling code, which takes some seconds the first time")


@contextlib.contextmanager
def _compiling_is_told() -> Iterator[None]:
    log = logging.getLogger("libertem_parallax.accumulate.disk")
    handler, level = _Compiling(), log.level
    if log.handlers:  # it is being told
        yield
        return
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
