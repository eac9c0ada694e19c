"""Shap-E's prior against recorded numbers, and as a network that our samplers and trainer take."""

import pytest
import torch
from torch import Tensor

from shapeloom.denoising import Shapes
from shapeloom.diffusion.discrete import exponential_process
from shapeloom.diffusion.samplers import sample
from shapeloom.shap_e.prior import ShapEDenoiser, ShapEPriorConfig, _sinusoids
from tests.golden_data import assert_same, golden, published_shapes


def small(data: dict[str, Tensor], reads: str) -> ShapEDenoiser:
    shapes = Shapes(tokens=32, channels=16, clip_dim=768, text_width=768, grid_width=1024)
    model = ShapEDenoiser(shapes, ShapEPriorConfig(width=64, depth=2, heads=4, reads=reads))
    model.load_state_dict(data)
    return model


def weights_of(data: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in data.items() if name.startswith("wrapped.")}


@pytest.mark.parametrize("reads", ["text", "image"])
@torch.no_grad()
def test_golden_prior(reads: str) -> None:
    data = golden(f"prior_{reads}")
    model = small(weights_of(data), reads)
    embedding = data["in.embeddings"]
    if reads == "image":
        embedding = embedding.transpose(1, 2)
    kept: dict[str, Tensor] = {}
    net = model.wrapped
    for name, module in (
        ("t_embed", net.time_embed), ("clip_embed", net.clip_embed), ("input_proj", net.input_proj),
        ("ln_pre", net.ln_pre), ("attn.0", net.backbone.resblocks[0].attn),
        ("block.0", net.backbone.resblocks[0]), ("block.1", net.backbone.resblocks[1]),
        ("ln_post", net.ln_post),
    ):  # fmt: skip
        module.register_forward_hook(lambda _m, _i, out, name=name: kept.__setitem__(name, out))
    for step, suffix in ((data["in.t"].float(), ""), (data["in.t_float"], "_t_float")):
        x0, variance = model.raw(data["in.x"].view(3, 32, 16), step, embedding)
        ours = torch.cat([x0.flatten(1), variance.flatten(1)], dim=1)
        assert_same(ours, data[f"out.raw{suffix}"], tolerance=1e-5)
        if not suffix:
            assert_same(_sinusoids(step, 64), data["mid.timestep_embedding"])
            for name, value in kept.items():
                assert_same(value, data[f"mid.{name}"])


@torch.no_grad()
def test_golden_guided_sampling() -> None:
    data, weights = golden("diffusion"), weights_of(golden("prior_text"))
    model = small(weights, "text")
    text, none = data["cfg.embeddings"].chunk(2)
    for name in ("noclip", "clip"):
        seen: list[Tensor] = []

        def half(x: Tensor, sigma: Tensor, embedding: Tensor, name: str = name) -> Tensor:
            step = exponential_process().step_of(sigma).floor().float()
            x0 = model.raw(x.view(2, 32, 16) / (sigma**2 + 1).sqrt()[:, None, None], step, embedding)[0]
            return (x0.clamp(-1, 1) if name == "clip" else x0).flatten(1)

        def guided(x: Tensor, sigma: Tensor, condition: None, seen: list[Tensor] = seen) -> Tensor:
            positive, negative = half(x, sigma, text), half(x, sigma, none)
            seen.append(negative + 3 * (positive - negative))
            return seen[-1]

        x = sample(guided, data["cfg.x_T"], data["cfg.sigmas"], None, method="heun")
        assert_same(x, data[f"cfg.{name}.x"][-1], tolerance=1e-4)
        assert_same(seen[0], data[f"cfg.{name}.first_guided_x0"], tolerance=1e-4)


@torch.no_grad()
def test_golden_denoising_call() -> None:
    data = golden("diffusion")
    model, sigma = small(weights_of(golden("prior_text")), "text"), data["one.sigma"].reshape(1).expand(2)
    unit = data["one.x"].view(2, 32, 16) / (sigma**2 + 1).sqrt()[:, None, None]
    step = exponential_process().step_of(sigma).floor().float()
    text, none = (model.raw(unit, step, half)[0].flatten(1) for half in data["cfg.embeddings"].chunk(2))
    assert_same(text, data["one.cond_x0"])
    assert_same(none, data["one.uncond_x0"])
    assert_same(none + 3 * (text - none), data["one.guided_x0_scale3"])


@pytest.mark.parametrize(
    ("reads", "name", "count"), [("text", "text300M", 315_692_032), ("image", "image300M", 315_956_224)]
)
def test_the_full_size_model_is_the_published_one(reads: str, name: str, count: int) -> None:
    shapes = Shapes(1024, 1024, 768, 768, 1024 if reads == "image" else 0)
    heads = 16 if reads == "text" else 8
    with torch.device("meta"):
        model = ShapEDenoiser(shapes, ShapEPriorConfig(width=1024, depth=24, heads=heads, reads=reads))
    published, elements = published_shapes(name)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == published
    assert sum(p.numel() for p in model.parameters()) == count == elements
