"""Behind a detector: waiting for it with an end, reconstructing while it records.

LiberTEM-live waits without end for a detector that is silent. `Watch` gives all waits an end.
"""

from __future__ import annotations

import _thread
import contextlib
import math
import os
import signal
import socket
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray
from scipy.sparse import csr_array

from .files import blur, gray_limits

__all__ = [
    "FRAMES_PER_PARTITION",
    "PORTS",
    "Address",
    "DetectorError",
    "Screen",
    "Watch",
    "acquire",
    "connect",
    "describe",
    "open_window",
    "start",
    "stream",
    "warm_up",
    "write_events",
]

#: Control and data ports by the detector's name, as the manufacturers set them; Timepix3 has one.
PORTS = {"merlin": (6341, 6342), "dectris": (80, 9999), "asi_tpx3": (8283, 8283)}

#: Frames between two updates of the image, by measurement: see benchmarks/README.md.
FRAMES_PER_PARTITION = 512

#: Seconds in which a detector answers to a question.
_ANSWER = 5.0

# Events of Timepix3 come in bunches of 24 times so many bytes, which must hold what the detector
# sends together; in all, so many MiB wait to be added, 8 bytes each.
_CHUNK_BYTES = 1 << 16
_BUFFER = 512

#: Part of the time that pictures of the growing image may take.
_SCREEN_SHARE = 1 / 20

T = TypeVar("T")


class DetectorError(RuntimeError):
    """The detector does not do what is expected of it, or the user gave up; the message says it."""


class Address(NamedTuple):
    """Where a detector is: its name of `PORTS`, host, control and data port, maybe the same."""

    detector: str
    host: str
    port: int
    data_port: int

    def __str__(self) -> str:
        """Show name, host and ports."""
        where = f"{self.detector} at {self.host}, port"
        if self.port == self.data_port:
            return f"{where} {self.port}"
        return f"{where}s {self.port} and {self.data_port}"


class Watch:
    """Ends waits for a detector that take too long, and all of them after Ctrl-C.

    A context manager, to be entered in the main thread. Within it, Ctrl-C never breaks off
    anything but a wait, so that sums and images are always complete; pressed again, it does.
    """

    def __init__(self) -> None:
        self.problem: str | None = None  #: Why a wait was ended, if one was.
        self._waiting = False
        self._deadline, self._late = math.inf, ""
        self._own = False  # the signal is that of the thread, not the user's
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Self:
        """Take over Ctrl-C."""
        self._previous = signal.signal(signal.SIGINT, self._interrupt)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give Ctrl-C back."""
        self._closed.set()
        self._thread.join()
        signal.signal(signal.SIGINT, self._previous)

    def wait(self, function: Callable[[], T], seconds: float, late: str) -> T:
        """Call a function that waits for the detector.

        Parameters
        ----------
        function
            Native ones are all right if they look after signals now and then.
        seconds
            How long it may take.
        late
            What to say if it takes longer.

        Returns
        -------
        object
            What the function returns.

        Raises
        ------
        DetectorError
            If it takes too long, fails, or the user pressed Ctrl-C, now or before.
        """
        try:
            self._deadline, self._late = time.monotonic() + seconds, late
            self._waiting = True
            if self.problem is not None:
                raise DetectorError(self.problem)
            return function()
        except DetectorError:
            raise
        # Detectors have many ways to fail, and native code makes its own error of an interrupt's.
        except Exception as error:
            raise DetectorError(self.problem or _first_line(error)) from error
        finally:
            self._waiting = False

    def _watch(self) -> None:
        while not self._closed.wait(0.05):
            if self._waiting and time.monotonic() > self._deadline:
                self._own = True
                _thread.interrupt_main()

    def _interrupt(self, *_: Any) -> None:
        """Handle the signal, in the main thread, between any two of its steps."""
        own, self._own = self._own, False
        if own:
            # What was waited for may have come at the last moment.
            if not self._waiting or time.monotonic() <= self._deadline:
                return
            self.problem = self._late
        elif self.problem == "interrupted":  # asked twice, the user means it
            raise KeyboardInterrupt
        else:
            self.problem = "interrupted"
        if self._waiting:
            self._waiting = False
            raise DetectorError(self.problem)


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
        with socket.create_connection((address.host, address.port), _ANSWER):
            pass
    except OSError as error:
        raise DetectorError(
            f"no answer from {address}: port {address.port}: {error}. {advice}"
        ) from error
    builder = ctx.make_connection(address.detector)
    late = f"no answer from {address} within {_ANSWER:g} s. {advice}"
    if address.detector == "asi_tpx3":
        more: dict[str, Any] = {"buffer_size": _BUFFER, "bytes_per_chunk": _CHUNK_BYTES}
    else:
        more = {"api_host": address.host, "api_port": address.port}
    return watch.wait(
        lambda: builder.open(data_host=address.host, data_port=address.data_port, **more),
        _ANSWER,
        late,
    )


def describe(ctx: Any, conn: Any, watch: Watch) -> tuple[tuple[int, int], np.dtype[Any]]:
    """Ask a detector for the shape and the dtype of its frames; not Timepix3, which never tells.

    Parameters
    ----------
    ctx, conn, watch
        See `connect`.

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
    # An acquisition that is only made and not run asks, and does nothing.
    acquisition = watch.wait(
        lambda: ctx.make_acquisition(conn=conn, nav_shape=(1, 1)),
        _ANSWER,
        f"the detector did not tell the shape of its frames within {_ANSWER:g} s. Is the control "
        "port right?",
    )
    rows, cols = acquisition.shape.sig
    return (rows, cols), np.dtype(acquisition.dtype)


def start(conn: Any, detector: str, watch: Watch) -> None:
    """Let the detector start the acquisition that is set up in its software.

    Parameters
    ----------
    conn, watch
        See `connect`.
    detector
        Its name. A Merlin is triggered, too; others leave that to the scan.

    Raises
    ------
    DetectorError
        If it refuses.
    """
    watch.wait(
        lambda: _start_merlin(conn) if detector == "merlin" else _start_dectris(conn),
        _ANSWER,
        f"the detector did not start an acquisition within {_ANSWER:g} s.",
    )


def _start_merlin(conn: Any) -> None:
    with conn.control() as control:
        control.cmd("STARTACQUISITION")
        control.cmd("SOFTTRIGGER")


def _start_dectris(conn: Any) -> None:
    conn.get_api_client().sendDetectorCommand("arm")


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
        lambda: conn.wait_for_acquisition(timeout), timeout + _ANSWER, _not_started(timeout)
    )
    if pending is None:  # an acquisition made of that would start the detector
        raise DetectorError(_not_started(timeout))
    if address.detector == "asi_tpx3":
        kept = _Kept(conn.get_conn_impl(), address.data_port)
        conn.get_conn_impl = lambda: kept
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
        _ANSWER,
        f"the detector did not tell the shape of its frames within {_ANSWER:g} s.",
    )


def _not_started(timeout: float) -> str:
    return (
        f"no acquisition was started within {timeout:g} s, or none of its frames came. Is it "
        "triggered, and does no other program receive them?"
    )


def warm_up(ctx: Any, udf: Any, dtype: np.dtype[Any], *, events: bool = False) -> None:
    """Run a UDF on one empty frame, so that nothing is compiled or set up during an acquisition.

    Parameters
    ----------
    ctx
        On whose workers.
    udf
        To be run later; it is as new afterwards.
    dtype
        Of the frames.
    events
        Whether frames will come as events.
    """
    plan = udf.params.geometry.plan
    roi = np.zeros(plan.scan_shape, dtype=bool)
    roi[0, 0] = True
    if events:
        with tempfile.TemporaryDirectory() as folder:
            # One event of value 0, in a file: the sparse data sets that LiberTEM makes of memory
            # compile code of their own for many seconds.
            indptr = np.minimum(np.arange(roi.size + 1), 1)
            arrays = np.zeros(1, dtype), np.zeros(1, np.int32), indptr
            empty = csr_array(arrays, shape=(roi.size, math.prod(plan.detector_shape)))
            path = write_events(Path(folder), plan.scan_shape, plan.detector_shape, empty)
            ctx.run_udf(ctx.load("raw_csr", path=str(path), num_partitions=1), udf, roi=roi)
    else:
        zero = np.zeros((1, 1, 1, 1), dtype)
        frames = np.broadcast_to(zero, plan.scan_shape + plan.detector_shape)  # takes no memory
        ctx.run_udf(ctx.load("memory", data=frames, sig_dims=2, num_partitions=1), udf, roi=roi)


def write_events(
    folder: Path,
    scan_shape: tuple[int, int],
    detector_shape: tuple[int, int],
    events: csr_array,
) -> Path:
    """Write a scan as events that LiberTEM reads, which it calls ``raw_csr``.

    Parameters
    ----------
    folder
        Where to write ``events.toml`` and three files that it names.
    scan_shape, detector_shape
        Rows and columns.
    events : (scan positions, detector pixels) scipy.sparse.csr_array
        Counts.

    Returns
    -------
    pathlib.Path
        Of ``events.toml``.
    """
    lines = ["[params]", 'filetype = "raw_csr"', f"nav_shape = {list(scan_shape)}"]
    lines += [f"sig_shape = {list(detector_shape)}", "[raw_csr]"]
    for name in ("data", "indices", "indptr"):
        array: NDArray[Any] = getattr(events, name)
        array.tofile(folder / f"{name}.raw")
        lines += [f'{name}_file = "{name}.raw"', f'{name}_dtype = "{array.dtype.str}"']
    path = folder / "events.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


class _Kept:
    """Native connection of Timepix3 that does not go on with the frames of another one.

    LiberTEM-live connects anew, without a word, as soon as a connection is lost. The frames of the
    scan that the detector sends then would be taken for the rest of that before.
    """

    def __init__(self, native: Any, port: int) -> None:
        self._native, self._port = native, port
        self._socket = self._find()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def get_next_stack(self, max_size: int) -> Any:
        try:
            stack = self._native.get_next_stack(max_size=max_size)
        except BaseException as error:
            if type(error).__name__ == "PanicException":  # Rust's, which Exception does not include
                raise DetectorError(
                    f"the connection to the detector failed: {error}. Events may have come faster "
                    "than they are added."
                ) from error
            raise
        if not self._alive() and self._find() is not None:
            raise DetectorError("the connection to the detector was lost, and made anew.")
        return stack

    def _find(self) -> tuple[int, int] | None:
        """Find number and identity of the socket; None if there is no connection."""
        for link in psutil.Process().net_connections("tcp"):
            if link.raddr and link.raddr[1] == self._port and link.fd >= 0:
                with contextlib.suppress(OSError):
                    return link.fd, os.fstat(link.fd).st_ino
        return None

    def _alive(self) -> bool:
        """Whether it is the same socket; takes a microsecond."""
        if self._socket is None:
            return False
        number, identity = self._socket
        try:
            return os.fstat(number).st_ino == identity
        except OSError:
            return False


class _Watched:
    """Native connection whose waits have an end."""

    def __init__(
        self,
        native: Any,
        watch: Watch,
        timeout: float,
        silence: float,
        on_frames: Callable[[int], object],
    ) -> None:
        self._native, self._watch, self._on_frames = native, watch, on_frames
        self._seconds = timeout
        self._late = f"the detector sent no frame within {timeout:g} s after it was started."
        self._silence = silence

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def get_next_stack(self, max_size: int) -> Any:
        stack = self._watch.wait(
            lambda: self._native.get_next_stack(max_size=max_size), self._seconds, self._late
        )
        if not stack:
            raise DetectorError("the detector ended the acquisition.")
        self._seconds = self._silence
        self._late = f"the detector sent nothing for {self._silence:g} s."
        self._on_frames(len(stack))
        return stack


def stream(
    ctx: Any,
    conn: Any,
    acquisition: Any,
    udf: Any,
    watch: Watch,
    *,
    timeout: float,
    silence: float,
    on_frames: Callable[[int], object],
) -> Iterator[Any]:
    """Run a UDF on an acquisition; what was added so far can be had after every partition.

    Parameters
    ----------
    ctx
        A ``LiveContext`` whose executor is ``"inline"``: others discard what they have when a
        detector fails.
    conn, watch
        See `connect`.
    acquisition
        See `acquire`.
    udf
        Made for the acquisition's shape.
    timeout
        Seconds to wait for the first frame.
    silence
        Seconds to wait for any other.
    on_frames
        Called with the number of frames whenever some have arrived.

    Yields
    ------
    UDFResults
        Of LiberTEM; ``buffers`` is made when it is asked for, also after an error.

    Raises
    ------
    DetectorError
        If not all frames arrive.
    """
    watched = _Watched(conn.get_conn_impl(), watch, timeout, silence, on_frames)
    conn.get_conn_impl = lambda: watched
    try:
        yield from ctx.run_udf_iter(dataset=acquisition, udf=udf)
    finally:
        del conn.get_conn_impl


def open_window(title: str) -> Callable[[NDArray[Any], tuple[float, float]], None] | None:
    """Open a window for an image that grows.

    Parameters
    ----------
    title
        Of the window.

    Returns
    -------
    callable or None
        Takes an image and the values to be black and white. None where there is no display.
    """
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(num=title)
    if type(figure.canvas).required_interactive_framework is None:
        pyplot.close(figure)
        return None
    axes.set_axis_off()

    def show(image: NDArray[Any], limits: tuple[float, float]) -> None:
        if axes.images:
            axes.images[0].set_data(image)
        else:
            axes.imshow(image, cmap="gray", interpolation="nearest")
            figure.show()
        axes.images[0].set_clim(*limits)
        figure.canvas.draw_idle()
        figure.canvas.flush_events()

    return show


class Screen:
    """Shows an image while it grows, for a small part of the time at most.

    Parameters
    ----------
    show
        Takes an image and the values to be black and white.
    interval
        Seconds between two pictures, at least.
    pixel_size
        Height and width of the image's pixels in Å.
    sigma
        Standard deviation in Å of a Gaussian that blurs the pictures, and only these.
    """

    def __init__(
        self,
        show: Callable[[NDArray[Any], tuple[float, float]], None],
        interval: float,
        pixel_size: tuple[float, float] = (1, 1),
        sigma: float = 0,
    ) -> None:
        self._show, self._interval = show, interval
        self._pixel_size, self._sigma = pixel_size, sigma
        self._next = -math.inf

    def due(self) -> bool:
        """Whether there is time for a picture."""
        return time.perf_counter() >= self._next

    def show(self, results: Any) -> tuple[int, NDArray[np.float32]]:
        """Show what was added so far; contrast is made for what is scanned.

        Parameters
        ----------
        results : UDFResults
            From `stream`.

        Returns
        -------
        count : int
            Frames that were added.
        image : (u Ny, u Nx) float32
            The image, not blurred.
        """
        begin = time.perf_counter()
        image: NDArray[np.float32] = next(iter(results.buffers[0].values())).data
        scanned = results.damage.data
        factor = image.shape[0] // scanned.shape[0]
        pixels = scanned.repeat(factor, axis=0).repeat(factor, axis=1)
        picture = blur(image, self._pixel_size, self._sigma)
        self._show(picture, gray_limits(picture[pixels]))
        end = time.perf_counter()
        self._next = end + max(self._interval, (end - begin) / _SCREEN_SHARE)
        return int(scanned.sum()), image


def _first_line(error: Exception) -> str:
    text = textwrap.shorten((str(error) or repr(error)).splitlines()[0], 150)
    return f"the connection to the detector failed: {text}"
