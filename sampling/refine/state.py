"""An optimisation as tensors, to be saved and gone on from: what moves, Adam's moments, VSD's own network."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sampling.refine.own import OwnNetwork


def make_optimiser(groups: Sequence[tuple[list[Tensor], float]]) -> torch.optim.Adam:
    """Returns Adam for leaves with their rates.

    As DreamFusion's successors set it: a second moment that forgets quickly, no floor under it.
    """
    parts = [{"params": leaves, "lr": rate} for leaves, rate in groups if leaves]
    return torch.optim.Adam(parts, betas=(0.9, 0.99), eps=1e-15)


def pack(
    leaves: Sequence[Tensor], optimiser: torch.optim.Optimizer, own: OwnNetwork | None
) -> dict[str, Tensor]:
    """Returns all that changes from step to step, on the CPU."""
    tensors = {f"leaf.{i}": leaf.detach() for i, leaf in enumerate(leaves)}
    optimisers = {"adam": optimiser} | ({} if own is None else {"own_adam": own.optimiser})
    for name, each in optimisers.items():
        for i, values in each.state_dict()["state"].items():
            tensors |= {f"{name}.{i}.{key}": value for key, value in values.items()}
    if own is not None:
        tensors |= {f"own.{i}": part.detach() for i, part in enumerate(own.parameters)}
    return {name: value.cpu().contiguous() for name, value in tensors.items()}


@torch.no_grad()
def unpack(
    tensors: dict[str, Tensor], leaves: Sequence[Tensor], optimiser: torch.optim.Optimizer,
    own: OwnNetwork | None,
) -> None:  # fmt: skip
    """Puts back what `pack` returned; raises KeyError or RuntimeError for another optimisation's."""
    for i, leaf in enumerate(leaves):
        leaf.copy_(tensors[f"leaf.{i}"])
    _load_adam(optimiser, tensors, "adam")
    if own is not None:
        for i, part in enumerate(own.parameters):
            part.copy_(tensors[f"own.{i}"])
        _load_adam(own.optimiser, tensors, "own_adam")


def _load_adam(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], name: str) -> None:
    state = optimiser.state_dict()
    for key, value in tensors.items():
        owner, _, rest = key.partition(".")
        if owner == name:
            number, entry = rest.split(".")
            state["state"].setdefault(int(number), {})[entry] = value
    optimiser.load_state_dict(state)
