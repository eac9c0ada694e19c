"""A trained view model, frozen: from pictures or a caption of an object, and a camera, to what it shows.

The one seam for samplers and for score distillation:

    model = load_view_model(RUN / "views", clip=RUN / "clip")        # or random_view_model() in tests
    cameras = Cameras(cam_to_world, intrinsics, size, size)          # [batch, views, ...]
    condition = model.condition(captions=["a red chair"], cameras=cameras)
    x0 = model.denoise(x, sigma, condition)                          # x = x_0 + sigma eps, a row a view

Pictures (`x`, in pixel space) are [rows, 4, size, size] in [-1, 1]: sRGB colours on white, then alpha. So
every number means something where alpha is 0, soft edges have no fringe, and straight colours come back by
`straight_rgba`. Rows are the views of the first object, then those of the second, and so on. The views of
one object attend to one another, so that they agree; `condition.alone()` makes each for itself.

A model over a VAE's latents diffuses those in place of pictures: `encode` and `decode` are the identity in
pixel space, so that code which uses them serves both.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from safetensors.torch import save
from torch import Tensor

from shapeloom.clip import Clip, TextEmbedding, load_clip
from shapeloom.config import UserError, validated
from shapeloom.diffusion.guidance import classifier_free, within
from shapeloom.diffusion.objectives import DiffusionConfig, predict_x0, sample_times
from shapeloom.diffusion.samplers import Denoise, SamplerName, sample
from shapeloom.diffusion.schedules import make_schedule
from shapeloom.diffusion.steps import karras_sigmas
from shapeloom.noise import normal
from shapeloom.rendering.cameras import Cameras
from shapeloom.runs import read_meta
from shapeloom.saved import check_fits
from shapeloom.storage import read_json, write_atomic
from shapeloom.view_network import (
    ViewCondition,
    ViewInputs,
    ViewNetwork,
    ViewNetworkConfig,
    ViewShapes,
    frame_of,
    make_unet,
    turned,
)
from shapeloom.weights import checked_digest, read_tensors

FILE = "view_model.json"
UNET, CONDITIONER = "unet/diffusion_pytorch_model.safetensors", "conditioner/model.safetensors"
SIGMAS = (0.02, 80.0)
"""Ends of the noise levels that samplers walk through, in units of the pictures' own spread."""
LEAST_SHARE = 0.01
"""Of training's draws, below whose noise no sampler goes: where training hardly was, samples darken."""


def to_picture(rgba: UInt8[np.ndarray, "*views height width 4"]) -> Float[Tensor, "*views 4 height width"]:
    """Returns stored views (straight alpha, 8 bits) as the model has them: on white, alpha; [-1, 1]."""
    numbers = torch.from_numpy(rgba.astype(np.float32) / 255)
    alpha = numbers[..., 3:]
    shown = torch.cat([numbers[..., :3] * alpha + (1 - alpha), alpha], dim=-1)
    return (2 * shown - 1).movedim(-1, -3)


def straight_rgba(
    picture: Float[Tensor, "*views 4 height width"],
) -> UInt8[np.ndarray, "*views height width 4"]:
    """Returns pictures of the model with straight alpha, 8 bits; black where alpha is 0."""
    shown = ((picture.detach().float().cpu() + 1) / 2).clamp(0, 1).movedim(-3, -1).numpy()
    alpha = (shown[..., 3:] * 255).round() / 255
    colours = (shown[..., :3] - (1 - alpha)) / np.maximum(alpha, 1 / 255)
    rgba = np.concatenate([np.where(alpha > 0, colours, 0), alpha], axis=-1)
    return (rgba.clip(0, 1) * 255).round().astype(np.uint8)


@dataclass(frozen=True)
class References:
    """Pictures of objects from known cameras, in the convention of the top of this file."""

    pictures: Float[Tensor, "batch references 4 size size"]
    cameras: Cameras
    """Of which only the azimuths' differences count, to one another and to those of the views asked for."""
    there: Bool[Tensor, "batch references"] | None = None
    """Which of them are there, where objects have different numbers; none: all. The first must be."""


class ViewModel:
    """A trained view model. Make it with `load_view_model`, or `random_view_model` in tests.

    Attributes:
        size: side of pictures in pixels.
        shape: of a row of `x`: (4, size, size) in pixel space.
        digest: of its weights; "" for a random one.
        clip_digest: of the CLIP whose text vectors it was trained with; "" if it knows no captions.
        device: where its weights are; arguments may be anywhere.
    """

    def __init__(
        self, network: ViewNetwork, diffusion: DiffusionConfig, *, clip: Clip | None = None, vae: Any = None,
        digest: str = "", clip_digest: str = "",
    ) -> None:  # fmt: skip
        self.network = network
        self.diffusion, self.clip, self.vae = diffusion, clip, vae
        self.digest, self.clip_digest = digest, clip_digest
        self.size = network.config.size
        self.shape = (network.shapes.channels, network.shapes.side, network.shapes.side)
        self.device = next(network.parameters()).device

    @torch.no_grad()
    def condition(
        self, captions: Sequence[str] | TextEmbedding | None = None, *, cameras: Cameras,
        references: References | None = None,
    ) -> ViewCondition:  # fmt: skip
        """Returns what `denoise` is to show: of each of cameras' objects, its views.

        Args:
            captions: one an object, or one for all; vectors of `clip.text`, or texts if it has its CLIP.
            cameras: [batch, views] of the views; their pictures must be `size` pixels a side. With
                references only differences of azimuths count, from the first one's camera on; without,
                azimuth 0 is the asset's own +X. +Z is up.
            references: pictures of the same objects.

        Raises ValueError for sizes that don't fit, UserError for texts without a CLIP.
        """
        batch = len(cameras.cam_to_world)
        if (cameras.height, cameras.width) != (self.size, self.size):
            raise ValueError(
                f"this model's pictures are {self.size} x {self.size}, but the cameras are of "
                f"{cameras.height} x {cameras.width}: give `Cameras` of that size, with intrinsics to match"
            )
        text = self._text(captions)
        if text is not None and len(text.pooled) not in (1, batch):
            raise ValueError(f"expected 1 or {batch} captions, got {len(text.pooled)}")
        shown = self._inputs(cameras, text, references, batch)
        nothing = replace(
            shown,
            has_reference=torch.zeros_like(shown.has_reference),
            has_text=torch.zeros_like(shown.has_text),
        )
        return replace(self.network.told(shown), negative=self.network.told(nothing))

    def _text(self, captions: Sequence[str] | TextEmbedding | None) -> TextEmbedding | None:
        if captions is None or isinstance(captions, TextEmbedding):
            return captions
        if self.clip is None and not self.clip_digest and self.digest:
            raise UserError("This view model was trained without captions: show it pictures.")
        if self.clip is None:
            raise UserError(
                "This view model was loaded without its CLIP, so it can't read captions: name the folder of "
                "prior.train_clip that it was trained with (clip=RUN/clip)."
            )
        return self.clip.text(captions)

    def _inputs(
        self, cameras: Cameras, text: TextEmbedding | None, references: References | None, batch: int
    ) -> ViewInputs:
        shapes, size = self.network.shapes, self.size
        said = text
        if said is None:
            tokens, mask = torch.zeros(1, 1, shapes.text_width), torch.zeros(1, 1, dtype=torch.bool)
            said = TextEmbedding(torch.zeros(1, shapes.clip_dim), tokens, mask)
        frame = frame_of(None if references is None else references.cameras, batch)
        if references is None:
            pictures = torch.zeros(batch, 1, 4, size, size)
            pose, matrix = cameras.cam_to_world[:, :1], cameras.intrinsics[:, :1]
            there = torch.zeros(batch, 1, dtype=torch.bool)
        else:
            pictures, pose = references.pictures, turned(references.cameras.cam_to_world.cpu(), frame.cpu())
            matrix = references.cameras.intrinsics
            every = torch.ones(pictures.shape[:2], dtype=torch.bool)
            there = every if references.there is None else references.there
            if pictures.shape[0] != batch or pictures.shape[2:] != (4, size, size):
                raise ValueError(
                    f"references must be [{batch}, any, 4, {size}, {size}], got {list(pictures.shape)}"
                )
        parts = ViewInputs(
            cam_to_world=turned(cameras.cam_to_world.cpu(), frame.cpu()), intrinsics=cameras.intrinsics,
            references=pictures, reference_pose=pose, reference_intrinsics=matrix, has_reference=there,
            text_pooled=said.pooled.expand(batch, -1), text_tokens=said.tokens.expand(batch, -1, -1),
            text_mask=said.mask.expand(batch, -1), has_text=torch.full((batch,), text is not None),
        )  # fmt: skip
        return ViewInputs(**{name: value.to(self.device) for name, value in vars(parts).items()})

    def denoise(
        self,
        x: Float[Tensor, "rows channels side side"],
        sigma: Float[Tensor, " rows"],
        condition: ViewCondition,
    ) -> Float[Tensor, "rows channels side side"]:
        """Returns the expected x_0 of x = x_0 + sigma eps: the seam of `diffusion.samplers`.

        Differentiable in x; not clamped. sigma: > 0, in the units of x; the views of an object share theirs.
        `condition.negative` is the unconditional answer's, for `diffusion.guidance.classifier_free`.
        """
        known = self.network.conditioner
        mean, std = known.mean[:, None, None], known.std
        scaled = (x.to(self.device) - mean) / std
        return (
            predict_x0(self.network, self.diffusion, scaled, sigma.to(self.device) / std, condition) * std
            + mean
        )

    def encode(self, pictures: Float[Tensor, "rows 4 size size"]) -> Float[Tensor, "rows channels side side"]:
        """Returns what is diffused of pictures: themselves, or a VAE's latents. Differentiable."""
        return pictures if self.vae is None else encode_latents(self.vae, pictures)

    def decode(self, x: Float[Tensor, "rows channels side side"]) -> Float[Tensor, "rows 4 size size"]:
        """Returns pictures of what is diffused. Differentiable."""
        return x if self.vae is None else decode_latents(self.vae, x)

    @torch.no_grad()
    def sample(
        self, condition: ViewCondition, *, seeds: Int64[Tensor, " rows"], steps: int = 18, scale: float = 1.0,
        method: SamplerName = "dpmpp_2m",
    ) -> Float[Tensor, "rows 4 size size"]:  # fmt: skip
        """Returns pictures, within [-1, 1].

        seeds: of each view's noise, so that a view doesn't depend on which others are made at the same time.
        scale: of classifier-free guidance; 1 is none.
        """
        noise = normal(seeds, self.shape, stream="views").to(self.device)
        std = float(self.network.conditioner.std)
        least = float(trained_noise(self.diffusion, torch.tensor(LEAST_SHARE)))
        low, high = max(SIGMAS[0], least), SIGMAS[1]
        sigmas = karras_sigmas(steps, sigma_min=std * low, sigma_max=std * high)
        denoise: Denoise[ViewCondition] = self.denoise
        if scale != 1:
            assert condition.negative is not None
            denoise = classifier_free(denoise, condition.negative, scale=scale)
        if self.vae is None:
            end = torch.ones((), device=self.device)
            denoise = within(denoise, -end, end)
        start = noise * sigmas[0].float() + self.network.conditioner.mean[:, None, None]
        found = sample(denoise, start, sigmas, condition, method=method)
        return self.decode(found).clamp(-1, 1)


def trained_noise(config: DiffusionConfig, share: Float[Tensor, " *any"]) -> Float[Tensor, " *any"]:
    """Returns the noise levels, in units of the data's spread, below which shares of training's were."""
    normal = torch.special.ndtri(share.reshape(-1))
    t = sample_times(normal, config.times, mean=config.times_mean, std=config.times_std)
    schedule = make_schedule(config.schedule)
    return (schedule.sigma(t) / schedule.alpha(t)).reshape(share.shape)


# ---------------------------------------------------------------- VAE


def load_vae(folder: Path, device: torch.device | str = "cpu") -> Any:
    """Returns diffusers' AutoencoderKL of a folder (config.json, safetensors), frozen; UserError if none."""
    from diffusers import AutoencoderKL

    if not (folder / "config.json").is_file() or not (folder / UNET.rpartition("/")[2]).is_file():
        raise UserError(
            f"{folder} is no VAE in diffusers' layout: it would hold config.json and "
            f"{UNET.rpartition('/')[2]}. Download the `vae` folder of a Stable Diffusion model."
        )
    vae = AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    return vae.eval().requires_grad_(False).to(device)


def encode_latents(vae: Any, pictures: Float[Tensor, "rows 4 size size"]) -> Float[Tensor, "rows latent h w"]:
    """Returns the scaled latents of the colours, and then those of alpha as a grey picture (modes)."""
    grey = pictures[:, 3:].expand(-1, 3, -1, -1)
    found = [vae.encode(part.contiguous()).latent_dist.mode() for part in (pictures[:, :3], grey)]
    return torch.cat(found, dim=1) * vae.config.scaling_factor


def decode_latents(vae: Any, x: Float[Tensor, "rows latent h w"]) -> Float[Tensor, "rows 4 size size"]:
    """Returns the pictures of such latents."""
    colours, grey = (vae.decode(part).sample for part in (x / vae.config.scaling_factor).chunk(2, dim=1))
    return torch.cat([colours, grey.mean(1, keepdim=True)], dim=1)


def vae_shapes(vae: Any, size: int) -> tuple[int, int]:
    """Returns channels and side of `encode_latents` of pictures of `size` pixels."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return 2 * int(vae.config.latent_channels), size // factor


# ---------------------------------------------------------------- files


def random_view_model(*, size: int = 16, clip: Clip | None = None, seed: int = 0) -> ViewModel:
    """Returns a tiny model of random weights in pixel space, for tests of what uses one.

    clip: for conditions of captions, whose widths are then the model's.
    """
    config = ViewNetworkConfig(
        size=size, patch=2, channels=(8, 16), attention=1, head_width=8, context_width=16,
        reference_patch=size // 2, reference_depth=1, volume=4, volume_width=4,
    )  # fmt: skip
    widths = (16, 16) if clip is None else (clip.embed_dim, clip.text_width)
    shapes = ViewShapes(channels=4, side=size, clip_dim=widths[0], text_width=widths[1], references=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ViewNetwork(shapes, config)
    network = network.eval().requires_grad_(False)
    return ViewModel(network, DiffusionConfig(), clip=clip, clip_digest="" if clip is None else clip.digest)


def save_layout(
    folder: Path, shapes: ViewShapes, config: ViewNetworkConfig, diffusion: DiffusionConfig,
    weights: dict[str, Tensor],
) -> None:  # fmt: skip
    """Writes a model as folders: unet/ as diffusers keeps it, conditioner/, and view_model.json.

    weights: of a `ViewNetwork`.
    """
    described = {
        "shapes": asdict(shapes),
        "network": config.model_dump(),
        "diffusion": diffusion.model_dump(),
    }
    write_atomic(folder / FILE, json.dumps(described, indent=1))
    with torch.device("meta"):
        unet_config = dict(make_unet(shapes, config).config)
    unet_config = {"_class_name": "UNet2DConditionModel"} | {
        name: value for name, value in unet_config.items() if not name.startswith("_")
    }
    write_atomic(folder / "unet" / "config.json", json.dumps(unet_config, indent=1))
    for name, prefix in ((UNET, "unet."), (CONDITIONER, "conditioner.")):
        own = {k.removeprefix(prefix): v.contiguous() for k, v in weights.items() if k.startswith(prefix)}
        write_atomic(folder / name, save(own, {"format": "pt"}))


def read_layout(folder: Path) -> tuple[ViewShapes, ViewNetworkConfig, DiffusionConfig]:
    """Returns what a view_model.json says; UserError that names it for what no view model has."""
    path = folder / FILE
    saved = read_json(path, advice="Copy it again, or train the view model again.")
    try:
        shapes = ViewShapes(**saved["shapes"])
        parts = saved["network"], saved["diffusion"]
        if any(not isinstance(value, int) or not 1 <= value <= 16384 for value in vars(shapes).values()):
            raise ValueError(f"sizes from 1 to 16384 were expected, got {shapes}")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} doesn't describe a view model ({type(error).__name__}: {error}). Copy it again, or "
            "train the view model again."
        ) from error
    config = validated(ViewNetworkConfig, parts[0], f"`network` of {path}")
    return shapes, config, validated(DiffusionConfig, parts[1], f"`diffusion` of {path}")


def load_view_model(
    folder: Path, device: torch.device | str = "cpu", *, clip: Path | str | Clip | None = None,
    vae: Path | None = None,
) -> ViewModel:  # fmt: skip
    """Loads a finished prior.train_views run, or the folder RUN that holds it as RUN/views.

    clip: the CLIP that it was trained with, for captions; by default the folder `clip` beside it, if any.
    vae: the folder of the VAE whose latents it diffuses, if it does.
    Raises UserError if `folder` is no such run, a file isn't what the run wrote, or the CLIP is another.
    """
    if (folder / "views" / "meta.json").is_file():
        folder = folder / "views"
    meta, (shapes, config, diffusion) = read_meta(folder, stage="views"), read_layout(folder)
    digests = meta.get("layout_digests", {})
    checked = [checked_digest(folder / name, digests.get(name)) for name in (UNET, CONDITIONER)]
    with torch.device("meta"):
        network = ViewNetwork(shapes, config)
    check_fits(lambda: network.unet, folder / UNET)
    check_fits(lambda: network.conditioner, folder / CONDITIONER)
    network.unet.load_state_dict(read_tensors(folder / UNET), assign=True)
    network.conditioner.load_state_dict(read_tensors(folder / CONDITIONER), assign=True)
    beside = folder.parent / "clip"
    wanted = str(meta["inputs"].get("clip", ""))
    if clip is None and wanted and (beside / "model.json").is_file():
        clip = beside
    loaded = clip if clip is None or isinstance(clip, Clip) else load_clip(clip, device)
    if loaded is not None and loaded.digest != wanted:
        raise UserError(
            f"The view model in {folder} was trained with the CLIP {wanted[:12] or '(none)'}, but was given "
            f"{loaded.digest[:12]}: their vectors mean different things. Use the CLIP of its own run."
        )
    if (shapes.channels != 4) != (vae is not None):
        needs = "pixels: leave vae out" if vae is not None else "a VAE's latents: name its folder (vae=...)"
        raise UserError(f"The view model in {folder} diffuses {needs}.")
    return ViewModel(
        network.to(device).eval().requires_grad_(False), diffusion, clip=loaded,
        vae=None if vae is None else load_vae(vae, device), digest=checked[0], clip_digest=wanted,
    )  # fmt: skip
