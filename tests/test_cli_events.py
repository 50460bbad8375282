"""Into how many partitions the command line cuts events."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import scipy.sparse

from libertem_parallax import event_files
from libertem_parallax.accumulate.threads import cores

reconstruct = import_module("libertem_parallax.cli.reconstruct")  # the command has its name


@pytest.mark.parametrize("load", [{}, {"type": "raw_csr"}])
def test_partitions_are_as_many_as_events_need_and_not_pixels(
    inline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: dict[str, Any]
) -> None:
    events = scipy.sparse.csr_array(([1, 1], ([3, 60], [5, 7])), (64 * 64, 512 * 512), "uint8")
    path = event_files.write_events(tmp_path, (64, 64), (512, 512), events)
    assert inline.load("raw_csr", path=str(path)).get_num_partitions() == 8

    def partitions(**more: Any) -> int:
        return int(reconstruct.open_dataset(inline, path, load | more).get_num_partitions())

    assert partitions() == cores()
    assert partitions(num_partitions=3) == 3
    size = sum(file.stat().st_size for file in event_files.event_files(path))
    monkeypatch.setattr(reconstruct, "_EVENTS", size // (2 * cores()))
    assert partitions() == 2 * cores()
