"""What the autoencoder is trained on: rays whose depth is known, surface points, signed distances.

Rays that hit are sampled a few times in front of the surface (to carve free space) and densely around it;
rays that miss are sampled evenly. So a dozen samples do where plain stratified sampling needs many.
"""

import torch
from jaxtyping import Float
from pydantic import Field as Key
from torch import Tensor

from shapeloom.config import Config
from shapeloom.decoder import Decoder
from shapeloom.fields.projection import FieldWeights
from shapeloom.rendering.rays import edges_from_samples
from shapeloom.rendering.volume import composite


class LossConfig(Config):
    """Weights of the losses and how many rays and points an asset they take."""

    num_rays: int = Key(128, ge=1)
    free_samples: int = Key(8, ge=2)  # along the whole ray, in front of the surface
    surface_samples: int = Key(8, ge=2)  # within surface_window of it
    surface_window: float = Key(0.08, gt=0)  # half-width, in units of the box [-1, 1]^3
    num_surface_points: int = Key(256, ge=1)
    num_sdf_points: int = Key(512, ge=1)
    color: float = Key(1.0, ge=0)
    alpha: float = Key(0.5, ge=0)
    texture: float = Key(0.5, ge=0)
    sdf: float = Key(1.0, ge=0)


def guided_samples(
    t_near: Float[Tensor, "*rays"],
    t_far: Float[Tensor, "*rays"],
    t_hit: Float[Tensor, "*rays"],
    jitter: Float[Tensor, "*rays samples"],
    config: LossConfig,
) -> tuple[Float[Tensor, "*rays samples"], Float[Tensor, "*rays edges"]]:
    """Returns sorted sample positions and interval edges. t_hit is 0 for rays that miss.

    A ray that hits is followed to just behind its surface: whatever alpha it has must come from there.
    """
    hit = t_hit > 0
    window = config.surface_window
    end = torch.where(hit, torch.minimum(t_hit + window, t_far), t_far)
    free, surface = config.free_samples, config.surface_samples
    index = torch.arange(free, device=jitter.device)
    t_free = t_near[..., None] + (end - t_near)[..., None] * (index + jitter[..., :free]) / free
    index = torch.arange(surface, device=jitter.device)
    share = (index + jitter[..., free:]) / surface
    start = torch.where(hit, torch.maximum(t_hit - window, t_near), t_near)
    t_surface = start[..., None] + (end - start)[..., None] * share
    t = torch.cat([t_free, t_surface], dim=-1).sort(dim=-1).values
    return t, edges_from_samples(t, t_near, end)


def ray_losses(
    decoder: Decoder, weights: FieldWeights, batch: dict[str, Tensor]
) -> dict[str, Float[Tensor, ""]]:
    """Returns the colour loss over a random background (mean of L1 and L2) and the alpha loss (L1)."""
    t, edges = batch["ray_t"], batch["ray_edges"]
    num_assets, rays, samples = t.shape
    points = batch["ray_origins"][:, :, None] + t[..., None] * batch["ray_directions"][:, :, None]
    values = decoder.query(weights, points.reshape(num_assets, -1, 3).clamp(-1, 1))
    seen = composite(
        values.density.reshape(num_assets, rays, samples),
        values.rgb.reshape(num_assets, rays, samples, 3),
        t,
        edges,
    )
    truth, background = batch["ray_rgba"], batch["ray_background"]
    true_alpha = truth[..., 3]
    color = seen.rgb + background * (1 - seen.alpha[..., None])
    true_color = truth[..., :3] * true_alpha[..., None] + background * (1 - true_alpha[..., None])
    error = color - true_color
    return {
        "color": 0.5 * (error.abs().mean() + (error**2).mean() * 4),
        "alpha": (seen.alpha - true_alpha).abs().mean(),
    }


def point_losses(
    decoder: Decoder, weights: FieldWeights, batch: dict[str, Tensor]
) -> dict[str, Float[Tensor, ""]]:
    """Returns texture colour's L1 at surface points and the signed distance's weighted L1.

    Errors of distance count fully at the surface and less far from it, where only the sign matters. Inside,
    the truth is the distance to the nearest face, which may be one that another part hides: the distance to
    the outside is at least that, so there only too shallow a value is an error.
    """
    surface, sdf_points = batch["surface_points"], batch["sdf_points"]
    values = decoder.query(weights, torch.cat([surface, sdf_points], dim=1))
    num = surface.shape[1]
    texture_error = (values.texture[:, :num] - batch["surface_rgb"]).abs().mean()
    truth = torch.cat([torch.zeros_like(values.sdf[:, :num]), batch["sdf"]], dim=1)
    importance = 0.1 / (0.1 + truth.abs())
    error = values.sdf - truth
    error = torch.where(truth < 0, error.clamp(min=0), error.abs())
    return {"texture": texture_error, "sdf": (importance * error).mean()}


def total_loss(parts: dict[str, Tensor], config: LossConfig) -> Tensor:
    """Returns the weighted sum of the losses."""
    weights = {"color": config.color, "alpha": config.alpha, "texture": config.texture, "sdf": config.sdf}
    return torch.stack([weights[name] * value for name, value in parts.items()]).sum()
