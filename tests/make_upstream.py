"""Make upstream_0.1.2.npz: images by libertem-parallax 0.1.2 of the same name from PyPI.

Run it in an environment that has that package instead of this one::

    python -m venv /tmp/upstream && /tmp/upstream/bin/pip install libertem-parallax==0.1.2
    cd tests && /tmp/upstream/bin/python make_upstream.py
"""

import json
from pathlib import Path

import libertem.api
import numpy as np

import libertem_parallax

SHAPE = (10, 12, 16, 18)
BASE = {
    "shape": SHAPE,
    "scan_sampling": (3.1, 3.4),
    "energy": 300e3,
    "semiangle_cutoff": 2.1,
    "angular_sampling": (0.31, 0.29),
    "aberration_coefs": {"C10": -9000.0, "C12": 1500.0, "phi12": 0.6},
}
CASES = {
    "u1": {},
    "u2": {"upsampling_factor": 2},
    "u3": {"upsampling_factor": 3, "rotation_angle": 0.5},
    "noisy": {"upsampling_factor": 2, "suppress_Nyquist_noise": False},
    "rotated": {"upsampling_factor": 2, "rotation_angle": -0.26},
    "flipped": {"rotation_angle": 0.4, "detector_flip_cols": True},
    "quarter": {"rotation_angle": np.pi / 2, "detector_flip_cols": True},
    "half": {"rotation_angle": np.pi, "upsampling_factor": 2},
    "threequarters": {"rotation_angle": -np.pi / 2},
    "reciprocal": {"angular_sampling": None, "reciprocal_sampling": (0.0157, 0.0148)},
}

if __name__ == "__main__":
    frames = np.random.default_rng(12).poisson(3.0, SHAPE).astype(np.uint8)
    ctx = libertem.api.Context.make_with("inline")
    ds = ctx.load("memory", data=frames, sig_dims=2, num_partitions=2)
    images = {}
    for name, changes in CASES.items():
        udf = libertem_parallax.ParallaxUDF.from_parameters(**{**BASE, **changes})
        images[name] = ctx.run_udf(dataset=ds, udf=udf)["reconstruction"].data
    np.savez_compressed(
        Path(__file__).with_name("upstream_0.1.2.npz"),
        frames=frames,
        parameters=json.dumps({name: {**BASE, **c} for name, c in CASES.items()}),
        **images,
    )
