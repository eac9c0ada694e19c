"""The one training loop, for every network of the project. It knows nothing of what it trains.

A `Task` turns global sample numbers into a batch and a batch into a loss. All randomness comes with the
batch, derived from (seed, sample number), so that a run is the same whatever the number of processes (to
float tolerance) and goes on bit for bit after a kill at the same number of processes and threads.
"""

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from shapeloom import distributed
from shapeloom.checkpoint import (
    UNIVERSAL,
    choose_state,
    extra_weights,
    load_state,
    prepare_state,
    save_weights,
)
from shapeloom.config import UserError
from shapeloom.health import Health, describe, go_back_to
from shapeloom.log import get_logger
from shapeloom.muon import Muon, muon_groups
from shapeloom.runs import Run
from shapeloom.training_loop import Averages, Loop
from shapeloom.training_task import Task, TrainConfig, learning_rate

__all__ = ["Task", "TrainConfig", "learning_rate", "make_optimizer", "train"]

log = get_logger("training")
LEAST_SPEEDUP = 2.0
"""Of matrix products in bfloat16, from which on a CPU trains in it."""


class _LossModule(nn.Module):
    """Model and loss as one module, so that DeepSpeed's hooks see a forward pass."""

    def __init__(self, task: Task, *, bf16: bool) -> None:
        super().__init__()
        self.model = task.model
        self._task, self._bf16 = task, bf16

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        device = next(iter(batch.values())).device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._bf16):
            return self._task.loss(self.model, batch)


def choose_bf16(precision: str, device: torch.device, run: Run, world: distributed.World) -> bool:
    """Returns whether to compute in bfloat16: as asked for, or where it is the faster one.

    On a CPU that is measured (instruction sets don't tell: with the same AVX512-BF16 flag one CPU gains 2.6x
    and another loses), once a run: the answer is kept in meta.json, so that a resumed run goes on in kind.
    Products must gain enough to pay for rounding what goes into them, a quarter of a step.
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if "bf16" not in run.meta:
        slow = distributed.any_process(bf16_speedup() < LEAST_SPEEDUP, world)
        run.meta["bf16"] = not slow
    return bool(run.meta["bf16"])


def bf16_speedup() -> float:
    """Returns how many times faster a matrix product of a typical layer is in bfloat16 than in float32."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, w = torch.ones(2048, 256, dtype=dtype), torch.ones(256, 768, dtype=dtype)
        x @ w  # warm-up
        times = []
        for _ in range(5):
            start = time.perf_counter()
            x @ w
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Returns two groups: matrices, which decay, and all of one axis or none, which doesn't; none empty."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]  # ZeRO takes no empty ones


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Returns the optimizer that the config names; raises UserError for Muon with ZeRO."""
    if config.optimizer == "muon":
        if config.zero_stage:
            raise UserError(
                f"train.optimizer=muon needs whole matrices, which train.zero_stage={config.zero_stage} "
                "splits among processes. Use train.zero_stage=0, or train.optimizer=adamw."
            )
        return Muon(muon_groups(model, config.weight_decay), lr=config.learning_rate, betas=config.betas)
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def train(
    task: Task, config: TrainConfig, run: Run, world: distributed.World,
    *, export: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> dict[float, dict[str, Tensor]]:  # fmt: skip
    """Trains `task` to the end, resuming from the run's newest checkpoint, and writes its weights.

    Returns the averaged weights of each decay, as they are written: passed through `export`.
    The model is left with those of `ema_decay`.
    Raises UserError when the batch can't be shared among the processes, the loss stays non-finite, or the
    training has diverged to its end.
    """
    if world.device.type == "cuda":
        distributed.same_bits_each_time()
    share = micro_batch(config, world)
    bf16 = choose_bf16(config.precision, world.device, run, world)
    module = _LossModule(task, bf16=bf16).to(world.device)
    optimizer = make_optimizer(module, config)
    # ZeRO 3 leaves each process a part of the weights, and pictures are drawn by the main one alone.
    whole = copy.deepcopy(task.model) if config.zero_stage == 3 and world.is_main else None
    tag = choose_state(run.folder, world, until=distributed.from_main(go_back_to(run.meta), world))
    tag = prepare_state(run.folder, tag, config.zero_stage, world)
    engine = distributed.make_engine(
        module, optimizer, micro_batch=share, accumulation=config.accumulation,
        grad_clip=config.grad_clip, zero_stage=config.zero_stage, offload=config.offload,
        universal=tag is not None and tag.endswith(UNIVERSAL),
    )  # fmt: skip
    frozen = {name for name, value in engine.module.named_parameters() if not value.requires_grad}
    averages = Averages(config, distributed.full_parameters(engine, config.zero_stage), frozen)
    first, health = 0, Health()
    if tag is not None:
        facts = load_state(engine, run.folder, tag, world)
        first, health = facts["step"], Health(facts.get("health"))
        averages.load(facts["ema"])
        log.info("resuming %s at step %d of %d", run.meta["stage"], first, config.steps)
    run.start_from(first)
    if run.meta.get("changes"):
        run.meta["changes"][-1].setdefault("from_step", first)
    log.info(
        "%s: %.2fM parameters, %d process(es) on %s, %s, %d thread(s) each",
        run.meta["stage"], sum(value.numel() for value in averages.weights.values()) / 1e6,
        world.size, world.device, "bf16" if bf16 else "fp32",
        torch.get_num_threads(),
    )  # fmt: skip
    Loop(task, config, run, world, engine, averages, share, whole or engine.module.model, health).run_from(
        first
    )
    _tell(health, run, world)
    found = {
        decay: {name.removeprefix("model."): value.cpu() for name, value in weights.items()}
        for decay, weights in averages.all.items()
    }
    task.model.load_state_dict(found[config.ema_decay])
    exported = {decay: export(weights) for decay, weights in found.items()}
    if world.is_main:
        _save(exported, config, run)
    return exported


def micro_batch(config: TrainConfig, world: distributed.World) -> int:
    """Returns the samples of a process's part of a step; UserError if the batch can't be shared evenly."""
    parts = world.size * config.accumulation
    if config.batch_size % parts:
        raise UserError(
            f"train.batch_size={config.batch_size} can't be shared evenly by {world.size} process(es) x "
            f"{config.accumulation} accumulation step(s). Choose a multiple of {parts}."
        )
    return config.batch_size // parts


def _save(exported: dict[float, dict[str, Tensor]], config: TrainConfig, run: Run) -> None:
    """Writes each average's weights, and their digests into the run's meta.json."""
    for decay, weights in exported.items():
        if decay == config.ema_decay:
            run.meta["weights_digest"] = save_weights(run.folder, weights)
        else:
            name = extra_weights(decay)
            run.meta.setdefault("extra_digests", {})[name] = save_weights(run.folder, weights, name)


def _tell(health: Health, run: Run, world: distributed.World) -> None:
    """The closing lines on what went wrong; raises UserError for a training that has diverged to its end."""
    if world.is_main:
        for sentence in describe(health.facts()):
            log.warning("%s: %s", run.meta["stage"], sentence)
    if distributed.from_main(health.diverged, world):
        raise UserError(
            f"The training in {run.folder} came to its end, but it has diverged, so no weights are written. "
            "Give the same command with a lower rate, such as `--set train.learning_rate=...`: it goes on "
            "from the last checkpoint before the divergence."
        )
