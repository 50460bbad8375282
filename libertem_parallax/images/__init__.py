"""Images: functions from sums to pixels, a file each; here they get their names."""

from collections.abc import Iterable, Mapping

from .parallax import PARALLAX
from .phase import PHASE
from .phase_flip import PHASE_FLIP
from .sums import Image, Imaging, Sums

__all__ = ["IMAGES", "Image", "Imaging", "Sums", "check_images"]

#: All images by name.
IMAGES: Mapping[str, Image] = {
    "parallax": PARALLAX,
    "phase_flip": PHASE_FLIP,
    "phase": PHASE,
}


def check_images(image: str | Iterable[str]) -> tuple[str, ...]:
    """Return the names of images, each once.

    Raises
    ------
    ValueError
        If there is none, or no image of that name.
    """
    names = [image] if isinstance(image, str) or not isinstance(image, Iterable) else [*image]
    known = list(IMAGES)  # compares, where a mapping would hash what is given
    if not names or any(name not in known for name in names):
        raise ValueError(f"image = {image!r}: expected one or several of {', '.join(known)}.")
    return tuple(dict.fromkeys(names))
