"""A CLIP as guide: its gradient by closed form, and that a shape follows it."""

import pytest
import torch

from sampling.refine import __main__ as command
from sampling.refine.clip_guide import ClipGuide
from sampling.refine.config import RefineConfig
from sampling.refine.distiller import Distiller
from sampling.refine.loading import load_guide
from sampling.refine.mesh_stage import MeshRefiner
from sampling.refine.refiner import Refiner
from shapeloom.config import UserError, load_config
from tests.sampling.refine.conftest import BallClip

SMALL = ["guide=clip", "views=2", "samples.coarse=16", "samples.fine=8", "iterations=20"]


def test_the_gradient_is_that_of_the_cosine():
    """This CLIP's vector is v / |v| of v = 1 - a picture's mean colour, so the slope of cos is by hand."""
    x = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    clip = BallClip()
    gradient, mean = ClipGuide(clip).gradient(x, "a small red ball")
    wanted = clip.text(["a small red ball"]).pooled[0, :3]
    v = 1 - x.mean(dim=(2, 3))
    length = v.norm(dim=1, keepdim=True)
    cosine = v @ wanted[:, None] / length
    by_v = (wanted - cosine * v / length) / length
    # -cos falls as v rises, v falls as a pixel rises by 1 / 144 of it; times 3 x 144 numbers.
    torch.testing.assert_close(gradient, (3 * by_v)[:, :, None, None].expand_as(x))
    assert mean == pytest.approx(float(cosine.mean()))


def bluer(pixels: torch.Tensor) -> float:
    return float(pixels[..., 2].mean() - pixels[..., 0].mean())


@pytest.mark.parametrize("optimise", ["latent", "matrices"])
def test_a_shape_follows_it(balls, optimise):
    """By its colours: a CLIP that sees no more than a mean colour isn't hurt by a ball that vanishes."""
    rate = {"latent": "rate=0.15", "matrices": "rate=0.03"}[optimise]
    settings = load_config(RefineConfig, None, [*SMALL, f"optimise={optimise}", rate, "layers=color"])
    guide = load_guide(settings, balls.pipe)
    refiner = Refiner(balls.pipe, balls.shapes[:1], Distiller(guide, "a blue ball", settings), settings)
    cosines = [refiner.step(number)["clip"] for number in range(settings.iterations)]
    assert cosines[-1] > cosines[0] + 0.1
    points = 0.3 * torch.nn.functional.normalize(torch.randn(64, 3), dim=1)
    found = refiner.subject.shapes("")[0]
    before, after = (shape.decoder.texture(shape.weights, points) for shape in (balls.shapes[0], found))
    assert bluer(after) > bluer(before) + 0.2


def test_a_mesh_follows_it(balls):
    mesh = ["mesh.resolution=16", "mesh.max_faces=200", "mesh.texture_size=32"]
    stage = ["mesh_stage.iterations=8", "mesh_stage.texel_rate=0.15"]
    settings = load_config(RefineConfig, None, [*SMALL, *mesh, *stage])
    distiller = Distiller(ClipGuide(BallClip()), "a blue ball", settings)
    refiner = MeshRefiner(balls.shapes[0].mesh(settings.mesh), distiller, settings)
    cosines = [refiner.step(number)["clip"] for number in range(8)]
    assert cosines[-1] > cosines[0] + 0.05


def test_it_is_no_judge_of_itself(balls, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "load_pipeline", lambda config: balls.pipe)
    asked = ["--out", str(tmp_path / "out"), "--prompt", "a blue ball", "--guide", "clip"]
    with pytest.raises(UserError, match="the very CLIP that guide=clip follows"):
        command.main(asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["estimator.kind=vsd", "image=chair.png"])
def test_what_it_has_no_use_for_is_said(given):
    with pytest.raises(UserError, match="has no noise and reads words alone"):
        load_config(RefineConfig, None, ["guide=clip", given])
