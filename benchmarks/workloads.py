"""What is measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["WORKLOADS", "Workload"]

#: The acquisition of the README's example.
_PARAMETERS: dict[str, Any] = {
    "scan_sampling": (256 / 72, 256 / 72),
    "angular_sampling": (0.307617, 0.307617),
    "energy": 300e3,
    "semiangle_cutoff": 4.0,
    "aberration_coefs": {"C10": -1.5e4},
    "rotation_angle": -0.2617993877991494,
    "upsampling_factor": 2,
}


@dataclass(frozen=True)
class Workload:
    """Shape and dtype of the frames, and the parameters of the UDF."""

    name: str
    shape: tuple[int, int, int, int]
    dtype: str = "uint8"
    parameters: dict[str, Any] = field(default_factory=lambda: _PARAMETERS)


WORKLOADS = (
    Workload("72 x 72 scan, 64 x 64 uint8", (72, 72, 64, 64)),
    Workload("256 x 256 scan, 64 x 64 uint8", (256, 256, 64, 64)),
    Workload("256 x 256 scan, 64 x 64 uint16", (256, 256, 64, 64), "uint16"),
    Workload("128 x 128 scan, 64 x 64 float32", (128, 128, 64, 64), "float32"),
    Workload(
        "64 x 64 scan, 192 x 192 uint16, bright field of radius 30",
        (64, 64, 192, 192),
        "uint16",
        _PARAMETERS | {"semiangle_cutoff": 30.1 * 0.307617},
    ),
)
