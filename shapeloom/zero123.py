"""Zero-1-to-3 (Liu et al. 2023) from its published weights, given by file: a picture and a pose to a view.

CompVis' checkpoint (.safetensors, or .ckpt by torch's restricted loader) and the folders of diffusers'
community pipeline load: unet/, vae/, image_encoder/, cc_projection/. Every tensor is checked by name and
shape.

Its conventions, which its weights need:
- the pose is [d_theta, sin d_azimuth, cos d_azimuth, d_radius], target less given, radians; theta from +Z
  down, azimuth from +X to +Y, as in `rendering.cameras`;
- it is joined to CLIP's 768 numbers of the picture (not normalised) and projected to the one token that is
  attended to;
- the given picture's latent is the mode, not scaled; what is diffused is times 0.18215;
- without a condition token and latent are zeros, as its own sampler has them;
- pictures are 256 x 256 in [-1, 1] on white; noise is predicted, over 1,000 steps, betas' roots even.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from open_clip.model import QuickGELU
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from shapeloom.checkpoints import read_bare
from shapeloom.config import UserError
from shapeloom.diffusion.discrete import DiscreteProcess
from shapeloom.diffusion.guidance import classifier_free
from shapeloom.diffusion.samplers import SamplerName, sample
from shapeloom.diffusion.steps import karras_sigmas
from shapeloom.noise import normal
from shapeloom.view_network import azimuths
from shapeloom.zero123_names import PREFIXES, to_compvis, tower_from_transformers

LATENT_SCALE = 0.18215
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "model.safetensors",
         "pytorch_model.bin")  # fmt: skip
PARTS = ("unet", "vae", "image_encoder", "cc_projection")


@dataclass(frozen=True)
class Zero123Sizes:
    """Its sizes; the defaults are the published ones (859,532,484 numbers in the UNet)."""

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: int = 2
    heads: int = 8
    context: int = 768
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    vae_layers: int = 2
    tower_width: int = 1024
    tower_layers: int = 24
    tower_heads: int = 16
    tower_patch: int = 14
    tower_size: int = 224
    groups: int = 32


class Zero123Networks(nn.Module):
    """Its four networks, with fresh weights."""

    def __init__(self, sizes: Zero123Sizes) -> None:
        from diffusers import AutoencoderKL, UNet2DConditionModel

        super().__init__()
        self.sizes, levels = sizes, len(sizes.channels)
        self.unet: Any = UNet2DConditionModel(
            sample_size=32, in_channels=8, out_channels=4, block_out_channels=sizes.channels,
            layers_per_block=sizes.layers, cross_attention_dim=sizes.context, attention_head_dim=sizes.heads,
            down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
            norm_num_groups=sizes.groups,
        )  # fmt: skip
        levels = len(sizes.vae_channels)
        self.vae: Any = AutoencoderKL(
            block_out_channels=sizes.vae_channels, layers_per_block=sizes.vae_layers, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
            norm_num_groups=sizes.groups, scaling_factor=LATENT_SCALE,
        )  # fmt: skip
        self.image_encoder: Any = VisionTransformer(
            image_size=sizes.tower_size, patch_size=sizes.tower_patch, width=sizes.tower_width,
            layers=sizes.tower_layers, heads=sizes.tower_heads, mlp_ratio=4.0, output_dim=sizes.context,
            act_layer=QuickGELU,
        )  # fmt: skip
        self.cc_projection = nn.ModuleDict({"projection": nn.Linear(sizes.context + 4, sizes.context)})

    def part(self, name: str) -> nn.Module:
        """Returns one of PARTS."""
        return dict(self.named_children())[name]


@dataclass(frozen=True)
class Zero123Condition:
    """What a batch of views is made from."""

    token: Float[Tensor, "n 1 context"]
    latent: Float[Tensor, "n 4 h w"]
    negative: "Zero123Condition | None" = None


def pose_difference(given: Float[Tensor, "n 4 4"], wanted: Float[Tensor, "n 4 4"]) -> Float[Tensor, "n 4"]:
    """Returns the pose that the model is told, of cameras that look at the origin."""
    eyes = [pose[:, :3, 3] for pose in (given, wanted)]
    radii = [eye.norm(dim=-1) for eye in eyes]
    thetas = [torch.acos((eye[:, 2] / radius).clamp(-1, 1)) for eye, radius in zip(eyes, radii, strict=True)]
    around = azimuths(wanted) - azimuths(given)
    return torch.stack([thetas[1] - thetas[0], around.sin(), around.cos(), radii[1] - radii[0]], dim=-1)


class Zero123:
    """The published model, frozen. Make it with `load_zero123`."""

    def __init__(self, networks: Zero123Networks) -> None:
        self.networks = networks.eval().requires_grad_(False)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.process = DiscreteProcess(betas, (1 - betas).cumprod(0))
        self.device = next(networks.parameters()).device

    @torch.no_grad()
    def condition(
        self, pictures: Float[Tensor, "n 3 size size"], pose: Float[Tensor, "n 4"]
    ) -> Zero123Condition:
        """Returns what `denoise` is to show.

        pictures: in [-1, 1] on white, 256 x 256 in the published model. pose: of `pose_difference`.
        """
        return self.told(*self.look(pictures), pose)

    @torch.no_grad()
    def look(
        self, pictures: Float[Tensor, "n 3 size size"]
    ) -> tuple[Float[Tensor, "n context"], Float[Tensor, "n 4 h w"]]:
        """Returns CLIP's vectors of pictures and their latents: what a condition takes from them."""
        pictures = pictures.to(self.device)
        return self._clip(pictures), self.networks.vae.encode(pictures).latent_dist.mode()

    @torch.no_grad()
    def told(
        self, clip: Float[Tensor, "n context"], latent: Float[Tensor, "n 4 h w"], pose: Float[Tensor, "n 4"]
    ) -> Zero123Condition:
        """Returns the condition of what `look` returned and poses of `pose_difference`."""
        vector = torch.cat([clip, pose.to(clip)], dim=-1)
        token = self.networks.cc_projection["projection"](vector)[:, None]
        nothing = Zero123Condition(torch.zeros_like(token), torch.zeros_like(latent))
        return Zero123Condition(token, latent, nothing)

    def _clip(self, pictures: Tensor) -> Tensor:
        """Of pictures resized as CompVis' code does, without antialiasing."""
        size = self.networks.sizes.tower_size
        resized = F.interpolate(pictures, (size, size), mode="bicubic", align_corners=True)
        mean, std = (torch.tensor(each).view(3, 1, 1).to(pictures) for each in (CLIP_MEAN, CLIP_STD))
        return self.networks.image_encoder(((resized + 1) / 2 - mean) / std)

    def denoise(
        self, x: Float[Tensor, "n 4 h w"], sigma: Float[Tensor, " n"], condition: Zero123Condition
    ) -> Float[Tensor, "n 4 h w"]:
        """Returns the expected x_0 of scaled latents x = x_0 + sigma eps: `diffusion.samplers`' seam."""
        level = sigma[:, None, None, None].to(x)
        seen = torch.cat([x / torch.hypot(level, torch.ones_like(level)), condition.latent], dim=1)
        step = self.process.step_of(sigma).to(x.dtype)
        return x - level * self.networks.unet(seen, step, condition.token).sample

    def encode(self, pictures: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n 4 h w"]:
        """Returns scaled latents of pictures in [-1, 1], the mode. Differentiable."""
        latent: Tensor = self.networks.vae.encode(pictures.to(self.device)).latent_dist.mode()
        return latent * LATENT_SCALE

    def decode(self, x: Float[Tensor, "n 4 h w"]) -> Float[Tensor, "n 3 size size"]:
        """Returns the pictures of scaled latents."""
        return self.networks.vae.decode(x / LATENT_SCALE).sample

    @torch.no_grad()
    def sample(
        self, condition: Zero123Condition, *, seeds: Int64[Tensor, " n"], steps: int = 50, scale: float = 3.0,
        method: SamplerName = "dpmpp_2m",
    ) -> Float[Tensor, "n 3 size size"]:  # fmt: skip
        """Returns new views in [-1, 1]."""
        levels = self.process.sigmas
        sigmas = karras_sigmas(steps, sigma_min=float(levels[0]), sigma_max=float(levels[-1]))
        noise = normal(seeds, tuple(condition.latent.shape[1:]), stream="zero123").to(self.device)
        assert condition.negative is not None
        denoise = classifier_free(self.denoise, condition.negative, scale=scale)
        return self.decode(sample(denoise, noise * float(sigmas[0]), sigmas, condition, method=method)).clamp(
            -1, 1
        )


# ---------------------------------------------------------------- files


def load_zero123(
    path: Path, device: torch.device | str = "cpu", *, sizes: Zero123Sizes | None = None
) -> Zero123:
    """Loads CompVis' checkpoint, or a folder of diffusers' layout.

    sizes: of the file's model; none: the published ones, or what the folder's configs say.
    Raises UserError that names the file and the tensor for whatever doesn't fit, and for pickles of more than
    numbers.
    """
    if path.is_dir():
        sizes = sizes or _sizes_of(path)
        found = {part: read_bare(_weights_file(path / part), "Zero-1-to-3") for part in PARTS}
    else:
        sizes = sizes or Zero123Sizes()
        found = {}
    with torch.device("meta"):
        networks = Zero123Networks(sizes)
    expected = {part: networks.part(part).state_dict() for part in PARTS}
    if path.is_dir():
        found["image_encoder"] = _tower(found["image_encoder"], expected["image_encoder"], path)
    else:
        found = _from_compvis(read_bare(path, "Zero-1-to-3"), expected, sizes, path)
    for part in PARTS:
        _check(expected[part], found[part], path, part)
        networks.part(part).load_state_dict(
            {name: value.float() for name, value in found[part].items()}, assign=True
        )
    return Zero123(networks.to(device))


def _tower(state: Mapping[str, Tensor], like: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    try:
        return tower_from_transformers(state, like)
    except KeyError as error:
        raise UserError(f"{path}/image_encoder has no {error.args[0]}: it is another model's.") from error


def _from_compvis(
    state: Mapping[str, Tensor], expected: Mapping[str, Mapping[str, Tensor]], sizes: Zero123Sizes, path: Path
) -> dict[str, dict[str, Tensor]]:
    """Parts by our names; what belongs to none (averages, schedules, CLIP's text tower) is left out."""
    found: dict[str, dict[str, Tensor]] = {}
    for part, own in expected.items():
        found[part] = {}
        theirs = {
            name: next(iter(compvis_of(part, {name: value}, sizes).items())) for name, value in own.items()
        }
        for name, (there, shaped) in theirs.items():
            if there not in state:
                raise UserError(f"{path} has no {there}: it isn't a whole checkpoint of Zero-1-to-3.")
            value = state[there]
            same = value.numel() == own[name].numel() and value.ndim == shaped.ndim
            found[part][name] = value.reshape(own[name].shape) if same else value
        known = {there for there, _ in theirs.values()}
        if extra := sorted(name for name in state if name.startswith(PREFIXES[part]) and name not in known):
            raise UserError(f"{path} has {extra[0]}, which Zero-1-to-3 of these sizes doesn't have.")
    return found


def compvis_of(part: str, state: Mapping[str, Tensor], sizes: Zero123Sizes) -> dict[str, Tensor]:
    """Returns a part's tensors by CompVis' names."""
    channels = sizes.channels if part == "unet" else sizes.vae_channels
    layers = sizes.layers if part == "unet" else sizes.vae_layers
    return to_compvis(part, state, levels=len(channels), layers=layers)


def _check(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path, part: str) -> None:
    for name in sorted(expected.keys() | found.keys()):
        have, need = (list(each[name].shape) if name in each else None for each in (found, expected))
        if have != need:
            raise UserError(
                f"{path} isn't Zero-1-to-3 of these sizes: {part}'s {name} is {have or 'missing'}, but "
                f"should be {need or 'absent'}."
            )
        if not torch.isfinite(found[name]).all():
            raise UserError(
                f"{path} holds NaN or infinity, in {part}'s {name}: it is damaged. Copy it again."
            )


def _weights_file(folder: Path) -> Path:
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder} holds no weights: one of {', '.join(FILES)} was expected. Copy the folder again."
    )


def _sizes_of(folder: Path) -> Zero123Sizes:
    """What the configs of diffusers' folders say."""
    configs = {}
    for part in ("unet", "vae", "image_encoder"):
        file = folder / part / "config.json"
        try:
            configs[part] = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{file} can't be read ({error}): is {folder} a Zero-1-to-3 pipeline?") from error
    unet, vae, tower = (configs[part] for part in ("unet", "vae", "image_encoder"))
    try:
        heads = unet["attention_head_dim"]
        sizes = Zero123Sizes(
            channels=tuple(unet["block_out_channels"]), layers=int(unet["layers_per_block"]),
            heads=int(heads[0] if isinstance(heads, list) else heads),
            context=int(unet["cross_attention_dim"]),
            vae_channels=tuple(vae["block_out_channels"]), vae_layers=int(vae["layers_per_block"]),
            tower_width=int(tower["hidden_size"]), tower_layers=int(tower["num_hidden_layers"]),
            tower_heads=int(tower["num_attention_heads"]), tower_patch=int(tower["patch_size"]),
            tower_size=int(tower["image_size"]), groups=int(unet["norm_num_groups"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} has no configs of a Zero-1-to-3 pipeline ({error!r}).") from error
    if max(*sizes.channels, *sizes.vae_channels, sizes.tower_width) > 8192 or sizes.tower_layers > 128:
        raise UserError(f"{folder} asks for networks larger than any Zero-1-to-3 ({sizes}).")
    return sizes
