"""Numba's cache on disk, which may be full, damaged or write-protected: that costs time only."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache, NullCache

__all__ = ["keep_on_disk"]

#: Gets a record before code is compiled, which takes a second or several.
_log = logging.getLogger(__name__)


def keep_on_disk(function: Callable[..., Any]) -> Any:
    """Compile for all processes, or for this one where there is no place to keep it.

    Parameters
    ----------
    function
        That Numba can compile; it gets to run without the GIL.

    Returns
    -------
    callable
        The same, compiled for every combination of types that it is called with.

    Warns
    -----
    RuntimeWarning
        Once, when it is compiled, if the folder of the cache cannot be used.
    """
    compiled = njit(nogil=True)(function)
    if hasattr(compiled, "enable_caching"):  # it has not where Numba is switched off
        try:
            compiled._cache = _Cache(function)
        except RuntimeError as error:  # Numba knows no folder
            compiled._cache = _NoCache(error)
    return compiled


class _Cache(FunctionCache):  # type: ignore[misc]
    """Numba's, but for the errors."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Load code, or None if there is none that can be used."""
        code = None
        try:
            code = super().load_overload(sig, target_context)
        except Exception as error:  # of the file system, or of anything in the files
            _complain(self.cache_path, error)
            # After a power cut, say, files are empty: forget them.
            with contextlib.suppress(Exception):
                self.flush()
        if code is None:
            _log.info("compiling %s", self._name)
        return code

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep code, if there is a place for it."""
        try:
            super().save_overload(sig, data)
        except Exception as error:
            _complain(self.cache_path, error)


class _NoCache(NullCache):  # type: ignore[misc]
    """Keeps nothing, and says so."""

    def __init__(self, problem: Exception) -> None:
        self._problem = problem

    def load_overload(self, sig: Any, target_context: Any) -> None:  # noqa: ARG002
        """Find nothing."""
        _log.info("compiling for %s", sig)

    def save_overload(self, sig: Any, cres: Any) -> None:  # noqa: ARG002
        """Forget the code."""
        _complain("for this package", self._problem)


_complained: list[str] = []


def _complain(folder: str, error: Exception) -> None:
    if _complained:
        return
    _complained.append(folder)
    warnings.warn(
        f"Numba's cache on disk, the folder {folder}, cannot be used: {type(error).__name__}, "
        f"{error}. So code is compiled, which takes some seconds each time. Make room, delete that "
        "folder, or name another one in the environment variable NUMBA_CACHE_DIR.",
        RuntimeWarning,
        stacklevel=3,
    )
