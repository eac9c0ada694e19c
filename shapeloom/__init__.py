"""The ground floor that every stage stands on: fields, rendering, diffusion, shards, training."""

import os

from shapeloom import startup

# Before torch, whose import takes seconds.
startup.begin()

# OpenMP threads spin while they wait, by default for so long that they take the cores from each other as
# soon as anything else runs: beside two busy processes a training step of two threads takes 5.4 s in place of
# 0.2 s. Too little spinning costs half of the speed on a quiet machine, where each of many small operations
# then wakes its threads. Read by GNU's OpenMP, once, when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "50000")

# Torch's own words on sockets that close, which repeat in code what the run's last sentence says in words.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

__version__ = "0.1.0"
