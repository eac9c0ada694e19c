"""Each kernel and each trainer's step against its own result on the CPU, at small sizes and in float32."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu.tasks import Training
from encoder.model import Autoencoder
from shapeloom.decoder import Decoder, DecoderConfig
from shapeloom.muon import orthogonalize
from shapeloom.rendering.cameras import Cameras, intrinsics, ring
from shapeloom.rendering.implicit_surface import Meshes
from shapeloom.rendering.isosurface import grid_values
from shapeloom.rendering.visibility import faces_by_embree, faces_by_pytorch3d
from shapeloom.shap_e.field import ShapEFieldConfig
from shapeloom.training import Task
from shapeloom.viewpoints import fitting_distance

ALIKE = 1e-2
"""Largest difference, as a share of the result, that rounding in another order explains."""
Result = dict[str, Tensor]


@contextmanager
def full_precision() -> Iterator[None]:
    """Without TF32, which is no float32."""
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = flags


def difference(work: Callable[[torch.device], Result], device: torch.device) -> float:
    """The largest of the results' root mean square differences from the CPU's, as shares of these.

    Not of single numbers: where a ray meets a surface at another sample, a pixel is another's, and Shap-E's
    octaves carry a rounding of places that far (a relative 3e-7 of them moves single pixels by .07).
    """
    with full_precision():
        there, here = work(device), work(torch.device("cpu"))
    apart = [(there[name].cpu() - value).norm() / value.norm() for name, value in here.items()]
    return max(map(float, apart))


def step(task: Task, device: torch.device) -> Result:
    """Loss of two samples and the length of its gradient for each weight."""
    model = copy.deepcopy(task.model).to(device)
    loss, _ = task.loss(model, {name: value.to(device) for name, value in task.batch(range(2)).items()})
    loss.backward()
    lengths = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    return {"loss": loss.detach(), "gradient": torch.stack(lengths)}


def views(decoder: Decoder, latent: Tensor, device: torch.device) -> Result:
    """A picture of a field, and its signed distances on a grid."""
    own = copy.deepcopy(decoder).to(device)
    weights = own.weights(latent.to(device))
    pose = ring(1, distance=fitting_distance(0.7)).to(device)[None]
    matrix = intrinsics(0.7, 32, 32).to(device)[None, None]
    with torch.no_grad():
        rendering = own.render(weights, pose, matrix, 32, 32)
        grid = grid_values(lambda points: own.sdf(weights, points), resolution=32, coarsest=32, device=device)
    return {"rgb": rendering.rgb, "alpha": rendering.alpha, "grid": grid}


def products(device: torch.device) -> Result:
    """Muon's orthogonal matrices, of tall and of nearly square ones."""
    rng = np.random.default_rng(0)
    return {
        str(shape): orthogonalize(torch.from_numpy(rng.standard_normal(shape)).float().to(device))
        for shape in ((2, 64, 256), (2, 96, 64))
    }


def rows(trainings: dict[str, Training], device: torch.device) -> Iterator[tuple[str, float]]:
    """What was compared, and by how much it differs."""
    for name, training in trainings.items():
        yield f"{name}'s step", difference(lambda place, task=training.task: step(task, place), device)
    model = trainings["encoder"].task.model
    assert isinstance(model, Autoencoder)
    torch.manual_seed(0)
    shap_e = Decoder(DecoderConfig(shap_e=ShapEFieldConfig(width=32, channels=16)))
    for name, decoder in (("field", model.decoder), ("Shap-E's field", shap_e)):
        full = copy.deepcopy(decoder).eval()
        for parameter in full.parameters():
            nn.init.normal_(parameter, std=0.2)  # a new field is empty
        latent = torch.rand(1, *decoder.latent_shape) * 2 - 1
        yield f"{name}: view, grid", difference(lambda place, d=full, z=latent: views(d, z, place), device)
    yield "Muon's products", difference(products, device)
    yield "pytorch3d's visible faces", seen_otherwise(device)


def seen_otherwise(device: torch.device) -> float:
    """Share of pixels where pytorch3d, on the device, and Embree see other faces; NaN without it."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(-0.6, 0.6, (40, 1, 3)) + rng.uniform(-0.3, 0.3, (40, 3, 3))
    vertices = torch.from_numpy(corners.reshape(-1, 3)).float().to(device)
    meshes = Meshes(vertices, torch.arange(120, device=device).reshape(40, 3), [40])
    pose, matrix = (
        ring(2, distance=fitting_distance(0.7))[None].to(device),
        intrinsics(0.7, 64, 64).to(device),
    )
    cameras = Cameras(pose, matrix.expand(1, 2, 3, 3), 64, 64)
    try:
        found = faces_by_pytorch3d(meshes, cameras)
    except (ImportError, RuntimeError):
        return float("nan")
    return float((found.cpu() != faces_by_embree(meshes, cameras).cpu()).float().mean())
