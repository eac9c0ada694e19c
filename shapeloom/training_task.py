"""What a trainer supplies, and the settings that every trainer has."""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from pydantic import Field as Key
from torch import Tensor, nn

from shapeloom import cpu as cpu
from shapeloom.config import Config
from shapeloom.watch import HANG_SECONDS


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
    hang_seconds: float = Key(
        HANG_SECONDS, gt=0,
        description="several processes: no step, with its pictures and checkpoint, takes longer",
    )  # fmt: skip
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


def learning_rate(config: TrainConfig, step: int) -> float:
    """Returns the rate of step `step` (from 0): linear warm-up, then a cosine down to the minimum."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    low = min(config.min_learning_rate, config.learning_rate)
    return low + 0.5 * (config.learning_rate - low) * (1 + float(np.cos(np.pi * min(1.0, share))))
