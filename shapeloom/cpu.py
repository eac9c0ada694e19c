"""How a process computes on a CPU, set wherever this has been imported: by all that computes with torch.

Numbers below 1e-38 are zeros. They cost a CPU a hundred times as much as others, and saturated densities and
signs make many of them: a trained encoder's step takes half of the time without. Threads inherit it.

Memory that is freed stays with the process for what comes next, up to KEPT. The C library would give large
blocks back at once, and the system clears every page that it hands out again: up to a sixth of a training's
step. No process needs more at any time for it, but it isn't seen to need less later.
"""

import ctypes
import sys

import torch

KEPT = 1 << 30
"""Bytes; blocks beyond it are given back as ever."""
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""

torch.set_flush_denormal(True)
if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
    for threshold in (TRIM_THRESHOLD, MMAP_THRESHOLD):
        mallopt(threshold, KEPT)
