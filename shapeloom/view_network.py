"""The network of the view model: noisy pictures of an object, seen from given cameras, to what they show.

    pictures' pixels, a block of patch x patch a cell      -> channels of diffusers' UNet2DConditionModel
    each cell's ray, as Pluecker coordinates (6 numbers)   -> more channels
    a volume of references and caption, drawn from there   -> more channels (shapeloom.view_volume)
    each reference's patches with their rays               -> tokens, to which the UNet attends
    the caption's CLIP tokens                              -> more tokens
    the camera, the mean of the references, the caption's
    pooled vector                                          -> added to the noise level's embedding

Every camera enters as rays, so that field of view, distance, roll and an off-centre axis are all told. A
reference gives (size / reference_patch)^2 tokens: over a single token cross-attention would be a constant.
The views of one object that are asked for together share the keys and values of the UNet's self-attention,
which takes no weights of its own: saved, the UNet is diffusers' as it is.

Rays are in the frame whose azimuth is 0 at the first reference (a picture doesn't say where its object's
front is), or in the asset's own frame where there is no reference. +Z is up in both.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from shapeloom.config import Config
from shapeloom.nn.transformer import TransformerBlock
from shapeloom.rendering.cameras import Cameras
from shapeloom.rendering.rays import camera_rays
from shapeloom.view_volume import OCTAVES, RGBA, ReferenceVolume, waves

RAY, POSE = 6, 5
DRAWN = 2
"""Pixels of the volume's map a side of a cell."""
"""Numbers of a ray (unit direction, moment about the origin) and of a camera (`camera_vector`)."""


class ViewNetworkConfig(Config):
    """Sizes of the view model."""

    size: int = Field(64, ge=8, le=1024, description="side of the pictures in pixels")
    patch: int = Field(4, ge=1, le=16, description="pixels a side of a cell of the UNet")
    channels: tuple[int, ...] = Field(
        (64, 96, 128), min_length=1, max_length=6, description="of the UNet at each resolution, finest first"
    )
    layers: int = Field(1, ge=1, le=8, description="residual blocks at each resolution")
    attention: int = Field(2, ge=1, le=6, description="coarsest resolutions with attention, so many")
    head_width: int = Field(32, ge=4, le=256, description="channels of an attention head")
    context_width: int = Field(
        128, ge=8, le=4096, description="channels of a token of references and captions"
    )
    reference_patch: int = Field(
        8, ge=1, le=64, description="pixels a side that a reference's token stands for"
    )
    reference_depth: int = Field(2, ge=0, le=64, description="transformer blocks over a reference's tokens")
    volume: int = Field(24, ge=4, le=128, multiple_of=2, description="voxels a side of the volume")
    volume_width: int = Field(16, ge=4, le=256, description="features of a voxel")

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ViewNetworkConfig":
        cell = self.patch * 2 ** (len(self.channels) - 1)
        for name, side in (
            ("patch and the number of channels", cell),
            ("reference_patch", self.reference_patch),
        ):
            if self.size % side:
                raise ValueError(f"size must be a multiple of {side} (of {name}), got {self.size}")
        for name, width in (("channels", c) for c in self.channels[-self.attention :]):
            if width % self.head_width:
                raise ValueError(
                    f"{name} {width} with attention must be a multiple of head_width={self.head_width}"
                )
        if any(width % 8 for width in self.channels):
            raise ValueError(f"channels must be multiples of 8 (groups of the norms), got {self.channels}")
        if self.context_width % self.head_width:
            raise ValueError(
                f"context_width must be a multiple of head_width={self.head_width}, got {self.context_width}"
            )
        return self


@dataclass(frozen=True)
class ViewShapes:
    """What the view model's pictures and captions look like.

    channels, side: of a picture as it is diffused: 4 and the config's size, or a VAE's latents'.
    clip_dim, text_width: of CLIP's pooled vectors and tokens.
    references: of an object, at most, that it was trained with.
    """

    channels: int = 4
    side: int = 64
    clip_dim: int = 64
    text_width: int = 64
    references: int = 1


@dataclass(frozen=True)
class ViewInputs:
    """What a batch of objects' views is made for, as numbers; poses in the frame described above."""

    cam_to_world: Float[Tensor, "batch views 4 4"]
    intrinsics: Float[Tensor, "batch views 3 3"]
    """In pixels of pictures of the config's size, as those of references."""
    references: Float[Tensor, "batch references 4 size size"]
    """As `shapeloom.view_diffusion` has them: colours on white and alpha, in [-1, 1]."""
    reference_pose: Float[Tensor, "batch references 4 4"]
    reference_intrinsics: Float[Tensor, "batch references 3 3"]
    has_reference: Bool[Tensor, "batch references"]
    text_pooled: Float[Tensor, "batch clip_dim"]
    text_tokens: Float[Tensor, "batch length text_width"]
    text_mask: Bool[Tensor, "batch length"]
    has_text: Bool[Tensor, " batch"]


@dataclass(frozen=True)
class ViewCondition:
    """What the UNet is told: one row a view, the views of an object one after another."""

    maps: Float[Tensor, "rows channels cells cells"]
    """Each cell's ray (6 numbers), and what the volume shows there."""
    vector: Float[Tensor, "rows context_width"]
    context: Float[Tensor, "rows tokens context_width"]
    mask: Bool[Tensor, "rows tokens"]
    views: int
    """Of one object, made together."""
    negative: "ViewCondition | None" = None
    """The same cameras without references and captions, for guidance; made by `ViewModel.condition`."""

    def __len__(self) -> int:
        return len(self.vector)

    def drawn(self) -> Float[Tensor, "rows 4 side side"]:
        """Returns the volume's own pictures, two pixels a side of a cell: RGBA on white, in [-1, 1]."""
        return F.pixel_shuffle(self.maps[:, RAY:], DRAWN)[:, :RGBA]

    def alone(self) -> "ViewCondition":
        """Each view for itself, without its siblings."""
        negative = None if self.negative is None else self.negative.alone()
        return replace(self, views=1, negative=negative)


def azimuths(cam_to_world: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, " *batch"]:
    """Returns the angle about +Z at which cameras stand, from +X to +Y, radians."""
    return torch.atan2(cam_to_world[..., 1, 3], cam_to_world[..., 0, 3])


def turned(
    cam_to_world: Float[Tensor, "batch num 4 4"], azimuth: Float[Tensor, " batch"]
) -> Float[Tensor, "batch num 4 4"]:
    """Returns poses in the frame whose azimuth 0 is at `azimuth` of the old one."""
    turn = torch.eye(4, dtype=cam_to_world.dtype, device=cam_to_world.device).repeat(len(azimuth), 1, 1)
    turn[:, 0, 0] = turn[:, 1, 1] = azimuth.cos()
    turn[:, 0, 1], turn[:, 1, 0] = azimuth.sin(), -azimuth.sin()
    return turn[:, None] @ cam_to_world


def plucker(
    cam_to_world: Float[Tensor, "num 4 4"], intrinsics: Float[Tensor, "num 3 3"], *, size: int, cells: int
) -> Float[Tensor, "num 6 cells cells"]:
    """Returns unit direction and moment (origin x direction) of the rays through the middles of cells.

    intrinsics: in pixels of pictures of `size`, which has `cells` cells a side.
    """
    scaled = intrinsics.clone()
    scaled[:, :2] *= cells / size
    origins, directions, _ = camera_rays(cam_to_world, scaled, cells, cells)
    origins = origins.expand_as(directions)
    return torch.cat([directions, torch.linalg.cross(origins, directions)], dim=-1).permute(0, 3, 1, 2)


def camera_vector(
    cam_to_world: Float[Tensor, "num 4 4"], intrinsics: Float[Tensor, "num 3 3"], *, size: int
) -> Float[Tensor, "num 5"]:
    """Returns where a camera stands (unit vector), log distance, log of its picture's half height at 1."""
    eye = cam_to_world[:, :3, 3]
    distance = eye.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    half = 0.5 * size / intrinsics[:, 1, 1, None]
    return torch.cat([eye / distance, distance.log(), half.log()], dim=-1)


class Conditioner(nn.Module):
    """References, captions and cameras to tokens and a vector; holds the pictures' mean and spread too."""

    mean: Tensor
    std: Tensor

    def __init__(self, shapes: ViewShapes, config: ViewNetworkConfig) -> None:
        super().__init__()
        width, features = config.context_width, 1 + 2 * OCTAVES
        self.config = config
        heads = max(1, width // config.head_width)
        self.patches = nn.Conv2d(4, width, config.reference_patch, stride=config.reference_patch)
        self.ray = nn.Linear(RAY * features, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(config.reference_depth))
        self.norm = nn.LayerNorm(width)
        self.pooled = nn.Linear(width, width)
        self.text_tokens = nn.Linear(shapes.text_width, width)
        self.text_pooled = nn.Linear(shapes.clip_dim, width)
        self.camera = nn.Sequential(nn.Linear(POSE * features, width), nn.SiLU(), nn.Linear(width, width))
        self.volume = ReferenceVolume(
            size=config.size, side=config.volume, width=config.volume_width, context_width=width
        )
        self.null_token = nn.Parameter(torch.randn(width) * 0.02)
        self.no_reference = nn.Parameter(torch.randn(width) * 0.02)
        self.no_text = nn.Parameter(torch.randn(width) * 0.02)
        self.register_buffer("mean", torch.zeros(shapes.channels))
        self.register_buffer("std", torch.ones(()))

    def forward(self, inputs: ViewInputs, cells: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns maps, vector, context and mask of a `ViewCondition`, a row a view."""
        size, (batch, views) = self.config.size, inputs.cam_to_world.shape[:2]
        seen, pooled = self._references(inputs)
        patches = seen.shape[2]
        tokens, own_mask = seen.flatten(1, 2), inputs.has_reference.repeat_interleave(patches, dim=1)
        null = self.null_token.expand(batch, 1, -1).to(tokens.dtype)
        text = self.text_tokens(inputs.text_tokens).to(tokens.dtype)
        context = torch.cat([null, tokens, text], dim=1)
        said = inputs.text_mask & inputs.has_text[:, None]
        mask = torch.cat([torch.ones_like(inputs.has_text)[:, None], own_mask, said], dim=1)
        # Entries of a unit vector become of size 1, as a linear layer expects.
        caption = self.text_pooled(inputs.text_pooled * math.sqrt(inputs.text_pooled.shape[-1]))
        caption = torch.where(inputs.has_text[:, None], caption, self.no_text.to(caption.dtype))
        poses, matrices = inputs.cam_to_world.flatten(0, 1), inputs.intrinsics.flatten(0, 1)
        camera = self.camera(waves(camera_vector(poses, matrices, size=size)))
        rays = plucker(poses, matrices, size=size, cells=cells)
        whole = pooled + caption
        side = math.isqrt(patches)
        volume = self.volume(
            inputs.references, inputs.reference_pose, inputs.reference_intrinsics, inputs.has_reference,
            seen.unflatten(2, (side, side)), whole,
        )  # fmt: skip
        drawn = self.volume.drawn(volume, inputs.cam_to_world, inputs.intrinsics, cells=DRAWN * cells)
        maps = torch.cat([rays.to(drawn.dtype), F.pixel_unshuffle(drawn, DRAWN)], dim=1)
        vector = camera + whole.repeat_interleave(views, dim=0)
        return maps, vector, context.repeat_interleave(views, dim=0), mask.repeat_interleave(views, dim=0)

    def _references(self, inputs: ViewInputs) -> tuple[Tensor, Tensor]:
        """Tokens of each reference's patches, and a vector of all that are there. Each is read for itself.

        Patches count in the mean by how much of the object they show: most of a picture is background.
        """
        config, seen = self.config, inputs.has_reference
        cells = config.size // config.reference_patch
        tokens = self.patches(inputs.references.flatten(0, 1)).flatten(2).transpose(1, 2)
        rays = plucker(
            inputs.reference_pose.flatten(0, 1), inputs.reference_intrinsics.flatten(0, 1), size=config.size,
            cells=cells,
        )  # fmt: skip
        tokens = tokens + self.ray(waves(rays.flatten(2).transpose(1, 2)))
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens).unflatten(0, seen.shape)
        share = seen.to(tokens.dtype) / seen.sum(1, keepdim=True).clamp_min(1)
        covered = F.avg_pool2d((inputs.references[:, :, 3] + 1) / 2, config.reference_patch).flatten(2) + 1e-3
        weights = (share / covered.sum(2))[..., None] * covered
        mean = (tokens * weights.to(tokens.dtype)[..., None]).sum((1, 2))
        pooled = torch.where(seen.any(1)[:, None], self.pooled(mean), self.no_reference.to(mean.dtype))
        return tokens, pooled


class JointAttention:
    """diffusers' attention, but views of an object attend to one another where a cell attends to cells."""

    def __init__(self) -> None:
        from diffusers.models.attention_processor import AttnProcessor2_0

        self.plain = AttnProcessor2_0()

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None, views: int = 1,
    ) -> Tensor:  # fmt: skip
        """hidden_states: [rows, cells, channels], the `views` of an object one after another."""
        if encoder_hidden_states is not None or views == 1:
            return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        joined = hidden_states.unflatten(0, (-1, views)).flatten(1, 2)
        return self.plain(attn, joined, None, attention_mask, temb).unflatten(1, (views, -1)).flatten(0, 1)


def make_unet(shapes: ViewShapes, config: ViewNetworkConfig) -> Any:
    """Returns a UNet2DConditionModel of these sizes with fresh weights."""
    from diffusers import UNet2DConditionModel

    count = len(config.channels)
    attends = [level >= count - config.attention for level in range(count)]
    unet: Any = UNet2DConditionModel(
        sample_size=shapes.side // config.patch,
        in_channels=shapes.channels * config.patch**2 + RAY + DRAWN**2 * (1 + config.volume_width),
        out_channels=shapes.channels * config.patch**2,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        down_block_types=tuple("CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)),
        cross_attention_dim=config.context_width,
        # Of diffusers' misnamed key: heads at each resolution.
        attention_head_dim=tuple(max(1, width // config.head_width) for width in config.channels),
        class_embed_type="projection",
        projection_class_embeddings_input_dim=config.context_width,
        resnet_time_scale_shift="scale_shift",  # camera and references scale features too
        norm_num_groups=min(32, math.gcd(*config.channels) // 4),
    )
    unet.set_attn_processor(JointAttention())
    return unet


class ViewNetwork(nn.Module):
    """Conditioner and UNet. What it says of x is what `diffusion.objectives` asks for, x standardised."""

    def __init__(self, shapes: ViewShapes, config: ViewNetworkConfig) -> None:
        super().__init__()
        self.shapes, self.config = shapes, config
        self.conditioner = Conditioner(shapes, config)
        self.unet = make_unet(shapes, config)

    @property
    def cells(self) -> int:
        """Cells of the UNet a side."""
        return self.shapes.side // self.config.patch

    def told(self, inputs: ViewInputs) -> ViewCondition:
        """Returns what the UNet is told."""
        maps, vector, context, mask = self.conditioner(inputs, self.cells)
        return ViewCondition(maps, vector, context, mask, inputs.cam_to_world.shape[1])

    def forward(
        self,
        x: Float[Tensor, "rows channels side side"],
        sigma: Float[Tensor, " rows"],
        condition: ViewCondition,
    ) -> Float[Tensor, "rows channels side side"]:
        """x = x_0 + sigma eps, x_0 standardised, sigma > 0."""
        level = 500 * (1 + sigma.log() / 4)  # within the 0 to 1000 that the embedding is made for
        unit = x / torch.hypot(sigma, torch.ones_like(sigma))[:, None, None, None]
        cells = F.pixel_unshuffle(unit, self.config.patch)
        answer = self.unet(
            torch.cat([cells, condition.maps.to(cells.dtype)], dim=1), level, condition.context,
            class_labels=condition.vector, encoder_attention_mask=condition.mask,
            cross_attention_kwargs={"views": condition.views},
        ).sample  # fmt: skip
        return F.pixel_shuffle(answer, self.config.patch)


def frame_of(references: Cameras | None, batch: int) -> Float[Tensor, " batch"]:
    """Returns the azimuth from which others are counted: the first reference's, or 0."""
    return torch.zeros(batch) if references is None else azimuths(references.cam_to_world[:, 0])
