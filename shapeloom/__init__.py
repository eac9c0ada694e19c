"""The ground floor that every stage stands on: fields, rendering, diffusion, shards, training."""

import os

__version__ = "0.1.0"

# OpenMP threads that spin while they wait take the cores from each other as soon as anything else runs: a
# training beside one busy process then takes ten times as long. Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
