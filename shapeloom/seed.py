"""Randomness derived from names and numbers, never from a global generator, a rank or the clock.

`derive_seed("encoder", 0, 17)` is the same number everywhere. Per-sample noise comes from per-sample seeds,
so a sample's noise does not depend on its batch mates or on how many processes share the batch.
"""

import hashlib

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """Returns a 63-bit seed that is a pure function of `parts` (BLAKE2b of their typed text)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_rng(*parts: int | str) -> np.random.Generator:
    """Returns a NumPy generator seeded by `parts`."""
    return np.random.default_rng(derive_seed(*parts))


def torch_generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Returns a torch generator on `device` seeded by `parts`."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


def normal(
    seeds: Int64[Tensor, " batch"], shape: tuple[int, ...], *, stream: str, device: torch.device | str = "cpu"
) -> Float[Tensor, "batch ..."]:
    """Returns standard normal noise [batch, *shape]; row i depends on seeds[i] and `stream` alone.

    CPU and GPU generators give different (equally reproducible) numbers.
    """
    rows = [
        torch.randn(shape, generator=torch_generator(stream, seed, device=device), device=device)
        for seed in seeds.tolist()
    ]
    return torch.stack(rows)
