"""What the commands for files are tried with, and what is expected of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from click.testing import Result
from libertem.api import Context
from numpy.typing import NDArray

from libertem_parallax import ParallaxUDF

SHAPE = (6, 8, 10, 12)

# Something other than the default everywhere, in the form for `from_parameters`.
ACQUISITION: dict[str, Any] = {
    "scan_sampling": (4.0, 5.0),
    "energy": 200e3,
    "semiangle_cutoff": 4.0,
    "angular_sampling": (1.0, 1.5),
    "aberration_coefs": {"C10": -2000.0, "C12": 300.0, "phi12": 0.5},
    "rotation_angle": float(np.deg2rad(-15)),
    "upsampling_factor": 2,
    "suppress_Nyquist_noise": False,
    "detector_flip_cols": True,
    "center": (4.5, 6.25),
}
TOML = """
scan_sampling = [4.0, 5.0]
energy = 200e3
semiangle_cutoff = 4
angular_sampling = [1.0, 1.5]
rotation_angle = "-15deg"
upsampling_factor = 2
suppress_Nyquist_noise = false
detector_flip_cols = true
center = [4.5, 6.25]
bf_mask = "mask.npy"

[aberration_coefs]
C10 = -2000
C12 = 300
phi12 = "28.64788975654116deg"
"""
OPTIONS = (
    "--scan-sampling 4 5 --energy 200e3 --semiangle-cutoff 4 --angular-sampling 1 1.5 "
    "--rotation-angle -15deg --upsampling-factor 2 --no-suppress-nyquist-noise "
    "--detector-flip-cols --center 4.5 6.25 --bf-mask data/mask.npy "
    "--aberration C10=-2000 --aberration C12=300 --aberration phi12=28.64788975654116deg"
)

# As little as possible.
MINIMUM = "--scan-sampling 4 5 --energy 200e3 --semiangle-cutoff 4 --angular-sampling 1 1"
BRIEF = f"{MINIMUM} --aberration C12=2000"

# A pixel size that TIFF cannot hold, with shifts of few pixels.
TINY = f"{MINIMUM} --scan-sampling 1e-9 1e-9 --aberration C12=5e-7"
Run = Callable[[str], Result]


def frames() -> NDArray[np.uint8]:
    return np.random.default_rng(1).poisson(3, SHAPE).astype(np.uint8)


def mask() -> NDArray[np.bool_]:
    bf_mask = np.ones(SHAPE[2:], dtype=bool)
    bf_mask[4, 5:7] = False
    return bf_mask


def expected(cls: type[ParallaxUDF] = ParallaxUDF, **changes: Any) -> NDArray[np.float32]:
    """Image by the UDF itself."""
    parameters = {**ACQUISITION, "bf_mask": mask(), **changes}
    udf = cls.from_parameters(shape=SHAPE, **parameters)
    with Context.make_with("inline") as ctx:
        dataset = ctx.load("memory", data=frames(), sig_dims=2)
        image: NDArray[np.float32] = ctx.run_udf(dataset, udf)["reconstruction"].data
    return image


def succeeded(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def check_error(result: Result, messages: list[str]) -> None:
    assert result.exit_code != 0
    # Any other exception would have been shown with its traceback.
    assert isinstance(result.exception, SystemExit)
    assert "Error: " in result.stderr
    assert result.stdout == ""
    for message in messages:
        assert message in result.stderr
