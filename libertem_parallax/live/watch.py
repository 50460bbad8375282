"""Waits that have an end: LiberTEM-live itself waits without end for a detector that is silent."""

from __future__ import annotations

import _thread
import math
import queue
import signal
import textwrap
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

__all__ = ["ASKED_TO_END", "DetectorError", "Watch", "first_line"]

T = TypeVar("T")

#: What is raised to end the program or a generator. Anything else is an error, also where it is no
#: ``Exception``, as Rust's ``PanicException``, which native code of detectors raises.
ASKED_TO_END = (KeyboardInterrupt, SystemExit, GeneratorExit)

_NAMES = "SIGINT", "SIGTERM", "SIGHUP"  # Windows does not have all
_SIGNALS = [signal.Signals[name] for name in _NAMES if hasattr(signal, name)]
#: Seconds between two signals that count as one. People take longer to press a key twice.
_BURST = 0.15


class DetectorError(RuntimeError):
    """An acquisition cannot begin, or ends before its time; the message says why."""


class Watch:
    """Ends waits for a detector that take too long, and all of them once it was told to `stop`.

    A context manager. Entered in the main thread, it takes over Ctrl-C, and the signals that ask a
    program to end, or say that its terminal is gone. They then never break off anything but a wait,
    so that sums and images are always complete. Given again, they do, but not in a burst, as of a
    key that is held down, or where a closed terminal sends several.
    Elsewhere, waits end as well, but what is waited for goes on in a thread that is left behind,
    until the detector sends something or the connection is lost.
    """

    def __init__(self) -> None:
        self.problem: str | None = None  #: Why a wait was ended, if one was.
        self._waiting = False
        self._deadline, self._late = math.inf, ""
        self._own = False  # the signal is that of the thread, not the user's
        self._asked = -math.inf  # when the user last gave a signal
        self._previous: dict[signal.Signals, Any] = {}  # handlers
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Take over the signals, in the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # What is ignored stays so, as by nohup. The thread needs Ctrl-C's.
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._interrupt)
            self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        if self._thread is not None:
            self._closed.set()
            self._thread.join()
            while time.monotonic() - self._asked < _BURST:  # what is left of one
                time.sleep(0.01)
            for number, handler in self._previous.items():
                signal.signal(number, handler)

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
            If it takes too long, fails, or the watch was told to stop, now or before.
        """
        try:
            self._deadline, self._late = time.monotonic() + seconds, late
            self._waiting = True
            if self.problem is not None:
                raise DetectorError(self.problem)
            return self._apart(function) if self._thread is None else function()
        except (DetectorError, *ASKED_TO_END):
            raise
        # Detectors have many ways to fail, and native code makes its own error of an interrupt's.
        except BaseException as error:
            failed = f"the connection to the detector failed: {first_line(error)}"
            raise DetectorError(self.problem or failed) from error
        finally:
            self._waiting = False

    def stop(self, problem: str) -> None:
        """End the wait that is under way, if one is, and refuse all others; from any thread.

        Parameters
        ----------
        problem
            What to say.
        """
        self.problem = problem

    def _apart(self, function: Callable[[], T]) -> T:
        """Call a function in a thread of its own, which is left behind when it takes too long."""
        done: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()

        def call() -> None:
            try:
                result = function()
            except BaseException as error:
                problem = error  # the other name ends here
                done.put(lambda: _raise(problem))
            else:
                done.put(lambda: result)

        threading.Thread(target=call, name="wait", daemon=True).start()
        while True:
            try:
                return done.get(timeout=0.05)()
            except queue.Empty:
                if time.monotonic() > self._deadline:
                    self.problem = self.problem or self._late
                if self.problem is not None:
                    raise DetectorError(self.problem) from None

    def _watch(self) -> None:
        while not self._closed.wait(0.05):
            late = time.monotonic() > self._deadline
            if self._waiting and (late or self.problem is not None):
                self._own = True
                _thread.interrupt_main()

    def _interrupt(self, number: int, _: Any) -> None:
        """Handle a signal, in the main thread, between any two of its steps."""
        if self._own and number == signal.SIGINT:
            self._own = False
            # What was waited for may have come at the last moment.
            if not self._waiting:
                return
            if self.problem is None:
                if time.monotonic() <= self._deadline:
                    return
                self.problem = self._late
        else:
            before, self._asked = self._asked, time.monotonic()
            if self._asked - before < _BURST:
                return
            if before > -math.inf:  # asked twice, the user means it
                raise KeyboardInterrupt
            name = signal.Signals(number).name
            self.problem = "interrupted" + (f" by {name}" if number != signal.SIGINT else "")
        if self._waiting:
            self._waiting = False
            raise DetectorError(self.problem)


def _raise(error: BaseException) -> Any:
    raise error


def first_line(error: BaseException) -> str:
    """Shorten what an error says to a line; its name where it says nothing."""
    return textwrap.shorten((str(error) or repr(error)).splitlines()[0], 150)
