"""Adding frames as a detector sends them."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..event_files import write_events
from .watch import ASKED_TO_END, DetectorError, Watch, first_line

__all__ = ["FRAMES_PER_PARTITION", "stream", "warm_up"]

#: Frames between two updates of the image, by measurement: see benchmarks/README.md.
FRAMES_PER_PARTITION = 512


def warm_up(ctx: Any, udf: Any, dtype: np.dtype[Any], *, events: bool = False) -> None:
    """Run a UDF on one empty frame, so that nothing is compiled or set up during an acquisition.

    Parameters
    ----------
    ctx
        On each of whose workers, and here, where results are merged.
    udf
        A `ParallaxUDF`, to be run later.
    dtype
        Of the frames.
    events
        Whether frames will come as events.
    """
    from libertem.executor.inline import InlineJobExecutor

    from ..udf import ParallaxUDF

    _warm_up(udf, dtype, events)
    if not isinstance(ctx.executor, InlineJobExecutor):
        # Workers make no images; and sent as it is now, it takes as much as all of these, and what
        # is kept.
        given = udf.params
        adds = ParallaxUDF(given.geometry, engine=given.engine, keep=given.keep)
        ctx.executor.run_each_worker(functools.partial(_warm_up, adds, dtype, events))


def _warm_up(udf: Any, dtype: np.dtype[Any], events: bool) -> None:
    """Run it in this process."""
    from libertem.api import Context
    from scipy.sparse import csr_array

    ctx = Context.make_with("inline")
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
        self.problem: DetectorError | None = None  # why there are no more frames
        self._seconds = timeout
        # Frames come through by the buffer. Of those that do not fill one, nothing is known.
        self._late = (
            f"no frames came through within {timeout:g} s after the start: the detector sent none, "
            "or fewer than fill a buffer."
        )
        self._silence = silence

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def get_next_stack(self, max_size: int) -> Any:
        try:
            stack = self._watch.wait(
                lambda: self._native.get_next_stack(max_size=max_size), self._seconds, self._late
            )
        except DetectorError as error:
            self._fail(error)
        if not stack:
            self._fail(DetectorError("the detector ended the acquisition."))
        self._seconds = self._silence
        self._late = (
            f"no more frames came through for {self._silence:g} s: the detector is silent, or sent "
            "fewer than fill a buffer."
        )
        self._on_frames(len(stack))
        return stack

    def _fail(self, problem: DetectorError) -> NoReturn:
        """End the run in the way in which LiberTEM waits for no worker that waits for frames."""
        from libertem.common.executor import JobCancelledError

        self.problem = problem
        raise JobCancelledError(str(problem)) from problem


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
    on_start: Callable[[Any], object] = lambda _: None,
) -> Iterator[Any]:
    """Run a UDF on an acquisition; what was added so far can be had after every partition.

    Parameters
    ----------
    ctx
        A ``LiveContext`` from `make_context`. With others than inline executors, LiberTEM discards
        what they have when a detector fails.
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
    on_start
        Called with what ``run_udf_iter`` returned, through which parameters can be changed.

    Yields
    ------
    UDFResults
        Of LiberTEM; ``buffers`` is made when it is asked for, also after an error.

    Raises
    ------
    DetectorError
        If not all frames are added, whatever the reason. Results that were yielded before are as
        good as without it.
    """
    watched = _Watched(conn.get_conn_impl(), watch, timeout, silence, on_frames)
    conn.get_conn_impl = lambda: watched
    try:
        results = ctx.run_udf_iter(dataset=acquisition, udf=udf)
        on_start(results)
        yield from results
    except ASKED_TO_END:
        raise
    # Frames that cannot be decoded, events off the detector, memory, a GPU, Rust's panics, which
    # are no Exception: a scan cannot be repeated for any of them.
    except BaseException as error:
        if watched.problem is not None:
            raise watched.problem from None
        raise DetectorError(
            f"the frames that followed could not be added: {first_line(error)}"
        ) from error
    finally:
        del conn.get_conn_impl
