"""Fine-tuning through renders of meshes: the SDF head's surface, coloured by the field, against the views.

Volume renders tolerate a surface that is right on the average of a fog. A mesh's silhouette is where the
signed distance is zero, and moves with it: the gradient of a render says which way.
"""

import torch
from jaxtyping import Float
from pydantic import Field as Key
from torch import Tensor

from shapeloom.config import Config
from shapeloom.decoder import Decoder, select
from shapeloom.fields.projection import FieldWeights
from shapeloom.rendering.cameras import Cameras
from shapeloom.rendering.implicit_surface import differentiable_surfaces
from shapeloom.rendering.isosurface import Field
from shapeloom.rendering.raster import antialias, rasterize


class MeshLossConfig(Config):
    """When and how finely meshes are rendered in training."""

    from_step: int | None = Key(None, ge=0, description="first step that renders meshes; none: never")
    every: int = Key(
        12, ge=1, description="one asset in so many is drawn: it costs as much as several others' rays"
    )
    num_views: int = Key(2, ge=1, le=4, description="of the views that rays come from")
    resolution: int = Key(32, ge=8, description="cells a side of the isosurface grid")
    weight: float = Key(1.0, ge=0, description="of this loss in the whole")
    alpha: float = Key(0.5, ge=0, description="weight of silhouettes, beside the colour's 1")


def mesh_loss(
    decoder: Decoder, weights: FieldWeights, batch: dict[str, Tensor], config: MeshLossConfig
) -> Float[Tensor, ""]:
    """Returns the mean loss of drawn assets: colour (mean of L1 and 4 L2) and alpha (L1), unweighted.

    Colours are the lit ones, as the views' are; they are evaluated where pixels see the surface, taken as
    fixed places: at grazing angles a vertex moves them so far that the slope is but noise. An asset without a
    surface shows the background; it has that error and no gradient. The sum over drawn assets is divided
    by how many a batch draws on average, so that the mean over processes is that of one process,
    whichever of them the drawn assets or the empty meshes fall to.
    """
    drawn = batch["mesh_drawn"].nonzero()[:, 0]
    nothing = weights[0].sum() * 0  # every process has a gradient, of zero at least
    if not len(drawn):
        return nothing
    chosen = [matrix[drawn] for matrix in weights]
    rgba = _render(decoder, chosen, {name: value[drawn] for name, value in batch.items()}, config)
    truth, background = batch["mesh_rgba"][drawn], batch["mesh_background"][drawn][:, None, None, None]
    true_alpha = truth[..., 3:]
    true_color = truth[..., :3] * true_alpha + background * (1 - true_alpha)
    error = rgba[..., :3] + background * (1 - rgba[..., 3:]) - true_color
    color = 0.5 * (error.abs().mean() + 4 * error.square().mean())
    alpha = (rgba[..., 3:] - true_alpha).abs().mean()
    share = len(drawn) * config.every / len(batch["mesh_drawn"])
    return share * (color + config.alpha * alpha) + nothing


def _render(
    decoder: Decoder, weights: FieldWeights, batch: dict[str, Tensor], config: MeshLossConfig
) -> Float[Tensor, "batch views height width 4"]:
    """Returns anti-aliased pictures, premultiplied by alpha."""
    height, width = batch["mesh_rgba"].shape[2:4]
    cameras = Cameras(batch["mesh_cam_to_world"], batch["mesh_intrinsics"], height, width)
    fields = [_sdf(decoder, select(weights, i)) for i in range(len(weights[0]))]
    meshes = differentiable_surfaces(fields, resolution=config.resolution, device=weights[0].device)
    fragments = rasterize(meshes, cameras)
    places = fragments.interpolate(meshes.vertices, meshes.faces).detach().flatten(1, 3)
    picture = _colors(decoder, weights, places, fragments.face.flatten(1) >= 0)
    return antialias(picture.reshape(*fragments.face.shape, 4), fragments, meshes, cameras)


def _sdf(decoder: Decoder, weights: FieldWeights) -> Field:
    return lambda points: decoder.geometry(weights, points[None]).sdf[0]


def _colors(
    decoder: Decoder, weights: FieldWeights, places: Tensor, covered: Tensor
) -> Float[Tensor, "batch pixels 4"]:
    """Returns colours and alpha of covered pixels, zeros elsewhere."""
    parts = []
    for i, mask in enumerate(covered):
        rgb = decoder.color(select(weights, i), places[i, mask][None]).rgb[0]
        picture = places.new_zeros(len(mask), 4)
        parts.append(picture.index_put((mask,), torch.nn.functional.pad(rgb, (0, 1), value=1.0)))
    return torch.stack(parts)
