"""The ground floor that every stage stands on: fields, rendering, diffusion, shards, training."""

import os

# OpenMP threads that spin while they wait take the cores from each other as soon as anything else runs: a
# training beside one busy process then takes ten times as long. Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

__version__ = "0.1.0"

# Numbers below 1e-38 cost a CPU a hundred times as much as others, and saturated densities and signs make
# many of them: a trained encoder's step takes half of the time without. Threads inherit it.
torch.set_flush_denormal(True)
