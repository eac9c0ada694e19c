"""What a process that computes with torch is set to."""

import platform
import resource
import sys

import pytest
import torch

from shapeloom import cpu as cpu


def test_the_smallest_numbers_are_zeros() -> None:
    assert float(torch.tensor(1e-38) * 1e-3) == 0


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="the C library is another one"
)
def test_memory_that_was_freed_is_not_asked_of_the_system_again() -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(64 << 20, dtype=torch.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert faults() < 100  # of 16,384 pages
