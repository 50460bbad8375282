"""Whoever looks for a free name at the same time gets another one, and nothing is lost."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from live_commands import Run, arguments, expected, simulators, written_to
from numpy.typing import NDArray

from libertem_parallax import files, live
from libertem_parallax.cli.places import Places
from libertem_parallax.live.merlin import Simulator
from libertem_parallax.names import claim

pytestmark = simulators
MANY = 12


@pytest.mark.parametrize("links", [True, False])
def test_many_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """Also on a disk that has no links."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    together = threading.Barrier(MANY, timeout=60)
    names: dict[int, Path] = {}

    def keep(number: int) -> None:
        def write(path: Path) -> None:
            if path.name == "image.npy":  # all have found this one free
                together.wait()
            files.save(path, np.full((2, 2), number), files.About((1, 1)), new=True)

        [names[number]], _ = claim(write, tmp_path / "image.npy")

    threads = [threading.Thread(target=keep, args=(number,)) for number in range(MANY)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = {tmp_path / f"image{end}.npy" for end in ("", *(f"_{n}" for n in range(2, 13)))}
    assert set(names.values()) == wanted == set(tmp_path.iterdir())
    for number, path in names.items():
        assert (np.load(path) == number).all()


def test_what_belongs_together_has_the_same_number(tmp_path: Path) -> None:
    """Frames, too, that an earlier acquisition has left."""
    image, sheet = tmp_path / "image.tif", tmp_path / "image.toml"

    def chosen() -> tuple[Path, ...]:
        return Places({"phase": image}, calibrate=True, overwrite=False).paths

    assert chosen() == (image, sheet)
    sheet.touch()
    (tmp_path / "image_2.tif").touch()
    (tmp_path / "image_3_frames.npy").touch()
    assert chosen() == (tmp_path / "image_4.tif", tmp_path / "image_4.toml")


@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_a_name_is_taken_while_the_detector_is_awaited(
    run: Run, merlin: Simulator, frames: NDArray[Any], monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """As by another recording, which began at the same time; one after the other do the same."""
    start, other = live.start, Path(f"image{suffix}")

    def late(*arguments: Any) -> None:
        if not other.exists():
            files.save(other, np.ones((2, 2)), files.About((1, 1)))
        start(*arguments)

    monkeypatch.setattr(live, "start", late)
    command = arguments(merlin, f"--start -o {other}")
    result = run(command)
    assert result.exit_code == 0, result.output
    told = (
        f"There is {other} meanwhile, of something else. This acquisition goes to image_2{suffix}"
    )
    assert told in result.stderr
    assert written_to(result) == f"image_2{suffix}"
    result = run(command)
    assert f"There is {other} already. This acquisition goes to image_3{suffix}" in result.stderr
    for name in ("image_2", "image_3"):
        read = np.load if suffix == ".npy" else tifffile.imread
        np.testing.assert_array_equal(read(f"{name}{suffix}"), expected(frames))
    assert other.stat().st_size < Path(f"image_2{suffix}").stat().st_size
    assert sorted(path.name for path in Path().glob("*image*")) == [
        f"image{suffix}", f"image_2{suffix}", f"image_3{suffix}"
    ]  # fmt: skip
