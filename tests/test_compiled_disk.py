"""Numba's cache on disk, in a bad state: code is compiled all the same, and a warning says why."""

from __future__ import annotations

import importlib
import resource
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import pytest

from libertem_parallax.accumulate import disk
from libertem_parallax.cli.messages import messages_only

Load = Callable[[], Any]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Give a function anew, as another process would, with a cache of its own."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(disk, "_complained", [])
    # Python's own cache would be cut off as well, and does not notice it at once.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "functions_to_keep.py").write_text(
        "def double(x):\n    return 2 * x\n", encoding="utf-8"
    )

    def again() -> Any:
        sys.modules.pop("functions_to_keep", None)
        return disk.keep_on_disk(importlib.import_module("functions_to_keep").double)

    return again


def hits(function: Any) -> int:
    return sum(function.stats.cache_hits.values())


def files(folder: Path, ending: str) -> list[Path]:
    found = list((folder / "cache").rglob(f"*.{ending}"))
    assert found
    return found


def check_warns_once(load: Load, folder: Path) -> None:
    """With the name of the folder; more types are compiled without a word."""
    function = load()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert function(3) == 6
        assert function(1.5) == 3.0
        assert load()(3) == 6
    (warning,) = warned
    assert f"the folder {folder / 'cache'}" in str(warning.message)
    assert "NUMBA_CACHE_DIR" in str(warning.message)


def test_it_works(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    """People are told, once, where something is compiled, and only there."""
    with messages_only(), messages_only():
        assert load()(3) == 6
        assert load()(1.5) == 3.0
    assert capsys.readouterr().err == "Compiling code, which takes some seconds the first time\n"
    with messages_only():
        function = load()
        assert function(3) == 6
    assert hits(function) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("left", [0, 40])
def test_files_that_a_power_cut_left(load: Load, tmp_path: Path, ending: str, left: int) -> None:
    """They are empty, or have lost their end; the next process finds the cache in order."""
    load()(3)
    for file in files(tmp_path, ending):
        file.write_bytes(file.read_bytes()[:left])
    check_warns_once(load, tmp_path)
    with warnings.catch_warnings(action="error"):
        function = load()
        assert function(3) == 6
        assert hits(function) == 1


@pytest.fixture
def full() -> Iterator[None]:
    """Let no file grow, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("full")
def test_a_full_disk(load: Load, tmp_path: Path) -> None:
    check_warns_once(load, tmp_path)


def test_a_folder_that_cannot_be_written(load: Load, tmp_path: Path) -> None:
    """To the administrator, everything is allowed; but not in a file."""
    function = load()
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="cannot be used: NotADirectoryError"):
        assert function(3) == 6


def test_no_folder_at_all(
    load: Load, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in containers and on cluster nodes."""

    def refuse(function: Any) -> None:
        raise RuntimeError(f"cannot cache function {function.__name__!r}: no locator available")

    monkeypatch.setattr(disk, "_Cache", refuse)
    with pytest.warns(RuntimeWarning, match="no locator available"):
        assert load()(3) == 6
    with warnings.catch_warnings(action="error"), caplog.at_level("INFO", disk.__name__):
        assert load()(1.5) == 3.0
    assert len(caplog.records) == 1
