"""Whatever a call does to its process, its caller learns why and goes on."""

import ctypes
import faulthandler
import os
import signal
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from data_prep.isolation import Lost, Quota, call

QUOTA = Quota(cpu_seconds=1, wall_seconds=30.0, memory_bytes=200 << 20, file_bytes=1 << 20)
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")


def test_result_comes_back_with_what_it_cost():
    def work(report):
        while time.process_time() < 0.2:
            pass
        return np.arange(5)

    result, cost = call(work, QUOTA)
    np.testing.assert_array_equal(result, np.arange(5))
    assert 0.15 < cost.cpu_seconds < 5  # process_time of a fork starts at zero; the rest is the start
    assert cost.peak_bytes > 1 << 20


def spin(report):
    report("spinning")
    while True:
        pass


def sleep(report):
    time.sleep(60)


def segfault(report):
    report("reading")
    sys.stderr.write("about to read null\n")
    ctypes.string_at(0)


def abort_like_cpp(report):
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'")
    os.abort()


def allocate(report):
    return [np.ones(50 << 17) for _ in range(10)]


def killed(report):
    os.kill(os.getpid(), signal.SIGKILL)


def leave(report):
    os._exit(7)


@pytest.mark.parametrize(
    ("function", "reason", "says", "last_report"),
    [
        (spin, "cpu_time", "more than 1 seconds of CPU time", "spinning"),
        (segfault, "crash", "SIGSEGV", "reading"),
        (abort_like_cpp, "memory", "more than 210 MB", None),
        pytest.param(allocate, "memory", "more than 210 MB", None, marks=needs_linux),
        (killed, "killed", "from outside", None),
        (leave, "crash", "exit code 7", None),
    ],
)
def test_reason_of_a_loss(function, reason, says, last_report):
    # Filling memory takes most of a second of a busy processor.
    lost, _ = call(function, QUOTA if function is spin else replace(QUOTA, cpu_seconds=10))
    assert isinstance(lost, Lost)
    assert (lost.reason, lost.last_report) == (reason, last_report)
    assert says in lost.message


def test_hang_is_ended_by_the_clock():
    start = time.monotonic()
    lost, _ = call(sleep, Quota(60, 0.3, 1 << 30, 1 << 20))
    assert lost.reason == "hang"
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("replaced", [False, True])
def test_stderr_of_python_and_c_is_kept(replaced):
    """Also where a library of the caller's has put its own signal handlers in place of faulthandler's."""
    if replaced:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    lost, _ = call(segfault, QUOTA)
    faulthandler.disable()
    faulthandler.enable(file=sys.__stderr__)
    assert "about to read null" in lost.stderr
    assert "Segmentation fault" in lost.stderr  # faulthandler's own words, from the signal handler
    assert "in segfault" in lost.stderr


def test_endless_words_fill_no_disk():
    def chatter(report):
        while True:
            os.write(2, b"x" * 65536)

    with pytest.raises(RuntimeError, match="File too large"):
        call(chatter, QUOTA)


def test_exception_is_a_bug_and_surfaces():
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        call(lambda report: 1 / 0, QUOTA)


def test_calls_inherit_no_files_and_leave_none():
    before = set(os.listdir("/proc/self/fd")) if sys.platform == "linux" else set()
    reader, writer = os.pipe()

    def use_the_callers_pipe(report):
        try:
            os.write(writer, b"x")
        except OSError:
            return "closed"

    assert call(use_the_callers_pipe, QUOTA)[0] == "closed"
    os.close(reader)
    os.close(writer)
    assert sys.platform != "linux" or set(os.listdir("/proc/self/fd")) == before
