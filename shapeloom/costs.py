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
    trail: tuple[tuple[int, int], ...]
    """As each weight's gradient is made: bytes of activations left, and of gradients so far."""
    batch_seconds: float


@dataclass(frozen=True)
class SampleCosts:
    """Of one further sample. seconds: to make its part of a batch, on one thread."""

    flops: float
    each_bytes: float
    """Of activations."""
    fixed_bytes: float
    """Of activations, whatever the number of samples."""
    trail: tuple[tuple[float, float, int], ...]
    """As each gradient is made: such bytes still there of each sample and of any number, and of gradients."""
    batch_seconds: float

    def activations(self, samples: int) -> float:
        """Returns bytes before the backward pass."""
        return self.fixed_bytes + samples * self.each_bytes

    def peak(self, samples: int) -> float:
        """Returns bytes of activations and gradients at most: these are made as those go."""
        return max(
            self.activations(samples), *(fixed + samples * each + made for each, fixed, made in self.trail)
        )


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
    trail: list[tuple[int, int]] = [(0, 0)]

    def note(weight: Tensor) -> None:
        trail.append((ledger.now, trail[-1][1] + weight.untyped_storage().nbytes()))

    weights = [p for p in task.model.parameters() if p.requires_grad]
    hooks = [weight.register_post_accumulate_grad_hook(note) for weight in weights]
    counter = FlopCounterMode(display=False, custom_mapping=OF_CPUS)
    with counter, saved_tensors_hooks(lambda tensor: _Saved(tensor, ledger), lambda saved: saved.tensor):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss, _ = task.loss(task.model, batch)
        loss.backward()
    for hook in hooks:
        hook.remove()
    task.model.zero_grad(set_to_none=True)
    flops = float(counter.get_total_flops())
    return Counted(len(samples), flops, ledger.peak, tuple(trail[1:]), seconds)


def sample_costs(task: Task, first: int, *, bf16: bool) -> SampleCosts:
    """Counts one sample and two, and returns what one further sample costs.

    first: the global number of the first sample counted.
    """
    one, two = count(task, [first], bf16=bf16), count(task, [first, first + 1], bf16=bf16)
    each, fixed = _line(one.activation_bytes, two.activation_bytes)
    trail = [(*_line(a, b), made) for (a, made), (b, _) in zip(one.trail, two.trail, strict=False)]
    return SampleCosts(two.flops / 2, each, fixed, tuple(trail), two.batch_seconds / 2)


def _line(one: int, two: int) -> tuple[float, float]:
    """Returns what each sample takes and what any number takes, neither below 0."""
    each = float(max(0, two - one))
    return each, max(0.0, one - each)


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


def passing_bytes(costs: SampleCosts, samples: int, trained: int, config: TrainConfig, stage: int) -> float:
    """Returns what a step needs in passing, beyond `state_bytes`: activations or, after these, gradients
    as they are exchanged, which ZeRO has its buffers for.

    samples: of a part of a process's batch. While the first part's gradients are made, they take the place of
    activations; further parts find them all there, and ZeRO 2 and 3 keep but a share.
    """
    held = costs.activations(samples)
    if config.accumulation == 1 and stage < 2:
        held = max(0.0, costs.peak(samples) - 4.0 * trained)
    return held if stage else max(held, 4.0 * min(trained, BUCKET_ELEMENTS))


def checkpoint_bytes(parameters: int, trained: int, moments: int, config: TrainConfig) -> float:
    """Returns the size of a checkpoint: weights, moments, averages; with ZeRO the optimizer's weights too."""
    averages = parameters + len(config.ema_extra) * trained
    return 4.0 * (parameters + moments + averages + (trained if config.zero_stage else 0))


def describe(values: dict[str, Any]) -> str:
    """A name and a value a line."""
    width = max(len(name) for name in values)
    return "".join(f"{name:<{width}}  {value}\n" for name, value in values.items())
