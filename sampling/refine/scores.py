"""How well shapes fit a prompt, before and after: a CLIP's cosine, over fixed views."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sampling.refine.mesh_stage import MeshRefiner
from sampling.shape import FOV, ShapeSample, render_shapes
from shapeloom.clip import Clip
from shapeloom.rendering.cameras import ring
from shapeloom.viewpoints import fitting_distance

SCORE_VIEWS = 8
SCORE_SIZE = 96


@torch.no_grad()
def scores(shapes: Sequence[ShapeSample], prompt: str, clip: Clip) -> Float[Tensor, " shapes"]:
    """Returns the mean cosine of each shape's views with the prompt."""
    poses = ring(SCORE_VIEWS, distance=fitting_distance(FOV))
    wanted = clip.text([prompt]).pooled[0].cpu()
    found = []
    for shape in shapes:  # one at a time: starts and refined ones have decoders of their own
        pictures = render_shapes([shape], poses, height=SCORE_SIZE, width=SCORE_SIZE)[0]
        found.append((clip.image(pictures).cpu() @ wanted).mean())
    return torch.stack(found)


@torch.no_grad()
def mesh_score(mesh: MeshRefiner, prompt: str, clip: Clip) -> float:
    """Returns the same of a mesh, seen without light."""
    pictures = np.stack(mesh.pictures(ring(SCORE_VIEWS, distance=fitting_distance(FOV)), SCORE_SIZE))
    return float((clip.image(pictures).cpu() @ clip.text([prompt]).pooled[0].cpu()).mean())
