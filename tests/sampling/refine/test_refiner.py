"""Refinement of a tiny model's shapes by an exact 2-D model of their pictures."""

import numpy as np
import pytest
import torch

from benchmarks.speed.refine import compare
from sampling.refine.config import RefineConfig
from sampling.refine.distiller import Distiller
from sampling.refine.mesh_stage import MeshRefiner
from sampling.refine.refiner import Refiner
from sampling.refine.rendering import distil, random_views, rays_of
from sampling.refine.subject import blob
from sampling.shape import FOV
from shapeloom.config import UserError, load_config
from shapeloom.decoder import with_field
from shapeloom.diffusion.distillation import own_loss
from shapeloom.fields.unlit import UnlitField
from shapeloom.rendering.cameras import intrinsics, ring
from shapeloom.rendering.isosurface import extract_surface
from shapeloom.viewpoints import fitting_distance
from tests.sampling.refine.conftest import ExactGuide, assert_only_inside_changed

SMALL = [
    "views=2", "samples.coarse=16", "samples.fine=8", "estimator.scale=1", "iterations=40", "rate=0.15",
]  # fmt: skip


def config(*changes: str) -> RefineConfig:
    return load_config(RefineConfig, None, ["guide=views", *SMALL, *changes])


def refined(balls, guide, start, prompt, *changes):
    """The first particle after all steps, and the refiner."""
    settings = config(*changes)
    starts = [start] * settings.particles if not isinstance(start, list) else start
    refiner = Refiner(balls.pipe, starts, Distiller(guide, prompt, settings), settings)
    for number in range(settings.iterations):
        refiner.step(number)
    return refiner.subject.shapes(prompt)[0], refiner


def radius(shape):
    """Of the surface along 6 axes."""
    t = torch.linspace(0, 1, 400)
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    inside = shape._sdf((t[:, None, None] * axes).reshape(-1, 3)).reshape(400, 6) < 0
    return inside.float().mean(0)


def colour(shape):
    """Of the surface along the axes."""
    places = radius(shape).reshape(2, 3).mean(0) * torch.eye(3)
    return shape.decoder.texture(shape.weights, places).mean(0)


@pytest.mark.parametrize("optimise", ["latent", "matrices"])
def test_a_shape_becomes_what_the_2d_model_expects_of_the_prompt(balls, guide, optimise):
    start, target = balls.shapes[0], balls.shapes[3]
    rate = {"latent": "rate=0.15", "matrices": "rate=0.03"}[optimise]
    found, _ = refined(balls, guide, start, target.prompt, f"optimise={optimise}", rate, "unlit=1")
    assert float((radius(found) - radius(target)).abs().mean()) < 0.08  # from 0.3 apart
    assert float((colour(found) - colour(target)).abs().max()) < 0.4  # from 0.7 apart
    assert (found.matrices is None) == (optimise == "latent")


@pytest.mark.parametrize("optimise", ["latent", "matrices"])
def test_a_change_of_colour_alone_leaves_every_vertex_bit_equal(balls, guide, optimise):
    start, target = balls.shapes[0], balls.shapes[3]
    found, _ = refined(
        balls, guide, start, target.prompt, f"optimise={optimise}", "layers=color", "iterations=20"
    )
    for before, after in zip(
        extract_surface(start._sdf, resolution=32), extract_surface(found._sdf, resolution=32), strict=True
    ):
        assert (before == after).all()
    assert float((colour(found) - colour(start)).abs().max()) > 0.1


def test_a_change_of_shape_alone_leaves_the_texture_bit_equal(balls, guide):
    start, target = balls.shapes[0], balls.shapes[3]
    found, _ = refined(
        balls, guide, start, target.prompt, "layers=geometry", "optimise=matrices", "rate=0.03",
        "iterations=10",
    )  # fmt: skip
    points = torch.rand(500, 3) * 2 - 1
    texture = [shape.decoder.texture(shape.weights, points) for shape in (start, found)]
    assert torch.equal(*texture)
    assert float((radius(found) - radius(start)).mean()) > 0.05


def test_outside_of_a_region_nothing_changes_by_a_bit(balls, guide):
    start, target = balls.shapes[0], balls.shapes[3]
    region = "region=[[0.0, -1, -1], [1, 1, 1]]"
    found, _ = refined(
        balls, guide, start, target.prompt, region, "optimise=matrices", "rate=0.03", "iterations=15"
    )
    points = torch.rand(4000, 3) * 2 - 1
    outside = points[:, 0] <= 0
    assert_only_inside_changed(start, found, points, outside)
    vertices, other = (extract_surface(shape._sdf, resolution=32)[0] for shape in (start, found))
    kept = {tuple(v) for v in vertices[vertices[:, 0] <= 0]}
    assert kept == {tuple(v) for v in other[other[:, 0] <= 0]}
    assert float(radius(found)[0] - radius(start)[0]) > 0.1  # along +x, and not along -x
    assert float(radius(found)[3] - radius(start)[3]) == 0


def test_memory_is_bounded_without_a_change_of_the_gradient(balls):
    generator = torch.Generator().manual_seed(0)
    views = random_views(config().cameras, 1, 2, size=16, generator=generator)
    rays, weights = rays_of(views), balls.shapes[1].weights
    held: list[int] = []

    def gradients(at_once):
        seen = balls.decoder.along_rays

        def counted(weights, occupied, some, **how):
            if torch.is_grad_enabled():
                held.append(some.shape[1])
            return seen(weights, occupied, some, **how)

        balls.decoder.along_rays = counted
        try:
            return distil(
                balls.decoder, weights, rays, config().samples, lambda seen: seen - 0.3, at_once=at_once
            )
        finally:
            del balls.decoder.along_rays

    whole, parts = gradients(512), gradients(100)
    assert held[0] == 512 and max(held[1:]) == 100
    for first, second in zip(whole, parts, strict=True):
        assert float((first - second).norm()) <= 1e-4 * float(first.norm())


def test_a_step_has_the_gradient_of_a_plain_one(balls):
    first, last = (balls.shapes[i].weights for i in (0, 3))
    ours, plain, off = compare(balls.decoder, first, last, size=12, views=2, steps=1)
    assert min(ours, plain) > 0
    assert off < 0.05  # a soft ball of 12 pixels: what is left out weighs more than in trained models


@pytest.fixture(scope="module")
def grey_ball(balls):
    """What refinement from scratch starts from."""
    return blob(balls.decoder, "", 0)


def test_steps_become_smaller_until_there_is_nothing_left_to_move(balls, guide):
    _, refiner = refined(balls, guide, balls.shapes[0], balls.shapes[3].prompt, "iterations=4", "rate=0.1")
    assert refiner.optimiser.param_groups[0]["lr"] == pytest.approx(0.1 / 4)


def test_from_scratch_it_starts_from_a_ball(balls, guide, grey_ball):
    torch.testing.assert_close(radius(grey_ball), torch.full((6,), 0.5), atol=0.04, rtol=0)
    changes = ["optimise=matrices", "rate=0.03", "shape=none", "iterations=15", "unlit=1"]
    found, _ = refined(balls, guide, grey_ball, balls.shapes[3].prompt, *changes)
    assert float(colour(found)[2] - colour(found)[0]) > 0.1  # from grey to blue


@pytest.mark.parametrize("kind", ["sds", "vsd", "ism"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(balls, kind):

    settings = config(f"estimator.kind={kind}", "particles=2", "iterations=4", "prior_share=0.3")

    def fresh():
        guide = ExactGuide(balls.decoder, balls.latents)
        return Refiner(
            balls.pipe, balls.shapes[:2], Distiller(guide, balls.shapes[3].prompt, settings), settings
        )

    whole, before = fresh(), fresh()
    curve = [whole.step(number) for number in range(4)]
    for number in range(2):
        before.step(number)
    after = fresh()
    after.load(before.state())
    assert [after.step(number) for number in range(2, 4)] == curve[2:]
    for first, second in zip(whole.subject.leaves, after.subject.leaves, strict=True):
        assert torch.equal(first, second)


def test_vsd_learns_of_its_particles_and_leaves_the_guide_as_it_was(balls, guide):
    settings = config("estimator.kind=vsd", "iterations=12", "estimator.lora_rate=0.02")
    refiner = Refiner(
        balls.pipe, balls.shapes[:1], Distiller(guide, balls.shapes[3].prompt, settings), settings
    )
    frozen = guide.network.parametrizations.weight.original.clone()
    x, eps = torch.rand(2, 4, 12, 12), torch.randn(2, 4, 12, 12)
    x, sigma = x * torch.tensor([0.8, 0.2, 0.1, 1.0])[:, None, None], torch.ones(2)
    with torch.no_grad():
        before = own_loss(guide.own_denoise, x, sigma, eps, None)
        assert torch.equal(guide.own_denoise(x, sigma, None), x / 2)  # low-rank changes start at zero
        for number in range(12):
            assert refiner.step(number)["own_loss"] > 0
        assert own_loss(guide.own_denoise, x, sigma, eps, None) < before
    assert torch.equal(guide.network.parametrizations.weight.original, frozen)


def test_the_latent_priors_score_pulls_latents_to_what_it_knows(balls, guide):
    """The untrained prior answers (nearly) x_0 = 0 in standardised latents, the mean of all balls."""
    start, prompt = balls.shapes[0], balls.shapes[0].prompt
    _, alone = refined(balls, guide, start, prompt, "iterations=8")
    _, pulled = refined(balls, guide, start, prompt, "iterations=8", "prior_share=20")
    far, near = (float(refiner.subject.leaves[0].detach().norm()) for refiner in (alone, pulled))
    assert near < 0.9 * far


def test_what_cannot_be_refined_is_said(balls, guide, grey_ball):
    with pytest.raises(UserError, match="a ball isn't a latent"):
        config("shape=none")
    with pytest.raises(UserError, match="prior_share is of a latent's prior"):
        config("prior_share=1", "optimise=matrices")
    with pytest.raises(UserError, match="its low corner below its high one"):
        config("region=[[0, 0, 0], [1, 0, 1]]")
    with pytest.raises(UserError, match="elevation is a range within"):
        config("cameras.elevation=[50, 20]")
    with pytest.raises(UserError, match="set optimise=matrices"):
        Refiner(balls.pipe, [grey_ball], Distiller(guide, "", config()), config())


def mesh_of(balls, guide, *changes):
    """The small red ball's mesh on its way to the large blue one."""
    settings = config("mesh.resolution=16", "mesh.max_faces=300", "mesh.texture_size=64", *changes)
    distiller = Distiller(guide, balls.shapes[3].prompt, settings)
    return MeshRefiner(balls.shapes[0].mesh(settings.mesh), distiller, settings)


def test_a_mesh_follows_too_in_its_vertices_and_its_texture(balls, guide):
    guide.size = 24
    mesh = mesh_of(balls, guide, "mesh_stage.iterations=40", "mesh_stage.vertex_rate=0.03", "views=4",
                   "mesh_stage.texel_rate=0.05")  # fmt: skip
    before = mesh.result()
    for number in range(40):
        facts = mesh.step(number)
    after = mesh.result()
    lengths = [np.linalg.norm(v - v.mean(0), axis=1) for v in (before.mesh.vertices, after.mesh.vertices)]
    assert lengths[1].mean() > lengths[0].mean() + 0.06  # of 0.3
    assert lengths[1].std() < 0.1 * lengths[1].mean()  # as a whole: no vertex runs ahead
    assert facts["bend"] < 0.05
    blue = [(each.texture[..., 2] - each.texture[..., 0].astype(float)).mean() for each in (before, after)]
    assert blue[1] > blue[0] + 30  # of 255
    assert (after.mesh.faces == before.mesh.faces).all()


def test_a_mesh_whose_colour_alone_changes_keeps_every_vertex(balls, guide):
    mesh = mesh_of(balls, guide, "layers=color", "mesh_stage.iterations=3")
    for number in range(3):
        mesh.step(number)
    after = mesh.result()
    assert (after.mesh.vertices == mesh.start.mesh.vertices).all()
    assert (after.mesh.normals == mesh.start.mesh.normals).all()
    assert (after.texture != mesh.start.texture).any()


def test_a_meshs_pictures_are_those_of_its_field(balls, guide):
    mesh = mesh_of(balls, guide, "mesh.resolution=48", "mesh.max_faces=4000", "mesh.texture_size=128")
    pose = ring(2, distance=fitting_distance(FOV))
    drawn = np.stack(mesh.pictures(pose, 48)).astype(float)
    field = balls.shapes[0]
    unlit = with_field(field.decoder, UnlitField(field.decoder.field))
    matrix = intrinsics(FOV, 48, 48).expand(1, 2, 3, 3)
    seen = unlit.render(field.weights, pose[None], matrix, 48, 48).rgb[0].numpy() * 255
    assert np.abs(drawn - seen).mean() < 4  # of 255: the field's edge is soft
