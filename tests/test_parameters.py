"""Parameters are declared once: what else speaks of them agrees, and files hold them."""

from __future__ import annotations

import datetime
import errno
import inspect
import math
import os
import pickle
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

import libertem_parallax as prlx
from libertem_parallax.geometry import Geometry
from libertem_parallax.memory import check_detector, check_image
from libertem_parallax.parameters import DEFAULTS, PARAMETERS, Parameters, load_parameters

#: Something other than the default everywhere.
EVERYTHING = {
    "scan_sampling": (4.0, 5.1),
    "energy": 200e3,
    "semiangle_cutoff": 1.3,
    "angular_sampling": (0.1 + 0.2, 1 / 3),
    "aberration_coefs": {"C10": -2000.0, "C12": 300.0, "phi12": 0.5},
    "rotation_angle": 0.1,
    "upsampling_factor": 2,
    "suppress_Nyquist_noise": False,
    "detector_flip_cols": True,
    "center": (4.5, 6.25),
    "engine": "numpy",
    "image": ("phase_flip",),
    "detector_flip_rows": True,
    "detector_transpose": True,
    "regularization": 40.0,
    "borders": "coverage",
}
SETTINGS = {
    "load": {
        "type": "raw",
        "nav_shape": [6, 8],
        "a": {"b c": '"\n\\\x7f\x01 Å 😀', "": [True, 1, 1e22]},
        "day": datetime.date(2026, 2, 3),
        "b": float("inf"),
    }
}


def test_from_parameters_has_what_is_declared() -> None:
    signature = inspect.signature(prlx.ParallaxUDF.from_parameters).parameters
    arguments = {name: p for name, p in PARAMETERS.items() if p.of != "command"}
    assert list(signature) == ["shape", *arguments]
    for name, declared in arguments.items():
        expected = inspect.Parameter.empty if declared.required and not declared.instead else None
        assert signature[name].default in (expected, declared.default)
        assert signature[name].default is not None or declared.default is None


def test_its_docstring_says_what_is_declared() -> None:
    text = inspect.getdoc(prlx.ParallaxUDF.from_parameters) or ""
    section = text[text.index("Parameters\n---") : text.index("Returns\n---")]
    entries = re.findall(r"^(\w+)\n((?:    .*\n|\n)+)", section, flags=re.MULTILINE)
    described = {name: " ".join(words.split()) for name, words in entries}
    for name, declared in PARAMETERS.items():
        if declared.of != "command":
            assert described.pop(name).startswith(declared.meaning)
    assert list(described) == ["shape"]


def test_the_table_of_the_docs_says_what_is_declared() -> None:
    """If not: what it expects is the table to be pasted."""
    page = Path(__file__).parents[1] / "docs" / "parameters.md"
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line[:3] == "| `"]
    assert rows[: len(PARAMETERS)] == [
        f"| `{name}` | {declared.meaning} | {declared.need.removeprefix('default: ')} |"
        for name, declared in PARAMETERS.items()
    ]


def test_values_of_the_defaults_are_valid() -> None:
    for name, default in DEFAULTS.items():
        assert default is None or PARAMETERS[name].check(default) == default


def test_a_mapping_of_what_is_given() -> None:
    parameters = Parameters(**EVERYTHING, **SETTINGS, bf_mask=None)
    assert dict(parameters) == EVERYTHING
    assert len(parameters) == len(EVERYTHING)
    assert parameters.settings == SETTINGS
    udf = prlx.ParallaxUDF.from_parameters(shape=(6, 8, 10, 12), **parameters)
    assert udf.params.engine == "numpy"
    kept = udf.params.geometry.parameters
    assert dict(kept) == {
        name: value for name, value in EVERYTHING.items() if PARAMETERS[name].of == "acquisition"
    }
    assert dict(pickle.loads(pickle.dumps(parameters))) == EVERYTHING


def test_it_does_not_change() -> None:
    coefs = {"C10": 1.0}
    mask = np.ones((2, 2), bool)
    parameters = Parameters(aberration_coefs=coefs, bf_mask=mask, load={"a": [1]})
    coefs["C10"] = mask[0, 0] = 0
    parameters["aberration_coefs"]["C10"] = 2
    parameters.settings["load"]["a"].append(2)
    with pytest.raises(ValueError, match="read-only"):
        parameters["bf_mask"][0, 0] = 0
    with pytest.raises(TypeError):
        parameters["energy"] = 300e3  # type: ignore[index]
    assert parameters["aberration_coefs"] == {"C10": 1.0}
    assert parameters["bf_mask"].all()
    assert parameters.settings == {"load": {"a": [1]}}


def test_replace() -> None:
    parameters = Parameters(**EVERYTHING, **SETTINGS)
    new = parameters.replace(
        energy=300e3, reciprocal_sampling=(1, 2), center=None, load=None, aberration_coefs={}
    )
    expected = {**EVERYTHING, "energy": 300e3, "reciprocal_sampling": (1.0, 2.0)}
    del expected["angular_sampling"], expected["center"]
    assert dict(new) == {**expected, "aberration_coefs": {}}
    assert new.settings == {}
    assert dict(parameters) == EVERYTHING


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("energy = [[", "params.toml: cannot be read as TOML"),
        (f"load = {3000 * '['}{3000 * ']'}", "params.toml: cannot be read as TOML: .*recursion"),
        (
            "[aberration_coefs.C10]\nx = 1",
            r"params.toml: aberration_coefs\['C10'\] = {'x': 1}",
        ),
        ("[[aberration_coefs]]\nC10 = 1", "params.toml: aberration_coefs = .* names and values"),
        ("[aberration_coefs]\nenergy = 1", "'energy' .* move it above the table"),
        ("[load]\ntype = 'npy'\nimage = 'parallax'", "'image' stands below \\[load\\]"),
        (f"bf_mask = '{300 * 'a'}'", "bf_mask: .* cannot be read"),
        ("bf_mask = 'a\\u0000'", "bf_mask: .* cannot be read"),
        ("bf_mask = '.'", "bf_mask: .* cannot be read"),
        ("rotation_angle = 1979-05-27", "rotation_angle = .*: expected an angle"),
    ],
)
def test_errors_in_files_name_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_parameters(path)


def test_files_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "params.toml"
    path.write_text("energy = 3e5\r\n", encoding="utf-8-sig")
    assert dict(load_parameters(path)) == {"energy": 3e5}
    path.write_text("energy = 3e5", encoding="utf-16")
    with pytest.raises(ValueError, match=r"params\.toml: cannot be read as TOML: 'utf-8'"):
        load_parameters(path)


def _npy(shape: str, descr: str = "|b1") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(120)


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"PK\x03\x04 no archive",
        _npy("(10, 12)")[:140],
        _npy("(1000000000, 1000000000)"),
        _npy("(10, -12)"),
        _npy("(((((("),
        _npy("(10, 12)", "|O"),
        _npy("(10, 12)", "nothing"),
    ],
)
def test_damaged_masks(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "mask.npy"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=r"mask\.npy cannot be read as a \.npy file: "):
        Parameters(bf_mask=path)


def test_masks_among_others(tmp_path: Path) -> None:
    np.savez(tmp_path / "masks.npz", a=np.ones((10, 12), bool), b=np.zeros(3))
    with pytest.raises(ValueError, match=r"masks\.npz .* several arrays, a, b"):
        Parameters(bf_mask=tmp_path / "masks.npz")


def test_phase_flip_is_another_word_for_an_image() -> None:
    def images(parameters: Parameters, **changes: object) -> tuple[str, ...] | None:
        return parameters.replace(**changes).get("image")

    both = ("parallax", "phase_flip")
    assert Parameters(phase_flip=None).get("image") is None
    assert Parameters(phase_flip=True)["image"] == ("phase_flip",)
    assert Parameters(phase_flip=False)["image"] == ("parallax",)
    assert Parameters(phase_flip=True, image="parallax")["image"] == both
    given = Parameters(image=both)
    assert images(given, phase_flip=None) == both
    assert images(given, image=None) is None
    assert images(given, phase_flip=True) == ("phase_flip",)
    assert images(given, phase_flip=False) == ("parallax",)
    assert images(given, phase_flip=False, image="parallax") == ("parallax",)
    with pytest.raises(ValueError, match="leave one out"):
        given.replace(image=both, phase_flip=False)


def test_what_is_missing() -> None:
    def names(parameters: Parameters, *needed: str) -> list[str]:
        return [declared.name for declared in parameters.missing(*needed)]

    samplings = ["reciprocal_sampling", "angular_sampling"]
    assert names(Parameters(energy=1e5)) == ["scan_sampling", "semiangle_cutoff", *samplings]
    assert names(Parameters(energy=1e5), "energy", "center") == ["center"]
    assert names(Parameters(**EVERYTHING)) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"enery": 1}, "unknown parameter 'enery'; the nearest known one is 'energy' in eV"),
        ({"energie": 1}, "the nearest known one is 'energy' in eV"),
        ({"energy_keV": 1}, "the nearest known one is 'energy' in eV"),
        ({"voltage": 1}, "the nearest known one is 'energy' in eV"),
        ({"convergence_angle": 1}, "the nearest known one is 'semiangle_cutoff' in mrad"),
        ({"step_size_nm": 1}, "the nearest known one is 'scan_sampling' in Å"),
        ({"upsampling": 1}, "the nearest known one is 'upsampling_factor'"),
        ({"df": 1}, "the nearest known one is 'defocus' in Å, in aberration_coefs"),
        ({"defocus": 1}, "unknown parameter 'defocus'; it belongs in aberration_coefs"),
        ({"C10": 1}, "unknown parameter 'C10'; it belongs in aberration_coefs"),
        ({"self": 1}, "unknown parameter 'self'"),
        ({"phase_flip": 1}, "phase_flip = 1: expected True or False"),
        ({"load": "raw"}, "load = 'raw': expected a table"),
        ({"center": (1, float("nan"))}, "center = .*: expected two numbers, row and column"),
        ({"engine": ["numpy"]}, r"engine = \['numpy'\]: expected one of auto, cuda"),
        ({"scan_sampling": (True, 1.0)}, r"scan_sampling\[0\] = True: expected a positive number"),
        ({"scan_sampling": {1.0: 1, 2.0: 2}}, "scan_sampling = .*: expected two positive numbers"),
        ({"scan_sampling": b"12"}, "scan_sampling = b'12': expected two positive numbers"),
        ({"energy": np.True_}, "energy = .*True.*: expected a positive number"),
        ({"energy": np.array([3e5])}, "energy = array.*: expected a positive number"),
        ({"energy": 3e5 + 0j}, "energy = .*: expected a positive number"),
        ({"rotation_angle": True}, 'rotation_angle = True: expected an angle, .* "-15deg"'),
        ({"rotation_angle": "0.3"}, "rotation_angle = '0.3': expected an angle"),
        ({"rotation_angle": "deg"}, "rotation_angle = 'deg': expected an angle"),
        ({"bf_mask": np.ones(4, bool)}, r"bf_mask: expected a boolean array .* \(4,\)"),
        ({"bf_mask": "gone.npy"}, "bf_mask: gone.npy cannot be read"),
    ],
)
def test_errors_name_what_is_wrong(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Parameters(**given)


def test_what_toml_has_not_is_not_written(tmp_path: Path) -> None:
    for value in (None, {1}, b"raw"):
        with pytest.raises(ValueError, match="cannot be written as TOML"):
            Parameters(load={"a": value}).save(tmp_path / "a.toml")
    assert not list(tmp_path.iterdir())


def test_files_hold_everything(tmp_path: Path) -> None:
    parameters = Parameters(**EVERYTHING, **SETTINGS)
    parameters.save(tmp_path / "params.toml")
    loaded = prlx.load_parameters(str(tmp_path / "params.toml"))
    assert dict(loaded) == EVERYTHING
    assert loaded.settings == SETTINGS


def test_files_say_what_the_values_are(tmp_path: Path) -> None:
    path = tmp_path / "params.toml"
    parameters = Parameters(**{**EVERYTHING, "rotation_angle": "-15deg"})
    comments = {"energy": "as the\nmicroscope says", "C12": "± 3 Å"}
    parameters.save(path, comments=comments, header="Found in scan.h5.\n\nTwice.")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["# Found in scan.h5.", "#", "# Twice."]
    assert "energy = 200000.0  # energy of the electrons in eV; as the microscope says" in lines
    assert "C12 = 300.0  # ± 3 Å" in lines
    assert tomllib.loads("\n".join(lines))["rotation_angle"] == math.radians(-15)


def test_existing_files_are_kept(tmp_path: Path) -> None:
    path, mask = tmp_path / "params.toml", tmp_path / "params_bf_mask.npy"
    parameters = Parameters(energy=2e5, bf_mask=np.eye(3, dtype=bool))
    for occupied, other in ((path, mask), (mask, path)):
        occupied.write_text("mine")
        with pytest.raises(FileExistsError, match=f"{occupied.name} exists.*overwrite"):
            parameters.save(path)
        assert occupied.read_text() == "mine"
        assert not other.exists()
        occupied.unlink()
    for _ in range(2):
        parameters.save(path, overwrite=True)
        np.testing.assert_array_equal(load_parameters(path)["bf_mask"], np.eye(3))
    assert sorted(tmp_path.iterdir()) == [path, mask]


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_full_disk_leaves_what_there_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    path = tmp_path / "params.toml"
    if overwrite:
        path.write_text("mine")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*params\.toml"):
        Parameters(energy=2e5).save(path, overwrite=overwrite)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"] * overwrite


def test_masks_of_files_stay_in_their_file(tmp_path: Path) -> None:
    """Also where the parameters are written elsewhere."""
    (tmp_path / "there").mkdir()
    np.save(tmp_path / "mask.npy", np.eye(3, dtype=bool))
    (tmp_path / "a.toml").write_text('bf_mask = "mask.npy"', encoding="utf-8")
    loaded = load_parameters(tmp_path / "a.toml").replace(energy=1e5)
    assert loaded.files == {"bf_mask": tmp_path / "mask.npy"}
    loaded.save(tmp_path / "there" / "b.toml")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["b.toml"]
    again = load_parameters(tmp_path / "there" / "b.toml")
    np.testing.assert_array_equal(again["bf_mask"], np.eye(3))
    assert not loaded.replace(bf_mask=None).files


def test_a_geometry_with_other_parameters_is_made_from_all_of_them() -> None:
    shape = (6, 8, 10, 12)
    geometry = Geometry.from_parameters(shape, **EVERYTHING)
    changed = geometry.replace(aberration_coefs={"C10": -1000.0})
    expected = Geometry.from_parameters(
        shape, **{**EVERYTHING, "aberration_coefs": {"C10": -1000.0}}
    )
    assert changed.plan.digest == expected.plan.digest != geometry.plan.digest
    assert geometry.replace().plan.digest == geometry.plan.digest
    for name in ("center", "rotation_angle", "semiangle_cutoff"):
        assert changed.parameters[name] == EVERYTHING[name]


def test_memory() -> None:
    check_detector((1, 1, 512, 512))
    with pytest.raises(ValueError, match=r"a detector of 10000000 x 10000000 pixels .* GiB of mem"):
        prlx.ParallaxUDF.from_parameters(
            (8, 9, 10**7, 10**7), **{**EVERYTHING, "upsampling_factor": 1}
        )
    with pytest.raises(ValueError, match="shape = 5: expected four positive integers"):
        prlx.ParallaxUDF.from_parameters(5, **EVERYTHING)  # type: ignore[arg-type]
    large = {**EVERYTHING, "upsampling_factor": 1000}
    with pytest.raises(ValueError, match=r"upsampling_factor = 1000: an image of .* GiB of memory"):
        prlx.ParallaxUDF.from_parameters((9999, 9999, 24, 25), **large)
    check_image(Geometry.from_parameters((6, 8, 10, 12), **EVERYTHING).plan, 26)
