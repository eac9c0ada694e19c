"""Steps, decoding and sampling run on a device that isn't the CPU: no tensor of theirs is left behind there.

On a pretended GPU (tests/pretend_gpu.py), whose results must be the CPU's own.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from encoder.model import read_for_encoding
from encoder.train import EncoderTask, EncoderTrainConfig
from prior.denoiser import Denoiser, NetworkConfig
from prior.model import Prior
from prior.task import PriorConfig, PriorTask, read_latents
from prior.train import new_model
from prior.train_views import make_model
from prior.views import ViewTask, ViewTrainConfig
from sampling.edit import interpolate, morph, vary
from sampling.guidance import GuidanceConfig
from sampling.mesh import MeshConfig
from sampling.pipeline import ShapePipeline
from sampling.shape import ShapeSample
from shapeloom.config import load_config
from shapeloom.decoder import Decoder, DecoderConfig, RenderConfig
from shapeloom.denoising import Shapes
from shapeloom.diffusion.objectives import DiffusionConfig
from shapeloom.diffusion.samplers import SamplerName
from shapeloom.runs import Run
from shapeloom.shap_e.field import ShapEFieldConfig
from shapeloom.shards import AssetShards
from shapeloom.training import Task, TrainConfig, make_optimizer
from tests.pretend_gpu import CPU, GPU, is_all_there, place, pretend_gpu
from tests.prior.test_train import write_latents
from tests.sampling.conftest import EMBED, TEXT_WIDTH, WordClip

NUMBERS = {"network": {"width": 32, "depth": 1, "heads": 2}}
MESH = MeshConfig(resolution=16, max_faces=100, texture_size=32)


def same_on_both(work: Callable[[torch.device], Any]) -> Any:
    """What `work` returns, tensors or arrays in any nest, once the pretended GPU has returned the same."""
    results, calls = [], []
    for device in (CPU, GPU):
        with pretend_gpu() as mode:
            results.append(work(device))
        calls.append(mode.calls)
    # Weights that an earlier run moved there are moved back by a few calls.
    assert calls[1] > 2 * calls[0], f"{calls} calls worked on the GPU when asked for the CPU and for the GPU"
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    return results[0]


def check_step(task: Task, numbers: Sequence[int], config: TrainConfig | None = None) -> None:
    """A step, with its optimizer if `config` is given, is the same on both."""
    made = task.batch(numbers)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}

    def step(device: torch.device) -> dict[str, Tensor]:
        task.model.to(device).load_state_dict(before)
        assert is_all_there(task.model) == (device == GPU)
        task.model.zero_grad()
        loss, _ = task.loss(task.model, {name: value.to(device) for name, value in made.items()})
        assert place(loss) == device
        loss.backward()
        gradients = {n: p.grad.cpu() for n, p in task.model.named_parameters() if p.grad is not None}
        if config is not None:
            make_optimizer(task.model, config).step()
        after = {name: value.cpu() for name, value in task.model.state_dict().items()}
        return {"loss": loss.detach().cpu(), **gradients, **{f"{n} after": v for n, v in after.items()}}

    assert len(same_on_both(step)) > 3


def test_the_pretended_gpu_refuses_what_a_gpu_would() -> None:
    here = torch.ones(3)
    with pretend_gpu():
        there = here.to("cuda")
        assert place(here) == CPU and place(there) == GPU == there.device
        module = nn.Linear(3, 2)
        with pytest.raises(RuntimeError, match="same device"):
            module(there)
        assert place(module.to("cuda")(there).sum()) == GPU
        mixed: list[Callable[[], Any]] = [
            lambda: there + here, lambda: there + torch.zeros(3), lambda: there.add_(here),
            lambda: torch.where(there > 0, here, there), lambda: torch.cat([here, there]),
            lambda: torch.stack([here.sum(), there.sum()]), lambda: torch.searchsorted(there, here),
            lambda: here[there.long()], lambda: there.__setitem__(there > 0, here),
        ]  # fmt: skip
        for work in mixed:
            with pytest.raises(RuntimeError, match="same device"):
                work()
        for fine in (
            there + here.sum(), there[here.long()], there.new_zeros(3) + there, there.copy_(here) + there,
            torch.zeros_like(there) + there, torch.arange(3, device=there.device) + there,
            torch.tensor([1.0], device="cuda") + there, next(iter(there)) + there, here.to(there) + there,
            here.type_as(there) * there,
        ):  # fmt: skip
            assert place(fine) == GPU
        to_numpy: list[Callable[[], Any]] = [there.numpy, lambda: np.asarray(there)]
        for work in to_numpy:
            with pytest.raises(TypeError, match="numpy"):
                work()
        assert there.cpu().numpy().tolist() == there.tolist() == [1, 1, 1]
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, generator=torch.Generator(), device="cuda")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_encoder_steps(ball_dataset: Path, optimizer: str) -> None:
    settings = [f"data={ball_dataset}", "losses.rays_from=0", f"train.optimizer={optimizer}"]
    if optimizer == "muon":  # one of them with meshes too
        settings += ["meshes.from_step=0", "meshes.every=1", "meshes.resolution=16"]
    config = load_config(EncoderTrainConfig, Path("configs/encoder/smoke.yaml"), settings)
    shards = AssetShards(ball_dataset, "train")
    task = EncoderTask(config, shards, shards)
    check_step(task, range(2), config.train)


def test_encoding(ball_dataset: Path) -> None:
    config = load_config(EncoderTrainConfig, Path("configs/encoder/smoke.yaml"), [f"data={ball_dataset}"])
    shards = AssetShards(ball_dataset, "train")
    model = EncoderTask(config, shards, shards).model
    samples = [read_for_encoding(shards, i, config.encoder) for i in range(2)]
    latent = same_on_both(lambda device: model.to(device).encode(samples).cpu())
    assert len(latent) == 2


@pytest.mark.parametrize("target", ["x0", "flow"])
def test_prior_steps(tmp_path: Path, target: str) -> None:
    folder = write_latents(tmp_path / "latents")
    config = PriorConfig(latents=folder, diffusion={"target": target}, **NUMBERS)
    latents = read_latents(folder, "train", config)
    run = Run.open(tmp_path / "run", config, stage="prior")
    task = PriorTask(new_model(latents, config), latents, config, run)
    check_step(task, range(4), config.train)


def test_view_steps(ball_dataset: Path) -> None:
    sizes = "network={size: 16, channels: [8, 16], head_width: 8, context_width: 16, reference_depth: 1}"
    config = load_config(ViewTrainConfig, None, [f"data={ball_dataset}", sizes])
    shards = AssetShards(ball_dataset, "train")
    check_step(ViewTask(make_model(config, shards, None, None), config, shards, shards), range(2))


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    """Small, of random weights, with surfaces."""
    torch.manual_seed(0)
    config = load_config(EncoderTrainConfig, Path("configs/encoder/smoke.yaml"), ["data=nowhere"]).decoder
    made = Decoder(config).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    made.digest = "the decoder's digest"
    return made


def pipeline_on(device: torch.device, decoder: Decoder, **diffusion: Any) -> ShapePipeline:
    """With a prior that isn't trained either."""
    torch.manual_seed(0)
    tokens, channels = decoder.latent_shape
    shapes = Shapes(tokens=tokens, channels=channels, clip_dim=EMBED, text_width=TEXT_WIDTH)
    network = Denoiser(shapes, NetworkConfig(width=16, depth=1, heads=2)).to(device)
    facts = {"digest": "the prior's digest", "encoder": decoder.digest, "clip": WordClip().digest}
    prior = Prior(network, shapes, DiffusionConfig(**diffusion), facts)
    return ShapePipeline(prior, decoder.to(device), WordClip())


@pytest.mark.parametrize("sampler", get_args(SamplerName))
def test_sampling(decoder: Decoder, sampler: SamplerName) -> None:
    def work(device: torch.device) -> list[Tensor]:
        pipe = pipeline_on(device, decoder)
        guidance = GuidanceConfig(mix={"tall": 0.5}, interval=(0.1, 10), rescale=0.5, threshold="dynamic")
        made = pipe(
            "a red chair", num_samples=2, steps=3, sampler=sampler, guidance=guidance, negative_prompt="blue",
            image=np.zeros((8, 8, 3), np.uint8),
        )  # fmt: skip
        return [shape.latent for shape in made]

    assert len(same_on_both(work)) == 2


def test_edits(decoder: Decoder) -> None:
    def work(device: torch.device) -> list[Tensor]:
        pipe = pipeline_on(device, decoder)
        shape = pipe("a red chair", steps=2)[0]
        varied = vary(pipe, shape, "a blue chair", strength=0.5, steps=4)
        morphed = morph(pipe, ("a chair", "a table"), seeds=(0, 1), num_samples=3, steps=2)
        joined = interpolate(pipe, varied[0], shape, num_samples=3)
        return [each.latent for each in (*varied, *morphed, *joined)]

    assert len(same_on_both(work)) == 1 + 3 + 3


@pytest.mark.parametrize("kind", ["own", "shap_e"])
def test_decoding_of_views_and_meshes(decoder: Decoder, kind: str) -> None:
    if kind == "shap_e":
        decoder = Decoder(DecoderConfig(shap_e=ShapEFieldConfig(width=16, channels=8))).eval()
    latent = torch.rand(decoder.latent_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def work(device: torch.device) -> list[np.ndarray]:
        shape = ShapeSample(latent, "a thing", 0, decoder.to(device))
        frames = shape.turntable(2, 8, samples=RenderConfig(coarse=16, fine=8))
        mesh = shape.mesh(MESH)
        return [frames, mesh.mesh.vertices, mesh.mesh.faces, mesh.mesh.colours]

    frames, _, faces, _ = same_on_both(work)
    assert kind == "shap_e" or (len(faces) > 50 and np.ptp(frames) > 0)
