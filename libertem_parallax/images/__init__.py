"""Images: functions from sums to pixels, a file each; here they get their names."""

from collections.abc import Iterable, Mapping

from .parallax import PARALLAX
from .phase import PHASE
from .phase_flip import PHASE_FLIP
from .sums import Image, Imaging, Sums

__all__ = ["IMAGES", "STACK_IMAGES", "Image", "Imaging", "Sums", "check_images", "words_and_unit"]

#: All images by name.
IMAGES: Mapping[str, Image] = {
    "parallax": PARALLAX,
    "phase_flip": PHASE_FLIP,
    "phase": PHASE,
}

#: Images that are made of a stack, not of sums, by name; and their words and unit.
STACK_IMAGES: Mapping[str, tuple[str, str]] = {"direct": ("direct ptychography", "rad")}


def check_images(image: str | Iterable[str], *, stacks: bool = False) -> tuple[str, ...]:
    """Return the names of images, each once.

    Parameters
    ----------
    image
        A name, or several.
    stacks
        Whether those that are made of a stack will do.

    Raises
    ------
    ValueError
        If there is none, or no image of that name.
    """
    names = [image] if isinstance(image, str) or not isinstance(image, Iterable) else [*image]
    known = list(IMAGES)  # compares, where a mapping would hash what is given
    for name in STACK_IMAGES:
        if not stacks and name in names:
            raise ValueError(
                f"image = {image!r}: {name} is made of all frames at once, when they are there: "
                f"by libertem-parallax reconstruct or live, or {name}_phase in Python."
            )
    known += STACK_IMAGES if stacks else ()
    if not names or any(name not in known for name in names):
        raise ValueError(f"image = {image!r}: expected one or several of {', '.join(known)}.")
    return tuple(dict.fromkeys(names))


def words_and_unit(name: str) -> tuple[str, str]:
    """Tell what an image is called in texts, and the unit of its values."""
    if name in STACK_IMAGES:
        return STACK_IMAGES[name]
    return IMAGES[name].words, IMAGES[name].unit
