"""What the autoencoder is trained on: rays, surface points, signed distances.

Rays are sampled as in NeRF (section 5.2: stratified, then by importance). A dozen samples do, since signed
distances say where surfaces are, and the important samples lie where the field has density that it should
not. With `guided`, samples lie around the surface that is known instead, and a few times in front of it.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field as Key
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from shapeloom.config import Config
from shapeloom.decoder import Decoder
from shapeloom.fields.projection import FieldWeights
from shapeloom.rendering.rays import edges_from_samples
from shapeloom.rendering.volume import composite, importance_samples, ray_weights


class LossConfig(Config):
    """Weights of the losses and how many rays and points an asset they take."""

    num_rays: int = Key(128, ge=1)
    rays_at_once: int = Key(0, ge=0)  # an asset's; rays are computed again in the backward pass; 0: all, once
    guided: bool = False  # samples by the known depth
    free_samples: int = Key(8, ge=2)  # along the whole ray; guided: in front of the surface
    surface_samples: int = Key(8, ge=2)  # by importance; guided: within surface_window of the surface
    surface_window: float = Key(0.08, gt=0)  # half-width, in units of the box [-1, 1]^3
    num_surface_points: int = Key(256, ge=1)
    num_sdf_points: int = Key(512, ge=1)
    color: float = Key(1.0, ge=0)
    squared_share: float = Key(0.5, ge=0, le=1)  # of the colour's error that is L2 (times 4), not L1
    alpha: float = Key(0.5, ge=0)
    texture: float = Key(0.5, ge=0)
    sdf: float = Key(2.0, ge=0)
    occupancy: float = Key(1.0, ge=0)
    eikonal: float = Key(
        0.0, ge=0
    )  # distances' slope of one (Gropp et al. 2020), at the points off the surface
    occupancy_softness: float = Key(0.03, gt=0)  # distance at which a point is nearly surely in or out


def guided_samples(
    t_near: Float[Tensor, " *rays"],
    t_far: Float[Tensor, " *rays"],
    t_hit: Float[Tensor, " *rays"],
    t_beside: Float[Tensor, " *rays"],
    jitter: Float[Tensor, "*rays numbers"],
    config: LossConfig,
) -> tuple[Float[Tensor, "*rays samples"], Float[Tensor, "*rays edges"]]:
    """Returns sorted sample positions and interval edges. t_hit is 0 for rays that miss.

    A ray that hits is followed to just behind its surface: whatever alpha it has must come from there. One
    that misses is sampled as densely where it passes by a surface, at t_beside (0: unknown): samples a tenth
    of the ray apart would find little of a halo there, and surfaces would grow. Plain sampling gets its
    stratified samples alone.
    """
    hit = (t_hit > 0) & config.guided
    known = hit | (t_beside > 0)
    # The ray may have left the box before the depth of what it passes by.
    t_surface = torch.where(hit, t_hit, t_beside).clamp(t_near, t_far)
    window = config.surface_window
    end = torch.where(hit, torch.minimum(t_hit + window, t_far), t_far)
    free, surface = config.free_samples, config.surface_samples
    index = torch.arange(free, device=jitter.device)
    t_free = t_near[..., None] + (end - t_near)[..., None] * (index + jitter[..., :free]) / free
    if not config.guided:
        return t_free, edges_from_samples(t_free, t_near, t_far)
    index = torch.arange(surface, device=jitter.device)
    share = (index + jitter[..., free:]) / surface
    start = torch.where(known, torch.maximum(t_surface - window, t_near), t_near)
    stop = torch.where(known, torch.minimum(t_surface + window, t_far), t_far)
    t_dense = start[..., None] + (stop - start)[..., None] * share
    t = torch.cat([t_free, t_dense], dim=-1).sort(dim=-1).values
    return t, edges_from_samples(t, t_near, end)


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
    t, edges = batch["ray_t"], batch["ray_edges"]
    if not config.guided:
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
    return points.flatten(1, 2).clamp(-1, 1)


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
    """Returns texture colour's L1 at surface points, and two losses of signed distance.

    `sdf` is its L1, which counts fully at the surface and less far from it. It alone leaves a field at the
    mean of all shapes for long, where a small distance of either sign costs little. `occupancy` is the cross
    entropy of the sign, softened near the surface, which is steep where that mean is wrong.

    Inside, the truth is the distance to the nearest face, which may be one that another part hides: the
    distance to the outside is at least that, so there only too shallow a value is an error.
    """
    surface, points, truth = batch["surface_points"], batch["sdf_points"], batch["sdf"]
    num = surface.shape[1]
    texture = decoder.color(weights, surface).texture
    sdf = decoder.geometry(weights, torch.cat([surface, points], dim=1)).sdf
    at_surface, sdf = sdf[:, :num], sdf[:, num:]
    sdf = torch.where(truth < 0, torch.maximum(sdf, truth), sdf)
    importance = 0.1 / (0.1 + truth.abs())
    error = torch.cat([at_surface.abs(), importance * (sdf - truth).abs()], dim=1)
    softness = config.occupancy_softness
    inside = torch.sigmoid(-truth / softness)
    parts = {
        "texture": (texture - batch["surface_rgb"]).abs().mean(),
        "sdf": error.mean(),
        "occupancy": F.binary_cross_entropy_with_logits(-sdf / softness, inside),
    }
    if config.eikonal:
        parts["eikonal"] = (decoder.sdf_gradient(weights, points).norm(dim=-1) - 1).square().mean()
    return parts


def standard_divergence(
    mean: Float[Tensor, " *batch"], log_std: Float[Tensor, " *batch"]
) -> Float[Tensor, ""]:
    """Returns the mean Kullback-Leibler divergence of normal distributions from N(0, 1), in nats a number."""
    return (0.5 * (mean**2 + (2 * log_std).exp() - 1) - log_std).mean()


def total_loss(parts: dict[str, Tensor], config: LossConfig) -> Tensor:
    """Returns the weighted sum of the losses."""
    return torch.stack([getattr(config, name) * value for name, value in parts.items()]).sum()
