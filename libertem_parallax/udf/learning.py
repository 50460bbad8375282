"""Calibration while a scan runs: from its first rows, in a thread, and then the image."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterable
from typing import Any

import psutil
from libertem.common.backend import get_use_cuda

from .. import checks
from ..accumulate import Stack
from ..calibration import (
    Calibration,
    Hints,
    calibrate_stack,
    check_search,
    scanned_part,
)
from ..geometry import Geometry
from ..parameters import Parameters
from .calibration import check_known
from .parallax import ParallaxUDF
from .stack import StackUDF

__all__ = ["Learning", "placeholder"]

#: Rows and frames with which it is tried first; then after twice as many, and so on.
_ROWS, _SCAN_FRAMES = 16, 1500

#: Of the memory that is free: what the frames of the beginning may take.
_SHARE = 1 / 4


class _Waiting(ParallaxUDF):
    """Adds with parameters that are no more than a place for those to come."""

    _known = False

    def preprocess(self) -> None:
        """Tell of no contradiction between frames and parameters that nobody gave."""
        super().preprocess()
        self._settled = True

    def add_stack(self, stack: Stack) -> None:
        """Start anew: parameters are known now."""
        self._known = True
        super().add_stack(stack)

    @property
    def _added(self) -> bool:
        return self._known and super()._added


class Learning:
    """UDFs that make an image with parameters that they find on the way.

    Run `udfs` with ``run_udf_iter`` and call `step` after every partition. Before parameters are
    found, the image is zero. Then it starts with the frames so far, and grows.

    Parameters
    ----------
    dataset
        Data set or acquisition of LiberTEM, scanned row by row.
    search, hints
        See `calibrate_stack`.
    limit
        Bytes that the frames of the beginning may take, if a row and a partition do not take more.
        Default: a quarter of the memory that is free.
    device
        Number of the GPU on which to calibrate, unless ``engine`` says otherwise. Default: the one
        that LiberTEM assigned to this process, if any.
    **parameters
        What is known: ``energy``, ``scan_sampling`` and ``semiangle_cutoff`` at least.

    Raises
    ------
    ValueError
        For parameters that are missing or out of their range.
    """

    def __init__(
        self,
        dataset: Any,
        search: Iterable[str] = (),
        hints: Hints | None = None,
        limit: int | None = None,
        device: int | None = None,
        **parameters: Any,
    ) -> None:
        self._shape = checks.shape(dataset.shape)
        self._known, self._hints = check_known(Parameters(**parameters)), hints
        self._search = check_search(search)
        self._device = get_use_cuda() if device is None else device
        whole = StackUDF.for_dataset(dataset, limit=1 << 62).selection
        ny, nx = self._shape[:2]
        if limit is None:
            limit = int(psutil.virtual_memory().available * _SHARE)
        # A row or a partition at least: what does not fit would be missing in the image.
        self._partition = max(part.slice.shape[0] for part in dataset.get_partitions())
        least = max(nx, self._partition) * (whole.nbytes // (ny * nx))
        beginning = whole.within(max(limit, least))
        self._room = math.inf if beginning.most is None else beginning.most
        with warnings.catch_warnings(action="ignore"):
            waiting = _Waiting.from_parameters(
                self._shape, **placeholder(self._known, self._shape[2:])
            )
        #: Makes the image, and keeps the frames of the beginning: all, if memory holds them.
        self.image = waiting.keeping(beginning)
        self._next = max(_ROWS, math.ceil(_SCAN_FRAMES / nx))
        self._ended = False  # it was tried with all that memory holds
        self._thread: threading.Thread | None = None
        #: What was found, if anything.
        self.calibration: Calibration | None = None
        #: Why nothing was found yet, if it was tried.
        self.problem: str | None = None
        self._found: Calibration | None = None

    @property
    def udfs(self) -> list[Any]:
        """To be run; the first one makes the image."""
        return [self.image]

    @property
    def stack(self) -> Stack:
        """Frames of the beginning, as far as they are there."""
        return self.image.stack

    def step(self, results: Any) -> bool:
        """Go on after a partition; with the last one, wait for the calibration.

        Parameters
        ----------
        results
            What ``run_udf_iter`` returned.

        Returns
        -------
        bool
            Whether parameters were found just now: `calibration` has them.
        """
        if self.calibration is not None or self._ended:
            return False
        scanned = self.stack.scanned
        rows, there = int(scanned.all(axis=1).sum()), int(scanned.sum())
        # Frames for which memory has no place would be missing in the image.
        last = there == scanned.size or there + self._partition > self._room
        while True:
            if self._thread is not None and (last or not self._thread.is_alive()):
                self._thread.join()
                self._thread = None
            if self._found is not None:
                return self._start(self._found, results)
            if self._thread is not None or self._ended or (rows < self._next and not last):
                return False
            self._ended, self._next = last, 2 * rows
            part = scanned_part(self.stack.on_host)
            self._thread = threading.Thread(
                target=self._calibrate, args=(part,), name="calibration", daemon=True
            )
            self._thread.start()

    def _calibrate(self, stack: Stack) -> None:
        try:
            self._found = calibrate_stack(
                stack,
                self._known,
                search=self._search,
                hints=self._hints,
                device=self._device,
            )
        except Exception as error:  # as memory that runs out: the frames must not be lost by it
            self.problem = str(error) or repr(error)

    def _start(self, found: Calibration, results: Any) -> bool:
        """Let the image start with the frames so far; whether it could."""
        try:
            with warnings.catch_warnings(action="ignore"):
                geometry = Geometry.from_parameters(self._shape, **found.parameters)
            results.update_parameters_experimental([{"geometry": geometry}])
            self.image.add_stack(self.stack)
        except Exception as error:  # no image, but the frames are there
            self._found, self._ended, self.problem = None, True, str(error) or repr(error)
            return False
        self.calibration, self.problem = found, None
        return True


def placeholder(known: Parameters, detector_shape: tuple[int, int]) -> Parameters:
    """Fill in what is not known, such that there is an image, though no right one.

    Parameters
    ----------
    known
        ``energy``, ``scan_sampling`` and ``semiangle_cutoff`` at least.
    detector_shape
        Rows and columns.
    """
    if known.missing("angular_sampling"):
        # A disk whose diameter is half of the detector.
        step = known["semiangle_cutoff"] / (min(detector_shape) / 4)
        known = known.replace(angular_sampling=(step, step))
    if not known.get("aberration_coefs", {}).get("C10"):
        reach = 4 * max(known["scan_sampling"]) / (known["semiangle_cutoff"] * 1e-3)
        coefs = {**known.get("aberration_coefs", {}), "C10": -reach}
        known = known.replace(aberration_coefs=coefs)
    return known
