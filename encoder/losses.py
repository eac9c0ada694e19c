"""What the autoencoder is trained on: rays, surface points, signed distances.

Rays are sampled as in NeRF (section 5.2: stratified, then by importance). A dozen samples do, since signed
distances say where surfaces are, and the important samples lie where the field has density that it should
not. They are also the dearest thing to learn from, so that training may leave them for its last part
(`rays_from`).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field as Key
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from shapeloom.box import HIGH, LOW
from shapeloom.config import Config
from shapeloom.decoder import Decoder
from shapeloom.fields.projection import FieldWeights
from shapeloom.rendering.rays import edges_from_samples
from shapeloom.rendering.volume import composite, importance_samples, ray_weights


class LossConfig(Config):
    """Weights of the losses and how many rays and points an asset they take."""

    rays_from: float = Key(
        0.0, ge=0, lt=1, description="fraction of the steps after which rays are learnt from too"
    )
    num_rays: int = Key(128, ge=1, description="rays per asset")
    rays_at_once: int = Key(
        0,
        ge=0,
        description="rays of an asset in one go, computed again in the backward pass; 0: all, once",
    )
    free_samples: int = Key(8, ge=2, description="samples of a ray, stratified along the whole of it")
    surface_samples: int = Key(8, ge=2, description="further samples of a ray, by importance")
    num_surface_points: int = Key(256, ge=1, description="points on the surface per asset")
    num_sdf_points: int = Key(512, ge=1, description="points with signed distances per asset")
    color: float = Key(1.0, ge=0, description="weight of rays' colours")
    squared_share: float = Key(
        0.5, ge=0, le=1, description="fraction of the colour's error that is L2 (times 4); the rest is L1"
    )
    alpha: float = Key(0.5, ge=0, description="weight of rays' silhouettes")
    texture: float = Key(0.5, ge=0, description="weight of colours on the surface")
    sdf: float = Key(2.0, ge=0, description="weight of signed distances")
    normal: float = Key(
        0.3, ge=0, description="weight of the distance's gradient against the surface's normal"
    )
    occupancy: float = Key(1.0, ge=0, description="weight of density against inside and outside")
    eikonal: float = Key(
        0.0,
        ge=0,
        description="weight of the distance's slope of one (Gropp et al. 2020), off the surface",
    )
    occupancy_softness: float = Key(
        0.03, gt=0, description="distance at which a point is nearly surely inside or outside"
    )

    def draws_rays(self, step: int, steps: int) -> bool:
        """Returns whether step `step` of `steps` learns from rays."""
        return step >= self.rays_from * steps


def stratified_samples(
    t_near: Float[Tensor, " *rays"], t_far: Float[Tensor, " *rays"], jitter: Float[Tensor, "*rays samples"]
) -> tuple[Float[Tensor, "*rays samples"], Float[Tensor, "*rays edges"]]:
    """Returns a sample in each of equal intervals between t_near and t_far, and edges between samples.

    jitter: where in its interval each is, in [0, 1).
    """
    num = jitter.shape[-1]
    share = (torch.arange(num, device=jitter.device) + jitter) / num
    t = torch.lerp(t_near[..., None], t_far[..., None], share)
    return t, edges_from_samples(t, t_near, t_far)


@torch.no_grad()
def _with_important(
    decoder: Decoder, weights: FieldWeights, batch: dict[str, Tensor], num_samples: int
) -> tuple[Float[Tensor, "batch rays samples"], Float[Tensor, "batch rays edges"]]:
    """Returns the batch's samples and as many more where they found density, with the edges between."""
    t, edges = batch["ray_t"], batch["ray_edges"]
    density = decoder.geometry(weights, _ray_points(batch, t)).density.reshape(t.shape)
    found = ray_weights(density, edges[..., 1:] - edges[..., :-1])
    t = torch.cat([t, importance_samples(edges, found, num_samples)], dim=-1).sort(dim=-1).values
    return t, edges_from_samples(t, edges[..., 0], edges[..., -1])


def _see(
    decoder: Decoder, weights: FieldWeights, batch: dict[str, Tensor], config: LossConfig
) -> Float[Tensor, "batch rays 4"]:
    """Returns premultiplied colour and alpha of the batch's rays."""
    t, edges = _with_important(decoder, weights, batch, config.surface_samples)
    directions = batch["ray_directions"][:, :, None].expand(*t.shape, 3).flatten(1, 2)
    geometry, paint = decoder.query(weights, _ray_points(batch, t), directions)
    seen = composite(geometry.density.reshape(t.shape), paint.rgb.reshape(*t.shape, 3), t, edges)
    return torch.cat([seen.rgb, seen.alpha[..., None]], dim=-1)


def _see_in_chunks(
    decoder: Decoder, weights: FieldWeights, batch: dict[str, Tensor], config: LossConfig
) -> Float[Tensor, "batch rays 4"]:
    """Returns the same, holding no more than `rays_at_once` rays' activations at any time."""
    at_once = config.rays_at_once
    num_rays = batch["ray_t"].shape[1]
    if not at_once or at_once >= num_rays:
        return _see(decoder, weights, batch, config)
    names = ("ray_origins", "ray_directions", "ray_t", "ray_edges")
    parts = []
    for start in range(0, num_rays, at_once):
        chunk = {name: batch[name][:, start : start + at_once] for name in names}
        parts.append(
            checkpoint(_see, decoder, weights, chunk, config, use_reentrant=False, preserve_rng_state=False)
        )
    return torch.cat(parts, dim=1)


def _ray_points(batch: dict[str, Tensor], t: Float[Tensor, "batch rays samples"]) -> Tensor:
    points = batch["ray_origins"][:, :, None] + t[..., None] * batch["ray_directions"][:, :, None]
    return points.flatten(1, 2).clamp(LOW, HIGH)


def ray_losses(
    decoder: Decoder, weights: FieldWeights, batch: dict[str, Tensor], config: LossConfig
) -> dict[str, Float[Tensor, ""]]:
    """Returns the colour loss over a random background (L1 and L2) and the alpha loss (L1)."""
    seen = _see_in_chunks(decoder, weights, batch, config)
    rgb, alpha = seen[..., :3], seen[..., 3]
    truth, background = batch["ray_rgba"], batch["ray_background"]
    true_alpha = truth[..., 3]
    color = rgb + background * (1 - alpha[..., None])
    true_color = truth[..., :3] * true_alpha[..., None] + background * (1 - true_alpha[..., None])
    error = color - true_color
    return {
        "color": torch.lerp(error.abs().mean(), 4 * (error**2).mean(), config.squared_share),
        "alpha": (alpha - true_alpha).abs().mean(),
    }


def point_losses(
    decoder: Decoder, weights: FieldWeights, batch: dict[str, Tensor], config: LossConfig
) -> dict[str, Float[Tensor, ""]]:
    """Returns texture colour's L1 at surface points, and losses of signed distance.

    `sdf` is its L1, which counts fully at the surface and less far from it. It alone leaves a field at the
    mean of all shapes for long, where a small distance of either sign costs little. `occupancy` is the cross
    entropy of the sign, softened near the surface, which is steep where that mean is wrong. `normal` is the
    length of the difference between the distance's gradient and the normal at surface points: without it a
    field that is unsure where a surface is has a slope of half there, and edges melt.

    Inside, the truth is the distance to the nearest face, which may be one that another part hides: the
    distance to the outside is at least that, so there only too shallow a value is an error. Outside, it lies
    between `sdf` and `sdf_at_most`, which differ where the asset was stretched.
    """
    surface, points = batch["surface_points"], batch["sdf_points"]
    texture = decoder.color(weights, surface).texture
    at_surface, gradient = decoder.sdf_and_gradient(weights, surface)
    sdf = decoder.geometry(weights, points).sdf
    parts = {
        "texture": (texture - batch["surface_rgb"]).abs().mean(),
        **distance_losses(at_surface, sdf, batch, softness=config.occupancy_softness),
        "normal": (gradient - batch["surface_normals"]).norm(dim=-1).mean(),
    }
    if config.eikonal:
        parts["eikonal"] = (decoder.sdf_gradient(weights, points).norm(dim=-1) - 1).square().mean()
    return parts


def distance_losses(
    at_surface: Float[Tensor, "batch surface"], sdf: Float[Tensor, "batch points"], batch: dict[str, Tensor],
    *, softness: float,
) -> dict[str, Float[Tensor, ""]]:  # fmt: skip
    """Returns `sdf` and `occupancy` of `point_losses`, of distances at surface points and `sdf_points`."""
    truth = batch["sdf"]
    sdf = torch.where(truth < 0, torch.maximum(sdf, truth), sdf)
    importance = 0.1 / (0.1 + truth.abs())
    error = F.relu(truth - sdf) + F.relu(sdf - torch.where(truth < 0, truth, batch["sdf_at_most"]))
    inside = torch.sigmoid(-truth / softness)
    return {
        "sdf": torch.cat([at_surface.abs(), importance * error], dim=1).mean(),
        "occupancy": F.binary_cross_entropy_with_logits(-sdf / softness, inside),
    }


def standard_divergence(
    mean: Float[Tensor, " *batch"], log_std: Float[Tensor, " *batch"]
) -> Float[Tensor, ""]:
    """Returns the mean Kullback-Leibler divergence of normal distributions from N(0, 1), in nats a number."""
    return (0.5 * (mean**2 + (2 * log_std).exp() - 1) - log_std).mean()


def total_loss(parts: dict[str, Tensor], config: LossConfig) -> Tensor:
    """Returns the weighted sum of the losses."""
    return torch.stack([getattr(config, name) * value for name, value in parts.items()]).sum()
