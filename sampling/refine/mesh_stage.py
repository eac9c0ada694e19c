"""The second stage, on a mesh: its vertices and its texture, through the differentiable rasteriser (Magic3D).

What a field or a latent has no place for goes into texels. The mesh's faces and its atlas stay. A picture's
silhouette pulls at a few vertices alone, so what Adam moves are not vertices v but u = (I + s L) v with the
mesh's Laplacian L, and neighbours follow (Nicolet et al. 2021, "Large Steps in Inverse Rendering of
Geometry", eq. 10); the angles of neighbouring faces are held too (`normal_weight`, Magic3D's). Colours are
the texture's: the light in what the 2-D model expects is painted in.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import trimesh
from jaxtyping import Bool, Float, UInt8
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import splu
from torch import Tensor

from sampling.export import TexturedMesh
from sampling.refine.config import RefineConfig
from sampling.refine.distiller import Distiller
from sampling.refine.painted import region_of
from sampling.refine.rendering import Views, random_views
from sampling.refine.state import make_optimiser, pack, unpack
from sampling.shape import FOV
from sampling.texture import texel_points
from shapeloom.config import UserError
from shapeloom.fields.region import Region, share_of
from shapeloom.noise import torch_generator
from shapeloom.rendering.cameras import Cameras, intrinsics
from shapeloom.rendering.implicit_surface import Meshes
from shapeloom.rendering.raster import antialias, rasterize

SMOOTHNESS = 19.0
"""s of the paper's own experiments."""


class MeshRefiner:
    """A textured mesh on its way to what a 2-D model expects of a prompt."""

    def __init__(self, start: TexturedMesh, distiller: Distiller, config: RefineConfig) -> None:
        """Raises UserError for a mesh without a texture."""
        if start.atlas is None or start.texture is None:
            raise UserError("The mesh stage needs a surface with a texture: set mesh.texture_size above 0.")
        self.start, self.distiller, self.config = start, distiller, config
        atlas = start.atlas
        self._faces = torch.from_numpy(atlas.origin[atlas.faces])
        self._uv, self._split = torch.from_numpy(atlas.uv), torch.from_numpy(atlas.faces)
        mesh = trimesh.Trimesh(start.mesh.vertices, self._faces.numpy(), process=False)
        self._neighbours = torch.from_numpy(np.array(mesh.face_adjacency))
        self._start = torch.from_numpy(start.mesh.vertices.astype(np.float32).copy())
        self.moves = config.layers != "color"
        if self.moves:
            self._smooth = Smoothing(start.mesh.vertices, self._faces.numpy())
            self._u = self._smooth.to_u(self._start).requires_grad_()
        self.texture = torch.from_numpy(start.texture.astype(np.float32) / 255)
        self._first_texture = self.texture.clone()
        self._held = None if (region := region_of(config)) is None else Held.of(region, start)
        groups = []
        if self.moves:
            groups.append(([self._u], config.mesh_stage.vertex_rate))
        if config.layers != "geometry":
            groups.append(([self.texture.requires_grad_()], config.mesh_stage.texel_rate))
        self.leaves = [leaf for leaves, _ in groups for leaf in leaves]
        self.optimiser = make_optimiser(groups)

    def vertices(self) -> Float[Tensor, "vertices 3"]:
        """Where vertices are now, with a graph to what moves them; the start's bits where nothing does."""
        if not self.moves:
            return self._start
        moved = self._smooth.to_v(self._u)
        return moved if self._held is None else _mixed(self._start, moved, *self._held.vertices)

    def texels(self) -> Float[Tensor, "size size 3"]:
        """The texture now, sRGB in [0, 1], with a graph likewise."""
        if self._held is None:
            return self.texture
        return _mixed(self._first_texture, self.texture, *self._held.texels)

    def step(self, number: int) -> dict[str, float]:
        """Moves the mesh once; returns what metrics.jsonl says of it."""
        config, distiller = self.config, self.distiller
        generator = torch_generator("refine mesh", config.seed, number)
        views = random_views(config.cameras, 1, config.views, size=distiller.size, generator=generator)
        facts: dict[str, float] = {}
        vertices = self.vertices()
        pictures = self.render(vertices, cameras_of(views))
        flat = pictures.detach().reshape(1, -1, 4)
        # As the coarse stage's end: less noise, since the whole is there already.
        progress = 0.5 + 0.5 * number / max(1, config.mesh_stage.iterations - 1)
        slope = distiller.slope(flat, views, progress, generator, facts)
        bend = self.bend(vertices)
        facts["bend"] = float(bend.detach())
        self.optimiser.zero_grad()
        roots, slopes = [pictures], [slope.reshape(pictures.shape)]
        if bend.requires_grad:
            roots.append(config.mesh_stage.normal_weight * bend)
            slopes.append(torch.ones_like(bend))
        if pictures.requires_grad:
            torch.autograd.backward(roots, slopes)
        self.optimiser.step()
        with torch.no_grad():
            self.texture.clamp_(0, 1)
        return facts

    def render(
        self, vertices: Float[Tensor, "vertices 3"], cameras: Cameras
    ) -> Float[Tensor, "views height width 4"]:
        """Returns premultiplied colours and alpha, differentiable in vertices and texture."""
        meshes = Meshes(vertices, self._faces, [len(self._faces)])
        fragments = rasterize(meshes, cameras)
        uv = fragments.interpolate(self._uv, self._split)
        place = torch.stack([2 * uv[0, ..., 0] - 1, 1 - 2 * uv[0, ..., 1]], dim=-1)
        texels = self.texels().permute(2, 0, 1).expand(len(place), -1, -1, -1)
        color = torch.nn.functional.grid_sample(texels, place, padding_mode="border", align_corners=False)
        covered = (fragments.face[0] >= 0).float()[..., None]
        picture = torch.cat([color.permute(0, 2, 3, 1) * covered, covered], dim=-1)
        return antialias(picture[None], fragments, meshes, cameras)[0]

    def bend(self, vertices: Float[Tensor, "vertices 3"]) -> Float[Tensor, ""]:
        """Returns the mean of 1 - cos of the angles between neighbouring faces' normals."""
        corners = vertices[self._faces]
        normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        # A face without an area has no normal and, with the floor, no say.
        normals = normals / normals.norm(dim=1, keepdim=True).clamp_min(1e-12)
        first, last = normals[self._neighbours].unbind(1)
        return (1 - (first * last).sum(dim=1)).mean()

    def result(self) -> TexturedMesh:
        """The mesh as it is now; normals anew where vertices could move."""
        before = self.start.mesh
        vertices = self.vertices().detach().numpy().copy()
        normals = before.normals
        if self.moves:
            moved = trimesh.Trimesh(vertices, self._faces.numpy(), process=False)
            normals = np.array(moved.vertex_normals, np.float32)
            normals[np.linalg.norm(normals, axis=1) < 0.5] = (0, 0, 1)
            if self._held is not None:
                outside = self._held.vertices[1].numpy()
                normals[outside] = before.normals[outside]
        texture = (self.texels().detach() * 255).round().to(torch.uint8).numpy()
        mesh = replace(before, vertices=vertices, normals=normals)
        return TexturedMesh(
            mesh, self.start.atlas, texture if self.texture.requires_grad else self.start.texture
        )

    @torch.no_grad()
    def pictures(self, pose: Float[Tensor, "views 4 4"], size: int) -> list[UInt8[np.ndarray, "size size 3"]]:
        """Returns pictures on white of the mesh as it is now, unlit."""
        matrix = intrinsics(FOV, size, size).expand(1, len(pose), 3, 3)
        seen = self.render(self.vertices(), Cameras(pose[None], matrix, size, size))
        shown = seen[..., :3] + 1 - seen[..., 3:]
        return list((shown.clamp(0, 1) * 255).round().to(torch.uint8).numpy())

    def state(self) -> dict[str, Tensor]:
        """All that changes from step to step."""
        return pack(self.leaves, self.optimiser, self.distiller.own)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Goes on from what `state` returned."""
        unpack(tensors, self.leaves, self.optimiser, self.distiller.own)


@dataclass(frozen=True)
class Held:
    """How much vertices and texels may change in a region, each with which of them lie outside of it."""

    vertices: tuple[Float[Tensor, "vertices 1"], Bool[Tensor, " vertices"]]
    texels: tuple[Float[Tensor, "size size 1"], Bool[Tensor, "size size"]]

    @classmethod
    def of(cls, region: Region, start: TexturedMesh) -> "Held":
        """Those of a textured mesh, by where its surface is."""
        assert start.atlas is not None and start.texture is not None
        places = start.mesh.vertices, texel_points(start.mesh.vertices, start.atlas, size=len(start.texture))
        found = [share_of(region, torch.from_numpy(each.astype(np.float32))) for each in places]
        (first, first_out), (last, last_out) = found
        return cls((first[..., None], first_out), (last[..., None], last_out))


def _mixed(first: Tensor, last: Tensor, share: Tensor, outside: Tensor) -> Tensor:
    return torch.where(outside[..., None], first, torch.lerp(first, last, share))


class Smoothing:
    """u = (I + s L) v for vertices v that are joined where they lie at one place, and back."""

    def __init__(self, vertices: np.ndarray, faces: np.ndarray) -> None:
        places, self._joined = np.unique(vertices, axis=0, return_inverse=True)
        self._joined = self._joined.ravel()
        self._first = np.unique(self._joined, return_index=True)[1]
        ends = self._joined[faces][:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
        edges = np.unique(np.sort(ends, axis=1), axis=0)
        edges = edges[edges[:, 0] != edges[:, 1]]
        rows, columns = np.concatenate([edges, edges[:, ::-1]]).T
        num = len(places)
        adjacency = coo_matrix((np.ones(len(rows)), (rows, columns)), (num, num))
        degree = np.asarray(adjacency.sum(axis=1)).ravel()
        self._matrix = (diags(1 + SMOOTHNESS * degree) - SMOOTHNESS * adjacency).tocsc()
        self._solver = splu(self._matrix)

    def to_u(self, vertices: Float[Tensor, "vertices 3"]) -> Float[Tensor, "places 3"]:
        """Returns what is optimised in place of vertices."""
        return torch.from_numpy(self._matrix @ vertices.numpy()[self._first].astype(np.float64)).float()

    def to_v(self, u: Float[Tensor, "places 3"]) -> Float[Tensor, "vertices 3"]:
        """Returns the vertices, differentiable in u."""
        places: Tensor = _Solve.apply(u, self._solver)
        return places[torch.from_numpy(self._joined)]


class _Solve(torch.autograd.Function):
    """x of A x = b for a symmetric A, which has the same solve as its backward pass."""

    @staticmethod
    def forward(ctx: Any, b: Tensor, solver: Any) -> Tensor:
        ctx.solver = solver
        return torch.from_numpy(solver.solve(b.detach().numpy().astype(np.float64))).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return torch.from_numpy(ctx.solver.solve(gradients[0].numpy().astype(np.float64))).float(), None


def cameras_of(views: Views) -> Cameras:
    """Returns a step's views of one mesh as the rasteriser takes them."""
    return Cameras(views.cam_to_world[None], views.intrinsics[None], views.size, views.size)
