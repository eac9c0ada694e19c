"""The one training loop, for every network of the project. It knows nothing of what it trains.

A `Task` turns global sample numbers into a batch and a batch into a loss. All randomness comes with the
batch, derived from (seed, sample number), so that a run is the same whatever the number of processes (to
float tolerance) and goes on bit for bit after a kill at the same number of processes and threads.
"""

import copy
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import Field as Key
from torch import Tensor, nn

from shapeloom import distributed
from shapeloom.checkpoint import (
    UNIVERSAL,
    choose_state,
    extra_weights,
    load_state,
    prepare_state,
    save_state,
    save_weights,
)
from shapeloom.config import Config, UserError
from shapeloom.health import NUM_NAMED, Health, describe, go_back_to
from shapeloom.log import get_logger, progress
from shapeloom.muon import Muon, muon_groups
from shapeloom.runs import Run, peak_bytes

log = get_logger("training")
MAX_BAD_STEPS = 10


class TrainConfig(Config):
    """Settings that every trainer has."""

    steps: int = Key(1000, ge=1, description="optimizer steps")
    batch_size: int = Key(16, ge=1, description="global: over all processes")
    accumulation: int = Key(1, ge=1, description="parts that each process's batch is split into")
    learning_rate: float = Key(5e-4, gt=0, description="after the warm-up")
    min_learning_rate: float = Key(1e-5, ge=0, description="where the cosine ends")
    warmup_steps: int = Key(50, ge=0, description="linear, from 0")
    weight_decay: float = Key(0.01, ge=0, description="of matrices; vectors have none")
    betas: tuple[float, float] = Key((0.9, 0.98), description="of the optimizer's moments")
    grad_clip: float = Key(1.0, gt=0, description="largest norm of the gradient")
    precision: Literal["auto", "bf16", "fp32"] = Key("auto", description="auto: bf16 where it is faster")
    optimizer: Literal["adamw", "muon"] = Key(
        "adamw", description="muon: for the matrices, AdamW for the rest"
    )
    zero_stage: Literal[0, 1, 2, 3] = Key(
        0, description="of ZeRO: 1 splits optimizer states among processes, 2 gradients too, 3 weights too"
    )
    ema_decay: float = Key(0.998, ge=0, lt=1, description="of the average of the weights that is written")
    ema_extra: tuple[float, ...] = Key(
        (), description="further decays, each kept as weights_emaDECAY.safetensors"
    )
    offload: bool = Key(False, description="ZeRO 1-3: optimizer states in the CPU's memory, stepped there")
    checkpoint_every: int = Key(100, ge=1, description="steps")
    log_every: int = Key(10, ge=1, description="steps")
    picture_every: int = Key(500, ge=1, description="steps")
    seed: int = Key(0, description="of initial weights and every draw")


@runtime_checkable
class Task(Protocol):
    """What a trainer supplies."""

    model: nn.Module

    def batch(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """Returns CPU tensors for these global sample numbers, a pure function of them and the seed."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean loss over the batch and its named parts, scalars."""

    def pictures(self, model: nn.Module, step: int) -> dict[str, np.ndarray]:
        """Returns how the model does: uint8 [height, width, 3] pictures, and numbers [] for the curves."""

    def names(self, samples: Sequence[int]) -> list[str]:
        """Returns what users know the assets of these global sample numbers by."""


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
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if "bf16" not in run.meta:
        slow = distributed.any_process(bf16_speedup() < 1.2, world)
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


def learning_rate(config: TrainConfig, step: int) -> float:
    """Returns the rate of step `step` (from 0): linear warm-up, then a cosine down to the minimum."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    low = min(config.min_learning_rate, config.learning_rate)
    return low + 0.5 * (config.learning_rate - low) * (1 + float(np.cos(np.pi * min(1.0, share))))


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


class _Averages:
    """Exponential moving averages of the weights, where they are (on the CPU if ZeRO-3 split them)."""

    def __init__(self, config: TrainConfig, weights: dict[str, Tensor], frozen: AbstractSet[str]) -> None:
        """The first average is the one that pictures show and weights.safetensors holds.

        weights: copies, which the first average takes over.
        frozen: names of weights that don't train, which are kept once for all averages.
        """
        decays = (config.ema_decay, *(d for d in config.ema_extra if d != config.ema_decay))
        self.frozen = frozen
        self.all = {
            decay: {
                name: value if decay == config.ema_decay or name in frozen else value.clone()
                for name, value in weights.items()
            }
            for decay in decays
        }
        self.weights = self.all[config.ema_decay]

    @torch.no_grad()
    def update(self, weights: dict[str, Tensor], step: int) -> None:
        for longest, averages in self.all.items():
            # Short averages at first, so that the initial weights are soon forgotten.
            decay = min(longest, (1 + step) / (10 + step))
            for name, value in weights.items():
                if value.is_floating_point() and name not in self.frozen:
                    averages[name].lerp_(value, 1 - decay)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """All averages on the CPU, for a checkpoint."""
        return {
            f"{decay:g}": {name: value.cpu() for name, value in weights.items() if name not in self.frozen}
            for decay, weights in self.all.items()
        }

    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Goes on from what `state` returned."""
        for decay, weights in self.all.items():
            for name, value in state[f"{decay:g}"].items():
                weights[name].copy_(value)


class _GradientGuard:
    """Sums the norms of a backward pass's gradients as they come, whatever ZeRO then does with them."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._total = torch.zeros((), device=device)
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._add)

    def _add(self, gradient: Tensor) -> None:
        self._total += torch.linalg.vector_norm(gradient.detach()).float()

    def finite(self) -> bool:
        """Whether every gradient since the last call was finite."""
        total, self._total = self._total, torch.zeros_like(self._total)
        return bool(torch.isfinite(total))


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
    share, rest = divmod(config.batch_size, world.size * config.accumulation)
    if rest or share == 0:
        raise UserError(
            f"train.batch_size={config.batch_size} can't be shared evenly by {world.size} process(es) x "
            f"{config.accumulation} accumulation step(s). Choose a multiple of "
            f"{world.size * config.accumulation}."
        )
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
    averages = _Averages(config, distributed.full_parameters(engine, config.zero_stage), frozen)
    first, health = 0, Health()
    if tag is not None:
        facts = load_state(engine, run.folder, tag, world)
        first, health = facts["step"], Health(facts.get("health"))
        averages.load(facts["ema"])
        log.info("resuming %s at step %d of %d", run.meta["stage"], first, config.steps)
    run.start_from(first)
    if run.meta.get("changes"):
        run.meta["changes"][-1].setdefault("from_step", first)
    millions = sum(value.numel() for value in averages.weights.values()) / 1e6
    log.info(
        "%s: %.2fM numbers, %d process(es) on %s, %s, %d thread(s) each",
        run.meta["stage"], millions, world.size, world.device, "bf16" if bf16 else "fp32",
        torch.get_num_threads(),
    )  # fmt: skip
    _Loop(task, config, run, world, engine, averages, share, whole or engine.module.model, health).run_from(
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
        for decay, weights in exported.items():
            if decay == config.ema_decay:
                run.meta["weights_digest"] = save_weights(run.folder, weights)
            else:
                name = extra_weights(decay)
                digests = run.meta.setdefault("extra_digests", {})
                digests[name] = save_weights(run.folder, weights, name)
    return exported


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


class _Loop:
    """The state of a running training."""

    def __init__(
        self, task: Task, config: TrainConfig, run: Run, world: distributed.World, engine: Any,
        averages: _Averages, share: int, shown: nn.Module, health: Health,
    ) -> None:  # fmt: skip
        """shown: what pictures are drawn with."""
        self.shown, self.health = shown, health
        self.task, self.config, self.run, self.world = task, config, run, world
        self.engine, self.averages, self.share = engine, averages, share
        self.stopped = False
        self.bad_steps = 0
        self.guard = _GradientGuard(engine.module, world.device)
        self.sums: dict[str, Tensor] = {}
        self.counted, self.since = 0, time.monotonic()

    def run_from(self, first: int) -> None:
        config = self.config
        previous = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            with progress(config.steps, f"training {self.run.meta['stage']}", done=first) as bar:
                for step, batches in self._batches(first):
                    loss = self._step(step, batches)
                    bar.advance(note=f"loss {loss:.4g}")
                    self._after_step(step + 1)
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _batches(self, first: int) -> Iterator[tuple[int, list[dict[str, Tensor]]]]:
        """Yields each step's batches of this process; the next step's is made while this one computes."""

        def make(step: int) -> list[dict[str, Tensor]]:
            return [self.task.batch(self._samples(step, part)) for part in range(self.config.accumulation)]

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(make, first) if first < self.config.steps else None
            for step in range(first, self.config.steps):
                assert waiting is not None
                batches = waiting.result()
                waiting = pool.submit(make, step + 1) if step + 1 < self.config.steps else None
                yield step, batches

    def _samples(self, step: int, part: int) -> range:
        """The global numbers of this process's samples in a part of a step."""
        start = step * self.config.batch_size + self.world.rank * self.share * self.config.accumulation
        return range(start + part * self.share, start + (part + 1) * self.share)

    def _step(self, step: int, batches: list[dict[str, Tensor]]) -> float:
        rate = learning_rate(self.config, step)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        seen: list[dict[str, Tensor]] = []
        for number, batch in enumerate(batches):
            on_device = {name: value.to(self.world.device) for name, value in batch.items()}
            loss, parts = self.engine(on_device)
            if not self._all(fine := bool(torch.isfinite(loss))):
                return self._skip(step, "loss", parts, [] if fine else self._blame(step, number, on_device))
            self.engine.backward(loss)
            if not self._all(fine := self.guard.finite()):
                names = [] if fine else self._blame(step, number, on_device)
                return self._skip(step, "gradient", {"loss": loss, **parts}, names)
            self.engine.step()
            seen.append(
                {name: value.detach().float().cpu() for name, value in {"loss": loss, **parts}.items()}
            )
        self.bad_steps = 0
        for values in seen:
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, torch.zeros(())) + value
        self.counted += len(seen)
        weights = self.engine.module.state_dict()
        if self.config.zero_stage == 3:
            weights = distributed.full_parameters(self.engine, 3)
        self.averages.update(weights, step)
        mean = sum(float(values["loss"]) for values in seen) / len(seen)
        if self.world.is_main:
            self.health.see(step, mean, rate)
        return mean

    def _all(self, fine: bool) -> bool:
        return not distributed.any_process(not fine, self.world)

    def _blame(self, step: int, part: int, batch: dict[str, Tensor]) -> list[str]:
        """The names of the samples whose own loss or gradient isn't finite; of all if no single one's is.

        Each is computed again alone. Where ZeRO 3 has split the weights nothing can be, so all are named.
        """
        samples = self._samples(step, part)
        alike = all(value.ndim and len(value) == len(samples) for value in batch.values())
        bad: list[int] = []
        if alike and self.config.zero_stage < 3:
            rows = [{name: value[i : i + 1] for name, value in batch.items()} for i in range(len(samples))]
            bad = [n for n, row in zip(samples, rows, strict=True) if not self._finite_alone(row)]
        self.guard.finite()  # forgets the gradients seen here
        return self.task.names(bad or samples)

    def _finite_alone(self, batch: dict[str, Tensor]) -> bool:
        loss, _ = self.engine.module(batch)
        trained = [p for p in self.engine.module.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        return all(bool(torch.isfinite(value).all()) for value in (loss, *gradients) if value is not None)

    def _skip(self, step: int, what: str, parts: dict[str, Tensor], blamed: list[str]) -> float:
        """Forgets a step whose loss or gradient isn't finite; raises UserError after too many on end."""
        distributed.drop_gradients(self.engine)
        self.bad_steps += 1
        values = ", ".join(f"{name} {float(value.detach()):.4g}" for name, value in parts.items())
        names = [name for each in distributed.from_all(blamed, self.world) for name in each]
        self.health.skip(step, what, names)
        at_fault = ", ".join(names[:NUM_NAMED])
        log.warning(
            "step %d: the %s is not finite (%s); step skipped. Samples at fault: %s",
            step,
            what,
            values,
            at_fault,
        )
        if self.bad_steps >= MAX_BAD_STEPS:
            self._note_health()
            raise UserError(
                f"The {what} was not finite for {MAX_BAD_STEPS} steps on end, the last at step {step} "
                f"({values}; samples {at_fault}). The newest checkpoint in {self.run.folder / 'state'} is "
                "from before: give the same command with `--set train.learning_rate=...` lower, or with "
                "train.precision=fp32, and it goes on from there. If it is always the same samples, mend "
                "them."
            )
        return float("nan")

    def _after_step(self, done: int) -> None:
        config, last = self.config, done == self.config.steps
        numbers = self._pictures(done) if done % config.picture_every == 0 or last else {}
        if (done % config.log_every == 0 or last) and self.counted:
            self._log(done, numbers)
        elif numbers:
            self.run.scalars(done, numbers)
        stopping = distributed.any_process(self.stopped, self.world)
        if done % config.checkpoint_every == 0 or last or stopping:
            facts = {"step": done, "ema": self.averages.state(), "health": self.health.state()}
            healthy = self.health.healthy_until(done)
            save_state(self.engine, self.run.folder, done, facts, self.world, healthy_until=healthy)
            self._note_health()
        if stopping and not last:
            log.warning("stopped by SIGTERM after step %d; the same command goes on from here", done)
            raise SystemExit(128 + signal.SIGTERM)

    def _note_health(self) -> None:
        for name in ("divergence", "skipped_steps"):
            self.run.meta.pop(name, None)
        self.run.meta.update(self.health.facts())
        self.run.save_progress()

    def _log(self, done: int, numbers: Mapping[str, float]) -> None:
        names = sorted(self.sums)
        values = distributed.mean(torch.stack([self.sums[name] / self.counted for name in names]), self.world)
        scalars = {f"train/{name}": float(value) for name, value in zip(names, values, strict=True)}
        now = time.monotonic()
        steps = self.counted / self.config.accumulation
        scalars["learning_rate"] = learning_rate(self.config, done - 1)
        scalars["samples_per_second"] = steps * self.config.batch_size / (now - self.since)
        on_gpu = self.world.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.world.device) if on_gpu else peak_bytes()
        scalars["peak_memory_gb"] = peak / 1e9
        norm = self.engine.get_global_grad_norm()
        if norm is not None:
            scalars["grad_norm"] = float(norm)
        self.run.scalars(done, {**scalars, **numbers})
        self.sums, self.counted, self.since = {}, 0, now

    @torch.no_grad()
    def _pictures(self, done: int) -> dict[str, float]:
        """Shows the averaged weights' work, and returns its numbers; the trained ones are put back after."""
        if not self.world.is_main:
            return {}
        model = self.shown.to(self.world.device)
        trained = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict({k.removeprefix("model."): v for k, v in self.averages.weights.items()})
        model.eval()
        try:
            shown = self.task.pictures(model, done)
        finally:
            model.load_state_dict(trained)
            model.train()
        self.run.pictures(done, {name: value for name, value in shown.items() if value.ndim})
        return {name: float(value) for name, value in shown.items() if not value.ndim}

    def _on_signal(self, number: int, frame: Any) -> None:
        self.stopped = True
