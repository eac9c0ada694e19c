"""What DeepSpeed does by itself, and beside it what our engines do: an upgrade that changes it is seen here.

That training skips steps that are not finite, at every ZeRO stage, is claimed in test_training.py.
"""

from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import Tensor, nn

from shapeloom import distributed
from shapeloom.distributed import full_parameters, load_engine, make_engine, save_engine

pytestmark = pytest.mark.usefixtures("world")
STAGES = pytest.mark.parametrize("stage", [0, 1, 2, 3])


@pytest.fixture(scope="module")
def world() -> distributed.World:
    return distributed.start()


class Slope(nn.Module):
    """loss = slope * x of one trained number, beside a frozen one: the gradient is x."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1))
        self.frozen = nn.Parameter(torch.full((1,), 5.0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.slope * x).sum()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Steps of the gradient itself, so that a step shows what it was clipped to."""
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)


def default_engine(stage: int) -> Any:
    model = Slope()
    settings = {
        "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }  # fmt: skip
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=sgd(model), config=settings, dist_init_required=False
    )
    return engine


def our_engine(stage: int, *, grad_clip: float) -> Any:
    model = Slope()
    return make_engine(
        model, sgd(model), micro_batch=1, accumulation=1, grad_clip=grad_clip, zero_stage=stage
    )


def step(engine: Any, gradient: float, stage: int) -> float:
    """The trained number after a step with this gradient."""
    engine.backward(engine(torch.tensor([gradient])))
    engine.step()
    return float(full_parameters(engine, stage)["slope"])


@STAGES
def test_gradients_are_clipped_to_1_by_default_and_as_told_by_ours(stage: int) -> None:
    assert step(default_engine(stage), 100.0, stage) == pytest.approx(-1.0, rel=1e-3)
    assert step(our_engine(stage, grad_clip=0.0), 100.0, stage) == pytest.approx(-100.0)
    assert step(our_engine(stage, grad_clip=7.0), 100.0, stage) == pytest.approx(-7.0, rel=1e-3)


@STAGES
def test_a_step_that_is_not_finite_is_skipped_without_a_word_but_for_zero_0(stage: int) -> None:
    engine = default_engine(stage)
    after = step(engine, float("nan"), stage)
    if stage == 0:
        assert after != after and engine.skipped_steps == 0
    else:
        assert after == 0.0 and engine.skipped_steps == 1
    assert engine.global_steps == 1


@STAGES
def test_a_checkpoint_s_clipping_beats_the_config_s_at_zero_1_and_2_but_not_in_ours(
    tmp_path: Path, stage: int
) -> None:
    save_engine(our_engine(stage, grad_clip=1.0), tmp_path, "1", {})
    default, ours = (our_engine(stage, grad_clip=7.0) for _ in range(2))
    default.load_checkpoint(str(tmp_path), tag="1")
    assert step(default, 100.0, stage) == pytest.approx(-1.0 if stage in (1, 2) else -7.0, rel=1e-3)
    load_engine(ours, tmp_path, "1")
    assert step(ours, 100.0, stage) == pytest.approx(-7.0, rel=1e-3)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_frozen_weights_are_missing_from_what_zero_1_consolidates_but_not_from_ours(
    tmp_path: Path, stage: int
) -> None:
    engine = our_engine(stage, grad_clip=0.0)
    step(engine, 2.0, stage)
    assert {name: float(value) for name, value in full_parameters(engine, stage).items()} == {
        "slope": -2.0, "frozen": 5.0,
    }  # fmt: skip
    save_engine(engine, tmp_path, "1", {})
    names = set(get_fp32_state_dict_from_zero_checkpoint(str(tmp_path), tag="1"))
    assert names == ({"slope"} if stage == 1 else {"slope", "frozen"})
