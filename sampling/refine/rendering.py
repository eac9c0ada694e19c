"""Cameras at random, and renders whose memory is bounded by a number of rays."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sampling.refine.config import CameraConfig
from shapeloom.decoder import Decoder, RenderConfig
from shapeloom.fields.projection import FieldWeights
from shapeloom.rendering.cameras import intrinsics, spherical
from shapeloom.rendering.rays import camera_rays
from shapeloom.viewpoints import fitting_distance


@dataclass(frozen=True)
class Views:
    """The cameras of a step: `each` of the first particle's, then of the next.

    size: side of the pictures in pixels. Angles in degrees; azimuth 0 is +X.
    """

    cam_to_world: Float[Tensor, "batch 4 4"]
    intrinsics: Float[Tensor, "batch 3 3"]
    azimuth: Float[Tensor, " batch"]
    elevation: Float[Tensor, " batch"]
    each: int
    size: int


def random_views(
    config: CameraConfig, particles: int, each: int, *, size: int, generator: torch.Generator
) -> Views:
    """Returns cameras; a particle's azimuths are drawn from equal parts of the circle, so they differ."""
    num = particles * each
    place = torch.rand(4, num, generator=generator)
    azimuth = 360 * (torch.arange(num) % each + place[0]) / each

    def within(span: tuple[float, float], share: Tensor) -> Tensor:
        return span[0] + (span[1] - span[0]) * share

    elevation, fov = within(config.elevation, place[1]), within(config.fov, place[2])
    radians = [math.radians(float(angle)) for angle in fov]
    distance = torch.tensor([fitting_distance(angle) for angle in radians]) * within(
        config.distance, place[3]
    )
    poses = spherical(azimuth.deg2rad(), elevation.deg2rad(), distance)
    matrices = torch.stack([intrinsics(angle, size, size) for angle in radians])
    return Views(poses, matrices, azimuth, elevation, each, size)


def rays_of(views: Views) -> Float[Tensor, "particles rays 6"]:
    """Returns origins and directions of all pixels of each particle's views."""
    origins, directions, _ = camera_rays(views.cam_to_world, views.intrinsics, views.size, views.size)
    return torch.cat([origins, directions], dim=-1).reshape(len(views.azimuth) // views.each, -1, 6)


def distil(
    decoder: Decoder, weights: FieldWeights, rays: Float[Tensor, "particles rays 6"], samples: RenderConfig,
    slope: Callable[[Float[Tensor, "particles rays 4"]], Float[Tensor, "particles rays 4"]], *, at_once: int,
) -> list[Tensor]:  # fmt: skip
    """Returns the gradients of an objective of the pictures by the weights, which need no graph.

    slope: pictures (premultiplied rgb, alpha) -> the objective's gradient by them.
    at_once: rays whose activations are held. More are rendered twice: once without gradients for the
    pictures, then part by part, each with its part of the pictures' gradient (Zhang et al. 2022, "ARF",
    section 4.2: deferred back-propagation). The sum is the same.
    """
    leaves = [matrix.detach().requires_grad_() for matrix in weights]
    occupied = decoder.occupancy(leaves, rays.shape[1])
    parts = rays.split(max(1, at_once // len(rays)), dim=1)

    def seen(part: Tensor) -> Float[Tensor, "particles rays 4"]:
        return decoder.along_rays(leaves, occupied, part, samples=samples)[..., :4]

    if len(parts) == 1:
        pictures = seen(rays)
        gradient = slope(pictures.detach())
        _backward(pictures, gradient)
    else:
        with torch.no_grad():
            pictures = torch.cat([seen(part) for part in parts], dim=1)
        gradient = slope(pictures)
        for part, its in zip(parts, gradient.split(parts[0].shape[1], dim=1), strict=True):
            _backward(seen(part), its)
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


def _backward(pictures: Tensor, gradient: Tensor) -> None:
    """Where no ray meets anything there is no graph, and nothing that the pictures follow."""
    if pictures.requires_grad:
        pictures.backward(gradient)
