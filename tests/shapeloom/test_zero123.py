"""Zero-1-to-3's files: names and shapes as published, both ways; its conventions; what is refused."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from shapeloom.config import UserError
from shapeloom.rendering.cameras import spherical
from shapeloom.zero123 import (
    LATENT_SCALE,
    PARTS,
    Zero123,
    Zero123Networks,
    Zero123Sizes,
    compvis_of,
    load_zero123,
    pose_difference,
)
from shapeloom.zero123_names import tower_to_transformers

SMALL = Zero123Sizes(
    channels=(16, 16, 32), layers=1, heads=2, context=16, vae_channels=(8, 8, 8, 8), vae_layers=1,
    tower_width=16, tower_layers=2, tower_heads=2, tower_patch=8, tower_size=32, groups=4,
)  # fmt: skip
PUBLISHED = {
    # Of the published checkpoint's config: shapes by CompVis' names.
    "model.diffusion_model.input_blocks.0.0.weight": [320, 8, 3, 3],
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [320, 768],
    "model.diffusion_model.input_blocks.3.0.op.weight": [320, 320, 3, 3],
    "model.diffusion_model.input_blocks.4.0.skip_connection.weight": [640, 320, 1, 1],
    "model.diffusion_model.input_blocks.11.0.in_layers.2.weight": [1280, 1280, 3, 3],
    "model.diffusion_model.middle_block.1.proj_in.weight": [1280, 1280, 1, 1],
    "model.diffusion_model.output_blocks.2.1.conv.weight": [1280, 1280, 3, 3],
    "model.diffusion_model.output_blocks.5.2.conv.weight": [1280, 1280, 3, 3],
    "model.diffusion_model.output_blocks.11.0.in_layers.2.weight": [320, 640, 3, 3],
    "model.diffusion_model.time_embed.0.weight": [1280, 320],
    "model.diffusion_model.out.2.weight": [4, 320, 3, 3],
    "first_stage_model.encoder.down.0.downsample.conv.weight": [128, 128, 3, 3],
    "first_stage_model.encoder.mid.attn_1.q.weight": [512, 512, 1, 1],
    "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight": [128, 256, 1, 1],
    "first_stage_model.decoder.up.3.upsample.conv.weight": [512, 512, 3, 3],
    "first_stage_model.quant_conv.weight": [8, 8, 1, 1],
    "cond_stage_model.model.visual.conv1.weight": [1024, 3, 14, 14],
    "cond_stage_model.model.visual.positional_embedding": [257, 1024],
    "cond_stage_model.model.visual.transformer.resblocks.23.attn.in_proj_weight": [3072, 1024],
    "cond_stage_model.model.visual.proj": [1024, 768],
    "cc_projection.weight": [768, 772],
}


@pytest.fixture(scope="module")
def networks() -> Zero123Networks:
    torch.manual_seed(0)
    return Zero123Networks(SMALL)


@pytest.fixture(scope="module")
def single_file(networks: Zero123Networks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zero123") / "zero123.safetensors"
    save_file(as_compvis(networks), path)
    return path


def as_compvis(networks: Zero123Networks) -> dict[str, torch.Tensor]:
    state = {"alphas_cumprod": torch.ones(3), "cond_stage_model.model.ln_final.weight": torch.ones(2)}
    for part in PARTS:
        state |= compvis_of(part, networks.part(part).state_dict(), SMALL)
    return {name: value.contiguous().clone() for name, value in state.items()}


def same(first: Zero123Networks, second: Zero123Networks) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_names_and_shapes_are_the_published_ones() -> None:
    with torch.device("meta"):
        full = Zero123Networks(Zero123Sizes())
    states = [compvis_of(part, full.part(part).state_dict(), Zero123Sizes()) for part in PARTS]
    shapes = {name: list(value.shape) for state in states for name, value in state.items()}
    assert {name: shapes.get(name) for name in PUBLISHED} == PUBLISHED
    # Stable Diffusion 1's UNet has 859,520,964 numbers; four more channels come in by 320 kernels of 3 x 3.
    assert sum(p.numel() for p in full.unet.parameters()) == 859_520_964 + 4 * 9 * 320
    assert sum(p.numel() for p in full.vae.parameters()) == 83_653_863
    assert [len(state) for state in states] == [686, 248, 296, 2]


def test_names_agree_with_diffusers_own_conversion(networks: Zero123Networks) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    state = as_compvis(networks)
    unet = convert_ldm_unet_checkpoint(
        dict(state), {"layers_per_block": SMALL.layers, **networks.unet.config}
    )
    vae = convert_ldm_vae_checkpoint(dict(state), dict(networks.vae.config))
    for theirs, ours in ((unet, networks.unet.state_dict()), (vae, networks.vae.state_dict())):
        assert theirs.keys() == ours.keys()
        for name, value in ours.items():
            assert torch.equal(theirs[name].reshape(value.shape), value), name


def test_a_single_file_and_folders_come_back_as_the_same_networks(
    networks: Zero123Networks, single_file: Path, tmp_path: Path
) -> None:
    assert same(load_zero123(single_file, sizes=SMALL).networks, networks)
    write_folders(networks, tmp_path)
    assert same(load_zero123(tmp_path).networks, networks)


def write_folders(networks: Zero123Networks, folder: Path) -> None:
    networks.unet.save_pretrained(folder / "unet")
    networks.vae.save_pretrained(folder / "vae")
    tower: dict[str, Any] = {
        "hidden_size": SMALL.tower_width, "num_hidden_layers": SMALL.tower_layers,
        "num_attention_heads": SMALL.tower_heads, "patch_size": SMALL.tower_patch,
        "image_size": SMALL.tower_size,
    }  # fmt: skip
    for part, state in (
        ("image_encoder", tower_to_transformers(networks.image_encoder.state_dict())),
        ("cc_projection", networks.cc_projection.state_dict()),
    ):
        (folder / part).mkdir()
        save_file({n: v.contiguous() for n, v in state.items()}, folder / part / "model.safetensors")
    (folder / "image_encoder" / "config.json").write_text(json.dumps(tower))


def test_a_lightning_checkpoint_of_numbers_loads_and_one_with_code_does_not(
    networks: Zero123Networks, tmp_path: Path
) -> None:
    torch.save({"state_dict": as_compvis(networks), "global_step": 105000}, tmp_path / "numbers.ckpt")
    assert same(load_zero123(tmp_path / "numbers.ckpt", sizes=SMALL).networks, networks)
    torch.save({"state_dict": {}, "callbacks": asdict}, tmp_path / "code.ckpt")
    with pytest.raises(UserError, match=r"code\.ckpt holds dataclasses\.asdict beside tensors"):
        load_zero123(tmp_path / "code.ckpt", sizes=SMALL)


@pytest.mark.parametrize("change", ["missing", "shape", "extra", "nan"])
def test_a_file_that_differs_in_one_tensor_is_refused_by_its_name(
    networks: Zero123Networks, tmp_path: Path, change: str
) -> None:
    state, name = as_compvis(networks), "model.diffusion_model.middle_block.0.in_layers.2.weight"
    match change:
        case "missing":
            del state[name]
        case "shape":
            state[name] = state[name][:-1].clone()
        case "extra":
            state["model.diffusion_model.input_blocks.99.0.weight"] = torch.ones(1)
        case "nan":
            state[name][0] = math.nan
    save_file(state, tmp_path / "changed.safetensors")
    words = {"missing": name, "shape": "mid_block.resnets.0.conv1", "extra": "input_blocks.99", "nan": "NaN"}
    with pytest.raises(UserError, match=words[change]):
        load_zero123(tmp_path / "changed.safetensors", sizes=SMALL)


def test_the_pose_is_the_target_s_less_the_given_one_s() -> None:
    given, wanted = (
        spherical(torch.tensor([a]), torch.tensor([e]), torch.tensor([r]))
        for a, e, r in ((0.2, 0.1, 1.5), (0.9, 0.5, 1.8))
    )
    # Elevation rises by 0.4, so the angle from +Z falls by it.
    expected = torch.tensor([[-0.4, math.sin(0.7), math.cos(0.7), 0.3]])
    torch.testing.assert_close(pose_difference(given, wanted), expected, atol=1e-6, rtol=0)


def test_conditions_keep_the_conventions_and_samples_are_pictures(networks: Zero123Networks) -> None:
    model = Zero123(networks)
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pose = torch.tensor([[0.0, 0, 1, 0], [0.1, 0.5, 0.8, 0]])
    condition = model.condition(pictures, pose)
    assert condition.token.shape == (2, 1, 16)
    latent = networks.vae.encode(pictures).latent_dist
    assert torch.equal(condition.latent, latent.mean)  # neither scaled nor sampled
    assert condition.negative is not None and not condition.negative.token.any()
    made = model.sample(condition, seeds=torch.tensor([1, 2]), steps=2)
    assert made.shape == (2, 3, 32, 32) and made.abs().max() <= 1
    x = condition.latent * LATENT_SCALE
    torch.testing.assert_close(model.decode(x), networks.vae.decode(condition.latent).sample)


def test_a_perfect_noise_predictor_gives_x_0_back(networks: Zero123Networks, monkeypatch: Any) -> None:
    model = Zero123(networks)
    eps = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    steps = []

    class Answer:
        sample = eps

    def unet(x: torch.Tensor, step: torch.Tensor, token: torch.Tensor) -> Answer:
        steps.append((x, step))
        return Answer()

    monkeypatch.setattr(networks, "unet", None)
    monkeypatch.setitem(networks._modules, "unet", unet)
    x0, sigma = torch.ones(2, 4, 4, 4), model.process.sigmas[[0, 999]].float()
    condition = model_condition(x0)
    found = model.denoise(x0 + sigma[:, None, None, None] * eps, sigma, condition)
    torch.testing.assert_close(found, x0, atol=1e-5, rtol=0)
    assert steps[0][1].round().tolist() == [0, 999]


def model_condition(latent: torch.Tensor) -> Any:
    from shapeloom.zero123 import Zero123Condition

    return Zero123Condition(torch.zeros(len(latent), 1, 16), latent)
