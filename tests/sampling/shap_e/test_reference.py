"""A converted Shap-E, used: sampled, drawn, meshed, encoded with, fine-tuned; and the faithful mode."""

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from encoder.model import load_encoder, read_for_encoding
from prior.model import Prior, load_prior
from sampling.mesh import MeshConfig
from sampling.pipeline import ShapePipeline
from sampling.shap_e.reference import ReferenceMesh, reference_latents, reference_mesh, reference_views
from shapeloom.clip import TextEmbedding
from shapeloom.color import srgb_to_linear
from shapeloom.config import UserError
from shapeloom.decoder import load_decoder
from shapeloom.denoising import Shapes
from shapeloom.diffusion.objectives import DiffusionConfig
from shapeloom.metrics import psnr
from shapeloom.rendering.isosurface import extract_surface
from shapeloom.shap_e.autoencoder import ShapEAutoencoder
from shapeloom.shap_e.prior import ShapEDenoiser, ShapEPriorConfig
from shapeloom.shap_e.rendering import PAN_FOV, official_intrinsics, pan_cameras
from shapeloom.shards import AssetShards
from tests.golden_data import assert_same, golden, projected
from tests.small_shap_e import FakeClip, write_converted, write_published


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Converted pipelines."""
    folder = tmp_path_factory.mktemp("shap_e")
    source = write_published(folder)
    return {model: write_converted(source, folder / model, model) for model in ("text300M", "image300M")}


def load(folder: Path) -> ShapePipeline:
    return ShapePipeline(load_prior(folder / "prior"), load_decoder(folder / "encoder"), FakeClip())


def test_a_prompt_becomes_a_picture_and_a_textured_mesh(folders: dict[str, Path], tmp_path: Path) -> None:
    shape = load(folders["text300M"])("a chair", steps=3, guidance_scale=15.0, sampler="dpmpp_2m")[0]
    assert shape.latent.shape == (128, 16) and torch.isfinite(shape.latent).all()
    frame = shape.turntable(1, 24)[0]
    assert frame.shape == (24, 24, 3) and frame.min() < 200  # something is there, on white
    shape.save(tmp_path / "chair.glb", mesh=MeshConfig(resolution=32, texture_size=64))
    mesh = trimesh.load(tmp_path / "chair.glb", force="mesh")
    # The recorded ellipsoid's radii are 0.7, 0.5 and 0.4 in the official frame; glTF is +Y up.
    assert np.allclose(mesh.extents / 0.95, [1.4, 0.8, 1.0], atol=0.08)


def test_a_picture_becomes_a_shape_and_a_caption_is_refused(folders: dict[str, Path]) -> None:
    pipe = load(folders["image300M"])
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    shapes = pipe(["", ""], image=[black, white], seeds=[1, 1], steps=2)
    assert not torch.equal(shapes[0].latent, shapes[1].latent)
    with pytest.raises(UserError, match="reads no captions"):
        pipe("a chair", image=white, steps=2)


def test_the_text_model_refuses_pictures(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="reads no pictures"):
        load(folders["text300M"])("a chair", image=np.zeros((8, 8, 3), np.uint8), steps=2)


def test_bfloat16_changes_latents_little(folders: dict[str, Path]) -> None:
    pipe = load(folders["text300M"])
    exact = pipe("a chair", steps=3)[0].latent
    pipe.prior.use_bf16()
    rough = pipe("a chair", steps=3)[0].latent
    assert 0 < (rough - exact).square().mean().sqrt() < 0.05 * exact.square().mean().sqrt()


@torch.no_grad()
def test_the_faithful_mode_differs_where_the_reference_is_wrong(folders: dict[str, Path]) -> None:
    decoder = load_decoder(folders["text300M"] / "encoder")
    weights = decoder.weights(torch.zeros(1, 128, 16))
    faithful = reference_mesh(decoder, weights, resolution=24)
    data = golden("nerstf_mlp")
    assert_same(weights[0], projected(data)[0][:1])
    # Shrunk by 23/25 at 24 nodes a side.
    true, _ = extract_surface(lambda points: decoder.sdf(weights, points), resolution=64)
    shrunk = np.ptp(faithful.vertices, axis=0) / np.ptp(true / 0.95, axis=0)
    assert np.allclose(shrunk, 23 / 25, atol=0.01)
    views = reference_views(
        decoder, weights, size=16, cam_to_world=pan_cameras()[:2], generator=torch.Generator().manual_seed(0)
    )
    poses = pan_cameras()[:2]
    poses[:, :3, 3] *= 0.95
    matrix = official_intrinsics(PAN_FOV, PAN_FOV, height=16, width=16)
    ours = decoder.render(weights, poses[None], matrix.expand(1, 2, 3, 3), 16, 16, background=0.0)
    theirs = views.astype(np.float32) / 255
    assert psnr(ours.rgb[0].numpy(), theirs).mean() > 25


def test_golden_files_of_the_faithful_mesh() -> None:
    data = golden("mesh")
    linear = srgb_to_linear(data["vertex_rgb_srgb"].numpy())
    assert_same(torch.from_numpy(linear), data["vertex_rgb_linear"])
    mesh = ReferenceMesh(
        data["verts"].numpy(), data["faces"].long().numpy(), data["vertex_rgb_linear"].numpy()
    )
    back = trimesh.load(trimesh.util.wrap_as_stream(mesh.ply()), file_type="ply", process=False)
    assert np.array_equal(back.visual.vertex_colors[:, :3], data["ply_rgb"].numpy())


@torch.no_grad()
def test_golden_faithful_latents() -> None:
    data, weights = golden("diffusion"), golden("prior_text")
    shapes = Shapes(tokens=32, channels=16, clip_dim=768, text_width=768)
    network = ShapEDenoiser(shapes, ShapEPriorConfig(width=64, depth=2, heads=4, reads="text"))
    network.load_state_dict({k: v for k, v in weights.items() if k.startswith("wrapped.")})
    prior = Prior(network, shapes, DiffusionConfig(), {"digest": "", "encoder": "", "clip": ""})
    pooled = data["cfg.embeddings"][:2]
    text = TextEmbedding(pooled, torch.zeros(2, 1, 768), torch.ones(2, 1, dtype=torch.bool))
    noise = (data["cfg.x_T"] / 160).view(2, 32, 16)
    latents = reference_latents(
        prior, prior.condition(text), noise, guidance_scale=3.0, steps=4, sigma_min=0.2
    )
    assert_same(latents.flatten(1), data["cfg.clip.x"][-1])


def test_own_assets_are_encoded_deterministically(folders: dict[str, Path], ball_dataset: Path) -> None:
    model = load_encoder(folders["text300M"] / "encoder")
    assert isinstance(model, ShapEAutoencoder)
    shards = AssetShards(ball_dataset, "train")
    samples = [read_for_encoding(shards, i, model.encoder.config) for i in range(2)]
    latents = model.encode(samples)
    assert torch.equal(latents, model.encode(samples))
    torch.testing.assert_close(latents[:1], model.encode(samples[:1]), rtol=1e-4, atol=1e-5)
    shuffled = model.encode(samples, shuffle=torch.Generator().manual_seed(0))
    assert not torch.equal(latents, shuffled)
    model.use_bf16()
    assert 0 < (model.encode(samples) - latents).abs().mean() < 0.02


def test_data_that_the_encoder_cannot_read_is_named(folders: dict[str, Path], ball_dataset: Path) -> None:
    model = load_encoder(folders["text300M"] / "encoder")
    shards = AssetShards(ball_dataset, "train")
    sample = shards.read(0, views=range(3), depth=True, points=True)
    with pytest.raises(ValueError, match=r"3 views of 16 pixels.*configs/data_prep/shap_e\.yaml"):
        model.encode([sample])
