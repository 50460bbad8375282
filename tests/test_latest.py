"""Frames that come and go: which of them memory holds, and sums from which none is missing."""

from __future__ import annotations

import mmap
import threading

import numpy as np
import pytest
from helpers import assert_same, make_frames, make_plan
from hypothesis import given, settings
from hypothesis import strategies as st

from libertem_parallax import Parameters
from libertem_parallax.accumulate import Latest, Stack, Window, can_slide
from libertem_parallax.geometry import Geometry
from libertem_parallax.show.maker import reconstruct

SCAN = (6, 7)
COUNT = SCAN[0] * SCAN[1]
PLANS = [make_plan(SCAN, u=u, seed=0) for u in (1, 2)]  # of the same pixels
FRAMES = make_frames(PLANS[0], "uint16")
KEPT = np.ascontiguousarray(FRAMES[:, PLANS[0].pixels[:, 0], PLANS[0].pixels[:, 1]])

pytestmark = pytest.mark.skipif(not can_slide(), reason="the latest frames stay on Linux only")


def make_window(most, *, slides=True, plan=PLANS[0], scan=SCAN, dtype="uint16"):
    return Window(scan, plan.detector_shape, plan.pixels, np.dtype(dtype), most, slides=slides)


def assert_holds(stack, there):
    """These frames and no others: the rest is zero."""
    there = np.isin(np.arange(COUNT), [*there])
    np.testing.assert_array_equal(stack.scanned.ravel(), there)
    np.testing.assert_array_equal(stack.frames, KEPT * there[:, None])


def assert_adds(result, there, plan):
    """Sums are those of a stack of these frames."""
    there = np.isin(np.arange(COUNT), [*there])
    stack = Stack(KEPT * there[:, None].astype("uint16"), plan.pixels, SCAN, plan.detector_shape,
                  there.reshape(SCAN))  # fmt: skip
    assert_same(result, [*stack.add(plan), stack.scanned])


#: What happens: frames come; somebody begins to read, or ends; a picture is made with either plan.
EVENTS = st.lists(
    st.one_of(st.integers(1, 9), st.sampled_from(["read", "end", "slide"]), st.sampled_from(PLANS)),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(EVENTS, st.integers(1, COUNT), st.integers(0, 3), st.booleans())
def test_any_order_of_events(events, most, late, slides):
    """The first frames stay, then the latest; sums have all that came since they were asked for."""
    window = make_window(most, slides=slides)
    left = [*range(COUNT)]  # to come
    left[:late] = []
    came, reading, plan, expected = [], [], None, set()
    untouched = True  # frames came while it slid and nobody was reading
    for event in [*events, 9, 9, 9, PLANS[1]]:
        if event == "slide":
            window.slides = slides = True
        elif event == "read":
            reading.append(window.reading())
            reading[-1] = (reading[-1], reading[-1].__enter__())
        elif event == "end":
            while reading:
                reading.pop()[0].__exit__(None, None, None)
        elif isinstance(event, int):
            # What was left out at first comes last: it is late.
            part, left = left[:event], left[event:] or [*range(late)][: 100 * bool(late)]
            late = 0 if left and left[0] == 0 else late
            if not part:
                continue
            before = set(np.flatnonzero(window.stack.scanned).tolist())
            window.put(np.array(part), KEPT[part])
            came += part
            held = set(np.flatnonzero(window.stack.scanned).tolist())
            untouched &= slides and not reading
            assert len(held) == min(most, len(came))
            if reading or not slides:
                assert held >= before
            if untouched:
                assert held == set(sorted(came)[-most:])
            expected |= set(part) if slides else held
        else:
            stack = window.stack
            assert isinstance(stack, Latest)
            held = set(np.flatnonzero(stack.scanned).tolist())
            if plan is not event:
                plan, expected = event, held
            assert_adds(stack.since(plan), expected, plan)
            assert_adds([*stack.add(plan), stack.scanned], held, plan)
        assert_holds(window.stack, np.flatnonzero(window.stack.scanned))
        for _, stack in reading:
            there = stack.scanned.ravel()
            np.testing.assert_array_equal(stack.frames[there], KEPT[there])


def test_reading_and_recording_at_once():
    """Every picture is of the frames of which it says so, whatever comes and goes meanwhile."""
    plan = make_plan((40, 50), (9, 11), 1)
    frames = make_frames(plan, "uint8")[:, plan.pixels[:, 0], plan.pixels[:, 1]]
    whole = Stack(np.ascontiguousarray(frames), plan.pixels, plan.scan_shape, plan.detector_shape,
                  np.ones(plan.scan_shape, bool))  # fmt: skip
    window = make_window(300, plan=plan, scan=plan.scan_shape, dtype="uint8")
    ended = threading.Event()

    def record():
        for first in range(0, len(frames), 20):
            window.put(np.arange(first, first + 20), frames[first : first + 20])
            threading.Event().wait(1e-3)
        ended.set()

    thread = threading.Thread(target=record)
    thread.start()
    before = np.zeros(plan.scan_shape, bool)
    last = False
    while not last:
        last = ended.is_set()
        A, S, scanned = window.stack.since(plan, 1)
        there = np.where(scanned.reshape(-1, 1), whole.frames, 0).astype("uint8")
        part = Stack(there, plan.pixels, plan.scan_shape, plan.detector_shape, scanned)
        assert_same((A, S), part.add(plan))
        assert not (before & ~scanned).any(), "what was in a picture is in all that follow"
        before = scanned
    thread.join()
    assert scanned.reshape(-1)[np.flatnonzero(scanned)[0] :].all()


def test_images_are_of_the_frames_that_are_there():
    """A stack that was asked for earlier has those of now, also in what sums are divided by."""
    shape = (*SCAN, 8, 9)
    parameters = Parameters(scan_sampling=(4.0, 5.0), energy=200e3, semiangle_cutoff=3.0,
                            angular_sampling=(1.0, 1.0), borders="coverage",
                            aberration_coefs={"C10": -2000.0})  # fmt: skip
    plan = Geometry.from_parameters(shape, **parameters).plan
    frames = np.ascontiguousarray(make_frames(plan, "uint16")[:, *plan.pixels.T])
    window = make_window(20, plan=plan)
    window.put(np.arange(20), frames[:20])
    before = window.stack
    window.put(np.arange(20, 35), frames[20:35])
    there = ((np.arange(COUNT) >= 15) & (np.arange(COUNT) < 35))[:, None]
    stack = Stack(frames * there.astype("uint16"), plan.pixels, SCAN, plan.detector_shape,
                  there.reshape(SCAN))  # fmt: skip
    np.testing.assert_array_equal(reconstruct(before, parameters), reconstruct(stack, parameters))


def test_memory_is_given_back():
    """What the system counts of the window's memory is what it holds, and a page at its ends."""
    plan = make_plan((64, 512), (16, 16), 1, pixels=0.9)
    count, size = len(plan.pixels), len(plan.pixels) * 512  # bytes of a row of uint8
    window = make_window(4 * 512 + 100, plan=plan, scan=plan.scan_shape, dtype="uint8")
    rows = np.full((512, count), 1, np.uint8)
    for y in range(64):
        window.put(np.arange(512) + 512 * y, rows)
    address = window.stack.frames.ctypes.data
    resident = None
    with open("/proc/self/smaps", encoding="utf-8") as lines:
        for line in lines:
            first = line.split("-")[0]
            if " " not in first and ":" not in first:
                begin, end = (int(at, 16) for at in line.split()[0].split("-"))
                here = begin <= address < end
            elif line.startswith("Rss:") and here:
                resident = int(line.split()[1]) * 1024
    assert resident is not None
    assert resident <= 4 * size + 100 * count + 2 * mmap.PAGESIZE
    assert window.outgrown


def test_what_cannot_be_added_is_told_to_who_looks():
    """A value that only the tuned pixels have does not end the recording."""
    plan = make_plan(SCAN, seed=3)
    frames = np.ones((COUNT, len(plan.pixels)), np.float32)
    frames[3] = np.inf
    window = make_window(5, plan=plan, dtype="float32")
    window.put(np.arange(3), frames[:3])
    window.stack.since(plan)
    for part in (slice(3, 8), slice(8, 20)):
        window.put(np.arange(COUNT)[part], frames[part])
    with pytest.raises(ValueError, match="finite"):
        window.stack.since(plan)
    other = make_plan(SCAN, u=1, seed=3)
    assert window.stack.since(other)[2].sum() == 5
    with pytest.raises(ValueError, match="the stack does not have"):
        window.stack.since(make_plan(SCAN, pixels=1.0))


def test_a_scan_beyond_all_addresses_is_refused():
    with pytest.raises(MemoryError, match="no addresses for 1,125,899,906,842,624 frames of"):
        make_window(5, scan=(1 << 25, 1 << 25))
