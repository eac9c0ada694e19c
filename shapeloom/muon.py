"""Muon: momentum whose matrices are orthogonalised before the step (Jordan et al. 2024), AdamW for the rest.

A matrix's momentum is replaced by the nearest orthogonal matrix, by a Newton-Schulz iteration, and scaled to
the size of a typical AdamW step (Liu et al. 2025, "Muon is scalable for LLM training", eq. 4), so that one
learning rate serves both kinds. Matrices of one shape are orthogonalised in one batched product, in float32:
torch.optim.Muon works in bfloat16, which many CPUs are slow at.
"""

from collections import defaultdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

MOMENTUM = 0.95
# A quintic whose slope at zero is steep: five steps bring singular values from 1e-2 up to about one.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# The root mean square of an AdamW update, by which orthogonal steps are scaled.
ADAMW_RMS = 0.2
SMALLEST_SIDE = 16


def orthogonalize(matrices: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch rows columns"]:
    """Returns matrices of the same singular vectors with all singular values near one (0.7 to 1.2).

    Each step multiplies by a polynomial of the Gram matrix. For long matrices those factors are gathered,
    and the next Gram matrices had from them, so that only two products are as large as the matrix. What is
    smaller than a thousandth of the largest singular value then drowns in float32's rounding.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (torch.linalg.matrix_norm(x)[:, None, None] + 1e-7)
    a, b, c = COEFFICIENTS
    if x.shape[2] < 2 * x.shape[1]:
        for _ in range(ITERATIONS):
            gram = x @ x.transpose(1, 2)
            x = a * x + (b * gram + c * gram @ gram) @ x
    else:
        gram = x @ x.transpose(1, 2)
        product = torch.eye(x.shape[1], device=x.device).expand_as(gram)
        for _ in range(ITERATIONS):
            factor = b * gram + c * gram @ gram
            product = a * product + factor @ product
            # They all commute, as polynomials of the first Gram matrix.
            gram = a**2 * gram + (2 * a * factor + factor @ factor) @ gram
        x = product @ x
    return x.transpose(1, 2) if tall else x


def takes_muon(name: str, parameter: Tensor) -> bool:
    """Returns whether a parameter is a matrix that maps features to features.

    Tables of learned tokens are not, nor are maps from or to a handful of numbers.
    """
    return parameter.ndim == 2 and min(parameter.shape) >= SMALLEST_SIDE and not name.endswith("_tokens")


class Muon(torch.optim.AdamW):
    """Muon on the groups that say `muon: True`, AdamW on the others."""

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, lr=lr, betas=betas, fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Takes one step with the gradients that are there."""
        matrices = [group for group in self.param_groups if group["muon"]]
        others = [group for group in self.param_groups if not group["muon"]]
        everything = self.param_groups
        self.param_groups = others
        try:
            super().step()
        finally:
            self.param_groups = everything
        for group in matrices:
            _muon_step(group, self.state)


def _muon_step(group: dict[str, Any], state: dict[Tensor, Any]) -> None:
    same_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for parameter in group["params"]:
        if parameter.grad is not None:
            same_shape[parameter.shape].append((parameter, parameter.grad))
    for shape, pairs in same_shape.items():
        updates = []
        for parameter, gradient in pairs:
            # AdamW looks for a step count in every state that it loads.
            state[parameter].setdefault("step", torch.zeros(()))
            momentum = state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            momentum.lerp_(gradient, 1 - MOMENTUM)
            updates.append(gradient.lerp(momentum, MOMENTUM))  # Nesterov
        steps = orthogonalize(torch.stack(updates).float())
        scale = group["lr"] * ADAMW_RMS * max(shape) ** 0.5
        for (parameter, _), update in zip(pairs, steps, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(
                update.to(parameter.dtype), alpha=-scale
            )


def muon_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Returns parameter groups for `Muon`: matrices; other tensors that decay; those that don't."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if takes_muon(name, p)]
    tables = [p for name, p in named if p.ndim >= 2 and not takes_muon(name, p)]
    others = [p for _, p in named if p.ndim < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay, "muon": True},
        {"params": tables, "weight_decay": weight_decay, "muon": False},
        {"params": others, "weight_decay": 0.0, "muon": False},
    ]
