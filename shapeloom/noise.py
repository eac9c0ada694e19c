"""Noise from derived seeds, as tensors (see shapeloom.seed)."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from shapeloom.seed import derive_seed


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
