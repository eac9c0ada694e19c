"""What `benchmarks.experiments.headline` compares: priors, and their samples as judge and page see them."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save
from torch import Tensor

from data_prep.geometry.farthest import farthest_first
from eval.judge import Judge, pooled
from eval.samples import GenerationConfig, fixed_cameras
from sampling.mesh import MeshConfig, sample_colours
from sampling.pipeline import Picture, ShapePipeline
from sampling.portraits import mesh_picture
from sampling.shape import ShapeSample
from shapeloom.decoder import Decoder
from shapeloom.metrics import ranks
from shapeloom.seed import derive_seed
from shapeloom.shards import AssetShards
from shapeloom.shards.tensors import LatentShards
from shapeloom.storage import write_atomic
from shapeloom.surfaces import Surface
from shapeloom.weights import read_tensors

ArmName = Literal["latent", "points_steps", "points_seconds"]
ARMS: tuple[ArmName, ...] = ("latent", "points_steps", "points_seconds")
OVERSAMPLE, BATCH = 4, 32
RADIUS, FINER = 0.03, 4
"""Of points as they are drawn (the box is 2 wide), and pixels a side for one of the picture."""


@dataclass(frozen=True)
class Trial:
    """One prior: an arm at a budget (the latent prior's steps) with a seed."""

    arm: ArmName
    budget: int
    seed: int
    steps: int

    @property
    def folder(self) -> str:
        """Where it is, in OUT."""
        return f"{self.arm}_{self.budget}_seed{self.seed}"


@dataclass(frozen=True)
class Bench:
    """What all trials share."""

    run: Path
    out: Path
    judge: Judge
    arguments: argparse.Namespace

    def parts(self, arm: ArmName) -> tuple[Path, Path]:
        """The folders of an arm's latents and of their decoder."""
        if arm == "latent":
            return self.run / "latents", self.run / "encoder"
        return self.out / "clouds", self.out / "cloud_field"

    @property
    def meshes(self) -> MeshConfig:
        """The same for all arms; nothing is repaired but crumbs dropped."""
        return MeshConfig(resolution=self.arguments.resolution, texture_size=0, sharpen=False, solid=False)

    def settings(self, arm: ArmName) -> list[str]:
        """Of the arm's prior, without its steps: the preset's, without what goes by tokens' order.

        Nor do latents start from their linear denoiser (network.components), which a set has none of.
        """
        found = [f"latents={self.parts(arm)[0]}", *self.arguments.settings, "network.components=0"]
        if arm != "latent":
            found += ["network.group=1", "diffusion={target: v, times_mean: 0}"]
        return found


def look(bench: Bench, decoder: Decoder, latents: Tensor, config: GenerationConfig) -> tuple[Tensor, Tensor]:
    """Returns pictures uint8 [n, views, size, size, 3] and surface points [n, points, 3] of latents' meshes.

    White pictures, and points all at the centre, where there is no surface.
    """
    poses, matrix = fixed_cameras(AssetShards(bench.run / "data"), config)
    num = bench.arguments.set_points
    pictures, clouds = [], []
    for latent in latents:
        mesh = ShapeSample(latent, "", 0, decoder).mesh(bench.meshes)
        drawn = [mesh_picture(mesh, pose[None], matrix, size=config.size) for pose in poses]
        pictures.append(torch.from_numpy(np.stack(drawn)))
        if not mesh.num_faces:
            clouds.append(torch.zeros(num, 3))
            continue
        points = Surface.of_mesh(mesh.mesh.vertices, mesh.mesh.faces, num=OVERSAMPLE * num).points
        chosen = points[farthest_first(points.astype(np.float32), num)]
        clouds.append(torch.from_numpy(chosen.astype(np.float32)))
    return torch.stack(pictures), torch.stack(clouds)


def sample(
    bench: Bench, trial: Trial, names: Sequence[str], scale: float, shown: Sequence[Picture] | None = None
) -> tuple[ShapePipeline, list[ShapeSample]]:
    """Returns the prior's pipeline and a sample a name (see `make_samples`)."""
    pipeline = ShapePipeline.load(
        prior=bench.out / trial.folder / "prior", encoder=bench.parts(trial.arm)[1], clip=bench.run / "clip"
    )
    parts: list[ShapeSample] = []
    for first in range(0, len(names), BATCH):
        some = names[first : first + BATCH]
        parts += pipeline(
            some if shown is None else [""] * len(some),
            image=None if shown is None else list(shown[first : first + BATCH]),
            seeds=[derive_seed("headline", trial.seed, name) for name in some],
            steps=bench.arguments.steps, guidance_scale=scale, sampler="dpmpp_2m",
        )  # fmt: skip
    return pipeline, parts


def as_points(bench: Bench, trial: Trial, names: Sequence[str], scale: float) -> np.ndarray:
    """Returns pictures [n, size, size, 3] of samples as points; kept.

    Of the cloud itself, or of as many of a latent's mesh, in the field's colours.
    """
    path = bench.out / trial.folder / "as_points.safetensors"
    if not path.is_file():
        config = generation(bench, len(names))
        poses, matrix = fixed_cameras(AssetShards(bench.run / "data"), config)
        num, drawn = LatentShards(bench.out / "clouds").header["tokens"], []
        for shape in sample(bench, trial, names, scale)[1]:
            if trial.arm == "latent":
                mesh = shape.mesh(bench.meshes).mesh
                points = Surface.of_mesh(mesh.vertices, mesh.faces, num=num).points
                colours = sample_colours(partial(shape.decoder.texture, shape.weights), points)
            else:
                points = shape.latent[:, :3].numpy()
                colours = np.rint(127.5 * (shape.latent[:, 3:].clamp(-1, 1).numpy() + 1)).astype(np.uint8)
            drawn.append(discs(points, colours, poses[0].numpy(), matrix.numpy(), config.size))
        write_atomic(path, save({"pictures": torch.from_numpy(np.stack(drawn))}))
    return read_tensors(path)["pictures"].numpy()


def discs(
    points: np.ndarray, colours: np.ndarray, cam_to_world: np.ndarray, intrinsics: np.ndarray, size: int
) -> np.ndarray:
    """Returns a picture [size, size, 3] on white of points as discs of RADIUS, the farthest drawn first."""
    seen = (points - cam_to_world[:3, 3]) @ cam_to_world[:3, :3]
    fine = FINER * intrinsics
    picture = Image.new("RGB", (FINER * size, FINER * size), "white")
    draw = ImageDraw.Draw(picture)
    for i in np.argsort(-seen[:, 2]):
        x, y = fine[:2, :2] @ (seen[i, :2] / seen[i, 2]) + fine[:2, 2]
        radius = float(fine[0, 0] * RADIUS / seen[i, 2])
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(colours[i].tolist()))
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX))


def make_samples(
    bench: Bench, trial: Trial, names: Sequence[str], scale: float, path: Path,
    shown: Sequence[Picture] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Returns `pictures`, `points` and `seconds` (CPU, sampling and meshes) of a sample a name; kept.

    Names are the prompts or, with `shown`, those of pictures that samples follow instead.
    """
    if not path.is_file():
        start = time.process_time()
        pipeline, parts = sample(bench, trial, names, scale, shown)
        sampled = time.process_time()
        stacked = torch.stack([shape.latent for shape in parts])
        pictures, points = look(bench, pipeline.decoder, stacked, generation(bench, len(names)))
        seconds = torch.tensor([sampled - start, time.process_time() - sampled])
        write_atomic(path, save({"pictures": pictures, "points": points, "seconds": seconds}))
    return read_tensors(path)


def generation(bench: Bench, num_prompts: int) -> GenerationConfig:
    """What the evaluation's own functions want to know: pictures of the size that the data's have."""
    return GenerationConfig(num_prompts=num_prompts, size=AssetShards(bench.run / "data").resolution)


def judged(bench: Bench, pictures: Tensor, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Returns whether the judge finds each sample's own prompt first, its cosine, and views' embeddings."""
    embeddings = bench.judge.embed(pictures.numpy())
    text = bench.judge.clip.text(list(texts)).pooled.cpu()
    similarity = (pooled(embeddings) @ text.T).numpy()
    return ranks(similarity, np.arange(len(texts))) == 0, similarity.diagonal(), embeddings
