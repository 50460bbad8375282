"""A detector that is connected: what is asked first, and how it is left in the end."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import click

__all__ = ["Link", "Unbreakable", "linked"]


class Link(NamedTuple):
    """A connection to a detector, and who adds what comes through it."""

    address: Any  #: of `live.Address`
    ctx: Any  #: a ``LiveContext``
    conn: Any  #: LiberTEM-live's
    watch: Any  #: `live.Watch`
    detector_shape: tuple[int, int]
    dtype: Any  #: of frames
    workers: int  #: 1 is this process


@contextlib.contextmanager
def linked(address: Any, workers: int | None, problems: list[str]) -> Iterator[Link]:
    """Connect to a detector, and take over Ctrl-C until all is closed.

    Parameters
    ----------
    address
        Of the detector.
    workers
        That add frames; 1 is this process. Default: as many as the detector's rate needs.
    problems
        Gets a sentence for what cannot be closed.

    Raises
    ------
    DetectorError
        If nobody answers.
    """
    from .. import live
    from ..accumulate.threads import cores

    with contextlib.ExitStack() as stack:
        ctx = live.make_context(1)
        stack.enter_context(_closed("LiberTEM", ctx, problems))
        watch = stack.enter_context(live.Watch())
        click.echo(f"Connecting to {address}", err=True)
        conn = live.connect(ctx, address, watch)
        stack.enter_context(_closed("the connection", conn, problems))
        shape, dtype = live.describe(ctx, conn, address.detector, watch)
        if workers is None:
            size = math.prod(shape) * dtype.itemsize
            workers = live.default_workers(address.detector.rate(conn), size, cores())
        if workers > 1:
            click.echo(f"Starting {workers} workers", err=True)
            ctx = live.make_context(workers)
            stack.enter_context(_closed("workers", ctx, problems))
        yield Link(address, ctx, conn, watch, shape, dtype, workers)


@contextlib.contextmanager
def _closed(name: str, thing: Any, problems: list[str]) -> Iterator[None]:
    """Close a thing in the end; that this fails is noted, and no reason to lose anything."""
    from ..live.watch import ASKED_TO_END, first_line

    try:
        yield
    finally:
        try:
            thing.close()
        except ASKED_TO_END:
            raise
        except BaseException as error:  # Rust's panics are no Exception
            problems.append(f"Closing {name} failed: {first_line(error)}.")


class Unbreakable:
    """Standard error while frames are added, which go on where nobody can read it any more."""

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """Be that stream otherwise."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, if there is anywhere to write it."""
        if self._stream is not None:
            # A pipe or a terminal is gone, or closed.
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush it, likewise."""
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()
