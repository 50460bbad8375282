"""DECTRIS detectors."""

from __future__ import annotations

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

    def start(self, conn: Any) -> None:
        """Arm it; the scan triggers."""
        conn.get_api_client().sendDetectorCommand("arm")
