"""Shap-E as its reference runs it, mistakes included, to compare with: "faithful" in docs/shap_e.md.

    python -m sampling.shap_e.reference --out DIR --set model=MODEL prompt="a red chair" seed=0
    python -m sampling.shap_e.reference --out DIR --set model=MODEL latent=SAVED.safetensors

writes latent.safetensors, turntable.gif and mesh.ply as the reference would. `image` in place of `prompt` is
for image300M.
Everything else of a converted pipeline is the correct mode: true scale, sRGB colours, noise levels that the
model was trained on. Everything here is in the official frame, the box [-1, 1]^3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import trimesh
from jaxtyping import Float, Int, UInt8
from pydantic import Field, model_validator
from torch import Tensor

from prior.model import Prior
from sampling.cutouts import PictureConfig, load_image
from sampling.hub import fetch_package
from sampling.pictures import save_frames
from sampling.pipeline import ShapePipeline
from sampling.shape import ShapeSample, read_latent
from shapeloom.color import srgb_to_linear
from shapeloom.config import Config, UserError, parse_stage, run_main
from shapeloom.decoder import Decoder, load_decoder
from shapeloom.denoising import Condition
from shapeloom.diffusion.discrete import exponential_process
from shapeloom.diffusion.guidance import classifier_free
from shapeloom.diffusion.samplers import initial_noise, sample
from shapeloom.diffusion.steps import karras_sigmas
from shapeloom.fields.projection import FieldWeights
from shapeloom.log import get_logger
from shapeloom.rendering.rays import camera_rays
from shapeloom.runs import Run
from shapeloom.shap_e.field import COARSE_RGB, FINE_RGB, TEXTURE, ShapEField
from shapeloom.shap_e.prior import ShapEDenoiser
from shapeloom.shap_e.rendering import (
    PAN_FOV,
    Draws,
    official_intrinsics,
    official_surface,
    pan_cameras,
    render_rays,
)
from shapeloom.storage import write_atomic

log = get_logger("shap_e")
TEXT_GUIDANCE, IMAGE_GUIDANCE = 15.0, 3.0
STEPS, SIGMA_MIN, SIGMA_MAX, RESOLUTION = 64, 1e-3, 160.0, 128
RAYS_AT_ONCE, POINTS_AT_ONCE = 4096, 1 << 17


class ReferenceConfig(Config):
    """What the reference is to make."""

    model: Path = Field(description="a converted pipeline")
    prompt: str | None = Field(None, description="text to make an object of")
    image: Path | None = Field(None, description="picture to make an object of")
    latent: Path | None = Field(None, description="one that was saved, to decode alone")
    clip: str | None = Field(None, description="instead of the pipeline's, as in `python -m sampling`")
    seed: int = Field(0, ge=0, description="of the sample")
    steps: int = Field(STEPS, ge=1, description="sampling steps")
    size: int = Field(64, ge=8, description="side of the turntable in pixels")
    resolution: int = Field(RESOLUTION, ge=8, description="signed distances a side of the mesh's grid")

    @model_validator(mode="after")
    def _asks_for_one_thing(self) -> "ReferenceConfig":
        if sum(each is not None for each in (self.prompt, self.image, self.latent)) != 1:
            raise ValueError("name one of prompt, image and latent")
        return self


@dataclass(frozen=True)
class ReferenceMesh:
    """A surface shrunk by (n-1)/(n+1), with colours in linear light where a file should have sRGB."""

    vertices: Float[np.ndarray, "vertices 3"]
    faces: Int[np.ndarray, "faces 3"]
    rgb: Float[np.ndarray, "vertices 3"]

    def ply(self) -> bytes:
        """Returns the file that the reference writes."""
        colours = np.round(255.499 * self.rgb).astype(np.uint8)
        mesh = trimesh.Trimesh(self.vertices, self.faces, vertex_colors=colours, process=False)
        return trimesh.exchange.ply.export_ply(mesh)


def reference_latents(
    prior: Prior, condition: Condition, noise: Float[Tensor, "batch tokens channels"], *,
    guidance_scale: float, steps: int = STEPS, sigma_min: float = SIGMA_MIN,
) -> Float[Tensor, "batch tokens channels"]:  # fmt: skip
    """Returns latents by the reference's Heun steps from 160 to 0.001, of which 14 in 64 lie below all noise
    that the model was trained on; it is told whole steps, rounded down. noise: standard normal."""
    network = prior.network
    assert isinstance(network, ShapEDenoiser)

    def denoise(x: Tensor, sigma: Tensor, asked: Condition) -> Tensor:
        step = exponential_process().step_of(sigma).floor().float()
        unit = x / (sigma**2 + 1).sqrt()[:, None, None]
        return network.raw(unit, step, network.condition_input(asked))[0].clamp(-1, 1)

    sigmas = karras_sigmas(steps, sigma_min=sigma_min, sigma_max=SIGMA_MAX)
    guided = classifier_free(denoise, condition.without(), scale=guidance_scale)
    return sample(guided, initial_noise(noise, sigmas), sigmas, condition, method="heun")


@torch.no_grad()
def reference_views(
    decoder: Decoder, weights: FieldWeights, *, size: int = 64,
    cam_to_world: Float[Tensor, "views 4 4"] | None = None, generator: torch.Generator,
) -> UInt8[np.ndarray, "views size size 3"]:  # fmt: skip
    """Returns volume renders of one asset on black; of its 20 turntable cameras by default.

    64 stratified and 128 importance samples a ray, all of them evaluated again; 8 bits are cut off, not
    rounded. (The reference fails where the number of rays isn't a multiple of 4,096.)
    """
    field = decoder.field
    assert isinstance(field, ShapEField)
    poses = pan_cameras() if cam_to_world is None else cam_to_world
    matrix = official_intrinsics(PAN_FOV, PAN_FOV, height=size, width=size)
    origins, directions, _ = camera_rays(poses, matrix.expand(len(poses), 3, 3), size, size)

    def query(points: Tensor, density: int, rgb: slice) -> tuple[Tensor, Tensor]:
        raw = field.raw(weights, points.reshape(1, -1, 3))[0].unflatten(0, points.shape[:2])
        return raw[..., density].relu(), raw[..., rgb].sigmoid()

    rows = []
    rays = zip(
        origins.reshape(-1, 3).split(RAYS_AT_ONCE), directions.reshape(-1, 3).split(RAYS_AT_ONCE), strict=True
    )
    for origin, direction in rays:
        render = render_rays(
            lambda points: query(points, 1, COARSE_RGB), lambda points: query(points, 2, FINE_RGB),
            origin, direction, Draws.of(len(origin), generator),
        )  # fmt: skip
        rows.append(render.fine.rgb)
    pictures = torch.cat(rows).reshape(len(poses), size, size, 3)
    return (pictures * 255).clamp(0, 255).to(torch.uint8).numpy()


@torch.no_grad()
def reference_mesh(decoder: Decoder, weights: FieldWeights, *, resolution: int = RESOLUTION) -> ReferenceMesh:
    """Returns one asset's mesh from a dense grid of resolution^3 signed distances."""
    field = decoder.field
    assert isinstance(field, ShapEField)
    line = torch.linspace(-1, 1, resolution)
    grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1).reshape(1, -1, 3)
    parts = [field.raw(weights, part)[0, :, 0].tanh() for part in grid.split(POINTS_AT_ONCE, dim=1)]
    vertices, faces = official_surface(torch.cat(parts).reshape(resolution, resolution, resolution))
    srgb = field.raw(weights, torch.from_numpy(vertices)[None])[0, :, TEXTURE].sigmoid()
    return ReferenceMesh(vertices, faces, srgb_to_linear(srgb.numpy()))


def sample_reference(config: ReferenceConfig) -> ShapeSample:
    """Returns the shape of the config's prompt or picture; its noise is the reference's after manual_seed."""
    parts = fetch_package(config.model)
    pipe = ShapePipeline.load(prior=parts.prior, encoder=parts.encoder, clip=config.clip or parts.clip)
    if not isinstance(pipe.prior.network, ShapEDenoiser):
        raise UserError(f"{config.model} is no Shap-E: convert one with `python -m sampling.shap_e.convert`.")
    tokens, channels = pipe.prior.shape
    generator = torch.Generator().manual_seed(config.seed)
    noise = torch.randn(1, tokens * channels, generator=generator).view(1, tokens, channels)
    if config.prompt is not None:
        condition, scale = pipe.prior.condition(pipe.clip.text([config.prompt])), TEXT_GUIDANCE
    else:
        assert config.image is not None
        picture = load_image(config.image, PictureConfig(background="keep"))[None]
        condition = pipe.prior.condition(
            image=pipe.clip.image(picture), grid=pipe.clip.grid(picture)[:, None]
        )
        scale = IMAGE_GUIDANCE
    latent = reference_latents(pipe.prior, condition, noise, guidance_scale=scale, steps=config.steps)[0]
    return ShapeSample(latent, config.prompt or "", config.seed, pipe.decoder)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    config, out, _ = parse_stage(
        ReferenceConfig, stage="sampling.shap_e.reference", description=__doc__ or "", argv=argv
    )
    with Run.open(out, config, stage="shap_e") as run:
        if run.done:
            log.info("%s already holds this shape", out)
            return
        _make(config, out)
        run.finish()


def _make(config: ReferenceConfig, out: Path) -> None:
    if config.latent is not None:
        decoder = load_decoder(fetch_package(config.model).encoder)
        shape = read_latent(config.latent, decoder)
    else:
        shape = sample_reference(config)
    write_atomic(out / "latent.safetensors", shape.latent_bytes())
    generator = torch.Generator().manual_seed(config.seed)
    frames = reference_views(shape.decoder, shape.weights, size=config.size, generator=generator)
    save_frames(out / "turntable.gif", frames)
    mesh = reference_mesh(shape.decoder, shape.weights, resolution=config.resolution)
    write_atomic(out / "mesh.ply", mesh.ply())


if __name__ == "__main__":
    run_main(main)
