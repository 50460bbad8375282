"""Compiles the kernels with g++ and launches them."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

HEADER = Path(__file__).with_name("device.hpp")
ORDERS = {"forward": 0, "reverse": 1, "shuffled": 2}

#: Whether the kernels can be compiled here.
AVAILABLE = shutil.which("g++") is not None

# What is compiled is kept for the session. The first process makes a folder for it and removes it;
# those that it starts find it there.
if "KERNELS_FOLDER" not in os.environ:
    _folder = tempfile.TemporaryDirectory(prefix="kernels-")
    os.environ["KERNELS_FOLDER"] = _folder.name


#: How kernels are compiled, and where addresses are checked.
OPTIONS = ["-std=c++17", "-fPIC", "-O1", "-U_FORTIFY_SOURCE"]
SANITIZED = ["-std=c++17", "-fPIC", "-g", "-fsanitize=address,undefined"]


class CompileError(Exception):
    """g++ refused the source."""


@functools.cache
def header() -> Path:
    """Copy of the header with what g++ makes of it beside: most of the time goes into that."""
    folder = Path(os.environ["KERNELS_FOLDER"])
    digest = hashlib.sha256(HEADER.read_bytes()).hexdigest()[:16]
    path = folder / f"{digest}.hpp"
    compiled = folder / f"{digest}.hpp.gch"
    if not compiled.exists():
        part = folder / f"{digest}.{os.getpid()}"
        shutil.copy(HEADER, part)
        part.replace(path)
        compile_with(*OPTIONS, "-x", "c++-header", str(path), "-o", str(part))
        part.replace(compiled)
    return path


def compile_with(*arguments: str, text: str | None = None) -> None:
    # Where AddressSanitizer is loaded first, g++ would take twice as long with it.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(
        ["g++", *arguments],
        input=text, text=True, capture_output=True, check=False, env=environment,
    )  # fmt: skip
    if done.returncode:
        raise CompileError(done.stderr)


@functools.cache
def compile_kernels(source: str, expressions: tuple[str, ...], sanitize: bool = False):
    """Compile template instances of a kernel; returns what `launch` takes for each."""
    text = f'#include "{HEADER if sanitize else header()}"\n{source}\n'
    for i, expression in enumerate(expressions):
        text += f"""
extern "C" void launch_{i}(
    const unsigned *grid, const unsigned *block, void **values, int order, unsigned seed)
{{
    standin::launch(&{expression}, grid, block, values, order, seed);
}}
extern "C" int arguments_{i}(unsigned long *sizes)
{{
    return standin::arguments(&{expression}, sizes);
}}
"""
    name = hashlib.sha256(f"{sanitize} {text}".encode()).hexdigest()[:16]
    path = Path(os.environ["KERNELS_FOLDER"], f"{name}.so")
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        options = SANITIZED if sanitize else OPTIONS
        compile_with(*options, "-shared", "-x", "c++", "-", "-o", str(part), text=text)
        part.replace(path)
    library = ctypes.CDLL(str(path))
    kernels = []
    for i in range(len(expressions)):
        sizes = (ctypes.c_ulong * 64)()
        count = library[f"arguments_{i}"](sizes)
        kernels.append((library[f"launch_{i}"], tuple(sizes[:count])))
    return kernels


def launch(kernel, grid, block, arguments, order="shuffled", seed=0):
    """Run a kernel now. `arguments`: NumPy scalars and integers that are addresses."""
    function, sizes = kernel
    values = [np.int64(a) if isinstance(a, int) else a for a in arguments]
    if tuple(v.nbytes for v in values) != sizes:
        raise TypeError(
            f"arguments of {[v.nbytes for v in values]} bytes for parameters of {list(sizes)} bytes"
        )
    held = [np.array(v) for v in values]
    pointers = (ctypes.c_void_p * len(held))(*[v.ctypes.data for v in held])
    three = ctypes.c_uint * 3
    shape = [three(*(*s, 1, 1)[:3]) for s in (grid, block)]
    function(shape[0], shape[1], pointers, ORDERS[order], seed)


def sanitizer() -> str | None:
    """Path of the AddressSanitizer's library, if g++ has it."""
    if not AVAILABLE:
        return None
    path = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return os.path.realpath(path) if os.path.isabs(path) else None
