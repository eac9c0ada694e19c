"""Latent -> field weights -> field -> pixels: the one place where fields and rendering meet.

A latent is [tokens, channels] in [-1, 1]. Rendering is by coarse stratified samples, then importance samples
where the coarse ones found something. The field is not asked where an occupancy grid says "empty", nor behind
what already hides the rest of a ray.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from pydantic import Field as Key
from torch import Tensor, nn

from shapeloom.config import Config, load_config
from shapeloom.fields.cloud import CloudField, CloudFieldConfig, CloudProjection
from shapeloom.fields.heads import Color, Directions, Field, Geometry
from shapeloom.fields.mlp import FieldConfig, FieldMLP, own_bumps, own_shapes
from shapeloom.fields.projection import (
    FieldWeights,
    LatentLayout,
    Projection,
    ProjectionConfig,
    layer_tokens,
    make_projection,
)
from shapeloom.rendering.occupancy import in_occupied, occupancy_resolution, occupied_cells
from shapeloom.rendering.rays import camera_rays, edges_from_samples, intersect_box
from shapeloom.rendering.volume import composite, importance_samples, ray_weights, transmittance
from shapeloom.runs import read_meta
from shapeloom.saved import check_fits
from shapeloom.shap_e.field import ShapEField, ShapEFieldConfig, ShapEProjection
from shapeloom.weights import checked_digest, read_tensors

VISIBLE = 1e-3  # samples of a ray that together weigh less are left without colour
HIDDEN = 1e-4  # transmittance below which a ray has ended
RAY_SHARE = 16  # points a ray, roughly: most samples are skipped
BLOCK = 8  # coarse samples between two looks at which rays have ended


class DecoderConfig(Config):
    """The latent's shape and the field's size."""

    projection: ProjectionConfig = ProjectionConfig()
    field: FieldConfig = FieldConfig()
    shap_e: ShapEFieldConfig | None = Key(None, description="Shap-E's published field, instead of both")
    cloud: CloudFieldConfig | None = Key(None, description="latents are clouds of points; instead of both")

    @property
    def layout(self) -> LatentLayout:
        """What the latents look like."""
        if self.shap_e is not None:
            return self.shap_e.layout
        if self.cloud is not None:
            return self.cloud.layout
        layers, trunk = layer_tokens(self.projection, own_shapes(self.field)), self.field.geometry
        num_geometry = min(trunk.own_layers, trunk.num_layers)
        by_place = self.projection.kind == "columns"
        return LatentLayout(tuple(layers), self.projection.channels, num_geometry, by_place)


def make_field(config: DecoderConfig) -> tuple[Projection, Field]:
    """Returns the projection and the field that a config names; raises ValueError if they don't fit."""
    if config.shap_e is not None:
        return ShapEProjection(config.shap_e), ShapEField(config.shap_e)
    if config.cloud is not None:
        return CloudProjection(config.cloud), CloudField(config.cloud)
    shapes, bumps = own_shapes(config.field), own_bumps(config.field)
    return make_projection(config.projection, shapes, bumps), FieldMLP(config.field)


class RenderConfig(Config):
    """Samples a ray: `coarse` even ones and `fine` ones where the coarse found density."""

    coarse: int = Key(48, ge=4, description="even samples along a ray")
    fine: int = Key(32, ge=0, description="further ones where the coarse found density")


DEFAULT_SAMPLES = RenderConfig()


def points_at_once(device: torch.device) -> int:
    """Returns how many points to evaluate in one go outside training.

    On a CPU the activations should stay in its caches (2.7x as fast as 2^18 points, measured at width 64);
    a GPU wants to be filled. Either bounds the memory, at about 1 kB a point for a field 64 wide.
    """
    return 1 << 20 if device.type == "cuda" else 1 << 14


@dataclass(frozen=True)
class Rendering:
    """Pictures of a batch of assets: sRGB on the background; depth along the camera's z, 0 where empty."""

    rgb: Float[Tensor, "batch views height width 3"]
    alpha: Float[Tensor, "batch views height width"]
    depth: Float[Tensor, "batch views height width"]


class Decoder(nn.Module):
    """Latents to fields, and fields to pixels."""

    digest: str = ""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config, self.layout = config, config.layout
        self.projection, self.field = make_field(config)

    @property
    def latent_shape(self) -> tuple[int, int]:
        """(tokens, channels) of a latent."""
        return self.layout.shape

    def weights(self, latent: Float[Tensor, "batch tokens channels"]) -> FieldWeights:
        """Returns the matrices of each asset's own."""
        expected = self.latent_shape
        if tuple(latent.shape[1:]) != expected:
            raise ValueError(
                f"latents must be [batch, {expected[0]}, {expected[1]}], not {list(latent.shape)}."
            )
        return self.projection(latent)

    def query(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"], directions: Directions = None
    ) -> tuple[Geometry, Color]:
        """Returns all that the fields say of points in [-1, 1]^3; directions: see `color`."""
        return self.field(weights, points, directions)

    def geometry(self, weights: FieldWeights, points: Float[Tensor, "batch points 3"]) -> Geometry:
        """Returns density and signed distance at points in [-1, 1]^3."""
        return self.field.geometry(weights, points)

    def color(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"], directions: Directions = None
    ) -> Color:
        """Returns the colours at points in [-1, 1]^3.

        directions: unit vectors from the camera, which fields with `directional` colours heed. Without them
        these say what their colours have in common from all sides, as a mesh needs.
        """
        return self.field.color(weights, points, directions)

    def sdf_gradient(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"]
    ) -> Float[Tensor, "batch points 3"]:
        """Returns the signed distance's gradient at points in [-1, 1]^3, in closed form."""
        return self.sdf_and_gradient(weights, points)[1]

    def sdf_and_gradient(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"]
    ) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch points 3"]]:
        """Returns the signed distance too, at little more than the gradient's cost."""
        return self.field.sdf_and_gradient(weights, points)

    @torch.no_grad()
    def sdf(self, weights: FieldWeights, points: Float[Tensor, "points 3"]) -> Float[Tensor, " points"]:
        """Returns signed distances of a single asset's field, in chunks."""
        return _in_chunks(lambda some: self.geometry(weights, some).sdf, points)

    @torch.no_grad()
    def gradient(self, weights: FieldWeights, points: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
        """Returns the signed distance's gradient of a single asset's field, in chunks."""
        return _in_chunks(lambda some: self.sdf_gradient(weights, some), points)

    @torch.no_grad()
    def texture(self, weights: FieldWeights, points: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
        """Returns texture colours (sRGB in [0, 1]) of a single asset's field, in chunks."""
        return _in_chunks(lambda some: self.color(weights, some).texture, points)

    @torch.no_grad()
    def render(
        self, weights: FieldWeights, cam_to_world: Float[Tensor, "batch views 4 4"],
        intrinsics: Float[Tensor, "batch views 3 3"], height: int, width: int, *,
        samples: RenderConfig = DEFAULT_SAMPLES, background: float = 1.0,
    ) -> Rendering:  # fmt: skip
        """Returns pictures of every asset from its cameras, without knowing where its surface is.

        Memory is bounded whatever the size: rays go through in chunks, and points by `points_at_once`.
        """
        return self.differentiable_render(
            weights, cam_to_world, intrinsics, height, width, samples=samples, background=background
        )

    def differentiable_render(
        self, weights: FieldWeights, cam_to_world: Float[Tensor, "batch views 4 4"],
        intrinsics: Float[Tensor, "batch views 3 3"], height: int, width: int, *,
        samples: RenderConfig = DEFAULT_SAMPLES, background: float = 1.0,
    ) -> Rendering:  # fmt: skip
        """Returns what `render` does, with gradients to the weights: for few rays, as all activations stay.

        There is none from what a picture leaves out: empty cells, and points that are hidden or too faint.
        """
        batch, views = cam_to_world.shape[:2]
        origins, directions, cosine = camera_rays(cam_to_world, intrinsics, height, width)
        rays = torch.cat([origins, directions], dim=-1).reshape(batch, -1, 6)
        seen = self.along_rays(weights, self.occupancy(weights, rays.shape[1]), rays, samples=samples)
        rgb, alpha, distance = seen.reshape(batch, views, height, width, 5).split([3, 1, 1], dim=-1)
        distance = distance / alpha.clamp(min=0.5) * cosine[..., None]
        depth = torch.where(alpha > 0.5, distance, torch.zeros_like(alpha))
        return Rendering(rgb + background * (1 - alpha), alpha[..., 0], depth[..., 0])

    def along_rays(
        self, weights: FieldWeights, occupied: Bool[Tensor, "batch cells cells cells"],
        rays: Float[Tensor, "batch rays 6"], *, samples: RenderConfig = DEFAULT_SAMPLES,
    ) -> Float[Tensor, "batch rays 5"]:  # fmt: skip
        """Returns rgb (premultiplied), alpha and distance (likewise) of rays (origin, unit direction).

        With gradients to the weights, unless they are off; a ray's values don't depend on the others.
        occupied: of `occupancy`.
        """
        at_once = max(1, points_at_once(rays.device) // (RAY_SHARE * len(rays)))
        needed = torch.cat(
            [_meets(occupied, chunk, samples.coarse) for chunk in rays.split(at_once, 1)], dim=1
        )
        return _where(
            needed, rays, lambda some: self._render_rays(weights, occupied, some, samples), 5, at_once=at_once
        )

    def _render_rays(
        self,
        weights: FieldWeights,
        occupied: Bool[Tensor, "batch cells cells cells"],
        rays: Float[Tensor, "batch rays 6"],
        samples: RenderConfig,
    ) -> Float[Tensor, "batch rays 5"]:
        """Returns rgb (premultiplied), alpha and distance (likewise) of rays (origin, direction)."""
        t, t_near, t_far = _coarse_samples(rays, samples.coarse)
        edges = edges_from_samples(t, t_near, t_far)
        delta = edges.diff(dim=-1)
        parts: list[Tensor] = []
        left = torch.ones_like(t_near)  # transmittance so far
        for some, length in zip(t.split(BLOCK, -1), delta.split(BLOCK, -1), strict=True):
            parts.append(self._density(weights, occupied, rays, some, (left > HIDDEN)[..., None]))
            left = left * torch.exp(-(parts[-1] * length).sum(dim=-1))
        density = torch.cat(parts, dim=-1)
        if samples.fine:
            # Where to look is no part of what is seen.
            t_fine = importance_samples(edges, ray_weights(density, delta).detach(), samples.fine)
            interval = torch.searchsorted(edges, t_fine).clamp(1, samples.coarse) - 1
            reached = transmittance(density, delta).gather(-1, interval) > HIDDEN
            fine_density = self._density(weights, occupied, rays, t_fine, reached)
            t, order = torch.cat([t, t_fine], dim=-1).sort(dim=-1)
            density = torch.cat([density, fine_density], dim=-1).gather(-1, order)
            edges = edges_from_samples(t, t_near, t_far)
        visible = ray_weights(density, edges.diff(dim=-1)) > VISIBLE / t.shape[-1]
        points = torch.cat([_along(rays, t), rays[..., None, 3:].expand(*t.shape, 3)], dim=-1).flatten(1, 2)
        rgb = _where(
            visible.flatten(1), points, lambda some: self.color(weights, some[..., :3], some[..., 3:]).rgb, 3
        )
        values = composite(density, rgb.reshape(*t.shape, 3), t, edges)
        return torch.cat([values.rgb, values.alpha[..., None], values.distance[..., None]], dim=-1)

    def _density(
        self, weights: FieldWeights, occupied: Tensor, rays: Tensor, t: Tensor, reached: Tensor
    ) -> Float[Tensor, "batch rays samples"]:
        """Returns densities, evaluated only in occupied cells that the rays still reach."""
        points = _along(rays, t).flatten(1, 2)
        needed = in_occupied(occupied, points) & reached.expand_as(t).flatten(1)
        density = _where(needed, points, lambda some: self.geometry(weights, some).density[..., None], 1)
        return density.reshape(t.shape)

    def occupancy(self, weights: FieldWeights, num_rays: int) -> Bool[Tensor, "batch cells cells cells"]:
        """Returns which cells of each asset may hold anything visible; more rays repay a finer grid.

        num_rays: of an asset.
        """
        resolution = occupancy_resolution(num_rays)

        def density(own: FieldWeights, points: Tensor) -> Tensor:
            return _in_chunks(lambda some: self.geometry(own, some).density, points)

        return torch.stack(
            [
                occupied_cells(
                    partial(density, select(weights, i)), resolution=resolution, device=weights[0].device
                )
                for i in range(weights[0].shape[0])
            ]
        )


def _in_chunks(function: Callable[[Tensor], Tensor], points: Float[Tensor, "points 3"]) -> Tensor:
    """Returns `function` ([1, points, 3] -> [1, points, ...]) of one asset's points."""
    return torch.cat([function(some[None])[0] for some in points.split(points_at_once(points.device))])


def _coarse_samples(rays: Tensor, num_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns t at the middles of equal parts of the way through the box, and t at its two ends."""
    t_near, t_far, _ = intersect_box(rays[..., :3], rays[..., 3:])
    share = (torch.arange(num_samples, device=rays.device) + 0.5) / num_samples
    return t_near[..., None] + (t_far - t_near)[..., None] * share, t_near, t_far


def _meets(occupied: Tensor, rays: Tensor, num_samples: int) -> Bool[Tensor, "batch rays"]:
    """Returns which rays have a coarse sample in an occupied cell."""
    t, t_near, t_far = _coarse_samples(rays, num_samples)
    inside = in_occupied(occupied, _along(rays, t).flatten(1, 2)).reshape(t.shape)
    return inside.any(dim=-1) & (t_far > t_near)


def _along(rays: Tensor, t: Tensor) -> Float[Tensor, "batch rays samples 3"]:
    return rays[..., None, :3] + t[..., None] * rays[..., None, 3:]


def _where(
    needed: Bool[Tensor, "batch items"], inputs: Float[Tensor, "batch items numbers"],
    function: Callable[[Tensor], Tensor], width: int, *, at_once: int | None = None,
) -> Float[Tensor, "batch items width"]:  # fmt: skip
    """Returns `function` of the needed inputs, `width` numbers each, 0 at the others.

    Each asset's needed inputs are gathered to the front, so that a batch stays one dense product. at_once:
    how many of an asset's go through together; none: points_at_once.
    """
    values = inputs.new_zeros(*inputs.shape[:2], width)
    most = int(needed.sum(dim=1).max())
    if not most:
        return values
    at_once = at_once or max(1, points_at_once(inputs.device) // len(inputs))
    # A stable sort keeps neighbours together; rows with fewer needed inputs are filled up.
    index = needed.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    for some in index.split(at_once, dim=1):
        found = function(inputs.gather(1, some[..., None].expand(-1, -1, inputs.shape[-1])))
        found = found * needed.gather(1, some)[..., None]
        values.scatter_(1, some[..., None].expand(-1, -1, width), found)
    return values


def with_field(decoder: Decoder, field: Field) -> Decoder:
    """Returns a decoder of the same latents whose weights are read by another field; the first one stays."""
    other = copy.copy(decoder)
    other._modules = dict(decoder._modules)
    other.field = field
    return other


def select(weights: FieldWeights, index: int) -> FieldWeights:
    """Returns asset `index` of a batch of fields, as a batch of one."""
    return [matrix[index : index + 1] for matrix in weights]


def load_decoder(folder: Path, device: torch.device | str = "cpu") -> Decoder:
    """Returns the decoder of a finished encoder run, in eval mode; raises UserError if it isn't one."""
    meta = read_meta(folder, stage="encoder")
    config = load_config(DecoderConfig, folder / "decoder.yaml")
    path = folder / "weights.safetensors"
    digest = checked_digest(path, meta["weights_digest"])
    check_fits(lambda: Decoder(config), path, prefix="decoder.")
    decoder = Decoder(config)
    decoder.digest = digest
    decoder.load_state_dict(read_tensors(path, "decoder."))
    return decoder.to(device).eval()
