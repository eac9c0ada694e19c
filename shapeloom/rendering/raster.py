"""Meshes to pixels, differentiable in vertices and attributes, silhouettes included.

1. Visibility, not differentiable: which face each pixel's centre sees (see `visibility`).
2. Interpolation: barycentric weights of the centre's ray in that face, as a function of its three corners.
3. Anti-aliasing (Laine et al. 2020, "Modular Primitives for High-Performance Differentiable Rendering", 3.6):
   where a silhouette passes between two neighbouring pixels' centres, they blend by where it passes.
   Coverage, which visibility makes a step, becomes a continuous function of the vertices.

Departing from that paper, silhouettes are found by going through the mesh's edges and not through the faces
that pixels see: a silhouette's face is often too narrow for any centre to see it.

Cameras are OpenCV's (see `cameras`), as many for each asset. Lengths on a picture are in pixels.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shapeloom.rendering.cameras import NEAR, Cameras
from shapeloom.rendering.implicit_surface import Meshes
from shapeloom.rendering.rays import camera_rays
from shapeloom.rendering.visibility import visible_faces


@dataclass(frozen=True)
class Fragments:
    """What pixels' centres see: a face (-1: none) and the place in it; depth along the camera's z, or inf."""

    face: Int[Tensor, "batch views height width"]
    barycentric: Float[Tensor, "batch views height width 3"]
    depth: Float[Tensor, "batch views height width"]

    def interpolate(
        self, attributes: Float[Tensor, "vertices numbers"], faces: Int[Tensor, "faces 3"]
    ) -> Float[Tensor, "batch views height width numbers"]:
        """Returns vertex attributes at pixels, 0 where there is no face; differentiable in both."""
        if not len(faces):
            return attributes.new_zeros(*self.face.shape, attributes.shape[1])
        corners = attributes[faces[self.face.clamp(min=0)]]
        return (corners * self.barycentric[..., None]).sum(dim=-2)


def rasterize(meshes: Meshes, cameras: Cameras) -> Fragments:
    """Returns what each pixel's centre sees, barycentric weights differentiable in the vertices."""
    face = visible_faces(meshes, cameras)
    origins, directions, cosine = camera_rays(
        cameras.cam_to_world, cameras.intrinsics, cameras.height, cameras.width
    )
    hit = face >= 0
    weights = torch.zeros_like(directions)
    depth = torch.full_like(cosine, torch.inf)
    if bool(hit.any()):
        corners = meshes.vertices[meshes.faces[face[hit]]]
        weights = weights.index_put((hit,), _barycentric(corners, origins[hit], directions[hit]))
        points = (weights[hit][..., None] * corners).sum(dim=-2)
        distance = ((points - origins[hit]) * directions[hit]).sum(dim=-1)
        depth = depth.index_put((hit,), distance * cosine[hit])
    return Fragments(face, weights, depth)


def _barycentric(
    corners: Float[Tensor, "rays 3 3"], origins: Float[Tensor, "rays 3"], directions: Float[Tensor, "rays 3"]
) -> Float[Tensor, "rays 3"]:
    """Returns the weights of the corners where rays meet the faces' planes (Moeller and Trumbore 1997)."""
    first = corners[:, 0]
    edge1, edge2, start = corners[:, 1] - first, corners[:, 2] - first, origins - first
    across = torch.linalg.cross(directions, edge2)
    volume = (edge1 * across).sum(dim=-1)
    # A face seen exactly edge-on, which float32 can't hit but by rounding: any place in it will do.
    flat = volume.abs() < 1e-20
    volume = torch.where(flat, torch.ones_like(volume), volume)
    u = torch.where(flat, torch.zeros_like(volume), (start * across).sum(dim=-1) / volume)
    turned = torch.linalg.cross(start, edge1)
    v = torch.where(flat, torch.zeros_like(volume), (directions * turned).sum(dim=-1) / volume)
    return torch.stack([1 - u - v, u, v], dim=-1)


# ---------------------------------------------------------------- anti-aliasing


@dataclass(frozen=True)
class _Crossing:
    """Where silhouettes pass between two centres: flat pixel numbers of the covered and the bare one, and the
    share of the way between them that is covered."""

    inside: Int[Tensor, " crossings"]
    outside: Int[Tensor, " crossings"]
    share: Float[Tensor, " crossings"]
    depth: Float[Tensor, " crossings"]


def antialias(
    picture: Float[Tensor, "batch views height width numbers"],
    fragments: Fragments,
    meshes: Meshes,
    cameras: Cameras,
) -> Float[Tensor, "batch views height width numbers"]:
    """Returns `picture` with silhouettes blended; differentiable in it and in the vertices.

    Premultiply colours by alpha before, and give alpha as one of the numbers.
    """
    ends, inner = _silhouettes(meshes, cameras)
    pixels = picture.flatten(0, 3)
    depth = fragments.depth.detach().flatten()
    blended = pixels
    for axis in (0, 1):
        found = _unoccluded(_crossings(ends, inner, axis, cameras), depth)
        difference = pixels[found.inside] - pixels[found.outside]
        # Up to the middle between the centres a pixel is its own; what is beyond belongs to the other.
        gain = (found.share - 0.5).clamp(min=0)[:, None] * difference
        loss = (0.5 - found.share).clamp(min=0)[:, None] * difference
        blended = blended.index_add(0, found.outside, gain).index_add(0, found.inside, -loss)
    return blended.reshape(picture.shape)


@dataclass(frozen=True)
class _Ends:
    """Silhouette edges on pictures: x, y and depth of both ends, and the number of the picture."""

    place: Float[Tensor, "edges 2 3"]
    picture: Int[Tensor, " edges"]


def _silhouettes(meshes: Meshes, cameras: Cameras) -> tuple[_Ends, Float[Tensor, "edges 2"]]:
    """Returns all silhouette edges and a point of a face beside each, on the picture.

    An edge is one if all faces that share it lie on the same side of it on the picture: two that fold back
    there, or the only one of a border. So it doesn't matter which way faces or mirrored cameras turn.
    """
    places, pictures, inner = [], [], []
    views = cameras.cam_to_world.shape[1]
    for asset, vertices, faces in meshes.nonempty():
        place = _places(vertices, cameras, asset)
        # Three edges a face, the corner opposite to each beside it.
        corners = faces[:, [[0, 1, 2], [1, 2, 0], [2, 0, 1]]].reshape(-1, 3)
        edge, group = corners[:, :2].sort(dim=1).values.unique(dim=0, return_inverse=True)
        opposite = torch.zeros(len(edge), dtype=torch.long, device=edge.device)
        opposite[group] = corners[:, 2]  # any face's: on silhouettes all are on one side
        chosen = _all_on_one_side(place.detach(), edge, group, corners[:, 2])
        view, index = chosen.nonzero(as_tuple=True)
        places.append(place[view[:, None], edge[index]])
        inner.append(place.detach()[view, opposite[index], :2])
        pictures.append(view + asset * views)
    if not places:
        empty = meshes.vertices.new_zeros(0, 2, 3)
        return _Ends(empty, meshes.faces.new_zeros(0)), empty[:, :, 0]
    return _Ends(torch.cat(places), torch.cat(pictures)), torch.cat(inner)


def _places(
    points: Float[Tensor, "points 3"], cameras: Cameras, asset: int
) -> Float[Tensor, "views points 3"]:
    """Returns x and y in pixels and depth of points in an asset's views; 0 nearer than NEAR and behind it."""
    local = cameras.local(points, asset)
    before = local[..., 2:] > NEAR
    depth = torch.where(before, local[..., 2:], torch.ones_like(local[..., 2:]))
    pixels = cameras.pixels(local[..., :2] / depth, asset)
    return torch.cat([pixels, depth], dim=-1) * before


def _all_on_one_side(
    place: Float[Tensor, "views points 3"],
    edge: Int[Tensor, "edges 2"],
    group: Int[Tensor, " corners"],
    corner: Int[Tensor, " corners"],
) -> Bool[Tensor, "views edges"]:
    """Returns which edges have all their faces' third corners on one side, and lie before the camera."""
    start, end = place[:, edge[:, 0]], place[:, edge[:, 1]]
    along = (end - start)[:, group]
    to_corner = place[:, corner] - start[:, group]
    side = (along[..., 0] * to_corner[..., 1] - along[..., 1] * to_corner[..., 0]).sign()
    sides = place.new_zeros(len(place), len(edge)).index_add(1, group, side)
    num = place.new_zeros(len(edge)).index_add(0, group, torch.ones_like(group, dtype=place.dtype))
    # A face seen edge-on has no side and no say, but there must be one that has.
    voting = place.new_zeros(len(place), len(edge)).index_add(1, group, side.abs())
    before = (start[..., 2] > 0) & (end[..., 2] > 0)
    return (sides.abs() == voting) & (voting > 0) & (num > 0) & before


def _crossings(ends: _Ends, inner: Float[Tensor, "edges 2"], axis: int, cameras: Cameras) -> _Crossing:
    """Returns where edges pass between centres that are neighbours along `axis` (0: x, 1: y).

    Only edges that run more across that axis than along it: the others pass between neighbours along the
    other axis, and to count both would count their coverage twice.
    """
    size = (cameras.width, cameras.height)
    other = 1 - axis
    extent = (ends.place[:, 1] - ends.place[:, 0]).detach()
    steep = extent[:, other].abs() > extent[:, axis].abs()
    if axis == 1:
        steep |= extent[:, 0].abs() == extent[:, 1].abs()
    place, picture, inner = ends.place[steep], ends.picture[steep], inner[steep]
    # The lines of centres, across the edge's direction, that the edge passes: low <= line + 0.5 < high.
    low, high = place.detach()[:, :, other].aminmax(dim=1)
    line0 = (low - 0.5).ceil().clamp(0, size[other]).long()
    count = (high - 0.5).ceil().clamp(0, size[other]).long() - line0
    index = torch.arange(len(count), device=count.device).repeat_interleave(count)
    line = line0[index] + torch.arange(len(index), device=count.device) - (count.cumsum(0) - count)[index]
    start, end = place[index].unbind(1)
    share = (line + 0.5 - start[:, other]) / (end[:, other] - start[:, other])
    where = start[:, axis] + share * (end[:, axis] - start[:, axis]) - 0.5
    inverse = (1 - share) / start[:, 2] + share / end[:, 2]  # 1 / depth is linear on a picture
    lower = where.detach().floor()
    # The side of the edge that its face is on, along the axis: at the height of the face's third corner.
    there = (inner[index, other] - start[:, other]) / (end[:, other] - start[:, other])
    upward = inner[index, axis] > start[:, axis] + there * (end[:, axis] - start[:, axis])
    kept = (lower >= 0) & (lower + 1 < size[axis])
    stride = (1, cameras.width)
    first = picture[index] * size[0] * size[1] + line * stride[other]
    first = (first + lower.long() * stride[axis])[kept]
    second, upward = first + stride[axis], upward[kept]
    part = (where - lower)[kept]
    return _Crossing(
        inside=torch.where(upward, second, first),
        outside=torch.where(upward, first, second),
        share=torch.where(upward, 1 - part, part),
        depth=1 / inverse.detach()[kept],
    )


def _unoccluded(found: _Crossing, depth: Float[Tensor, " pixels"]) -> _Crossing:
    """Returns the crossings that show: nearer than what the bare pixel sees, which is farther than what the
    covered one sees; of several between the same two pixels the one that covers most."""
    near, far = depth[found.inside], depth[found.outside]
    shows = ((near < far) & (found.depth < far)).nonzero()[:, 0]
    order = shows[found.share.detach()[shows].argsort(descending=True, stable=True)]
    # Both ways between two pixels are pairs of their own.
    pair = found.inside[order] * 2 + (found.outside[order] > found.inside[order])
    pair, rank = pair.sort(stable=True)
    first = torch.ones_like(pair, dtype=torch.bool)
    first[1:] = pair[1:] != pair[:-1]
    kept = order[rank[first]]
    return _Crossing(found.inside[kept], found.outside[kept], found.share[kept], found.depth[kept])
