"""The pipeline's interface for programs: prompts in, shapes out.

    pipeline = ShapePipeline.load(prior="runs/x/prior", encoder="runs/x/encoder", clip="runs/x/clip")
    shape = pipeline(["a red chair"], seeds=[0])[0]
    shape.save("chair.glb"); shape.save("chair.gif")

A shape depends on its prompt, its seed and the settings, not on what else is in its batch, except that other
batch sizes may round the last bits of float32 products differently.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from prior.denoiser import Prior, load_prior
from sampling.export import MESH_SUFFIXES, TexturedMesh
from sampling.mesh import DEFAULT_MESH, MeshConfig, field_to_mesh
from sampling.pictures import gif, png, save_mp4
from sampling.texture import bake, unwrap
from shapeloom.clip import Clip, TextEmbedding, load_clip
from shapeloom.config import UserError
from shapeloom.decoder import DEFAULT_SAMPLES, Decoder, RenderConfig, load_decoder
from shapeloom.diffusion.guidance import classifier_free
from shapeloom.diffusion.samplers import SamplerName, initial_noise, sample
from shapeloom.diffusion.steps import StepChoice, karras_sigmas, make_sigmas
from shapeloom.fields.projection import FieldWeights
from shapeloom.rendering.cameras import fitting_distance, intrinsics, ring
from shapeloom.seed import normal
from shapeloom.storage import write_atomic

MAX_PROMPT_LENGTH = 1000
MAX_SEED = 2**63 - 1
FOV = math.radians(40)
PICTURE_SUFFIXES = (".gif", ".mp4", ".png")


@dataclass(frozen=True, eq=False)
class ShapeSample:
    """A sampled shape: its latent (on the CPU) and what it was asked to be."""

    latent: Float[Tensor, "tokens channels"]
    prompt: str
    seed: int
    decoder: Decoder

    @cached_property
    def weights(self) -> FieldWeights:
        """The hidden matrices of its field, as a batch of one on the decoder's device."""
        device = next(self.decoder.parameters()).device
        with torch.no_grad():
            return self.decoder.weights(self.latent[None].to(device))

    @property
    def _device(self) -> torch.device:
        return self.weights[0].device

    def render(
        self,
        cam_to_world: Float[Tensor, "views 4 4"],
        matrix: Float[Tensor, "3 3"],
        height: int,
        width: int,
        *,
        samples: RenderConfig = DEFAULT_SAMPLES,
    ) -> UInt8[np.ndarray, "views height width 3"]:
        """Returns volume renders on white. matrix: the intrinsics of all views, in pixels."""
        views = len(cam_to_world)
        poses = cam_to_world[None].to(self._device)
        matrices = matrix.expand(1, views, 3, 3).to(self._device)
        rendering = self.decoder.render(self.weights, poses, matrices, height, width, samples=samples)
        return (rendering.rgb[0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()

    def turntable(
        self, num_frames: int = 24, size: int = 128, *, samples: RenderConfig = DEFAULT_SAMPLES
    ) -> UInt8[np.ndarray, "frames size size 3"]:
        """Returns volume renders from even azimuths, 20 degrees above the horizon, on white."""
        if num_frames < 1 or size < 1:
            raise ValueError(f"num_frames and size must be positive, got {num_frames} and {size}.")
        poses = ring(num_frames, distance=fitting_distance(FOV))
        return self.render(poses, intrinsics(FOV, size, size), size, size, samples=samples)

    def mesh(self, config: MeshConfig = DEFAULT_MESH) -> TexturedMesh:
        """Returns the surface as a mesh with a baked texture; one without faces if there is no surface."""

        def sdf(points: Tensor) -> Tensor:
            return self.decoder.sdf(self.weights, points)

        def texture(points: Tensor) -> Tensor:
            return self.decoder.texture(self.weights, points)

        mesh = field_to_mesh(sdf, texture, config, device=self._device)
        if not len(mesh.faces) or not config.texture_size:
            return TexturedMesh(mesh)
        atlas = unwrap(mesh.vertices, mesh.faces, size=config.texture_size)
        picture = bake(mesh, atlas, texture, size=config.texture_size, device=self._device)
        return TexturedMesh(mesh, atlas, picture)

    def save(self, path: str | Path, *, mesh: MeshConfig = DEFAULT_MESH) -> None:
        """Writes .glb, .ply, .obj (meshes), .gif, .mp4 (turntables) or .png (one view), by the suffix.

        Raises UserError for another suffix, or for a mesh of a shape that has no surface.
        """
        path = Path(path)
        if path.suffix in MESH_SUFFIXES:
            self.mesh(mesh).save(path)
            return
        match path.suffix:
            case ".gif":
                write_atomic(path, gif(self.turntable()))
            case ".mp4":
                save_mp4(path, self.turntable(48, 256))
            case ".png":
                write_atomic(path, png(self.turntable(1, 256)[0]))
            case _:
                known = ", ".join(MESH_SUFFIXES + PICTURE_SUFFIXES)
                raise UserError(f"A shape can be saved as {known}, not as {path.name}.")


class ShapePipeline:
    """A prior, the decoder of its latents and the CLIP of its conditions.

    view_prior: from captions to pictures' CLIP vectors; prompts then become pictures' vectors first, and the
    prior follows those (unCLIP).
    """

    def __init__(self, prior: Prior, decoder: Decoder, clip: Clip, view_prior: Prior | None = None) -> None:
        if prior.predicts != "latents":
            raise UserError("`prior` was trained with predict=views and makes no shapes: name it view_prior.")
        prior.check(encoder_digest=decoder.digest, clip_digest=clip.digest)
        self.prior, self.decoder, self.clip, self.view_prior = prior, decoder, clip, view_prior
        if view_prior is None:
            return
        view_prior.check(clip_digest=clip.digest)
        if view_prior.predicts != "views" or prior.shapes.grid_width:
            raise UserError(
                "view_prior must be trained with predict=views, and serves priors without mixture.grid."
            )

    @classmethod
    def load(
        cls,
        *,
        prior: str | Path,
        encoder: str | Path,
        clip: str | Path,
        view_prior: str | Path | None = None,
        ema: float | None = None,
        device: torch.device | str = "cpu",
    ) -> "ShapePipeline":
        """Loads finished runs (clip: also an open_clip name); raises UserError if they don't fit together.

        ema: which average of the prior's weights to sample with (see `load_prior`).
        """
        # The prior and the decoder say at once if they aren't there; CLIP may have to be downloaded.
        loaded, decoder = load_prior(Path(prior), device, ema=ema), load_decoder(Path(encoder), device)
        views = None if view_prior is None else load_prior(Path(view_prior), device)
        return cls(loaded, decoder, load_clip(clip, device), views)

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        steps: int = 32,
        guidance_scale: float = 3.0,
        sampler: SamplerName = "heun",
        step_choice: StepChoice = "karras",
        negative_prompt: str = "",
        image: UInt8[np.ndarray, "side side 3"] | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> list[ShapeSample]:
        """Returns a shape for each prompt and seed, all in one batch.

        image: a picture that all of them follow too; prompts may be empty then ("" for each shape).
        guidance_scale: 1 is the plain conditional model; more follows the condition more closely.
        on_step: called with 0, 1, ... as the steps are taken.
        Raises UserError for a prompt that is empty or too long, ValueError for numbers that don't fit.
        """
        if len(prompts) != len(seeds):
            raise ValueError(f"each prompt needs a seed of its own, got {len(prompts)} and {len(seeds)}.")
        if any(not 0 <= seed <= MAX_SEED for seed in seeds):
            raise UserError(f"A seed is a number from 0 to {MAX_SEED}, got {list(seeds)}.")
        if not prompts:
            return []
        texts = [check_prompt(prompt, may_be_empty=image is not None) for prompt in prompts]
        if any(texts) and not all(texts):
            raise UserError("With an image, either all shapes of a batch have a prompt or none has.")
        text = self.clip.text(texts) if all(texts) else None
        pooled = None if image is None else self.clip.image(image[None])
        if self.view_prior is not None and text is not None and image is None:
            pooled = self._imagine(text, seeds, karras_sigmas(steps))
            text = None
        grid = (
            self.clip.grid(image[None])[None] if image is not None and self.prior.shapes.grid_width else None
        )
        condition = self.prior.condition(text, pooled, grid=grid, batch=len(texts))
        negative = condition.without()
        if negative_prompt:
            negative = self.prior.condition(self.clip.text([check_prompt(negative_prompt)]), batch=len(texts))
        noise = normal(torch.tensor(seeds), self.prior.shape, stream="sampling", device=self.prior.device)
        sigmas = make_sigmas(step_choice, steps)
        x0 = sample(
            classifier_free(self.prior.denoise, negative, scale=guidance_scale),
            initial_noise(noise, sigmas),
            sigmas,
            condition,
            method=sampler,
            noise=lambda i: normal(
                torch.tensor(seeds), self.prior.shape, stream=f"sampling step {i}", device=self.prior.device
            ),
            on_step=on_step,
        )
        latents = self.prior.unstandardise(x0).float().cpu()
        return [
            ShapeSample(latent, prompt, seed, self.decoder)
            for latent, prompt, seed in zip(latents, texts, seeds, strict=True)
        ]

    def _imagine(
        self, text: TextEmbedding, seeds: Sequence[int], sigmas: Float[Tensor, " levels"]
    ) -> Float[Tensor, "batch embed"]:
        """Pictures' CLIP vectors that fit the captions."""
        prior = self.view_prior
        assert prior is not None
        noise = normal(torch.tensor(seeds), prior.shape, stream="views", device=prior.device)
        x0 = sample(prior.denoise, initial_noise(noise, sigmas), sigmas, prior.condition(text))
        return torch.nn.functional.normalize(prior.unstandardise(x0).flatten(1), dim=-1)


def check_prompt(prompt: str, *, may_be_empty: bool = False) -> str:
    """Returns the prompt, its white space made single; raises UserError if nothing or too much is left."""
    text = " ".join(prompt.split())
    if not text and not may_be_empty:
        raise UserError('A prompt says what to make, such as "a red chair"; this one is empty.')
    if len(text) > MAX_PROMPT_LENGTH:
        raise UserError(
            f"A prompt has at most {MAX_PROMPT_LENGTH} characters, this one {len(text)}: {text[:60]}..."
        )
    return text
