"""What engines of the likelihood are tried with."""

from __future__ import annotations

import numpy as np

from libertem_parallax import aberrations
from libertem_parallax.interference import polynomial

WAVELENGTH, SEMIANGLE = 0.02, 0.011
COEFS = {
    "": {},
    "second order": {"C10": -900.0, "C12": 210.0, "phi12": 0.7},
    "third order": {
        "C10": 300.0, "C12": 90.0, "phi12": -1.2, "C21": 3e3, "phi21": 2.0, "C23": 4e3,
        "phi23": 0.4, "C30": 4e5, "C32": 3e5, "phi32": 0.2, "C34": 2e5, "phi34": -0.3,
    },
    "fifth order": {"C10": 200.0, "C45": 4e7, "phi45": 0.3, "C50": 3e9, "C56": 4e9, "phi56": 1.0},
}  # fmt: skip


def case(coefs, Q=7, M=40):
    """Images of noise, directions in semiangles up to beyond the rim, and frequencies."""
    rng = np.random.default_rng(0)
    images = (rng.normal(size=(Q, M)) + 1j * rng.normal(size=(Q, M))).astype(np.complex64)
    radius, angle = np.sqrt(rng.uniform(0, 1.02, M)), rng.uniform(0, 2 * np.pi, M)
    xi = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    eta = rng.uniform(-0.8, 0.8, (Q, 2))
    turns = polynomial(aberrations.canonical(coefs), SEMIANGLE, WAVELENGTH)
    return images, xi, eta, turns
