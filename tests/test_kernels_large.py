"""The kernels on arrays of more than 2**31 values, of which those that are used take memory."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import needs_compiler

from kernels import SANITIZE, launch
from libertem_parallax.accumulate.cuda import device

pytestmark = [needs_compiler, pytest.mark.skipif(SANITIZE, reason="of such sizes it keeps shadows")]

LARGE = 2**31


def test_frames_of_which_the_last_begin_far_away():
    size, n = 2**26, 40
    frames = np.zeros((n, size), np.uint8)
    pixels, targets = np.array([3, size - 1], np.int32), np.array([0, 50], np.int64)
    values = np.arange(1, 2 * n + 1, dtype=np.uint8).reshape(n, 2)
    frames[:, pixels] = values
    A, S, positions = np.zeros(50 + n, np.int32), np.zeros(n, np.int32), np.arange(n)
    arguments = [frames, positions, pixels, targets, A, S, *np.array([n, size, 2], np.int32)]
    launch("scatter", ("uint8", "int32"), device.launch_shape(n, 2), arguments, "forward", 0)
    np.testing.assert_array_equal(A[[*range(n), *range(50, 50 + n)]], values.T.reshape(-1))
    np.testing.assert_array_equal(S, values.sum(axis=1))


def test_images_of_which_the_last_begin_far_away():
    rows, columns = 64, 257
    size = rows * columns
    count = LARGE // size + 3
    images = np.zeros((count, rows, columns), np.uint8)
    images[-1] = np.random.default_rng(0).integers(0, 99, (rows, columns))
    A = np.full((rows, columns), -1, np.int32)
    pixels, steps = np.array([0, count - 1], np.int32), np.array([[1, 2], [5, 200]], np.int32)
    *shape, tiles = device.gather_launch_shape(1, size)
    arguments = [images, np.array([0, 2], np.int32), pixels, steps, A]
    arguments += [*np.array([rows, columns, tiles], np.int32)]
    launch("gather", ("uint8", "int32"), shape, arguments, "forward", 0)
    np.testing.assert_array_equal(A, np.roll(images[-1], (5, 200), (0, 1)))


def test_frames_that_are_turned_to_far_away():
    n, count, size = 33, 3, 2**30 + 50
    frames = np.random.default_rng(0).integers(0, 256, (n, count)).astype(np.uint8)
    images = np.zeros((count, size), np.uint8)
    *shape, tiles = device.turn_launch_shape(n, count)
    arguments = [frames, images, *np.array([n, count, size, size - n, tiles], np.int32)]
    launch("turn", ("uint8",), shape, arguments, "forward", 0)
    np.testing.assert_array_equal(images[:, -n:], frames.T)
    assert not images[:, -n - 50 : -n].any()
