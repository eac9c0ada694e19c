"""What the plan says of a training is what smaller runs of it take."""

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.speed.plan import compare, peak_bytes, tensor_bytes
from encoder.train import EncoderTask, EncoderTrainConfig
from prior.task import PriorConfig, PriorTask
from shapeloom import distributed, plan
from shapeloom.config import UserError, load_config
from shapeloom.costs import checkpoint_bytes, count, moments_of, parse_gpus, sample_costs, state_bytes
from shapeloom.shards import AssetShards
from shapeloom.training import TrainConfig, make_optimizer
from tests.prior.test_train import write_latents
from tests.shapeloom.line_training import Line, run_line


class Wide(Line):
    """With weights that outweigh what files hold beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(1, 512), nn.SiLU(), nn.Linear(512, 512), nn.Linear(512, 1))


def encoder_task(data: Path) -> EncoderTask:
    """The smoke preset's encoder."""
    config = load_config(EncoderTrainConfig, Path("configs/encoder/smoke.yaml"), [f"data={data}"])
    shards = AssetShards(data, "train")
    return EncoderTask(config, shards, shards)


def prior_task(folder: Path) -> PriorTask:
    """A prior of two layers."""
    overrides = [f"latents={write_latents(folder / 'latents')}", "network={width: 64, depth: 2, heads: 4}"]
    config = load_config(PriorConfig, Path("configs/prior/smoke.yaml"), overrides)
    task = plan.prior_sample(config, folder).task
    assert isinstance(task, PriorTask)
    return task


@pytest.fixture(scope="module", params=["encoder", "prior"])
def task(
    request: pytest.FixtureRequest, ball_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> EncoderTask | PriorTask:
    if request.param == "encoder":
        return encoder_task(ball_dataset)
    return prior_task(tmp_path_factory.mktemp("prior"))


def test_operations_of_a_small_network_are_those_of_its_products() -> None:
    forward, inner = 2 * (32 + 32 * 32 + 32), 2 * (32 * 32 + 32)  # gradients of inputs: not of the first's
    assert count(Line(), range(6), bf16=False).flops == 6 * (2 * forward + inner)


def test_more_samples_take_as_much_as_one_and_two_tell(task: EncoderTask | PriorTask) -> None:
    costs, six = sample_costs(task, 0, bf16=False), count(task, range(6), bf16=False)
    assert 6 * costs.flops == pytest.approx(six.flops, rel=0.1)
    assert costs.activations(6) == pytest.approx(six.activation_bytes, rel=0.1)
    most = max(six.activation_bytes, *(left + made for left, made in six.trail))
    assert costs.peak(6) == pytest.approx(most, rel=0.1)


def test_operations_are_those_that_the_layers_of_a_prior_do(tmp_path: Path) -> None:
    task, done = prior_task(tmp_path), []

    def note(layer: nn.Module, _: object, out: torch.Tensor) -> None:
        done.append(2 * layer.weight.shape[1] * out.numel())

    for layer in task.model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(note)
    task.loss(task.model, task.batch(range(4)))
    forward = sum(done)
    # The backward pass does twice as much; attention among a few tokens is hardly anything.
    assert 4 * sample_costs(task, 0, bf16=False).flops == pytest.approx(3 * forward, rel=0.1)


def test_attention_is_counted_as_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, heads, width = 64, 2, 8
    task = Line()
    task.model = nn.Linear(width, width, bias=False)

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict]:
        query = model(torch.ones(len(batch["x"]), heads, tokens, width))
        return nn.functional.scaled_dot_product_attention(query, query, query).mean(), {}

    monkeypatch.setattr(task, "loss", loss)
    product = 2 * heads * tokens * tokens * width
    linear = 2 * heads * tokens * width * width
    # Two products forward; backward four, and the first again, whose result isn't kept.
    assert count(task, [0, 1], bf16=False).flops == 2 * (7 * product + 2 * linear)


@pytest.mark.parametrize(("batch", "parts", "stage"), [(96, 1, 0), (96, 2, 0), (4, 1, 0), (4, 1, 1)])
def test_a_step_of_a_prior_takes_the_memory_that_was_planned(
    tmp_path: Path, batch: int, parts: int, stage: int
) -> None:
    """Measured by torch's allocator; large and small batches, where activations and gradients weigh most."""
    distributed.start()
    task = prior_task(tmp_path)
    settings = {"batch_size": batch * parts, "accumulation": parts, "zero_stage": stage, "precision": "fp32"}
    config = TrainConfig.model_validate(settings)
    gpu = parse_gpus("1xH100")[2]
    sample = plan.Sample(task, config, 0.0, 8, 4.0, 1e6, None)
    said = plan.plan(sample, assets=96, gpus=1, gpu=gpu, utilization=0.5)["memory"][stage]
    engine = distributed.make_engine(
        task.model, make_optimizer(task.model, config), micro_batch=batch, accumulation=parts, grad_clip=1.0,
        zero_stage=stage,
    )  # fmt: skip

    def step() -> None:
        for _ in range(parts):
            engine.backward(task.loss(task.model, task.batch(range(batch)))[0])
            engine.step()

    step()  # which makes the moments
    step()
    passing = said["gradients"] + said["in passing"] + said["buffers"]
    assert peak_bytes(step) == pytest.approx(passing, rel=0.1)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_of_an_encoder_takes_what_was_planned(ball_dataset: Path, optimizer: str) -> None:
    """Operations, states and memory by `python -m benchmarks.speed.plan`."""
    changes = [
        "losses.rays_from=0",
        "train.batch_size=4",
        f"train.optimizer={optimizer}",
        "train.precision=fp32",
    ]
    config = load_config(
        EncoderTrainConfig, Path("configs/encoder/smoke.yaml"), [f"data={ball_dataset}", *changes]
    )
    for name, (said, was) in compare(plan.encoder_sample(config)).items():
        assert said == pytest.approx(was, rel=0.1), name


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
    said = state_bytes(number, number, moments_of(task.model, config), config, stage, 1)
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
    of = [state_bytes(1000, 800, 1600, config, stage, 8) for stage in range(4)]
    assert [each["moments"] for each in of] == [6400, 800 + 400, 800 + 400, 800]
    assert [each["gradients"] for each in of] == [3200, 3200, 400, 400]
    assert [each["weights"] for each in of] == [4000, 4000, 4000, 500]


@pytest.mark.parametrize("stage", [0, 1])
def test_a_checkpoint_has_the_size_that_was_planned(tmp_path: Path, stage: int) -> None:
    task = Wide()
    run_line(tmp_path, task, steps=1, zero_stage=stage, ema_extra=[0.5])
    number = sum(p.numel() for p in task.model.parameters())
    said = checkpoint_bytes(number, number, 2 * number, TrainConfig(zero_stage=stage, ema_extra=(0.5,)))
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
    for words in ("passes over 1,000,000 assets", "GPU hours", "166,667 shards", "cores a GPU", "ZeRO 3"):
        assert words in told, told


def test_the_command_plans_a_prior_too(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    latents = write_latents(tmp_path / "latents")
    arguments = ["--set", f"latents={latents}", "--assets", "1000000", "--gpus", "8xA100"]
    plan.main(["prior", "--config", "configs/prior/smoke.yaml", *arguments])
    told = capsys.readouterr().out
    for words in ("passes over 1,000,000 assets", "GPU hours", "in passing", "ZeRO 3", "checkpoint"):
        assert words in told, told


def test_an_unknown_gpu_is_refused_with_those_that_are_known() -> None:
    assert parse_gpus("8xH100")[:2] == (8, "H100")
    for wrong in ("H100", "8xTPU", "0xH100", "x"):
        with pytest.raises(UserError, match="8xH100, with one of"):
            parse_gpus(wrong)


def test_hours_follow_from_operations(task: EncoderTask | PriorTask) -> None:
    sample = plan.Sample(task, TrainConfig(batch_size=8, steps=100), 0.0, 8, 4.0, 1e6, 2.0)
    gpu = parse_gpus("2xA100")[2]
    found = plan.plan(sample, assets=4000, gpus=2, gpu=gpu, utilization=0.5)
    rate = 2 * gpu.flops * 0.5
    assert found["gpu_hours"] == pytest.approx(2 * found["total_flops"] / rate / 3600)
    assert found["shards"] == 1000 and found["data_bytes"] == 4e9
    assert found["prepare_core_hours"] == pytest.approx(8000 / 3600)
