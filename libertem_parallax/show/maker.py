"""Images of a stack, made again and again with other parameters."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..accumulate import CudaStack, Latest, Plan, Stack, place_stack
from ..direct import Direct, borders_problem
from ..geometry import Geometry
from ..images import IMAGES, STACK_IMAGES, Imaging, Sums, check_images
from ..memory import check_direct, check_image
from ..parameters import DEFAULTS, Parameters
from ..stack_problems import hot_pixel_of_stack

__all__ = [
    "Maker",
    "Picture",
    "Wanted",
    "reconstruct",
    "sharpness",
    "thinned",
]

#: Values (frames by bright-field pixels) that are added at once. More of them, about a tenth of a
#: second's worth on two cores, get a coarser image first.
_AT_ONCE = 1 << 26

#: Direct ptychography takes longer than an addition: so many times fewer values are had at once.
_DIRECT_COST = 8

#: Standard deviation in scan steps of what images are blurred with before their variance is taken.
_SHARPNESS_BLUR = 1.5


@dataclass(frozen=True, eq=False)
class Picture:
    """An image and what it was made of.

    Parameters
    ----------
    number
        Of the change that asked for it: the last one of them is shown.
    name
        Of the image, one of `IMAGES` or `STACK_IMAGES`.
    image : (rows, cols) float32
        As the UDF, or `direct_phase`, makes it of the same frames.
    parameters
        With which it was made.
    geometry
        Of the image: that of every `coarse`-th scan position.
    scanned : (Ny, Nx) bool
        Scan positions that are in it.
    coarse
        1 for the image itself. More for a preview.
    seconds
        That it took.
    notes
        Warnings that came with it.
    """

    number: int
    name: str
    image: NDArray[np.float32]
    parameters: Parameters
    geometry: Geometry
    scanned: NDArray[np.bool_]
    coarse: int
    seconds: float
    notes: tuple[str, ...]

    @property
    def pixel_size(self) -> tuple[float, float]:
        """Height and width of a pixel of the image in Å."""
        height, width = self.geometry.scan_sampling
        u = self.geometry.plan.upsampling_factor
        return height / u, width / u


def reconstruct(stack: Stack, parameters: Parameters, image: str = "parallax") -> NDArray[Any]:
    """Make an image of a stack.

    Parameters
    ----------
    stack
        Of frames.
    parameters
        Of the acquisition.
    image
        Its name, one of `IMAGES`.

    Returns
    -------
    (u Ny, u Nx) float32
        What ``ParallaxUDF`` makes of these frames. For integers, bit for bit.

    Raises
    ------
    ValueError
        For a parameter that is missing or out of its range, or if the stack lacks pixels.
    """
    [image] = check_images(image)
    return _make(stack, make_imaging(stack, parameters), image)[0]


def make_imaging(stack: Stack, parameters: Parameters) -> Imaging:
    """Work out what images of a stack depend on beside its frames.

    Raises
    ------
    ValueError
        See `reconstruct`.
    """
    shape = (*stack.scan_shape, *stack.detector_shape)
    geometry = Geometry.from_parameters(shape, **parameters)
    check_image(geometry.plan, max(image.memory for image in IMAGES.values()))
    name = "suppress_Nyquist_noise"
    regularization = parameters.get("regularization", DEFAULTS["regularization"])
    return Imaging(geometry, parameters.get(name, DEFAULTS[name]), regularization)


def _add(stack: Stack, imaging: Imaging, threads: int | None = None) -> Sums:
    plan = imaging.geometry.plan
    if isinstance(stack, Latest):
        return Sums(imaging, *stack.since(plan, threads))
    scanned = stack.scanned.copy()  # before the frames, which may go on filling
    return Sums(imaging, *stack.add(plan, threads), scanned)


def _make(
    stack: Stack, imaging: Imaging, image: str, threads: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Make an image where the stack is added; and say which scan positions are in it."""
    with stack.reading() as there:
        scanned = there.scanned.copy()  # before the frames, which may go on filling

        def made(A: Any, S: Any) -> Any:
            return Sums(imaging, A, S, scanned).once(IMAGES[image].make)

        return there.make(imaging.geometry.plan, made, threads), scanned


def thinned(stack: Stack, step: int) -> Stack:
    """Take every so many scan positions along both axes.

    Parameters
    ----------
    stack
        Of all frames.
    step
        From one position to the next.

    Returns
    -------
    Stack
        A copy.
    """
    ny, nx = stack.scan_shape
    scanned = np.ascontiguousarray(stack.scanned[::step, ::step])
    frames = np.ascontiguousarray(stack.frames.reshape(ny, nx, -1)[::step, ::step])
    return Stack(
        frames.reshape(scanned.size, -1),
        stack.pixels,
        scanned.shape,
        stack.detector_shape,
        scanned,
    )


def sharpness(stack: Stack, parameters: Parameters, defocus: float) -> float:
    """Tell how well the images of all pixels fall onto each other, if the defocus is this.

    Parameters
    ----------
    stack
        Of frames.
    parameters
        Of the acquisition; its defocus does not count.
    defocus
        In Å, as C10.

    Returns
    -------
    float
        Variance of the parallax image, blurred by 1.5 scan steps and not upsampled: details that
        do not fall onto each other average out.
    """
    import scipy.ndimage

    coefs = {**parameters.get("aberration_coefs", {}), "C10": defocus}
    changed = parameters.replace(aberration_coefs=coefs, upsampling_factor=1)
    with warnings.catch_warnings(action="ignore"):  # at the ends of a curve, shifts are large
        image = reconstruct(stack, changed)
    blurred = scipy.ndimage.gaussian_filter(image, _SHARPNESS_BLUR, mode="wrap")
    return float(blurred.var(dtype=np.float64))  # squares may be too large for single precision


class Wanted(NamedTuple):
    """What a picture is to show; numbers say which of them are new."""

    number: int  #: of all changes
    geometry: int
    frames: int
    stack: Stack
    parameters: Parameters
    sums: Sums | None = None  #: of more frames than the stack has, under one geometry
    growing: bool = False  #: whether frames are still to come

    def has(self, plan: Plan) -> bool:
        """Whether its `sums` are of this plan."""
        return self.sums is not None and self.sums.imaging.geometry.plan.digest == plan.digest


class Maker:
    """Makes pictures, and keeps what the next one may be made of, too.

    Parameters
    ----------
    device
        Number of the GPU that stacks go to which are not on one; None where there is none.
    """

    def __init__(self, device: int | None = None) -> None:
        self._kept: dict[tuple[str, int], tuple[Any, Any]] = {}
        self._device = device
        self._resident: Stack | None = None  # as placed for that engine
        self._engine = ""
        self._notes: list[str] = []  # what is wrong with the GPU

    def picture(self, wanted: Wanted, coarse: int, threads: int | None) -> Picture:
        """Make one, of every `coarse`-th scan position."""
        start = time.perf_counter()
        name = _shown(wanted.parameters)
        imaging, notes = self._imaging(wanted, coarse)
        geometry, placed = imaging.geometry, self._placed(wanted)
        if name in STACK_IMAGES:
            geometry = geometry.replace(upsampling_factor=1)
            with self._noting():
                image, scanned = self._direct(wanted, coarse, geometry, imaging, placed)
        elif placed is not None:
            with self._noting():
                image, scanned = _make(placed, imaging, name, threads)
        else:
            key = wanted.geometry, wanted.frames
            sums = self._once("sums", coarse, key, lambda: self._sums(wanted, coarse, threads))
            image, scanned = sums.once(IMAGES[name].make), sums.scanned
        if name in STACK_IMAGES:
            problem = borders_problem(wanted.parameters)
        else:
            self._forget("direct")
            problem = IMAGES[name].problem(geometry)
        plan, seen = geometry.plan, (wanted.frames, geometry.plan.pixels.tobytes())
        hot = self._once("hot", 1, seen, lambda: hot_pixel_of_stack(plan, wanted.stack))
        notes = tuple(filter(None, (hot, *notes, *self._notes, problem)))
        return Picture(
            wanted.number,
            name,
            image,
            wanted.parameters,
            geometry,
            scanned,
            coarse,
            time.perf_counter() - start,
            notes,
        )

    def preview(self, wanted: Wanted) -> int:
        """Choose how coarse an image is had at once; 1 if that is the image itself."""
        direct = _shown(wanted.parameters) in STACK_IMAGES
        if not direct:
            key, _ = self._kept.get(("sums", 1), (None, None))
            if key == (wanted.geometry, wanted.frames) or self._placed(wanted) is not None:
                return 1
        plan = self._imaging(wanted, 1)[0].geometry.plan
        if not direct and wanted.has(plan):
            return 1
        work = math.prod(plan.scan_shape) * len(plan.pixels) * (_DIRECT_COST if direct else 1)
        return math.ceil(math.sqrt(work / _AT_ONCE))

    def _sums(self, wanted: Wanted, coarse: int, threads: int | None) -> Sums:
        imaging = self._imaging(wanted, coarse)[0]
        if wanted.sums is not None and wanted.has(imaging.geometry.plan):
            return replace(wanted.sums, imaging=imaging)
        return _add(self._thinned(wanted, coarse)[0], imaging, threads)

    def _direct(
        self,
        wanted: Wanted,
        coarse: int,
        geometry: Geometry,
        imaging: Imaging,
        placed: CudaStack | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Make the image by direct ptychography; transforms are kept for other aberrations."""
        scanned = wanted.stack.scanned.copy()
        if wanted.growing and not scanned.all():
            self._forget("direct")
            raise ValueError(
                f"direct ptychography needs all frames, {scanned.mean():.0%} of them are there. "
                "Choose another image until the scan is complete."
            )
        semiangle = geometry.parameters["semiangle_cutoff"]
        places = geometry.plan.pixels.tobytes(), geometry.angles.tobytes()
        edges = semiangle, geometry.soft_edge, geometry.scan_sampling
        key = (wanted.frames, placed is not None, *places, *edges)
        if self._kept.get(("direct", coarse), (None,))[0] != key:
            self._forget("direct")  # they are large
            check_direct(geometry.plan.scan_shape, len(geometry.plan.pixels))
        stack = placed if coarse == 1 and placed is not None else self._thinned(wanted, coarse)[0]
        direct = self._once("direct", coarse, key, lambda: Direct.of(stack, geometry))
        return direct.phase(direct.interference(geometry), imaging.regularization), scanned

    def _forget(self, what: str) -> None:
        self._kept = {key: kept for key, kept in self._kept.items() if key[0] != what}

    def _placed(self, wanted: Wanted) -> CudaStack | None:
        """Take the stack with its frames so far on the GPU; None where the CPU adds."""
        stack, engine = wanted.stack, wanted.parameters.get("engine", "auto")
        if isinstance(stack, CudaStack):
            return stack if stack.works else None
        if isinstance(stack, Latest):
            return None  # frames leave it
        if not (engine == "cuda" or (engine == "auto" and self._device is not None)):
            return None
        placed = self._resident
        with self._noting():
            if (
                placed is None
                or self._engine != engine
                or not np.may_share_memory(placed.frames, stack.frames)
            ):
                placed = self._resident = place_stack(stack, engine, self._device)
                self._engine = engine
            elif isinstance(placed, CudaStack):
                placed.refresh(stack.scanned)
        return placed if isinstance(placed, CudaStack) and placed.works else None

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """Keep warnings of the GPU, to be told with every picture."""
        with warnings.catch_warnings(record=True, action="always") as caught:
            yield
        self._notes = list(dict.fromkeys([*self._notes, *_told(caught)]))  # some come every time

    def _imaging(self, wanted: Wanted, coarse: int) -> tuple[Imaging, tuple[str, ...]]:
        def make() -> tuple[Imaging, tuple[str, ...]]:
            with warnings.catch_warnings(record=True, action="always") as caught:
                imaging = make_imaging(*self._thinned(wanted, coarse))
            return imaging, tuple(dict.fromkeys(_told(caught)))

        found: tuple[Imaging, tuple[str, ...]]
        found = self._once("imaging", coarse, wanted.geometry, make)
        return found

    def _thinned(self, wanted: Wanted, coarse: int) -> tuple[Stack, Parameters]:
        if coarse == 1:
            return wanted.stack, wanted.parameters
        y, x = wanted.parameters["scan_sampling"]

        def thin() -> Stack:
            with wanted.stack.reading() as stack:
                return thinned(stack, coarse)

        stack = self._once("stack", coarse, wanted.frames, thin)
        return stack, wanted.parameters.replace(scan_sampling=(y * coarse, x * coarse))

    def _once(self, what: str, coarse: int, key: Any, make: Callable[[], Any]) -> Any:
        known = self._kept.get((what, coarse))
        if known is None or known[0] != key:
            if coarse > 1:  # what is of yet another coarseness will not be needed
                self._kept = {k: kept for k, kept in self._kept.items() if k[1] in (1, coarse)}
            known = self._kept[what, coarse] = (key, make())
        return known[1]


def _told(caught: list[warnings.WarningMessage]) -> list[str]:
    """Take those warnings that are for users; other threads' come as well."""
    return [str(w.message) for w in caught if issubclass(w.category, UserWarning | RuntimeWarning)]


def _shown(parameters: Parameters) -> str:
    """Of the images that are named, the one to show."""
    return check_images(parameters["image"], stacks=True)[0]
