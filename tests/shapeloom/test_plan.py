"""What the plan says of a training is what smaller runs of it take."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from encoder.train import EncoderTask, EncoderTrainConfig
from shapeloom import distributed, plan
from shapeloom.config import UserError, load_config
from shapeloom.costs import checkpoint_bytes, count, parse_gpus, sample_costs, state_bytes
from shapeloom.shards import AssetShards
from shapeloom.training import TrainConfig, make_optimizer
from tests.shapeloom.line_training import Line, run_line


class Wide(Line):
    """With weights that outweigh what files hold beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(1, 512), nn.SiLU(), nn.Linear(512, 512), nn.Linear(512, 1))


@pytest.fixture(scope="module")
def task(ball_dataset: Path) -> EncoderTask:
    """The smoke preset's encoder."""
    config = load_config(EncoderTrainConfig, Path("configs/encoder/smoke.yaml"), [f"data={ball_dataset}"])
    shards = AssetShards(ball_dataset, "train")
    return EncoderTask(config, shards, shards)


def test_operations_of_a_small_network_are_those_of_its_products() -> None:
    forward, inner = 2 * (32 + 32 * 32 + 32), 2 * (32 * 32 + 32)  # gradients of inputs: not of the first's
    assert count(Line(), range(6), bf16=False).flops == 6 * (2 * forward + inner)


def test_more_samples_take_as_much_as_one_and_two_tell(task: EncoderTask) -> None:
    flops, each, fixed, _ = sample_costs(task, 0, bf16=False)
    six = count(task, range(6), bf16=False)
    assert 6 * flops == pytest.approx(six.flops, rel=0.1)
    assert fixed + 6 * each == pytest.approx(six.activation_bytes, rel=0.1)


def tensor_bytes(values: Any) -> int:
    return sum(value.untyped_storage().nbytes() for value in values)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_states_are_what_deepspeed_keeps(stage: int) -> None:
    distributed.start()
    task, config = Wide(), TrainConfig(batch_size=8)
    engine = distributed.make_engine(
        task.model, make_optimizer(task.model, config), micro_batch=8, accumulation=1, grad_clip=1.0,
        zero_stage=stage,
    )  # fmt: skip
    engine.backward(engine(torch.ones(8, 1)).mean())
    engine.step()
    number = sum(p.numel() for p in task.model.parameters())
    said = state_bytes(number, number, config, stage, 1)
    inner = engine.optimizer.optimizer if stage else engine.optimizer
    moments = [value for state in inner.state.values() for value in state.values() if value.numel() > 1]
    own = list(engine.optimizer.single_partition_of_fp32_groups) if stage else []
    assert said["weights"] == pytest.approx(
        tensor_bytes(task.model.parameters())
        if not stage
        else tensor_bytes(engine.optimizer.bit16_groups_flat),
        rel=0.1,
    )
    assert said["moments"] == pytest.approx(tensor_bytes(moments) + tensor_bytes(own), rel=0.1)


def test_stages_split_what_they_say() -> None:
    config = TrainConfig()
    of = [state_bytes(1000, 800, config, stage, 8) for stage in range(4)]
    assert [each["moments"] for each in of] == [6400, 800 + 400, 800 + 400, 800]
    assert [each["gradients"] for each in of] == [3200, 3200, 400, 400]
    assert [each["weights"] for each in of] == [4000, 4000, 4000, 500]


@pytest.mark.parametrize("stage", [0, 1])
def test_a_checkpoint_has_the_size_that_was_planned(tmp_path: Path, stage: int) -> None:
    task = Wide()
    run_line(tmp_path, task, steps=1, zero_stage=stage, ema_extra=[0.5])
    number = sum(p.numel() for p in task.model.parameters())
    said = checkpoint_bytes(number, number, TrainConfig(zero_stage=stage, ema_extra=(0.5,)))
    files = [path.stat().st_size for path in (tmp_path / "state" / "00000001").rglob("*") if path.is_file()]
    assert said == pytest.approx(sum(files), rel=0.1)


def test_the_command_says_steps_hours_memory_and_storage(
    ball_dataset: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--assets", "1000000", "--gpus", "4xH100"]
    plan.main(
        ["encoder", "--config", "configs/encoder/smoke.yaml", "--set", f"data={ball_dataset}", *arguments]
    )
    told = capsys.readouterr().out
    for words in ("passes over 1,000,000 assets", "GPU hours", "166,667 shards", "threads a GPU", "ZeRO 3"):
        assert words in told, told


def test_an_unknown_gpu_is_refused_with_those_that_are_known() -> None:
    assert parse_gpus("8xH100")[:2] == (8, "H100")
    for wrong in ("H100", "8xTPU", "0xH100", "x"):
        with pytest.raises(UserError, match="8xH100, with one of"):
            parse_gpus(wrong)


def test_hours_follow_from_operations(task: EncoderTask) -> None:
    sample = plan.Sample(task, task.config.train, 0.0, 8, 4.0, 1e6, 2.0)
    gpu = parse_gpus("2xA100")[2]
    found = plan.plan(sample, assets=4000, gpus=2, gpu=gpu, utilization=0.5)
    rate = 2 * gpu.flops * 0.5
    assert found["gpu_hours"] == pytest.approx(2 * found["total_flops"] / rate / 3600)
    assert found["shards"] == 1000 and found["data_bytes"] == 4e9
    assert found["prepare_core_hours"] == pytest.approx(8000 / 3600)
