"""What a training costs before it is paid for: counted on one sample of it, and multiplied.

Floating-point operations and the tensors kept for the backward pass are counted while the task's own loss and
its gradient are computed for a few samples on a CPU (a multiplication and an addition are two operations).
Memory of weights, gradients and optimizer states follows from how DeepSpeed's ZeRO stages share them: float32
throughout, as bfloat16 is by autocast. Bytes are bytes, GB 10^9 of them.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from shapeloom.config import UserError
from shapeloom.muon import muon_groups, orthogonalize
from shapeloom.training_task import Task, TrainConfig

Shape = Sequence[int]


@dataclass(frozen=True)
class Gpu:
    """A kind of accelerator: operations a second of dense bfloat16 products, and memory in bytes."""

    flops: float
    memory: float


GPUS = {
    "H200": Gpu(989e12, 141e9),
    "H100": Gpu(989e12, 80e9),
    "A100": Gpu(312e12, 80e9),
    "A100-40": Gpu(312e12, 40e9),
    "L40S": Gpu(362e12, 48e9),
    "A6000": Gpu(155e12, 48e9),
    "RTX4090": Gpu(165e12, 24e9),
    "RTX3090": Gpu(71e12, 24e9),
}
"""From their makers' data sheets, without sparsity."""
CONTEXT_BYTES = 1.5e9
"""Of CUDA, its libraries and NCCL in each process: an assumption."""
BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's default reduce_bucket_size: ZeRO 1 and 2 keep a buffer of that many numbers, and without ZeRO
up to as many gradients at a time are copied to be exchanged."""


def parse_gpus(text: str) -> tuple[int, str, Gpu]:
    """Returns (8, "H100", its facts) of "8xH100"; raises UserError for another form or an unknown kind."""
    number, _, name = text.partition("x")
    if not number.isdigit() or not int(number) or name not in GPUS:
        raise UserError(
            f"--gpus takes NUMBERxKIND, such as 8xH100, with one of {', '.join(GPUS)}; got {text!r}."
        )
    return int(number), name, GPUS[name]


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(out: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(out, query, key, value)


OF_CPUS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Attention on a CPU, which torch's counter doesn't know: of many tokens a good part of all operations."""


@dataclass(frozen=True)
class Counted:
    """Of one computation of the loss and its gradient. seconds: to make its batch, on one thread."""

    samples: int
    flops: float
    activation_bytes: int
    batch_seconds: float


class _Saved:
    """A tensor kept for the backward pass, counted as long as it lives; parts of one storage count once."""

    def __init__(self, tensor: Tensor, ledger: "_Ledger") -> None:
        self.tensor, self._ledger = tensor, ledger
        self._storage = tensor.untyped_storage()
        ledger.add(self._storage.data_ptr(), self._storage.nbytes())

    def __del__(self) -> None:
        self._ledger.remove(self._storage.data_ptr(), self._storage.nbytes())


class _Ledger:
    def __init__(self, ignored: set[int]) -> None:
        self._ignored, self._users = ignored, dict[int, int]()
        self.now = self.peak = 0

    def add(self, place: int, size: int) -> None:
        if place in self._ignored:
            return
        self._users[place] = self._users.get(place, 0) + 1
        if self._users[place] == 1:
            self.now += size
            self.peak = max(self.peak, self.now)

    def remove(self, place: int, size: int) -> None:
        if place in self._ignored:
            return
        self._users[place] -= 1
        if not self._users[place]:
            del self._users[place]
            self.now -= size


def count(task: Task, samples: Sequence[int], *, bf16: bool) -> Counted:
    """Counts the loss of these global sample numbers and its gradient, on a CPU."""
    start = time.perf_counter()
    batch = task.batch(samples)
    seconds = time.perf_counter() - start
    ledger = _Ledger({p.untyped_storage().data_ptr() for p in task.model.parameters()})
    counter = FlopCounterMode(display=False, custom_mapping=OF_CPUS)
    with counter, saved_tensors_hooks(lambda tensor: _Saved(tensor, ledger), lambda saved: saved.tensor):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss, _ = task.loss(task.model, batch)
        loss.backward()
    task.model.zero_grad(set_to_none=True)
    return Counted(len(samples), float(counter.get_total_flops()), ledger.peak, seconds)


def sample_costs(task: Task, first: int, *, bf16: bool) -> tuple[float, float, float, float]:
    """Returns of one further sample: operations and bytes of activations; the bytes that any number needs;
    and the seconds to make its part of a batch.

    first: the global number of the first sample counted.
    """
    one, two = count(task, [first], bf16=bf16), count(task, [first, first + 1], bf16=bf16)
    each = float(max(0, two.activation_bytes - one.activation_bytes))
    fixed = max(0.0, one.activation_bytes - each)
    return two.flops / 2, each, fixed, two.batch_seconds / 2


def moments_of(model: nn.Module, config: TrainConfig) -> int:
    """Returns how many numbers the optimizer keeps: two of a weight that trains, Muon one of a matrix."""
    if config.optimizer == "adamw":
        return 2 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    groups = muon_groups(model, 0.0)
    return sum((1 if group["muon"] else 2) * p.numel() for group in groups for p in group["params"])


def optimizer_flops(model: nn.Module, config: TrainConfig) -> float:
    """Returns the operations of the optimizer's step in each process: Muon's products; AdamW has none."""
    if config.optimizer == "adamw":
        return 0.0
    counter = FlopCounterMode(display=False)
    with counter:
        for matrix in muon_groups(model, 0.0)[0]["params"]:
            orthogonalize(torch.empty(1, *matrix.shape, device="meta"))
    return float(counter.get_total_flops())


def state_bytes(
    parameters: int, trained: int, moments: int, config: TrainConfig, stage: int, world: int
) -> dict[str, float]:
    """Returns what a process keeps from step to step, by its purpose, in float32.

    moments: as `moments_of` counts them.
    Source: Rajbhandari et al. 2020 (ZeRO), section 5, for its stages; the buffers are DeepSpeed's own.
    """
    states, gradients, weights = (world if stage >= least else 1 for least in (1, 2, 3))
    averages = 4 * (parameters + len(config.ema_extra) * trained)
    found = {
        "weights": 4 * parameters / weights,
        "gradients": 4 * trained / gradients,
        "moments": 4 * moments / states,
        "averages": 0 if stage == 3 else averages,
        "buffers": 0.0,
    }
    if stage in (1, 2):
        # The weights of its share once more, which the optimizer steps, and a bucket for gradients.
        found["moments"] += 4 * trained / world
        found["buffers"] = 4.0 * BUCKET_ELEMENTS
    if config.offload and stage:
        found["moments"] = 0
    return found


def passing_bytes(activations: float, trained: int, stage: int) -> float:
    """Returns what a step needs in passing: activations or, once they are gone, gradients as they are
    exchanged, which ZeRO has its buffers for."""
    return activations if stage else max(activations, 4.0 * min(trained, BUCKET_ELEMENTS))


def checkpoint_bytes(parameters: int, trained: int, moments: int, config: TrainConfig) -> float:
    """Returns the size of a checkpoint: weights, moments, averages; with ZeRO the optimizer's weights too."""
    averages = parameters + len(config.ema_extra) * trained
    return 4.0 * (parameters + moments + averages + (trained if config.zero_stage else 0))


def describe(values: dict[str, Any]) -> str:
    """A name and a value a line."""
    width = max(len(name) for name in values)
    return "".join(f"{name:<{width}}  {value}\n" for name, value in values.items())
