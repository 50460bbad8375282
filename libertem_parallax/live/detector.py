"""What all detectors have in common: an address, a connection, an acquisition that is awaited."""

from __future__ import annotations

import math
import socket
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .watch import DetectorError, Watch

__all__ = ["Address", "Detector", "acquire", "connect", "describe", "start"]

#: Seconds in which a detector answers to a question.
ANSWER = 5.0


class Detector(ABC):
    """A kind of detector, by what it needs that others do not."""

    name: str  #: as LiberTEM-live and the command line call it
    port: int  #: for control, as the manufacturer sets it
    data_port: int | None  #: None where one port does both
    starts = True  #: whether it can be told to start an acquisition
    events = False  #: whether frames come as events
    simulated = False  #: whether there is a simulator of it
    counted = True  #: whether frames that are lost, sent twice or out of order are noticed
    #: Rows and columns, where it does not tell them before the acquisition starts, and the dtype.
    shape: tuple[int, int] | None = None
    dtype: str | None = None

    @abstractmethod
    def open(self, builder: Any, address: Address) -> Any:
        """Open a connection with LiberTEM-live's builder for it."""

    def start(self, conn: Any) -> None:
        """Let the detector start the acquisition that is set up in its software."""
        raise NotImplementedError

    def rate(self, conn: Any) -> float | None:  # noqa: ARG002
        """Ask for the frames per second that it will send; None where it does not tell."""
        return None

    def begin(self, conn: Any, address: Address) -> None:  # noqa: B027
        """Prepare an announced acquisition, where that is needed."""

    def write(self, folder: Path, frames: NDArray[Any]) -> Path:
        """Write what the simulator sends, and return a file with the same that LiberTEM opens."""
        raise NotImplementedError

    def simulate(
        self, folder: Path, frames: int, dwell_time: float
    ) -> AbstractContextManager[Address]:
        """Run the simulator, which sends the frames that were written, each for some seconds."""
        raise NotImplementedError


class Address(NamedTuple):
    """Where a detector is: host, control and data port, maybe the same."""

    detector: Detector
    host: str
    port: int
    data_port: int

    def __str__(self) -> str:
        """Show name, host and ports."""
        where = f"{self.detector.name} at {self.host}, port"
        if self.port == self.data_port:
            return f"{where} {self.port}"
        return f"{where}s {self.port} and {self.data_port}"


def connect(ctx: Any, address: Address, watch: Watch) -> Any:
    """Open a connection to a detector.

    Parameters
    ----------
    ctx
        A ``LiveContext``.
    address
        Of the detector.
    watch
        Ends the attempt after some seconds.

    Returns
    -------
    DetectorConnection
        Of LiberTEM-live; to be closed.

    Raises
    ------
    DetectorError
        If nobody answers.
    """
    advice = "Is the detector's software running, and are host and ports right?"
    try:
        with socket.create_connection((address.host, address.port), ANSWER):
            pass
    except OSError as error:
        raise DetectorError(
            f"no answer from {address}: port {address.port}: {error}. {advice}"
        ) from error
    builder = ctx.make_connection(address.detector.name)
    late = f"no answer from {address} within {ANSWER:g} s. {advice}"
    return watch.wait(lambda: address.detector.open(builder, address), ANSWER, late)


def describe(
    ctx: Any, conn: Any, detector: Detector, watch: Watch
) -> tuple[tuple[int, int], np.dtype[Any]]:
    """Ask a detector for the shape and the dtype of its frames, where it can tell.

    Parameters
    ----------
    ctx, conn, watch
        See `connect`.
    detector
        Some never tell, and have one shape.

    Returns
    -------
    shape : tuple of int
        Detector rows and columns.
    dtype : numpy.dtype
        Of the frames.

    Raises
    ------
    DetectorError
        If it does not tell.
    """
    if detector.shape is not None:
        return detector.shape, np.dtype(detector.dtype)
    # An acquisition that is only made and not run asks, and does nothing.
    acquisition = watch.wait(
        lambda: ctx.make_acquisition(conn=conn, nav_shape=(1, 1)),
        ANSWER,
        f"the detector did not tell the shape of its frames within {ANSWER:g} s. Is the control "
        "port right?",
    )
    rows, cols = acquisition.shape.sig
    return (rows, cols), np.dtype(acquisition.dtype)


def start(conn: Any, detector: Detector, watch: Watch) -> None:
    """Let the detector start the acquisition that is set up in its software.

    Parameters
    ----------
    conn, watch
        See `connect`.
    detector
        That `starts`.

    Raises
    ------
    DetectorError
        If it refuses.
    """
    watch.wait(
        lambda: detector.start(conn),
        ANSWER,
        f"the detector did not start an acquisition within {ANSWER:g} s.",
    )


def acquire(
    ctx: Any,
    conn: Any,
    address: Address,
    watch: Watch,
    nav_shape: tuple[int, int] | None,
    timeout: float,
    frames_per_partition: int,
) -> Any:
    """Wait until the detector announces an acquisition.

    Parameters
    ----------
    ctx, conn, address, watch
        See `connect`.
    nav_shape
        Scan rows and columns; None if the detector knows them.
    timeout
        Seconds to wait.
    frames_per_partition
        Frames between two updates of the image.

    Returns
    -------
    Acquisition
        Of LiberTEM-live.

    Raises
    ------
    DetectorError
        If none is announced in time, or one of another shape.
    """
    # LiberTEM-live's own timeout makes the connection fit for another attempt; the watch's is for
    # the case that it fails to.
    pending = watch.wait(
        lambda: conn.wait_for_acquisition(timeout), timeout + ANSWER, _not_started(timeout)
    )
    if pending is None:  # an acquisition made of that would start the detector
        raise DetectorError(_not_started(timeout))
    address.detector.begin(conn, address)
    announced = f"the detector announces {pending.nimages:,} frames"
    known = pending.nav_shape
    if known is not None:
        announced += ", a scan of {} x {}".format(*known)
    if nav_shape is None and known is None:
        raise DetectorError(
            f"{announced}, but not the shape of the scan: give it with --nav-shape ROWS COLUMNS."
        )
    shape = nav_shape or tuple(known)
    if math.prod(shape) != pending.nimages or known not in (None, shape):
        if nav_shape:
            announced += ", but --nav-shape {} x {} has {:,}".format(*shape, math.prod(shape))
        raise DetectorError(
            f"{announced}. Change the scan in the detector's software, or --nav-shape."
        )
    return watch.wait(
        lambda: ctx.make_acquisition(
            conn=conn,
            nav_shape=shape,
            pending_aq=pending,
            frames_per_partition=frames_per_partition,
        ),
        ANSWER,
        f"the detector did not tell the shape of its frames within {ANSWER:g} s.",
    )


def _not_started(timeout: float) -> str:
    return (
        f"no acquisition was started within {timeout:g} s, or none of its frames came. Is it "
        "triggered, and does no other program receive them?"
    )
