"""A sampled shape: its latent, and what can be made of it: pictures, turntables, a textured mesh, files."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from sampling.export import TexturedMesh
from sampling.faults import Surface, look_at
from sampling.formats import FORMATS, MESH_FORMATS, listed
from sampling.mesh import DEFAULT_MESH, MeshConfig, field_to_mesh
from sampling.pictures import save_frames
from sampling.texture import bake, unwrap
from shapeloom.config import UserError
from shapeloom.decoder import DEFAULT_SAMPLES, Decoder, RenderConfig, with_field
from shapeloom.fields.projection import FieldWeights
from shapeloom.fields.region import Region, RegionField
from shapeloom.rendering.cameras import intrinsics, ring
from shapeloom.rendering.isosurface import extract_surface
from shapeloom.storage import write_atomic
from shapeloom.viewpoints import fitting_distance

FOV = math.radians(40)
PREVIEWS = {"gif": (24, 128), "mp4": (48, 256), "apng": (24, 128), "png": (1, 256)}
"""Frames, and side in pixels, of what `save` writes."""


@dataclass(frozen=True, eq=False)
class ShapeSample:
    """A shape: its latent (on the CPU) and what it was asked to be.

    matrices: of its field, as a batch of one on the CPU, where they aren't the latent's any more: they were
    refined (`sampling.refine`) from a shape that the latent says. region: in which they
    were; then the first half of the matrices is the one from before (see `fields.region`).
    """

    latent: Float[Tensor, "tokens channels"]
    prompt: str
    seed: int
    decoder: Decoder
    matrices: FieldWeights | None = None
    region: Region | None = None

    @cached_property
    def weights(self) -> FieldWeights:
        """The hidden matrices of its field, as a batch of one on the decoder's device."""
        return _weights([self])

    @property
    def _device(self) -> torch.device:
        return self.weights[0].device

    def render(
        self, cam_to_world: Float[Tensor, "views 4 4"] | None = None,
        matrix: Float[Tensor, "3 3"] | None = None, height: int = 256, width: int = 256, *,
        samples: RenderConfig = DEFAULT_SAMPLES, alpha: bool = False,
    ) -> UInt8[np.ndarray, "views height width channels"]:  # fmt: skip
        """Returns volume renders: RGB on white, or RGBA with straight alpha.

        cam_to_world: one view from 20 degrees above the horizon if None. matrix: the intrinsics of all views,
        in pixels; a field of view of 40 degrees, of the height, if None.
        """
        return render_shapes(
            [self], cam_to_world, matrix, height, width, samples=samples, alpha=alpha
        )[0]  # fmt: skip

    def turntable(
        self, num_frames: int = 24, size: int = 128, *, samples: RenderConfig = DEFAULT_SAMPLES,
        alpha: bool = False,
    ) -> UInt8[np.ndarray, "frames size size channels"]:  # fmt: skip
        """Returns volume renders from even azimuths, 20 degrees above the horizon; see `render`."""
        if num_frames < 1 or size < 1:
            raise ValueError(f"num_frames and size must be positive, got {num_frames} and {size}.")
        poses = ring(num_frames, distance=fitting_distance(FOV))
        return self.render(poses, None, size, size, samples=samples, alpha=alpha)

    def mesh(self, config: MeshConfig = DEFAULT_MESH) -> TexturedMesh:
        """Returns the surface as a mesh with a baked texture; one without faces if there is no surface."""

        def texture(points: Tensor) -> Tensor:
            return self.decoder.texture(self.weights, points)

        mesh = field_to_mesh(self._sdf, texture, config, gradient=self._gradient, device=self._device)
        if not len(mesh.faces) or not config.texture_size:
            return TexturedMesh(mesh)
        atlas = unwrap(mesh.vertices, mesh.faces, size=config.texture_size)
        picture = bake(mesh, atlas, texture, size=config.texture_size, device=self._device)
        return TexturedMesh(mesh, atlas, picture)

    def surface(self, config: MeshConfig = DEFAULT_MESH) -> Surface:
        """Returns what the surface is like, `fault` above all, without making a mesh of it."""
        vertices, faces = extract_surface(self._sdf, resolution=config.resolution, device=self._device)
        return look_at(vertices, faces, min_share=config.min_component)

    def _sdf(self, points: Float[Tensor, "points 3"]) -> Float[Tensor, " points"]:
        return self.decoder.sdf(self.weights, points)

    def _gradient(self, points: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
        return self.decoder.gradient(self.weights, points)

    def save(self, path: str | Path, *, mesh: MeshConfig = DEFAULT_MESH) -> None:
        """Writes a mesh, a turntable, a view or the latent, by the suffix.

        .glb, .obj, .ply, .stl, .usdz: the mesh (see `export`). .gif, .mp4: a turntable on white; .apng: one
        with alpha. .png: a view with alpha. .safetensors: the latent, for `ShapePipeline.load_latent`.
        Raises UserError for another suffix, or for a mesh of a shape that has no surface.
        """
        path = Path(path)
        kind = path.suffix[1:]
        if kind in MESH_FORMATS:
            self.mesh(mesh).save(path)
        elif kind in PREVIEWS:
            frames, size = PREVIEWS[kind]
            save_frames(path, self.turntable(frames, size, alpha=kind in ("png", "apng")))
        elif kind == "safetensors":
            write_atomic(path, self.latent_bytes())
        else:
            raise UserError(f"A shape can be saved as {listed(FORMATS)}, not as {path.name}.")

    def latent_bytes(self) -> bytes:
        """Returns a safetensors file of the latent, with the digest of its encoder, its prompt and seed.

        The same shape has the same bytes: the facts are one entry of JSON, since safetensors writes several
        in an order that differs from one call to the next.
        """
        facts: dict[str, Any] = {
            "encoder": self.decoder.digest, "prompt": self.prompt, "seed": self.seed,
        }  # fmt: skip
        tensors = {"latent": self.latent.contiguous()}
        if isinstance(self.region, Tensor):
            tensors["region"] = self.region.contiguous()
        elif self.region is not None:
            facts["region"] = self.region
        metadata = {"shape": json.dumps(facts, sort_keys=True)}
        for number, matrix in enumerate(self.matrices or []):
            tensors[f"matrices.{number}"] = matrix.contiguous()
        return to_safetensors(tensors, metadata=metadata)


def read_latent(path: str | Path, decoder: Decoder) -> ShapeSample:
    """Reads a .safetensors that a shape's `save` wrote; raises UserError if it is another encoder's."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata, shape = file.metadata() or {}, tuple(file.get_slice("latent").get_shape())
            # Until 0.1.0 each fact was an entry of its own.
            facts = json.loads(metadata["shape"]) if "shape" in metadata else metadata
            if facts.get("encoder") != decoder.digest or shape != decoder.latent_shape:
                raise UserError(
                    f"The latent in {path} was made with another encoder: this one can't decode it."
                )
            latent = file.get_tensor("latent").float()
            names = [name for name in file.keys() if name.startswith("matrices.")]  # noqa: SIM118
            own = [file.get_tensor(f"matrices.{number}").float() for number in range(len(names))]
            grid = file.get_tensor("region") if "region" in file.keys() else None  # noqa: SIM118
        box = facts.get("region")
        region: Region | None = grid if box is None else (tuple(box[0]), tuple(box[1]))
        decoder = decoder if region is None else regional(decoder, region)
    except (OSError, SafetensorError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no latent that a shape's .save wrote ({error}).") from error
    if not all(bool(each.isfinite().all()) for each in (latent, *own)):
        raise UserError(f"{path} holds NaN or infinity, so it is damaged.")
    if own:
        _check_matrices(own, latent, decoder, path)
    return ShapeSample(
        latent, facts.get("prompt", ""), int(facts.get("seed", 0)), decoder, own or None, region
    )


def regional(decoder: Decoder, region: Region) -> Decoder:
    """Returns the decoder of shapes that were refined in a region alone; raises ValueError for no region."""
    return with_field(decoder, RegionField(decoder.field, region))


@torch.no_grad()
def _check_matrices(matrices: FieldWeights, latent: Tensor, decoder: Decoder, path: str | Path) -> None:
    """Raises UserError unless matrices have the shapes that the decoder's own would."""
    device = next(decoder.parameters(), torch.zeros(())).device
    own = [tuple(matrix.shape) for matrix in decoder.weights(latent[None].to(device))]
    expected = own * 2 if isinstance(decoder.field, RegionField) else own
    found = [tuple(matrix.shape) for matrix in matrices]
    if found != expected:
        raise UserError(f"The matrices in {path} are {found}, but this decoder's are {expected}.")


def render_shapes(
    shapes: Sequence[ShapeSample], cam_to_world: Float[Tensor, "views 4 4"] | None = None,
    matrix: Float[Tensor, "3 3"] | None = None, height: int = 256, width: int = 256, *,
    samples: RenderConfig = DEFAULT_SAMPLES, alpha: bool = False,
) -> UInt8[np.ndarray, "shapes views height width channels"]:  # fmt: skip
    """Returns pictures of shapes of one decoder, all in one batch; see `ShapeSample.render`.

    Memory is bounded whatever the size and the number of shapes, apart from the pictures themselves.
    Raises ValueError for shapes of several decoders, or of none.
    """
    if not shapes or any(shape.decoder is not shapes[0].decoder for shape in shapes):
        raise ValueError(f"expected one or more shapes of one decoder, got {len(shapes)}.")
    poses = ring(1, distance=fitting_distance(FOV)) if cam_to_world is None else cam_to_world
    lens = intrinsics(FOV, height, width) if matrix is None else matrix
    weights = shapes[0].weights if len(shapes) == 1 else _weights(shapes)
    device = weights[0].device
    rendering = shapes[0].decoder.render(
        weights,
        poses.expand(len(shapes), *poses.shape).to(device),
        lens.expand(len(shapes), len(poses), 3, 3).to(device),
        height,
        width,
        samples=samples,
        background=0.0 if alpha else 1.0,
    )
    rgb = rendering.rgb
    if alpha:
        # Below half a step of 8 bits there is no colour to divide out.
        opacity = rendering.alpha[..., None]
        straight = torch.where(opacity > 1 / 510, rgb / opacity.clamp_min(1 / 510), torch.zeros_like(rgb))
        rgb = torch.cat([straight, opacity], dim=-1)
    return (rgb.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


@torch.no_grad()
def _weights(shapes: Sequence[ShapeSample]) -> FieldWeights:
    decoder = shapes[0].decoder
    device = next(decoder.parameters(), torch.zeros(())).device
    if all(shape.matrices is None for shape in shapes):
        return decoder.weights(torch.stack([shape.latent for shape in shapes]).to(device))
    own = [shape.matrices or decoder.weights(shape.latent[None].to(device)) for shape in shapes]
    return [torch.cat([matrix.to(device) for matrix in layer]) for layer in zip(*own, strict=True)]
