"""What a page knows of frames that come in."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from .thumbnails import Thumbnail

__all__ = ["Recording"]


class Recording(Protocol):
    """Tells how far it is, and what can be done about it."""

    @property
    def progress(self) -> Any:
        """How far it is, as a text; ``running`` while it is."""

    @property
    def stage(self) -> str:
        """``waiting``, ``recording`` or ``ended``."""

    @property
    def thumbnails(self) -> Collection[Thumbnail]:
        """Of those before."""

    @property
    def note(self) -> str:
        """What does not fit the memory, if so."""

    def stop(self) -> None:
        """End it."""

    def next(self) -> None:
        """Begin the next one."""
