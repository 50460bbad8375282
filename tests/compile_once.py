"""Of several processes that want the same code compiled, one does it, and the others load it."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

from numba.core.caching import NullCache
from numba.core.dispatcher import Dispatcher

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

#: Where the name of the folder is that these processes share: the environment, for their children.
FOLDER = "TESTS_COMPILE_ONCE"

_compile = Dispatcher.compile
_busy = threading.local()


def compile_once(dispatcher: Any, types: Any) -> Any:
    """Compile while no other process compiles the same; or load what it has compiled."""
    # What is needed meanwhile is not waited for: its process might wait for this one.
    if getattr(_busy, "now", False) or isinstance(dispatcher._cache, NullCache):
        return _compile(dispatcher, types)
    what = f"{dispatcher.py_func.__module__} {dispatcher.py_func.__qualname__} {types}"
    name = hashlib.sha256(what.encode()).hexdigest()
    with Path(os.environ[FOLDER], name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _busy.now = True
        try:
            return _compile(dispatcher, types)
        finally:
            _busy.now = False


def install() -> None:
    """Have this process do so, if there is a folder."""
    if fcntl is not None and FOLDER in os.environ:
        Dispatcher.compile = compile_once
