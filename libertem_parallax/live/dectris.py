"""DECTRIS detectors."""

from __future__ import annotations

import contextlib
from typing import Any

from .detector import Address, Detector

__all__ = ["Dectris"]


class Dectris(Detector):
    """ARINA, QUADRO and others, by their SIMPLON interface."""

    name = "dectris"
    port, data_port = 80, 9999

    def open(self, builder: Any, address: Address) -> Any:
        """Open a connection."""
        return builder.open(
            api_host=address.host,
            api_port=address.port,
            data_host=address.host,
            data_port=address.data_port,
        )

    def rate(self, conn: Any) -> float | None:
        """Ask for the time of a frame, as it is set up now."""
        # Whatever goes wrong, frames are received all the same.
        with contextlib.suppress(Exception):
            return 1 / float(conn.get_api_client().detectorConfig("frame_time")["value"])
        return None

    def start(self, conn: Any) -> None:
        """Arm it; the scan triggers."""
        conn.get_api_client().sendDetectorCommand("arm")
