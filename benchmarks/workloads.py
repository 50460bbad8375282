"""What is measured."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

__all__ = ["CURVES", "PARAMETERS", "WORKLOADS", "Workload", "events", "radius", "write"]

#: The acquisition of the README's example.
PARAMETERS: dict[str, Any] = {
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
    """Frames, parameters of the UDF, and how LiberTEM runs it.

    Parameters
    ----------
    name
        Empty for the points of a curve.
    shape
        Scan rows and columns, detector rows and columns.
    dtype
        Of the frames.
    parameters
        Of ``from_parameters``.
    electrons
        Counts per lit detector pixel and frame, on average.
    lit
        Rows and columns in the middle of the detector that electrons reach. Default: all.
    storage
        Format of the file by LiberTEM's name; one of `_WRITERS`. ``memory``: a .npy file that is
        read before anything is measured.
    executor, workers
        LiberTEM's executor, and how many workers it has (one if it is ``inline``).
    partitions
        Of the data set. Default: LiberTEM's.
    """

    name: str
    shape: tuple[int, int, int, int]
    dtype: str = "uint8"
    parameters: dict[str, Any] = field(default_factory=lambda: PARAMETERS)
    electrons: float = 0.7  # 30 e/Å² in the acquisition above
    lit: int | None = None
    storage: str = "npy"
    executor: str = "inline"
    workers: int = 1
    partitions: int | None = None

    @property
    def lit_part(self) -> tuple[slice, slice]:
        """Rows and columns of the detector that electrons reach."""
        rows, cols = (
            slice(n // 2 - lit // 2, n // 2 - lit // 2 + lit)
            for n, lit in ((n, n if self.lit is None else self.lit) for n in self.shape[2:])
        )
        return rows, cols

    @property
    def dark(self) -> NDArray[np.bool_]:
        """Which pixels of the lit part are beyond the bright field, with a pixel in between."""
        y, x = (
            (np.arange(n)[part] - n // 2) * step
            for n, part, step in zip(
                self.shape[2:], self.lit_part, self.parameters["angular_sampling"], strict=True
            )
        )
        step = min(self.parameters["angular_sampling"])
        dark: NDArray[np.bool_] = (
            np.hypot(y[:, None], x) > self.parameters["semiangle_cutoff"] + step
        )
        return dark


def _write_npy(file: Path, workload: Workload) -> None:
    """Write frames of Poisson noise, within the disk: its place is compared with parameters."""
    rng = np.random.default_rng(0)
    levels = scipy.stats.poisson.ppf((np.arange(2**16) + 0.5) / 2**16, workload.electrons)
    table = levels.astype(workload.dtype)  # much faster than to draw every number
    frames = np.lib.format.open_memmap(file, "w+", workload.dtype, workload.shape)
    dark = workload.dark
    for row in frames:
        lit = row[:, *workload.lit_part]
        counts = table[rng.integers(0, 2**16, lit.shape, dtype=np.uint16)]
        counts[:, dark] = 0
        lit[:] = counts


def _write_raw_csr(file: Path, workload: Workload) -> None:
    """Write events: every pixel of the disk gets one electron with the same probability, or none.

    So the gaps between them are geometric, and zeros need not be drawn. Those beyond the disk are
    left out.
    """
    rng = np.random.default_rng(0)
    rows, cols = workload.lit_part
    width, area = cols.stop - cols.start, (cols.stop - cols.start) * (rows.stop - rows.start)
    frames, detector_cols = workload.shape[1], workload.shape[3]
    expected = workload.electrons * frames * area
    files = {name: file.with_name(f"{name}.raw") for name in ("data", "indices", "indptr")}
    dark = workload.dark.ravel()
    counts = []
    with files["data"].open("wb") as data, files["indices"].open("wb") as indices:
        for _ in range(workload.shape[0]):
            drawn = int(expected + 10 * expected**0.5 + 10)  # never too few
            places = np.cumsum(rng.geometric(workload.electrons, drawn)) - 1
            frame, place = np.divmod(places[: np.searchsorted(places, frames * area)], area)
            frame, place = (of[~dark[place]] for of in (frame, place))
            row, col = np.divmod(place, width)
            counts.append(np.bincount(frame, minlength=frames))
            index = (row + rows.start) * detector_cols + col + cols.start
            index.astype(np.int32).tofile(indices)
            np.ones(len(index), workload.dtype).tofile(data)
    np.cumsum([0, *np.concatenate(counts)], dtype=np.int64).tofile(files["indptr"])
    lines = [
        "[params]",
        'filetype = "raw_csr"',
        f"nav_shape = {list(workload.shape[:2])}",
        f"sig_shape = {list(workload.shape[2:])}",
        "[raw_csr]",
    ]
    for name, dtype in (("data", workload.dtype), ("indices", "int32"), ("indptr", "int64")):
        lines += [f'{name}_file = "{files[name].name}"', f'{name}_dtype = "{dtype}"']
    file.write_text("\n".join(lines))


#: How to write the frames, by storage.
_WRITERS = {"npy": _write_npy, "memory": _write_npy, "raw_csr": _write_raw_csr}


def write(workload: Workload, folder: Path) -> Path:
    """Write the frames of a workload.

    Parameters
    ----------
    workload
        What to write.
    folder
        Where to; emptied. If it has these frames already, they are used again.

    Returns
    -------
    pathlib.Path
        The file, for ``Context.load``.
    """
    shape = "x".join(map(str, workload.shape))
    radius = workload.parameters["semiangle_cutoff"] / workload.parameters["angular_sampling"][0]
    name = f"{shape}_{workload.dtype}_{workload.electrons:g}_{workload.lit or 'all'}_{radius:.4g}"
    file = folder / f"{name}.{workload.storage}"
    if not file.exists():
        for other in folder.iterdir():
            other.unlink()
        _WRITERS[workload.storage](file, workload)
    return file


def radius(pixels: float) -> dict[str, Any]:
    """Parameters with a bright field of that radius; a little more, to include its edge."""
    return PARAMETERS | {"semiangle_cutoff": (pixels + 0.1) * 0.307617}


def events(
    scan: int, electrons: float, detector: int = 256, partitions: int | None = None
) -> Workload:
    """Make a workload of events, and a bright field of 100 pixels in radius.

    Parameters
    ----------
    scan, detector
        Rows and columns of each.
    electrons
        Per pixel of the middle 256 x 256.
    partitions
        See `Workload`.
    """
    name = f"{scan} x {scan} scan, {detector} x {detector} events, {electrons:.1%}, radius 100"
    parameters = PARAMETERS | {"angular_sampling": (0.04, 0.04), "semiangle_cutoff": 100.1 * 0.04}
    return Workload(
        name,
        (scan, scan, detector, detector),
        parameters=parameters,
        electrons=electrons,
        lit=256,
        storage="raw_csr",
        partitions=partitions,
    )


#: From the smallest to larger ones, then events.
WORKLOADS = (
    Workload("24 x 24 scan, 64 x 64 uint8", (24, 24, 64, 64)),
    Workload("72 x 72 scan, 64 x 64 uint8", (72, 72, 64, 64)),
    Workload("256 x 256 scan, 64 x 64 uint8", (256, 256, 64, 64)),
    Workload("512 x 512 scan, 64 x 64 uint8", (512, 512, 64, 64)),
    Workload("256 x 256 scan, 64 x 64 uint16", (256, 256, 64, 64), "uint16"),
    Workload("128 x 128 scan, 64 x 64 float32", (128, 128, 64, 64), "float32"),
    Workload(
        "128 x 128 scan, 192 x 192 uint16, radius 30", (128, 128, 192, 192), "uint16", radius(30)
    ),
    Workload("32 x 32 scan, 512 x 512 uint16, radius 30", (32, 32, 512, 512), "uint16", radius(30)),
    *(events(96, electrons) for electrons in (0.001, 0.01, 0.1)),
)


def _one_to(cores: int) -> list[int]:
    return sorted({1, 2, *(2**n for n in range(2, 10) if 2**n < cores), cores})


_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

#: Frames per second against one thing at a time: title to (x, workload).
CURVES: dict[str, list[tuple[float | str, Workload]]] = {
    "scan rows and columns": [
        (n, Workload("", (n, n, 64, 64))) for n in (16, 32, 64, 128, 256, 512)
    ],
    "radius of the bright field / pixels": [
        (r, Workload("", (128, 128, 64, 64), parameters=radius(r))) for r in (3, 6, 10, 15, 20, 26)
    ],
    "upsampling factor": [
        (u, Workload("", (128, 128, 64, 64), parameters=PARAMETERS | {"upsampling_factor": u}))
        for u in (1, 2, 3, 4)
    ],
    "dtype": [
        (dtype, Workload("", (128, 128, 64, 64), dtype))
        for dtype in ("uint8", "uint16", "uint32", "uint64", "float32", "float64")
    ],
    "frames per partition": [
        (128 * 128 / n, Workload("", (128, 128, 64, 64), partitions=n)) for n in (256, 64, 16, 4, 1)
    ],
    "electrons per pixel, 256 x 256 events": [
        (electrons, events(64, electrons)) for electrons in (0.001, 0.01, 0.05, 0.1, 0.2)
    ],
    "threads": [
        (n, Workload("", (256, 256, 64, 64), executor="threads", workers=n))
        for n in _one_to(_CORES)
    ],
    "Dask workers": [
        (n, Workload("", (256, 256, 64, 64), executor="dask", workers=n)) for n in _one_to(_CORES)
    ],
}
