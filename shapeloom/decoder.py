"""Latent -> field weights -> field -> pixels: the one place where fields and rendering meet.

A latent is [tokens, channels] in [-1, 1]. Rendering is by coarse stratified samples, then importance
samples where the coarse ones found something, all of them skipped where an occupancy grid says "empty".
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from pydantic import Field as Key
from safetensors import safe_open
from torch import Tensor, nn

from shapeloom.config import Config, UserError, load_config
from shapeloom.fields.heads import Color, Geometry
from shapeloom.fields.mlp import FieldConfig, FieldMLP, own_shapes
from shapeloom.fields.projection import FieldWeights, ProjectionConfig, make_projection
from shapeloom.fields.shap_e import ShapEField, ShapEFieldConfig, ShapEProjection
from shapeloom.rendering.rays import camera_rays, edges_from_samples, intersect_box
from shapeloom.rendering.volume import composite, importance_samples, ray_weights
from shapeloom.runs import read_meta
from shapeloom.storage import file_digest

OCCUPANCY_RESOLUTION = 32
VISIBLE = 1e-3  # samples of a ray that together weigh less are left without colour


class DecoderConfig(Config):
    """The latent's shape and the field's size."""

    projection: ProjectionConfig = ProjectionConfig()
    field: FieldConfig = FieldConfig()
    shap_e: ShapEFieldConfig | None = None  # Shap-E's published field, in place of both


class RenderConfig(Config):
    """Samples a ray: `coarse` even ones and `fine` ones where the coarse found density."""

    coarse: int = Key(48, ge=4)
    fine: int = Key(32, ge=0)


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
        self.config = config
        if config.shap_e is not None:
            self.projection: nn.Module = ShapEProjection(config.shap_e)
            self.field: FieldMLP | ShapEField = ShapEField(config.shap_e)
        else:
            self.projection = make_projection(config.projection, own_shapes(config.field))
            self.field = FieldMLP(config.field)

    @property
    def latent_shape(self) -> tuple[int, int]:
        """(tokens, channels) of a latent."""
        size = self.config.shap_e or self.config.projection
        return size.num_tokens, size.channels

    def weights(self, latent: Float[Tensor, "batch tokens channels"]) -> FieldWeights:
        """Returns the matrices of each asset's own."""
        expected = self.latent_shape
        if tuple(latent.shape[1:]) != expected:
            raise ValueError(
                f"latents must be [batch, {expected[0]}, {expected[1]}], not {list(latent.shape)}."
            )
        matrices: FieldWeights = self.projection(latent)
        return matrices

    def query(self, weights: FieldWeights, points: Float[Tensor, "batch points 3"]) -> tuple[Geometry, Color]:
        """Returns all that the fields say of points in [-1, 1]^3."""
        values: tuple[Geometry, Color] = self.field(weights, points)
        return values

    def geometry(self, weights: FieldWeights, points: Float[Tensor, "batch points 3"]) -> Geometry:
        """Returns density and signed distance at points in [-1, 1]^3."""
        return self.field.geometry(weights, points)

    def color(self, weights: FieldWeights, points: Float[Tensor, "batch points 3"]) -> Color:
        """Returns the colours at points in [-1, 1]^3."""
        return self.field.color(weights, points)

    @torch.no_grad()
    def sdf(self, weights: FieldWeights, points: Float[Tensor, "points 3"]) -> Float[Tensor, " points"]:
        """Returns signed distances of a single asset's field, in chunks."""
        return torch.cat(
            [
                self.geometry(weights, chunk[None]).sdf[0]
                for chunk in points.split(points_at_once(points.device))
            ]
        )

    @torch.no_grad()
    def texture(self, weights: FieldWeights, points: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
        """Returns texture colours (sRGB in [0, 1]) of a single asset's field, in chunks."""
        return torch.cat(
            [
                self.color(weights, chunk[None]).texture[0]
                for chunk in points.split(points_at_once(points.device))
            ]
        )

    @torch.no_grad()
    def render(
        self,
        weights: FieldWeights,
        cam_to_world: Float[Tensor, "batch views 4 4"],
        intrinsics: Float[Tensor, "batch views 3 3"],
        height: int,
        width: int,
        *,
        samples: RenderConfig = DEFAULT_SAMPLES,
        background: float = 1.0,
    ) -> Rendering:
        """Returns pictures of every asset from its cameras, without knowing where its surface is.

        Memory is bounded whatever the size: rays go through in chunks of about `points_at_once` samples.
        """
        batch, views = cam_to_world.shape[:2]
        origins, directions, cosine = camera_rays(cam_to_world, intrinsics, height, width)
        origins, directions = origins.reshape(batch, -1, 3), directions.reshape(batch, -1, 3)
        occupied = self._occupancy(weights)
        rays_at_once = max(1, points_at_once(origins.device) // (batch * (samples.coarse + samples.fine)))
        parts = [
            self._render_rays(weights, occupied, o, d, samples)
            for o, d in zip(origins.split(rays_at_once, 1), directions.split(rays_at_once, 1), strict=True)
        ]
        shape = (batch, views, height, width)
        rgb = torch.cat([part[0] for part in parts], dim=1).reshape(*shape, 3)
        alpha = torch.cat([part[1] for part in parts], dim=1).reshape(shape)
        distance = torch.cat([part[2] for part in parts], dim=1).reshape(shape)
        depth = torch.where(alpha > 0.5, distance / alpha.clamp(min=0.5) * cosine, torch.zeros_like(alpha))
        return Rendering(rgb + background * (1 - alpha[..., None]), alpha, depth)

    def _render_rays(
        self,
        weights: FieldWeights,
        occupied: Bool[Tensor, "batch cells cells cells"],
        origins: Float[Tensor, "batch rays 3"],
        directions: Float[Tensor, "batch rays 3"],
        samples: RenderConfig,
    ) -> tuple[Tensor, Tensor, Tensor]:
        t_near, t_far, _ = intersect_box(origins, directions)
        share = (torch.arange(samples.coarse, device=origins.device) + 0.5) / samples.coarse
        t = t_near[..., None] + (t_far - t_near)[..., None] * share
        density = self._density(weights, occupied, origins, directions, t)
        edges = edges_from_samples(t, t_near, t_far)
        if samples.fine:
            found = ray_weights(density, edges[..., 1:] - edges[..., :-1])
            t_fine = importance_samples(edges, found, samples.fine)
            fine_density = self._density(weights, occupied, origins, directions, t_fine)
            t, order = torch.cat([t, t_fine], dim=-1).sort(dim=-1)
            density = torch.cat([density, fine_density], dim=-1).gather(-1, order)
            edges = edges_from_samples(t, t_near, t_far)
        visible = ray_weights(density, edges[..., 1:] - edges[..., :-1]) > VISIBLE / t.shape[-1]
        points = _along(origins, directions, t)
        rgb = _where(
            visible.flatten(1), points.flatten(1, 2), lambda some: self.color(weights, some).rgb, width=3
        ).reshape(points.shape)
        values = composite(density, rgb, t, edges)
        return values.rgb, values.alpha, values.distance

    def _density(
        self, weights: FieldWeights, occupied: Tensor, origins: Tensor, directions: Tensor, t: Tensor
    ) -> Float[Tensor, "batch rays samples"]:
        """Returns densities, evaluated only in occupied cells."""
        points = _along(origins, directions, t).flatten(1, 2)
        cell = ((points + 1) * (0.5 * OCCUPANCY_RESOLUTION)).long().clamp(0, OCCUPANCY_RESOLUTION - 1)
        asset = torch.arange(len(points), device=t.device)[:, None]
        needed = occupied[asset, cell[..., 0], cell[..., 1], cell[..., 2]]
        density = _where(
            needed, points, lambda some: self.geometry(weights, some).density[..., None], width=1
        )
        return density.reshape(t.shape)

    def _occupancy(self, weights: FieldWeights) -> Bool[Tensor, "batch cells cells cells"]:
        """Returns which cells of a grid over the box may hold anything visible.

        A cell counts as empty if at its corners, and in all its neighbours, the density is too low to
        matter (optical depth below 1% over the cell's diagonal).
        """
        num = OCCUPANCY_RESOLUTION + 1
        line = torch.linspace(-1, 1, num, device=weights[0].device)
        grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1).reshape(1, -1, 3)
        batch = weights[0].shape[0]
        density = torch.cat(
            [
                self.geometry(weights, chunk).density
                for chunk in grid.split(max(1, points_at_once(grid.device) // batch), dim=1)
            ],
            dim=1,
        ).reshape(batch, 1, num, num, num)
        cells = nn.functional.max_pool3d(density, kernel_size=4, stride=1, padding=1)
        cell_diagonal = 3**0.5 * 2 / OCCUPANCY_RESOLUTION
        return cells[:, 0] * cell_diagonal > 0.01


def _along(origins: Tensor, directions: Tensor, t: Tensor) -> Float[Tensor, "batch rays samples 3"]:
    return origins[..., None, :] + t[..., None] * directions[..., None, :]


def _where(
    needed: Bool[Tensor, "batch points"],
    points: Float[Tensor, "batch points 3"],
    function: Callable[[Tensor], Tensor],
    *,
    width: int,
) -> Float[Tensor, "batch points width"]:
    """Returns `function` of the needed points, 0 at the others.

    Each asset's needed points are gathered to the front, so that a batch stays one dense product.
    """
    values = points.new_zeros(*points.shape[:2], width)
    most = int(needed.sum(dim=1).max())
    if most:
        # A stable sort keeps neighbours together; rows with fewer needed points are filled up.
        index = needed.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        found = function(points.gather(1, index[..., None].expand(-1, -1, 3)))
        found = found * needed.gather(1, index)[..., None]
        values.scatter_(1, index[..., None].expand(-1, -1, width), found)
    return values


def select(weights: FieldWeights, index: int) -> FieldWeights:
    """Returns asset `index` of a batch of fields, as a batch of one."""
    return [matrix[index : index + 1] for matrix in weights]


def load_decoder(folder: Path, device: torch.device | str = "cpu") -> Decoder:
    """Returns the decoder of a finished encoder run, in eval mode; raises UserError if it isn't one."""
    meta = read_meta(folder, stage="encoder")
    decoder = Decoder(load_config(DecoderConfig, folder / "decoder.yaml"))
    path = folder / "weights.safetensors"
    digest = file_digest(path)
    if digest != meta["weights_digest"]:
        raise UserError(
            f"{path} isn't the file that its run wrote (its digest differs from meta.json's). "
            "Copy it again, or train again."
        )
    prefix = "decoder."
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118  no mapping
        state = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    decoder.load_state_dict(state)
    decoder.digest = digest
    return decoder.to(device).eval()
