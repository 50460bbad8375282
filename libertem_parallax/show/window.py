"""A window in a process of its own: what is shown there cannot break a recording.

Windows end with their display, and some take their process along. They also freeze where nobody
looks after them, as while frames are added.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from typing import Any

from numpy.typing import NDArray

__all__ = ["Window", "open_window"]

#: Of Matplotlib's backends, which draw into files only.
_FILES = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")
_SECONDS = 30.0  # in which a window opens, also by a slow connection
_POLL = 50  # ms


class Window:
    """Shows images; those that come faster than they can be drawn are left out.

    Parameters
    ----------
    process
        That has the window.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._latest: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._sender = threading.Thread(target=self._send, name="window", daemon=True)
        self._sender.start()

    def show(self, image: NDArray[Any], limits: tuple[float, float]) -> None:
        """Show an image, with values to be black and white, and do not wait for that.

        Raises
        ------
        RuntimeError
            If the window was closed, or its display is gone.
        """
        if self._process.poll() is not None:
            raise RuntimeError("it was closed, or its display is gone")
        self._put((image, limits))

    def wait(self) -> None:
        """Wait until the user closes the window."""
        while self._process.poll() is None:
            with contextlib.suppress(queue.Full):
                self._latest.put(None, timeout=0.1)  # after the last picture
                break
        self._process.wait()

    def close(self) -> None:
        """Close the window."""
        self._process.kill()
        self._put(None)
        self._process.wait()
        self._sender.join()

    def _put(self, picture: Any) -> None:
        with contextlib.suppress(queue.Empty):
            self._latest.get_nowait()
        self._latest.put(picture)

    def _send(self) -> None:
        assert self._process.stdin is not None
        # The process may end at any time.
        with contextlib.suppress(OSError), self._process.stdin as pipe:
            while (picture := self._latest.get()) is not None:
                pickle.dump(picture, pipe)
                pipe.flush()


def open_window(title: str) -> Window | None:
    """Open a window for an image that grows.

    Parameters
    ----------
    title
        Of the window.

    Returns
    -------
    Window or None
        None where there is no display.
    """
    backend = os.environ.get("MPLBACKEND", "")
    screens = ("DISPLAY", "WAYLAND_DISPLAY")
    if backend.lower() in _FILES or (
        not backend and sys.platform == "linux" and not any(map(os.environ.get, screens))
    ):
        return None
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, title],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    )
    assert process.stdout is not None
    watchdog = threading.Timer(_SECONDS, process.kill)
    watchdog.start()
    with process.stdout as answer:
        opened = answer.readline().strip() == b"open"
    watchdog.cancel()
    window = Window(process)
    if opened:
        return window
    window.close()
    return None


def _main(title: str) -> None:
    """Show what comes on standard input, until the window is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(num=title)
    if type(figure.canvas).required_interactive_framework is None:
        return
    axes.set_axis_off()
    pictures: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def receive() -> None:
        # Not sys.stdin, which Python wants to have for itself when it ends.
        with contextlib.suppress(EOFError, OSError), open(0, "rb", closefd=False) as pipe:
            while True:
                pictures.put(pickle.load(pipe))

    def draw() -> None:
        picture = None
        with contextlib.suppress(queue.Empty):
            while True:
                picture = pictures.get_nowait()
        if picture is None:
            return
        image, (low, high) = picture
        if axes.images:
            axes.images[0].set_data(image)
        else:
            axes.imshow(image, cmap="gray", interpolation="nearest")
        axes.images[0].set_clim(low, high)
        figure.canvas.draw_idle()

    threading.Thread(target=receive, daemon=True).start()
    timer = figure.canvas.new_timer(_POLL)
    timer.add_callback(draw)
    timer.start()
    sys.stdout.write("open\n")
    sys.stdout.flush()
    pyplot.show()


if __name__ == "__main__":
    _main(sys.argv[1])
