"""Parameters that are tuned while one looks: knobs turn, images follow. Knows no page."""

from __future__ import annotations

import logging
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

from .. import aberrations
from ..accumulate import Stack
from ..images import Sums
from ..parameters import Parameters
from .maker import Maker, Picture, Wanted, make_imaging

__all__ = ["Tuning"]

_log = logging.getLogger(__name__)

#: Of the time, what images of a stack that only grows may take.
_GROWTH_SHARE = 1 / 20

#: Seconds within which changes of the same parameters are one step to be undone.
_ONE_STEP = 1.0

#: Parameters that change neither geometry nor sums.
_LATE = frozenset({"image", "engine"})


class Tuning:
    """Parameters to be changed, and the image that follows: of a stack, in a thread of its own.

    Changes that come faster than images are made are merged: the last one is always shown. Large
    stacks give a coarser image first.

    Parameters
    ----------
    stack
        Of frames. It may be filled while it is used: see `grow`.
    parameters
        Of the acquisition. The first of its images is shown.
    device
        Number of the GPU to use, unless the parameter ``engine`` says otherwise; None where there
        is none.

    Raises
    ------
    ValueError
        If there is no image to be had with these parameters.
    """

    def __init__(self, stack: Stack, parameters: Parameters, device: int | None = None) -> None:
        if "image" not in parameters:
            parameters = parameters.replace(image="parallax")
        with warnings.catch_warnings(action="ignore"):  # come with the picture
            make_imaging(stack, parameters)
        self._state = threading.Condition()
        self._stack, self._parameters = stack, parameters
        self._sums: Sums | None = None
        #: Whether frames are still to come: what needs all of them has to wait.
        self.growing = False
        self._number = self._geometry = self._frames = 0  # of changes: any, of these
        self._past: list[Parameters] = []
        self._last: tuple[frozenset[str], float] = (frozenset(), -math.inf)
        # A picture that somebody waits for, or one of more frames that comes in its time.
        self._urgent, self._due = True, -math.inf
        self._picture: Picture | None = None
        self._problem: tuple[int, str] | None = None
        self._listeners: list[Callable[[], object]] = []
        self._idle: Iterator[object] | None = None
        self._closed = False
        self._thread = threading.Thread(
            target=self._work, args=(Maker(device),), name="tuning", daemon=True
        )
        self._thread.start()

    @property
    def stack(self) -> Stack:
        """The frames."""
        return self._stack

    @property
    def parameters(self) -> Parameters:
        """As they are set now; the picture may be one of before."""
        return self._parameters

    @property
    def picture(self) -> Picture | None:
        """The present picture; None before the first."""
        return self._picture

    @property
    def problem(self) -> str | None:
        """Why there is no picture of the present parameters, if so; that of before remains."""
        problem = self._problem
        return problem[1] if problem is not None and problem[0] == self._number else None

    @property
    def can_undo(self) -> bool:
        """Whether there is a change to be undone."""
        return bool(self._past)

    def change(self, **changes: Any) -> None:
        """Change parameters; the picture follows.

        Parameters
        ----------
        **changes
            As for `Parameters.replace`. Changes of the same ones in quick succession are one step
            to be undone.

        Raises
        ------
        ValueError
            If one is out of its range: nothing is changed.
        """
        self._change(lambda _: changes)

    def aberrate(self, **coefs: float | None) -> None:
        """Change single aberrations, by any of their names; None takes one out.

        Raises
        ------
        ValueError
            For an unknown name or a value that is no number: nothing is changed.
        """
        given = aberrations.canonical({k: v for k, v in coefs.items() if v is not None})
        out = aberrations.canonical({k: 0.0 for k, v in coefs.items() if v is None})

        def change(parameters: Parameters) -> dict[str, Any]:
            new = {**parameters.get("aberration_coefs", {}), **given}
            return {"aberration_coefs": {k: v for k, v in new.items() if k not in out}}

        self._change(change, *coefs)

    def undo(self) -> None:
        """Go back to the parameters before the last change; does nothing where there is none."""
        with self._state:
            if not self._past:
                return
            self._last = frozenset(), -math.inf
            self._set(self._past.pop(), geometry=True)
        self._tell()

    def grow(self, stack: Stack, sums: Sums | None = None, *, at_once: bool = False) -> None:
        """Take a stack with more frames, or of another scan.

        Parameters
        ----------
        stack
            Frames. Pictures that only have more of them take a twentieth of the time at most.
        sums
            Of all frames under one geometry, where the stack has a part of them. Images with that
            geometry are made of these.
        at_once
            Whether the picture is made now, as of the first frames or the last.
        """
        with self._state:
            old = self._stack
            other = (stack.scan_shape, stack.detector_shape) != (old.scan_shape, old.detector_shape)
            self._stack, self._sums = stack, sums
            self._number += 1
            self._frames += 1
            self._geometry += other
            self._urgent |= other or at_once
            self._state.notify_all()

    @property
    def has_more(self) -> bool:
        """Whether something is still to be done `when_idle`."""
        return self._idle is not None

    def when_idle(self, steps: Iterator[object] | None) -> None:
        """Do something else while there is nothing to be shown, a step at a time.

        Parameters
        ----------
        steps
            What is still to be done of another is left out. Listeners hear of every step.
        """
        with self._state:
            self._idle = steps
            self._state.notify_all()

    def listen(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Have something called whenever parameters or picture have changed.

        Parameters
        ----------
        callback
            Called in whatever thread; must return soon.

        Returns
        -------
        callable
            Ends that.
        """
        with self._state:
            self._listeners.append(callback)

        def stop() -> None:
            with self._state:
                if callback in self._listeners:
                    self._listeners.remove(callback)

        return stop

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the picture, or a problem, is that of the present parameters and frames.

        Parameters
        ----------
        timeout
            Seconds.

        Returns
        -------
        bool
            False if it was not within that time.
        """
        with self._state:
            return self._state.wait_for(lambda: self._done() == self._number, timeout)

    def close(self) -> None:
        """End the thread; what is under way is finished."""
        with self._state:
            self._closed = True
            self._state.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _change(self, make: Callable[[Parameters], dict[str, Any]], *names: str) -> None:
        with self._state:
            changes = make(self._parameters)
            parameters = self._parameters.replace(**changes)
            what, now = frozenset(names or changes), time.monotonic()
            if self._last[0] != what or now - self._last[1] > _ONE_STEP:
                self._past.append(self._parameters)
            self._last = what, now
            self._set(parameters, geometry=not changes.keys() <= _LATE)
        self._tell()

    def _set(self, parameters: Parameters, *, geometry: bool) -> None:
        self._parameters = parameters
        self._number += 1
        self._geometry += geometry
        self._urgent = True
        self._state.notify_all()

    def _done(self) -> int:
        """Count the changes that picture or problem know of."""
        picture, problem = self._picture, self._problem
        shown = picture.number if picture is not None and picture.coarse == 1 else -1
        return max(shown, problem[0] if problem is not None else -1)

    def _tell(self) -> None:
        with self._state:
            listeners = [*self._listeners]
        for callback in listeners:
            try:
                callback()
            except Exception:  # somebody else's: the others are to hear, and the thread goes on
                _log.exception("A listener failed.")

    def _work(self, maker: Maker) -> None:
        while (urgent := self._await()) is not None:
            if urgent == "idle":
                self._step()
            else:
                self._show(maker, urgent=urgent == "urgent")

    def _await(self) -> Literal["urgent", "grown", "idle"] | None:
        """Wait for something to do; None if that is the end."""
        with self._state:
            while not self._closed:
                wait = None
                if self._done() != self._number:
                    if self._urgent:
                        self._urgent = False
                        return "urgent"
                    wait = self._due - time.monotonic()
                    if wait <= 0:
                        return "grown"
                if self._idle is not None:
                    return "idle"
                self._state.wait(wait)
        return None

    def _step(self) -> None:
        steps = self._idle
        try:
            more = steps is not None and next(steps, steps) is not steps
        except Exception:  # as in `_tell`
            _log.exception("What was to be done when idle failed.")
            more = False
        with self._state:
            if self._idle is steps and not more:
                self._idle = None
        self._tell()

    def _show(self, maker: Maker, *, urgent: bool) -> None:
        """Make the picture of the present parameters, first a coarse one where that takes long."""
        start = time.monotonic()
        with self._state:
            wanted = Wanted(
                self._number,
                self._geometry,
                self._frames,
                self._stack,
                self._parameters,
                self._sums,
                self.growing,
            )
        try:
            preview = maker.preview(wanted) if urgent else 1
            for coarse in sorted({preview, 1}, reverse=True):
                # While frames arrive, other cores have enough to do.
                picture = maker.picture(wanted, coarse, None if urgent else 1)
                with self._state:
                    self._picture = picture
                    self._state.notify_all()
                self._tell()
                if coarse > 1 and self._urgent:
                    return  # the knob goes on turning: another coarse one
        # Whatever is wrong with parameters or frames is told, and the next change is tried.
        except Exception as error:
            if not isinstance(error, ValueError | TypeError | RuntimeError | MemoryError):
                _log.exception("An image could not be made.")
            with self._state:
                self._problem = wanted.number, str(error) or repr(error)
                self._state.notify_all()
            self._tell()
        end = time.monotonic()
        self._due = end + (end - start) * (1 / _GROWTH_SHARE - 1)
