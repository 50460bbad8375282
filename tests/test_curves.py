"""Contrast transfer against spatial frequency."""

from __future__ import annotations

import re

import numpy as np
import pytest
from click.testing import CliRunner

import libertem_parallax as prlx
from libertem_parallax.cli import main
from libertem_parallax.show.curves import transfer_figure

PARAMETERS = {
    "scan_sampling": (3.0, 3.0),
    "energy": 300e3,
    "semiangle_cutoff": 4.0,
    "angular_sampling": (0.25, 0.25),
    "aberration_coefs": {"C10": -1.2e4},
    "upsampling_factor": 3,
}
WAVELENGTH = 0.0196875
SHAPE = (96, 96, 35, 35)


def test_within_the_semiangle_it_is_the_known_one():
    """sin χ times the share of the aperture that both beams are in, and the rounding of shifts."""
    curves = prlx.transfer(PARAMETERS)
    q = curves.frequency
    assert q[0] == pytest.approx(1 / 768, rel=0.2)
    assert (np.diff(q) > 0).all()
    assert curves.semiangle == pytest.approx(4e-3 / WAVELENGTH, rel=1e-4)
    assert curves.nyquist == pytest.approx(1 / 6)
    chi = np.pi * WAVELENGTH * -1.2e4 * q**2
    smooth = (q > 0.03) & (q < 0.08)  # from ring to ring
    np.testing.assert_allclose(curves.sin_chi[smooth], np.sin(chi[smooth]), atol=0.05)
    # Two disks that are q apart overlap in this share of either.
    x = q / curves.semiangle / 2
    overlap = 2 / np.pi * (np.arccos(np.minimum(x, 1)) - x * np.sqrt(1 - np.minimum(x, 1) ** 2))
    rounding = np.sinc(q) ** 1.0  # of shifts to pixels of 1 Å, along one axis
    expected = np.sin(chi) * overlap * rounding
    np.testing.assert_allclose(curves.parallax[smooth], expected[smooth], atol=0.08)
    np.testing.assert_allclose(curves.phase_flip[smooth], abs(expected[smooth]), atol=0.08)
    beyond = q > 2.1 * curves.semiangle
    for values in (curves.parallax, curves.phase_flip, curves.phase):
        np.testing.assert_allclose(values[beyond], 0, atol=1e-3)


def test_phase_follows_the_signal_over_the_noise():
    few, many = (
        prlx.transfer(PARAMETERS, shape=SHAPE, regularization=snr).phase for snr in (1.0, 1e4)
    )
    assert ((few >= 0) & (many <= 1) & (few <= many)).all()
    assert many.max() > 0.99
    assert few.max() <= 0.5 + 1e-6
    given = prlx.transfer({**PARAMETERS, "regularization": 1.0}, shape=SHAPE).phase
    np.testing.assert_array_equal(given, few)


def test_center_and_mask_count_where_there_is_a_detector():
    """On the axis, both beams stay within the aperture up to its rim."""
    mask = np.hypot(*(np.indices((40, 40)) - 20)) < 3
    whole, middle = (
        prlx.transfer({**PARAMETERS, "bf_mask": bf_mask}, shape=(64, 64, 40, 40))
        for bf_mask in (None, mask)
    )
    q = whole.frequency
    inner = (q > 0.05) & (q < 0.12)
    np.testing.assert_allclose(middle.phase_flip[inner], abs(middle.sin_chi[inner]), atol=0.1)
    assert middle.phase_flip[inner].mean() > 1.2 * whole.phase_flip[inner].mean()
    with pytest.raises(ValueError, match="energy is missing"):
        prlx.transfer({k: v for k, v in PARAMETERS.items() if k != "energy"})


def test_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prlx.Parameters(**PARAMETERS).save(tmp_path / "scan.toml")
    result = CliRunner().invoke(main, ["transfer", "--params", "scan.toml", "-o", "curves.png"])
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines() if re.match(r" +\d", line)]
    curves = prlx.transfer(PARAMETERS)
    for nm, _, parallax, *_ in lines:
        at = np.argmin(abs(curves.frequency - 0.1 / float(nm)))
        assert float(parallax) == pytest.approx(curves.parallax[at], abs=0.1)
    assert len(lines) >= 16
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    asked = ["transfer", "--params", "scan.toml", "-o"]
    assert CliRunner().invoke(main, [*asked, "curves.png"]).exit_code == 0  # its own
    for name in ("notes.png", "notes.svg"):
        (tmp_path / name).write_text("my notes")
        result = CliRunner().invoke(main, [*asked, name])
        assert result.exit_code == 2
        assert "no image of this program" in result.output
        assert (tmp_path / name).read_text() == "my notes"
        assert CliRunner().invoke(main, [*asked, name, "--overwrite"]).exit_code == 0
        assert "my notes" not in (tmp_path / name).read_bytes().decode(errors="replace")
    result = CliRunner().invoke(main, [*asked, "curves.jpg"])
    assert result.exit_code == 2
    assert "expected a name with .png" in result.output


def test_the_picture_shows_all_curves():
    curves = prlx.transfer(PARAMETERS, shape=SHAPE)
    [axes] = transfer_figure(curves).axes
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    for name in ("parallax", "phase"):
        np.testing.assert_array_equal(drawn[name], getattr(curves, name))
    np.testing.assert_array_equal(drawn["phase flip"], curves.phase_flip)
