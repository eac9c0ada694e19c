"""Randomness derived from names and numbers, never from a global generator, a rank or the clock.

`derive_seed("encoder", 0, 17)` is the same number everywhere. Per-sample noise comes from per-sample seeds,
so a sample's noise does not depend on its batch mates or on how many processes share the batch.
"""

import hashlib

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """Returns a 63-bit seed that is a pure function of `parts` (BLAKE2b of their typed text)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_rng(*parts: int | str) -> np.random.Generator:
    """Returns a NumPy generator seeded by `parts`."""
    return np.random.default_rng(derive_seed(*parts))
