"""The UDFs that make images while a scan streams."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, ClassVar, Self

import numpy as np
from libertem.common.buffers import BufferWrapper
from numpy.typing import NDArray

from .. import checks
from ..geometry import Geometry
from ..images import IMAGES, Imaging, Sums, check_images
from ..memory import check_detector, check_image
from ..throttle import Throttle
from .base import SumsUDF
from .keeping import Selection

__all__ = ["ParallaxPhaseFlipUDF", "ParallaxPhaseUDF", "ParallaxUDF"]


#: With plots, images may take up this share of the time.
_PLOT_SHARE = 1 / 50


class ParallaxUDF(SumsUDF):
    """Parallax (tilt-corrected bright-field) image of a 4D-STEM scan, made while it streams.

    Construct it with `from_parameters`. Result channels:

    ``reconstruction`` : (u Ny, u Nx) float32
        The image in counts; zero on average.

    Where images are named, there is a channel of that name and shape for each instead.

    Parameters
    ----------
    geometry
        Of the acquisition.
    suppress_Nyquist_noise
        See `from_parameters`.
    engine
        See `from_parameters`.
    image
        See `from_parameters`.
    regularization
        See `from_parameters`.
    keep
        See `keeping`.
    """

    #: Images by channel, where none are named.
    _channels: ClassVar[Mapping[str, str]] = {"reconstruction": "parallax"}

    def __init__(
        self,
        geometry: Geometry,
        suppress_Nyquist_noise: bool = True,
        engine: str = "auto",
        image: str | Iterable[str] | None = None,
        regularization: float | str = "auto",
        keep: Selection | None = None,
    ) -> None:
        self._check_engine(engine)
        checks.flag("suppress_Nyquist_noise", suppress_Nyquist_noise)
        super().__init__(
            geometry=geometry,
            suppress_Nyquist_noise=suppress_Nyquist_noise,
            engine=engine,
            image=None if image is None else check_images(image),
            regularization=checks.regularization("regularization", regularization),
            keep=keep,
        )
        self._imaging: Imaging | None = None
        # With plots, LiberTEM asks for images before the first frame, then after every partition.
        self._asked_before_frames = self._plots = False
        self._images: dict[str, NDArray[np.float32]] = {}
        self._throttle = Throttle(_PLOT_SHARE)

    @classmethod
    def from_parameters(
        cls,
        shape: Iterable[int],
        scan_sampling: tuple[float, float],
        energy: float,
        semiangle_cutoff: float,
        reciprocal_sampling: tuple[float, float] | None = None,
        angular_sampling: tuple[float, float] | None = None,
        aberration_coefs: Mapping[str, float | str] | None = None,
        rotation_angle: float | str | None = 0.0,
        upsampling_factor: int = 1,
        suppress_Nyquist_noise: bool = True,
        detector_flip_cols: bool = False,
        center: tuple[float, float] | None = None,
        bf_mask: NDArray[np.bool_] | str | PathLike[str] | None = None,
        engine: str = "auto",
        image: str | Iterable[str] | None = None,
        detector_flip_rows: bool = False,
        detector_transpose: bool = False,
        regularization: float | str = "auto",
        borders: str = "periodic",
    ) -> Self:
        """Construct the UDF from the parameters of an acquisition.

        Parameters
        ----------
        shape
            Scan rows and columns, detector rows and columns; a tuple or ``dataset.shape``.
        scan_sampling
            Step of the scan along rows and columns in Å.
        energy
            Energy of the electrons in eV.
        semiangle_cutoff
            Semiangle of the bright field in mrad. Pixels up to it are used.
        reciprocal_sampling
            Size of a detector pixel along rows and columns in 1/Å. Give this or angular_sampling.
        angular_sampling
            Size of a detector pixel along rows and columns in mrad. Give this or
            reciprocal_sampling.
        aberration_coefs
            Aberration coefficients in Å and azimuths in rad or degrees (15deg). Names are those of
            abTEM, C10, C12, phi12 ... C56, phi56, or others such as defocus (= -C10), astigmatism,
            coma, Cs.
        rotation_angle
            Rotation of the detector's directions against the scan in rad, or in degrees as in
            -15deg. ``k = R(θ) · (pixel - center)``, ``R(θ) = [[cos, -sin], [sin, cos]]``, rows
            first. As in 0.1.2, an exact multiple of π/2 is taken for another order of the array
            where no center is given.
        upsampling_factor
            Pixels of the image per scan step. An integer from 1 to 1000, ``u``.
        suppress_Nyquist_noise
            Zero the Nyquist frequencies of the image where the rounding of shifts to pixels fills
            them with noise. These are those of the parallax image if it is upsampled, of the
            phase-flipped one always.
        detector_flip_cols
            Read the frames' columns from right to left.
        center
            Row and column of the beam in detector pixels as stored. They count from 0, and
            fractions are allowed. Default: pixel ``(rows // 2, columns // 2)`` in the order of the
            scan's axes.
        bf_mask
            Boolean array of the detector's shape, or a .npy file of one. It is False where a pixel
            as stored must not be used: dead pixels, beam stops. Default: all pixels.
        engine
            What adds the frames. That is the GPU (cuda), compiled code on the CPU (numba), or slow
            code for comparison (numpy). All give the same. ``"auto"``: CUDA kernels on workers to
            which LiberTEM assigned a GPU, else Numba. ``"cuda"``: the GPU or an error, also on
            other workers.
        image
            What to make of the frames. That is the name of an image, such as phase_flip, or of
            several. They are made in one pass, each as a result of its name. Default: the channels
            of the class.
        detector_flip_rows
            Read the frames' rows from bottom to top.
        detector_transpose
            Read the frames' rows as columns and columns as rows, after flipping.
        regularization
            How the phase image weighs signal and noise at each spatial frequency. That is auto,
            which finds both in the data, or a number, the power of the signal over that of the
            noise where contrast is best. Larger ones show more detail and more noise.
        borders
            What happens at the borders of the image. That is periodic, where what leaves it on one
            side comes back on the other, or coverage, where it is lost, and every position is
            divided by the number of pixels that it received. The image direct is always periodic.

        Returns
        -------
        ParallaxUDF
            Of the class that this is called on; to be given to ``Context.run_udf``.

        Raises
        ------
        ValueError
            For a parameter out of its range; the message says what is expected.

        Warns
        -----
        UserWarning
            If the detector cuts off the bright field, shifts exceed the scan, an angle looks like
            degrees, or an exact quarter turn moves the default center. When a run starts, if its
            image will be zero. While it goes on, if the frames show another disk than the
            parameters say.
        """
        shape = checks.shape(shape)
        check_detector(shape)
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
            detector_flip_rows=detector_flip_rows,
            detector_transpose=detector_transpose,
            borders=borders,
        )
        udf = cls(geometry, suppress_Nyquist_noise, engine, image, regularization)
        check_image(geometry.plan, max(IMAGES[name].memory for name in udf._names.values()))
        return udf

    def keeping(self, selection: Selection) -> Self:
        """Make a UDF that keeps pixels of frames on the way, for 1 to 3 % more processor time.

        Parameters
        ----------
        selection
            Which of them; `StackUDF.selection` of a UDF that would keep them.

        Returns
        -------
        ParallaxUDF
            With all parameters of this one. Its `stack` can be had even while a run goes on.
        """
        given = self.params
        names = ("geometry", "suppress_Nyquist_noise", "engine", "image", "regularization")
        return type(self)(**{name: getattr(given, name) for name in names}, keep=selection)

    @property
    def _names(self) -> Mapping[str, str]:
        """Names of the images by channel."""
        image = self.params.image
        return self._channels if image is None else dict(zip(image, image, strict=True))

    def get_result_buffers(self) -> dict[str, BufferWrapper]:
        """Declare the sums and the images.

        Raises
        ------
        ValueError
            If the data set has another shape than the UDF was made for.
        TypeError
            If frames of its dtype cannot be added.
        """
        sums, shape = super().get_result_buffers(), self._plan.image_shape
        images = {
            channel: self.buffer("single", shape, np.float32, use="result_only")
            for channel in self._names
        }
        return {**sums, **images}

    def preprocess(self) -> None:
        """Prepare for a partition; on the main node, prepare images, and warn of blank ones."""
        super().preprocess()
        if self._on_main:
            self._plots, self._asked_before_frames = self._asked_before_frames, False
            self._throttle = Throttle(_PLOT_SHARE)
            imaging = self._get_imaging()
            for name in self._names.values():
                if problem := IMAGES[name].problem(self.params.geometry):
                    warnings.warn(problem, stacklevel=2)
                IMAGES[name].prepare(imaging)

    def get_results(self) -> dict[str, NDArray[np.float32]]:
        """Make the images from the sums so far; what was not scanned yet counts nothing.

        With plots, of which LiberTEM draws two in a second but asks for all, they may be up to 50
        times as old as it takes to make them: a fiftieth of the time goes into that, at most.
        Those of a complete scan are always made anew.
        """
        scanned = self.meta.get_valid_nav_mask()
        if scanned.size and not scanned.any():
            self._asked_before_frames = True
        if not self._plots or scanned.all() or self._throttle.due():
            with self._throttle:
                self._images = self._make_images()
        return self._images

    def _make_images(self) -> dict[str, NDArray[np.float32]]:
        sums = [self.results.get_buffer(name).raw_data for name in ("A", "S", "told")]
        if self._selection is not None:
            self._refuse_delayed(sums[0])
        if not isinstance(sums[0], np.ndarray):
            return self._delayed_images(sums)
        if not self._added:
            blank = np.zeros(self._plan.image_shape, np.float32)
            return dict.fromkeys(self._names, blank)
        return self._images_of(*sums)

    def _delayed_images(self, sums: list[Any]) -> dict[str, Any]:
        """Make images when they are asked for: of sums that are Dask's, with its executor."""
        from dask import array
        from dask.delayed import delayed

        dask: Any = array  # has no types
        made = delayed(self._images_of, pure=False)(*sums)
        shape = self._plan.image_shape
        return {
            channel: dask.from_delayed(made[channel], shape, np.float32) for channel in self._names
        }

    def _images_of(
        self, A: NDArray[Any], S: NDArray[Any], told: NDArray[Any]
    ) -> dict[str, NDArray[np.float32]]:
        S, scanned = (self._by_position(values) for values in (S, told[0]["scanned"]))
        sums = Sums(self._get_imaging(), A, S, scanned)
        return {channel: sums.once(IMAGES[name].make) for channel, name in self._names.items()}

    @property
    def sums(self) -> Sums | None:
        """Copy of what was added so far, on the main node while a run goes on; None if nothing."""
        if not self._added:
            return None
        A, S = (self.results.get_buffer(name).raw_data for name in "AS")
        scanned = self._get_told()["scanned"]
        by_position = (self._by_position(values.copy()) for values in (S, scanned))
        return Sums(self._get_imaging(), A.copy(), *by_position)

    def _get_imaging(self) -> Imaging:
        params = self.params
        wanted = params.geometry, params.suppress_Nyquist_noise, params.regularization
        if self._imaging is None or self._imaging.arguments != wanted:
            self._imaging = Imaging(*wanted)
        return self._imaging


class ParallaxPhaseFlipUDF(ParallaxUDF):
    """Phase-flipped parallax image: contrast reversals by defocus are undone, too.

    Construct it with `from_parameters` or `from_parallax_udf`. Result channels:

    ``reconstruction`` : (u Ny, u Nx) float32
        The phase-flipped image in counts.
    ``parallax`` : (u Ny, u Nx) float32
        The image that `ParallaxUDF` makes; comes at no cost.
    """

    _channels: ClassVar = {"reconstruction": "phase_flip", "parallax": "parallax"}

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


class ParallaxPhaseUDF(ParallaxUDF):
    """Phase of a thin specimen, from its parallax image and what defocus is known to make of it.

    Construct it with `from_parameters`. Result channels:

    ``phase`` : (u Ny, u Nx) float32
        The phase in rad; zero on average, since no detector sees a constant phase.
    ``parallax`` : (u Ny, u Nx) float32
        The image that `ParallaxUDF` makes, in counts; comes at no cost.
    """

    _channels: ClassVar = {"phase": "phase", "parallax": "parallax"}
