"""The loop of a training: steps, averages of the weights, what is logged, saved and shown on the way."""

import math
import signal
import time
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor, nn

from shapeloom import distributed, watch
from shapeloom.checkpoint import save_state
from shapeloom.config import UserError
from shapeloom.health import NUM_NAMED, Health
from shapeloom.loading import Batch, made_ahead, on_device
from shapeloom.log import get_logger, progress
from shapeloom.runs import Run, peak_bytes
from shapeloom.training_task import Task, TrainConfig, learning_rate

log = get_logger("training")
MAX_BAD_STEPS = 10


class Averages:
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


class GradientGuard:
    """Sums the norms of a backward pass's gradients as they come, whatever ZeRO then does with them."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._total = torch.zeros((), device=device)
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._add)

    def _add(self, gradient: Tensor) -> None:
        self._total += torch.linalg.vector_norm(gradient.detach()).float()

    def take(self) -> Tensor:
        """The sum since the last call, on the device: not finite if any gradient wasn't."""
        total, self._total = self._total, torch.zeros_like(self._total)
        return total


class Loop:
    """The state of a running training."""

    def __init__(
        self, task: Task, config: TrainConfig, run: Run, world: distributed.World, engine: Any,
        averages: Averages, share: int, shown: nn.Module, health: Health,
    ) -> None:  # fmt: skip
        """shown: what pictures are drawn with."""
        self.shown, self.health = shown, health
        self.task, self.config, self.run, self.world = task, config, run, world
        self.engine, self.averages, self.share = engine, averages, share
        self.stopped = self.stopping = False
        self.bad_steps = 0
        self.guard = GradientGuard(engine.module, world.device)
        self.sums: dict[str, Tensor] = {}
        self.counted, self.since = 0, time.monotonic()

    def run_from(self, first: int) -> None:
        previous = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            self._run_from(first)
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _run_from(self, first: int) -> None:
        config = self.config
        self._note("waiting for its batch", first)
        if first:
            self._note_saved(first)
        with progress(config.steps, f"training {self.run.meta['stage']}", done=first) as bar:
            for step, batches in made_ahead(self._make, range(first, config.steps), self.world.device):
                self._note("in the middle of a step", step)
                loss = self._step(step, batches)
                bar.advance(note=f"loss {loss:.4g}")
                self._after_step(step + 1)
                self._note("waiting for its batch", step + 1)

    def _note(self, doing: str, step: int) -> None:
        """For the other processes (see shapeloom.watch)."""
        if watch.current is not None:
            watch.current.doing(doing, step=step)

    def _make(self, step: int) -> list[Batch]:
        """This process's parts of a step's batch."""
        return [self.task.batch(self._samples(step, part)) for part in range(self.config.accumulation)]

    def _samples(self, step: int, part: int) -> range:
        """The global numbers of this process's samples in a part of a step."""
        start = step * self.config.batch_size + self.world.rank * self.share * self.config.accumulation
        return range(start + part * self.share, start + (part + 1) * self.share)

    def _step(self, step: int, batches: list[Batch]) -> float:
        """Takes a step, or forgets it where something isn't finite. Waits for the device once, at its end."""
        rate = learning_rate(self.config, step)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        seen: list[dict[str, Tensor]] = []
        gradients: list[Tensor] = []
        for number, batch in enumerate(batches):
            loss, parts = self.engine(on_device(batch, self.world.device))
            self.engine.backward(loss)
            seen.append({name: value.detach().float() for name, value in {"loss": loss, **parts}.items()})
            gradients.append(self.guard.take())
            if number + 1 < len(batches):  # the last one moves the weights, once all are known to be finite
                self.engine.step()
        bad, values, norms = self._fetch(seen, gradients)
        if bad is not None:
            fine = [math.isfinite(each["loss"] + norm) for each, norm in zip(values, norms, strict=True)]
            at_fault = fine.index(False) if False in fine else 0
            names = [] if all(fine) else self._blame(step, at_fault, batches[at_fault])
            return self._skip(step, bad, values[at_fault], names)
        self.engine.step()
        self.bad_steps = 0
        self._count(values)
        weights = self.engine.module.state_dict()
        if self.config.zero_stage == 3:
            weights = distributed.full_parameters(self.engine, 3)
        self.averages.update(weights, step)
        mean = sum(each["loss"] for each in values) / len(values)
        if self.world.is_main:
            self.health.see(step, mean, rate)
        return mean

    def _fetch(
        self, seen: list[dict[str, Tensor]], gradients: list[Tensor]
    ) -> tuple[str | None, list[dict[str, float]], list[float]]:
        """Returns what isn't finite in any process, "loss" or "gradient", and this one's scalars, at one go.

        seen: each part's named scalars; gradients: the sums of its gradients' norms. Notes whether any
        process is to stop.
        """
        device = self.world.device
        losses, norms = torch.stack([each["loss"] for each in seen]), torch.stack(gradients)
        scalars = torch.stack([value.to(device) for each in seen for value in each.values()])
        flags = torch.stack([~losses.isfinite().all(), ~norms.isfinite().all()]).float()
        flags = torch.cat([flags, torch.tensor([float(self.stopped)], device=device)])
        flags = distributed.highest(flags, self.world)
        numbers = iter(torch.cat([flags, norms, scalars]).tolist())
        bad_loss, bad_gradient, stopping = (bool(next(numbers)) for _ in range(3))
        self.stopping = stopping
        found_norms = [next(numbers) for _ in gradients]
        values = [{name: next(numbers) for name in each} for each in seen]
        return "loss" if bad_loss else "gradient" if bad_gradient else None, values, found_norms

    def _count(self, values: list[dict[str, float]]) -> None:
        for each in values:
            for name, value in each.items():
                self.sums[name] = self.sums.get(name, torch.zeros(())) + torch.tensor(value)
        self.counted += len(values)

    def _blame(self, step: int, part: int, batch: Batch) -> list[str]:
        """The names of the samples whose own loss or gradient isn't finite; of all if no single one's is.

        Each is computed again alone. Where ZeRO 3 has split the weights nothing can be, so all are named.
        """
        samples, batch = self._samples(step, part), on_device(batch, self.world.device)
        alike = all(value.ndim and len(value) == len(samples) for value in batch.values())
        bad: list[int] = []
        if alike and self.config.zero_stage < 3:
            rows = [{name: value[i : i + 1] for name, value in batch.items()} for i in range(len(samples))]
            bad = [n for n, row in zip(samples, rows, strict=True) if not self._finite_alone(row)]
        self.guard.take()  # forgets the gradients seen here
        return self.task.names(bad or samples)

    def _finite_alone(self, batch: dict[str, Tensor]) -> bool:
        loss, _ = self.engine.module(batch)
        trained = [p for p in self.engine.module.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        return all(bool(torch.isfinite(value).all()) for value in (loss, *gradients) if value is not None)

    def _skip(self, step: int, what: str, parts: dict[str, float], blamed: list[str]) -> float:
        """Forgets a step whose loss or gradient isn't finite; raises UserError after too many on end."""
        distributed.drop_gradients(self.engine)
        self.bad_steps += 1
        values = ", ".join(f"{name} {value:.4g}" for name, value in parts.items())
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
        self._note("making pictures or a checkpoint", done)
        numbers = self._pictures(done) if done % config.picture_every == 0 or last else {}
        if (done % config.log_every == 0 or last) and self.counted:
            self._log(done, numbers)
        elif numbers:
            self.run.scalars(done, numbers)
        # Alone, a signal is heard at once; together, all processes must hear it at the same step.
        stopping = self.stopped if self.world.size == 1 else self.stopping
        if done % config.checkpoint_every == 0 or last or stopping:
            facts = {"step": done, "ema": self.averages.state(), "health": self.health.state()}
            healthy = self.health.healthy_until(done)
            save_state(self.engine, self.run.folder, done, facts, self.world, healthy_until=healthy)
            self._note_saved(done)
            self._note_health()
        if stopping and not last:
            log.warning("stopped by SIGTERM after step %d; the same command goes on from here", done)
            raise SystemExit(128 + signal.SIGTERM)

    def _note_saved(self, step: int) -> None:
        if watch.current is not None:
            watch.current.saved(f"step {step}, in {self.run.folder}")

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
