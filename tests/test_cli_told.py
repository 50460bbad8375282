"""What commands say where nothing can be seen, or written, is what a user can act on."""

import errno
import os
import re
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from file_commands import SHAPE, Run, succeeded

from libertem_parallax.files import About, replacing, save

OPTIONS = (
    "--scan-sampling 4 5 --energy 200e3 --semiangle-cutoff 4 --angular-sampling 1 1.5 "
    "--aberration C10=-2000 -o image.npy"
)


@pytest.mark.parametrize("value", [0, 3])
def test_frames_that_make_a_blank_image_are_told(run: Run, tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    frames = np.full(SHAPE, value, np.uint8)
    np.save("scan.npy", frames)
    result = succeeded(run(f"reconstruct scan.npy {OPTIONS}"))
    assert "Warning: parallax: zero everywhere" in result.stderr
    assert run(f"reconstruct scan.npy {OPTIONS} --overwrite --strict").exit_code == 1

    # All but rounding errors, of which no picture is made.
    np.save("scan.npy", frames * 0.1)
    several = "--upsampling-factor 2 --image parallax --image direct"
    for images, names in ((several, "parallax and direct"), (several[:-15], "parallax")):
        result = succeeded(run(f"reconstruct scan.npy {OPTIONS} {images} --overwrite"))
        assert f"Warning: {names}: zero everywhere" in result.stderr
        path = "image_parallax.npy" if "and" in names else "image.npy"
        assert not np.load(path).any()

    frames[2, 3, 5, 6] += 1
    np.save("scan.npy", frames)
    assert "zero" not in succeeded(run(f"reconstruct scan.npy {OPTIONS} --overwrite")).stderr


def test_errors_name_the_file_that_was_asked_for(tmp_path):
    """No temporary one, whose name is another each time: so a warning of it comes but once."""
    path = tmp_path / "gone" / "image.tif"
    problem = re.escape(f"No such file or directory: '{path}'") + "$"
    with pytest.raises(FileNotFoundError, match=problem):
        save(path, np.zeros((4, 4)), About((1.0, 1.0)))
    path.parent.mkdir()
    with pytest.raises(FileNotFoundError, match=problem), replacing(path):
        shutil.rmtree(path.parent)
    with pytest.raises(OSError, match=r"No space.*image\.tif"), replacing(tmp_path / "image.tif"):
        raise OSError(28, "No space left on device")


def test_what_a_disk_does_not_take_is_told_as_that(tmp_path, monkeypatch):
    """NumPy says "4096 requested and 1234 written" only; a disk that has failed deletes nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match=r"the disk is full, or .*: 1024 requested"):
            save(tmp_path / "image.tif", np.zeros((32, 32)), About((1.0, 1.0)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []

    def unlink(path, **_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(OSError, match=r"No space"), replacing(tmp_path / "image.tif"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_name_that_is_too_long_with_a_number(run: Run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "x" * 251 + ".tif"
    Path(name).write_text("mine")
    result = run(f"live merlin {OPTIONS[:-12]} -o {name}")
    assert result.exit_code == 2
    assert "_2.tif: cannot write there: [Errno 36] File name too long" in result.stderr
