"""The ground floor that every stage stands on: fields, rendering, diffusion, shards, training."""

__version__ = "0.1.0"
