"""The UDFs: LiberTEM's tiles in, images out. Physics and arithmetic are elsewhere."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
from libertem.common.backend import get_use_cuda
from libertem.common.buffers import BufferWrapper
from libertem.common.sparse import to_dense
from libertem.udf import UDF
from numpy.typing import NDArray

from ..accumulate import ENGINES, Engine, accumulator_dtype, make_engine
from ..geometry import Geometry, check_flag
from ..images import Finish

__all__ = ["ParallaxPhaseFlipUDF", "ParallaxUDF"]


#: With plots, images may take up this share of the time.
_PLOT_SHARE = 1 / 50


class ParallaxUDF(UDF):
    """Parallax (tilt-corrected bright-field) image of a 4D-STEM scan, made while it streams.

    Construct it with `from_parameters`. Result channels:

    ``reconstruction`` : (u Ny, u Nx) float32
        The image in counts; zero on average.

    Parameters
    ----------
    geometry
        Of the acquisition.
    suppress_Nyquist_noise
        See `from_parameters`.
    engine
        See `from_parameters`.
    """

    _engine: Engine  # of the partition; made in `preprocess`

    def __init__(
        self, geometry: Geometry, suppress_Nyquist_noise: bool = True, engine: str = "auto"
    ) -> None:
        names = ["auto", *ENGINES]  # a list compares, where a mapping would hash what is given
        if engine not in names:
            raise ValueError(f"engine = {engine!r}: expected one of {', '.join(names)}.")
        check_flag("suppress_Nyquist_noise", suppress_Nyquist_noise)
        super().__init__(
            geometry=geometry, suppress_Nyquist_noise=suppress_Nyquist_noise, engine=engine
        )
        self._finish: Finish | None = None
        # With plots, LiberTEM asks for images before the first frame, then after every partition.
        self._asked_before_frames = self._plots = False
        self._images: dict[str, NDArray[np.float32]] = {}
        self._images_keep_until = 0.0

    @classmethod
    def from_parameters(
        cls,
        shape: Iterable[int],
        scan_sampling: tuple[float, float],
        energy: float,
        semiangle_cutoff: float,
        reciprocal_sampling: tuple[float, float] | None = None,
        angular_sampling: tuple[float, float] | None = None,
        aberration_coefs: Mapping[str, float] | None = None,
        rotation_angle: float | None = None,
        upsampling_factor: int = 1,
        suppress_Nyquist_noise: bool = True,
        detector_flip_cols: bool = False,
        center: tuple[float, float] | None = None,
        bf_mask: NDArray[np.bool_] | None = None,
        engine: str = "auto",
    ) -> Self:
        """Construct the UDF from the parameters of an acquisition.

        Parameters
        ----------
        shape
            Scan rows and columns, detector rows and columns; a tuple or ``dataset.shape``.
        scan_sampling
            Step of the scan along rows and columns in Å.
        energy
            Of the electrons in eV.
        semiangle_cutoff
            Semiangle of the bright field in mrad; pixels up to it are used.
        reciprocal_sampling, angular_sampling
            Size of a detector pixel along rows and columns in 1/Å, or in mrad; give one.
        aberration_coefs
            Polar coefficients in Å and azimuths in rad as abTEM defines them, ``C10``, ``C12``,
            ``phi12`` ... ``phi56``, or their aliases (``defocus`` = -C10, ``astigmatism``,
            ``coma``, ``Cs`` ...). Default: none.
        rotation_angle
            Rotation of the detector's directions against the scan in rad: ``k = R(θ) · (pixel -
            center)``, ``R(θ) = [[cos, -sin], [sin, cos]]``, rows first. An exact multiple of π/2
            also describes an array layout and moves the default center accordingly.
        upsampling_factor
            Pixels of the image per scan step, ``u``: an integer from 1 to 1000.
        suppress_Nyquist_noise
            Zero the Nyquist frequencies of the image where the shifts' rounding to pixels fills
            them with noise: of the parallax image if ``u > 1``, of the phase-flipped one always.
        detector_flip_cols
            Read the frames' columns from right to left.
        center
            Row and column of the beam in detector pixels as stored, fractions allowed. Default:
            pixel ``(rows // 2, columns // 2)`` after flipping; exact quarter turns move it along,
            as reversing axes of even length does.
        bf_mask : (detector rows, columns) bool
            Pixels as stored that may be used: False for dead pixels and beam stops. Default: all.
        engine
            What adds the frames. ``"auto"``: CUDA kernels on workers with a GPU, else code compiled
            by Numba. ``"cuda"``: the GPU or an error, also on workers to which LiberTEM assigned
            none. ``"numba"``: the CPU. ``"numpy"``: slow, for comparison. All give the same.

        Returns
        -------
        ParallaxUDF or ParallaxPhaseFlipUDF
            To be given to ``Context.run_udf``.

        Raises
        ------
        ValueError
            For a parameter out of its range; the message says what is expected.

        Warns
        -----
        UserWarning
            If the detector cuts off the bright field, shifts exceed the scan or come to nothing, or
            the rotation is more than two turns.
        """
        geometry = Geometry.from_parameters(
            shape=shape,
            scan_sampling=scan_sampling,
            energy=energy,
            semiangle_cutoff=semiangle_cutoff,
            reciprocal_sampling=reciprocal_sampling,
            angular_sampling=angular_sampling,
            aberration_coefs=aberration_coefs,
            rotation_angle=rotation_angle,
            upsampling_factor=upsampling_factor,
            detector_flip_cols=detector_flip_cols,
            center=center,
            bf_mask=bf_mask,
        )
        return cls(geometry, suppress_Nyquist_noise, engine)

    def get_result_buffers(self) -> dict[str, BufferWrapper]:
        """Declare sum ``A``, bright-field sums ``S`` of the frames, and the image.

        Raises
        ------
        ValueError
            If the data set has another shape than the UDF was made for.
        TypeError
            If frames of its dtype cannot be added.
        """
        plan = self.params.geometry.plan
        shape = tuple(self.meta.dataset_shape)
        if shape != plan.scan_shape + plan.detector_shape:
            raise ValueError(
                f"the data set has shape {shape}, the UDF was made for "
                f"{plan.scan_shape + plan.detector_shape}: construct it with shape=dataset.shape."
            )
        # The main node, where the backend is not known, adds up what comes from all workers; these
        # send the rows to which they have added.
        on_main = self.meta.array_backend is None
        dtype = accumulator_dtype(self.meta.input_dtype, len(plan.pixels), on_main or self._events)
        rows = plan.scan_shape[0] if on_main else plan.part(self._frames)[1]
        shape = (*plan.folded_shape[:2], rows, plan.folded_shape[3])
        return {
            "A": self.buffer("single", shape, dtype, use="private"),
            "S": self.buffer("nav", dtype=dtype, use="private"),
            # What A and S belong to: Plan.digest; A's first row.
            "part": self.buffer("single", (2,), np.int64, use="private"),
            "reconstruction": self.buffer(
                "single", plan.image_shape, np.float32, use="result_only"
            ),
        }

    def get_backends(self) -> tuple[str, ...]:
        """Take arrays on the host on all workers: events as they are, else dense frames.

        Engines upload what they need themselves. So workers with a GPU name none of LiberTEM's
        backends for GPUs. With CUDA it would make dense frames of events; with CuPy's sparse arrays
        floats of integers, which are larger, exact only up to 53 bits, and copied while all waits.
        """
        on_host = (self.BACKEND_SCIPY_CSR, self.BACKEND_SCIPY_CSR_ARRAY, self.BACKEND_NUMPY)
        return on_host if get_use_cuda() is not None else (*on_host, self.BACKEND_CUDA)

    @property
    def _frames(self) -> NDArray[np.int64]:
        """Scan positions of the partition's frames."""
        first = self.meta.slice.origin[0]
        frames = np.arange(first, first + self.meta.slice.shape[0])
        # LiberTEM counts the frames within the region of interest.
        roi = self._roi
        return frames if roi is None else np.flatnonzero(roi)[frames]

    @property
    def _roi(self) -> NDArray[np.bool_] | None:
        """Region of interest as an array; LiberTEM hands on sparse ones, and lists as such."""
        if self.meta.roi is None:
            return None
        roi: NDArray[np.bool_] = to_dense(self.meta.roi)
        return roi.reshape(self.params.geometry.plan.scan_shape)

    @property
    def _events(self) -> bool:
        """Whether this worker gets events."""
        return self.meta.array_backend in (self.BACKEND_SCIPY_CSR, self.BACKEND_SCIPY_CSR_ARRAY)

    def get_preferred_input_dtype(self) -> Any:
        """Take frames in the data set's own dtype: integer sums are exact and less is read."""
        return self.USE_NATIVE_DTYPE

    def preprocess(self) -> None:
        """Make the engine for a partition; on the main node, find out whether there are plots."""
        if self.meta.array_backend is None:
            self._plots, self._asked_before_frames = self._asked_before_frames, False
            self._images_keep_until = 0.0
            return
        plan, S = self.params.geometry.plan, self.results.get_buffer("S").raw_data
        self._first = self.meta.slice.origin[0]
        self._engine = make_engine(
            self.params.engine,
            plan,
            self.meta.input_dtype,
            self._frames,
            np.zeros(plan.accumulator_shape, S.dtype),
            S,
            get_use_cuda(),
            events=self._events,
        )

    def process_tile(self, tile: Any) -> None:
        """Add a tile: any frames of the partition, any part of the detector; dense or events.

        LiberTEM's default preferences give whole partitions in place or tiles of decoded frames
        that fit the cache, whichever is faster: measured, see benchmarks/README.md.
        """
        origin, shape = self.meta.slice.origin, tuple(self.meta.slice.shape.sig)
        first = origin[0] - self._first
        if self._events:
            self._engine.add_events(tile, shape, origin[1:], first)
        else:
            self._engine.add(tile, origin[1:], first)

    def postprocess(self) -> None:
        """Complete the partition's sums; without halo there is less to send."""
        self._engine.finish()
        plan = self.params.geometry.plan
        frames = self._engine.index
        plan.fold(self._engine.A, self.results.get_buffer("A").raw_data, frames)
        self.results.get_buffer("part").raw_data[:] = plan.digest, plan.part(frames)[0]

    def merge(self, dest: Any, src: Any) -> None:
        """Add a partition's sums to those of the scan, which start anew with another geometry.

        Raises
        ------
        ValueError
            If the upsampling factor was changed while running, or sums of integers came as
            floating point numbers that do not hold them.
        """
        plan = self.params.geometry.plan
        if dest.A.shape != plan.folded_shape:
            raise ValueError(
                f"the geometry was changed to an image of {plan.folded_shape}, from "
                f"{dest.A.shape}: the upsampling factor must stay while a run goes on."
            )
        digest, first = src.part
        if digest != plan.digest:
            return  # of before the change
        if dest.part[0] != digest:
            for name in ("A", "S"):
                self.results.get_buffer(name).raw_data[:] = 0
            dest.part[0] = digest
        A = src.A
        if A.dtype.kind != dest.A.dtype.kind:
            # In a run with UDFs that take events on a GPU, LiberTEM makes floats of integer frames
            # on workers, but not here.
            largest = max(np.abs(sums).max(initial=0) for sums in (A, src.S))
            if np.dtype(self.meta.dataset_dtype).itemsize == 8 or largest >= 2**53:
                raise ValueError(
                    "the frames are integers, but came as floating point numbers, in which sums of "
                    "that size are not exact. LiberTEM does so for some of the UDFs in this run: "
                    "run this one by itself."
                )
            A = A.astype(dest.A.dtype)
        plan.add_part(A, int(first), dest.A)
        dest.S[:] = src.S

    def get_results(self) -> dict[str, NDArray[np.float32]]:
        """Make the images from the sums so far; what was not scanned yet counts nothing.

        With plots, of which LiberTEM draws two in a second but asks for all, they may be up to 50
        times as old as it takes to make them: a fiftieth of the time goes into that, at most.
        Those of a complete scan are always made anew.
        """
        scanned = self.meta.get_valid_nav_mask()
        if scanned.size and not scanned.any():
            self._asked_before_frames = True
        start = time.perf_counter()
        if not self._plots or scanned.all() or start >= self._images_keep_until:
            self._images = self._make_images()
            stop = time.perf_counter()
            self._images_keep_until = stop + (stop - start) / _PLOT_SHARE
        return self._images

    def _make_images(self) -> dict[str, NDArray[np.float32]]:
        return {"reconstruction": self._parallax()}

    def _parallax(self) -> NDArray[np.float32]:
        plan = self.params.geometry.plan
        if self.results.get_buffer("part").raw_data[0] != plan.digest:
            # Nothing was added under this geometry yet.
            return np.zeros(plan.image_shape, np.float32)
        S = self.results.get_buffer("S").raw_data
        roi = self._roi
        if roi is not None:
            full = np.zeros(plan.scan_shape, dtype=S.dtype)
            full[roi] = S
            S = full
        return self._finisher().parallax(
            self.results.get_buffer("A").raw_data, S.reshape(plan.scan_shape)
        )

    def _finisher(self) -> Finish:
        geometry, suppress = self.params.geometry, self.params.suppress_Nyquist_noise
        made = self._finish
        if made is None or (made.geometry, made.suppress_Nyquist_noise) != (geometry, suppress):
            made = self._finish = Finish(geometry, suppress_Nyquist_noise=suppress)
        return made


class ParallaxPhaseFlipUDF(ParallaxUDF):
    """Phase-flipped parallax image: contrast reversals by defocus are undone, too.

    Construct it with `from_parameters` or `from_parallax_udf`. Result channels:

    ``reconstruction`` : (u Ny, u Nx) float32
        The phase-flipped image in counts.
    ``parallax`` : (u Ny, u Nx) float32
        The image that `ParallaxUDF` makes; comes at no cost.
    """

    @classmethod
    def from_parallax_udf(cls, udf: ParallaxUDF) -> Self:
        """Construct the UDF with all parameters of another.

        Parameters
        ----------
        udf
            Whose parameters to take.

        Returns
        -------
        ParallaxPhaseFlipUDF
            To be given to ``Context.run_udf``.

        Raises
        ------
        TypeError
            If `udf` is none of this package.
        """
        if not isinstance(udf, ParallaxUDF):
            raise TypeError(f"udf: expected a ParallaxUDF, got {type(udf).__name__}.")
        return cls(udf.params.geometry, udf.params.suppress_Nyquist_noise, udf.params.engine)

    def get_result_buffers(self) -> dict[str, BufferWrapper]:
        """Declare the buffers of `ParallaxUDF` and the unflipped image."""
        shape = self.params.geometry.plan.image_shape
        return {
            **super().get_result_buffers(),
            "parallax": self.buffer("single", shape, np.float32, use="result_only"),
        }

    def preprocess(self) -> None:
        """Make the engine for a partition; on the main node, warn if there is nothing to flip."""
        if self.meta.array_backend is None and not self.params.geometry.flips:
            warnings.warn(
                "the phase-flipped image will be zero: aberration_coefs has no even aberration "
                "(defocus, astigmatism, Cs, ...), without which there is no phase contrast.",
                stacklevel=2,
            )
        super().preprocess()

    def _make_images(self) -> dict[str, NDArray[np.float32]]:
        parallax = self._parallax()
        return {"reconstruction": self._finisher().phase_flip(parallax), "parallax": parallax}
