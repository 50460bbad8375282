"""Frames from a detector: waits that have an end, an image while it records."""

from .asi_tpx3 import Timepix3
from .dectris import Dectris
from .detector import Address, Detector, acquire, connect, describe, start
from .merlin import Merlin
from .stream import FRAMES_PER_PARTITION, stream, warm_up
from .watch import DetectorError, Watch
from .workers import default_workers, make_context

__all__ = [
    "DETECTORS",
    "FRAMES_PER_PARTITION",
    "Address",
    "Detector",
    "DetectorError",
    "Watch",
    "acquire",
    "connect",
    "default_workers",
    "describe",
    "make_context",
    "start",
    "stream",
    "warm_up",
]

#: All detectors, by name.
DETECTORS: dict[str, Detector] = {
    detector.name: detector for detector in (Merlin(), Dectris(), Timepix3())
}
