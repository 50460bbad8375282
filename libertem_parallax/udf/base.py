"""The UDF that adds frames; what is made of the sums is elsewhere."""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left, bisect_right
from functools import lru_cache
from typing import Any

import numpy as np
from libertem.common.backend import get_use_cuda
from libertem.common.buffers import BufferWrapper
from numpy.typing import NDArray

from ..accumulate import (
    ENGINES,
    Engine,
    Plan,
    Stack,
    accumulator_dtype,
    add_kept,
    holds,
    make_engine,
)
from ..contradictions import (
    add_frames,
    contradiction,
    pattern_shape,
    positions_to_compare,
    seems_to_differ,
)
from ..rings import COUNT, add_rings, rings_agree
from .frames import Buffer, FramesUDF, Unset
from .keeping import Selection, Some

__all__ = ["SumsUDF"]


@lru_cache(maxsize=64)
def _told(frames: int, pattern: tuple[int, int]) -> np.dtype[Any]:
    """Lay out what is told of so many frames beside their sums.

    It is one buffer, since LiberTEM takes 5 to 10 us for each that a partition has.
    """
    fields = [
        # What the sums belong to: Plan.digest, A's first row, the first frame.
        ("part", np.int64, (3,)),
        # Which frames there were: not those that a sync offset leaves out.
        ("scanned", bool, (frames,)),
        # Sums of a few frames, where the edge of the disk should be, and how many they are.
        ("rings", np.float64, (COUNT + 1,)),
        # Of those that do not agree, sums of all pixels.
        ("pattern", np.float64, pattern),
    ]
    return np.dtype(fields, align=True)


class SumsUDF(FramesUDF):
    """Adds the shifted frames on workers, and what they send on the main node.

    Its parameter ``geometry`` says which pixels of the frames are in use, ``engine`` what adds
    them, ``keep`` which are kept. Subclasses say what is made of the sums.

    What is kept of a partition is added from there, when all of it came, and not tile by tile. So
    to keep frames costs 1 to 3 % of the time. Only integers, whose sums are the same in any order.
    """

    _engine: Engine  # of the partition; made in `preprocess`
    _added_by_tile: Some  # of the partition's frames; the others are added from what is kept
    _index: NDArray[np.int64]  # scan positions of the partition's frames
    _rows: slice  # of the accumulator, to which these are added
    _first: int  # frame of the partition
    _scanned: NDArray[np.bool_]  # which of its frames came
    _chosen: list[int]  # those that are compared with the parameters, from its first; ascending
    _patterns, _settled = 0, False  # how many were compared, and whether that is done, on main

    @property
    def _plan(self) -> Plan:
        plan: Plan = self.params.geometry.plan
        return plan

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        plan = self._plan
        return plan.scan_shape + plan.detector_shape

    @property
    def _selection(self) -> Selection | None:
        selection: Selection | None = self.params.keep
        return selection

    def _get_told(self) -> Any:
        """Get fields of `_told`, to be read and written."""
        return self.results.get_buffer("told").raw_data[0]

    def _check_engine(self, engine: Any) -> None:
        names = ["auto", *ENGINES]  # a list compares, where a mapping would hash what is given
        if engine not in names:
            raise ValueError(f"engine = {engine!r}: expected one of {', '.join(names)}.")

    def get_result_buffers(self) -> dict[str, BufferWrapper]:
        """Declare the sum ``A`` and, for each frame, its bright-field sum ``S``.

        Raises
        ------
        ValueError
            If the data set has another shape than the UDF was made for, or its frames would come
            as floating point numbers that do not hold them.
        TypeError
            If frames of its dtype cannot be added.
        """
        self._check_shape()
        self._check_input()
        plan = self._plan
        # The main node adds up what comes from all workers; these send the rows to which they have
        # added.
        dtype = accumulator_dtype(
            self.meta.input_dtype, len(plan.pixels), self._on_main or self._events
        )
        shape, self._chosen = plan.folded_shape, []
        if self._on_main:
            count = math.prod(plan.scan_shape) if self._roi is None else np.count_nonzero(self._roi)
        else:
            self._index = self._frames
            count, self._chosen = len(self._index), self._choose()
            self._rows = rows = plan.reach(self._index)
            shape = *shape[:2], rows.stop - rows.start, plan.accumulator_shape[3]
        # Most partitions have no frames that are compared.
        compares = self._on_main or self._chosen
        pattern = pattern_shape(self.params.geometry) if compares else (1, 1)
        return {
            "A": (Buffer if self._on_main else Unset)("single", shape, dtype, use="private"),
            "S": Buffer("nav", dtype=dtype, use="private"),
            "told": Buffer("single", (1,), _told(count, pattern), use="private"),
            **self._keeping_buffers(),
        }

    def _check_input(self) -> None:
        """Refuse integers of 64 bits that LiberTEM converts, but for those that are corrected."""
        meta, corrections = self.meta, self.meta.corrections
        given, converted = np.dtype(meta.dataset_dtype), np.dtype(meta.input_dtype)
        corrected = corrections is not None and corrections.have_corrections()
        if given.kind in "iu" and given.itemsize == 8 and converted.kind == "f" and not corrected:
            raise ValueError(
                f"the frames are {given}, but would come converted to {converted}, which does not "
                "hold all of them. LiberTEM does so for some of the UDFs in this run: run this one "
                "by itself."
            )

    def _choose(self) -> list[int]:
        """Choose frames of the partition to compare with the parameters, from its first."""
        frames, plan = self._index, self._plan
        if not len(frames):
            return []
        # Pixels of events take no time, and have few electrons.
        pixels = 1 if self._events else len(plan.pixels)
        compared = positions_to_compare(plan.scan_shape, pixels)
        # Most partitions have none, and NumPy would take longer to tell.
        first, stop = bisect_left(compared, frames[0]), bisect_right(compared, frames[-1])
        if first == stop:
            return []
        compared = compared[first:stop]
        found = np.searchsorted(frames, compared)
        chosen: list[int] = found[frames[found] == compared].tolist()
        return chosen

    def preprocess(self) -> None:
        """Make the engine for a partition."""
        self._start_keeping()
        if self._on_main:
            self._patterns, self._settled = 0, False
            return
        plan, S = self._plan, self.results.get_buffer("S").raw_data
        self._first = self.meta.slice.origin[0]
        told = self._get_told()
        told["part"] = plan.digest, self._rows.start, self._first
        self._scanned = told["scanned"]
        by_tile = np.ones(len(self._index), bool)
        if self._filling is not None and self._can_add_kept:
            by_tile = ~self._filling.inside.which
        self._added_by_tile, every = Some(by_tile), by_tile.all()
        self._engine = make_engine(
            self.params.engine,
            plan,
            self.meta.input_dtype,
            self._index if every else self._index[by_tile],
            self._accumulator(S.dtype),
            S if every else np.zeros(len(self._added_by_tile), S.dtype),
            get_use_cuda(),
            events=self._events,
        )

    def _accumulator(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Make an accumulator that is zero where the partition's frames are added.

        Of large images, that is a small part: for 512 partitions of 1024 x 1024 frames, all zeros
        would take a fifth of the time. Not of floats on a GPU, whose sums are added to all of it.
        """
        A = np.empty(self._plan.accumulator_shape, dtype)
        everywhere = dtype.kind == "f" and self._on_gpu
        A[:, :, slice(None) if everywhere else self._rows] = 0
        return A

    @property
    def _on_gpu(self) -> bool:
        """Whether a GPU adds the frames, unless it turns out that it cannot be used."""
        engine = self.params.engine
        return bool(engine == "cuda" or (engine == "auto" and self._assigned))

    @property
    def _can_add_kept(self) -> bool:
        """Whether what is kept has all pixels in use, and adds up to the same bits.

        A GPU, or the engine for comparisons, gets the tiles.
        """
        selection, plan = self._selection, self._plan
        assert selection is not None
        sums = self.results.get_buffer("S").dtype
        needed = accumulator_dtype(selection.dtype, len(plan.pixels))
        integers = sums.kind == needed.kind == "i" and np.can_cast(needed, sums)
        compiled = self.params.engine != "numpy" and not self._on_gpu
        return bool(compiled and integers and holds(selection.pixels, plan))

    def process_tile(self, tile: Any) -> None:
        """Add a tile: any frames of the partition, any part of the detector; dense or events.

        LiberTEM's default preferences give whole partitions in place or tiles of decoded frames
        that fit the cache, whichever is faster.
        """
        # Detectors send a few frames a tile: all of this is for each of them. Plain integers are
        # quicker than NumPy's.
        where = self.meta.slice
        first, row, column = map(int, where.origin)
        first -= self._first
        part = tuple(where.shape.sig) if self._events else None
        if self._filling is not None:
            self._filling.add(tile, first, (row, column), part)
        if len(self._added_by_tile):
            some, start = self._added_by_tile.of(tile, first)
            if part is not None:
                self._engine.add_events(some, part, (row, column), start)
            else:
                self._engine.add(some, (row, column), start)
        stop = first + tile.shape[0]
        self._scanned[first:stop] = True
        start, end = (bisect_left(self._chosen, at) for at in (first, stop))
        if start < end:
            self._compare(tile, start, end, first)

    def _compare(self, tile: Any, start: int, end: int, first: int) -> None:
        """Compare chosen frames that are in a tile with the parameters."""
        geometry, where = self.params.geometry, self.meta.slice
        frames = [at - first for at in self._chosen[start:end]]
        if self._events:
            sig, parts = where.shape.sig, [slice(*tile.indptr[at : at + 2]) for at in frames]
            # SciPy's own way to take rows takes four times as long.
            columns = np.concatenate([tile.indices[part] for part in parts])
            values = np.concatenate([tile.data[part] for part in parts])
            with np.errstate(all="ignore"):  # other pixels than those in use may hold anything
                sums = np.bincount(columns, values, sig.size).reshape(1, *sig)
            tile, frames = sums, [0]
        told = self._get_told()
        rings, pattern = told["rings"], told["pattern"]
        rings[-1] += end - start
        if add_rings(geometry, rings[:-1], tile, frames, where.origin[1:]):
            # Other parts of these need not be looked at, either.
            del self._chosen[start:end]
        else:
            add_frames(geometry, pattern, tile, frames, where.origin[1:])

    def postprocess(self) -> None:
        """Complete the partition's sums, and send the rows to which something was added."""
        self._engine.finish()
        plan, frames, A = self._plan, self._index, self._engine.A
        by_tile = self._added_by_tile.which
        if not by_tile.all():
            assert self._filling is not None
            S = self.results.get_buffer("S").raw_data
            S[by_tile] = self._engine.S
            kept = np.zeros(len(self._filling.frames), S.dtype)
            add_kept(self._filling.frames, self.params.keep.pixels, plan, frames[~by_tile], A, kept)
            S[~by_tile] = kept
        self.results.get_buffer("A").replace_array(A[:, :, self._rows])

    def merge(self, dest: Any, src: Any) -> None:
        """Add a partition's sums to those of the scan, which start anew with another geometry.

        What is kept goes on, whatever the geometry.

        Raises
        ------
        ValueError
            If the upsampling factor was changed while running, or sums of integers came as
            floating point numbers that do not hold them.
        """
        plan = self._plan
        if dest.A.shape != plan.folded_shape:
            raise ValueError(
                f"the geometry was changed to an image of {plan.folded_shape}, from "
                f"{dest.A.shape}: the upsampling factor must stay while a run goes on."
            )
        if self._kept is not None:
            self._kept.merge(src.frames, src.places)
        told, new = dest.told[0], src.told[0]
        digest, row, first = new["part"].tolist()
        if digest != plan.digest:
            return  # of before the change
        if told["part"][0] not in (digest, 0):
            for name in ("A", "S", "told"):
                self.results.get_buffer(name).raw_data[:] = 0
        told["part"][0] = digest
        A = src.A
        if A.dtype.kind != dest.A.dtype.kind:
            # In a run with UDFs that take events on a GPU, LiberTEM makes floats of integer frames
            # on workers, but not here.
            largest = max(np.abs(sums).max(initial=0) for sums in (A, src.S))
            if largest >= 2**53:
                raise ValueError(
                    "the frames are integers, but came as floating point numbers, in which sums of "
                    "that size are not exact. LiberTEM does so for some of the UDFs in this run: "
                    "run this one by itself."
                )
            A = A.astype(dest.A.dtype)
        plan.add(A, row, dest.A)
        dest.S[:] = src.S
        scanned = new["scanned"]
        told["scanned"][first : first + len(scanned)] = scanned
        if new["rings"][-1] and not self._settled:
            self._judge(told, new)

    def _judge(self, told: Any, new: Any) -> None:
        """Warn of parameters that the frames contradict."""
        geometry = self.params.geometry
        rings, pattern, own = told["rings"], told["pattern"], new["rings"]
        if new["pattern"].shape != pattern.shape:
            return  # that of a geometry to which it was changed is coarser or finer
        rings += own
        # Frames that agree are not in the pattern, which shows where the disk is instead.
        if not rings_agree(geometry, own[:-1]):
            pattern += new["pattern"]
        self._patterns += 1
        # Early, and again when there are twice as many. A disk is fitted once in a run, as that
        # takes longer than many frames.
        if self._patterns.bit_count() > 1 or rings_agree(geometry, rings[:-1]):
            return
        if seems_to_differ(geometry, pattern):
            self._settled = True
            if problem := contradiction(geometry, pattern):
                warnings.warn(problem, stacklevel=3)

    def add_stack(self, stack: Stack) -> None:
        """Start anew from the frames of a stack, on the main node, while a run goes on.

        Parameters
        ----------
        stack
            Of the same scan and detector. Its frames must not come again.
        """
        plan = self._plan
        A, S = stack.add(plan)
        for name, sums in (("A", A), ("S", S.ravel())):
            self.results.get_buffer(name).raw_data[:] = sums
        told = self._get_told()
        told["part"][0], told["scanned"] = plan.digest, stack.scanned.ravel()
        told["rings"], told["pattern"] = 0, 0

    @property
    def _added(self) -> bool:
        """Whether anything was added under the present geometry, on the main node."""
        return bool(self._get_told()["part"][0] == self._plan.digest)
