"""OpenGL against ray casting, whose own tests have closed forms; skipped where there is no OpenGL.

OpenGL runs in another process: Mesa's LLVM would crash triton's, which other tests import.
"""

import functools
import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
import trimesh

from data_prep.mesh import Sampler
from data_prep.render.lighting import STUDIO, UNLIT
from data_prep.render.raster import require
from data_prep.render.views import render_views
from shapeloom import viewpoints
from shapeloom.config import UserError


def reason_against() -> str:
    """What `renderer: gl` says here; nothing where it works."""
    try:
        require()
    except UserError as error:
        return str(error)
    return ""


WHY_NOT = reason_against()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
FOV = math.radians(40)
LOOK_ALONG_Y = viewpoints.look_at(np.array([[0.0, -4.0, 0.0]]), np.zeros((1, 3)))


@functools.cache
def other_process():
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


@pytest.fixture(scope="module", autouse=True)
def _ended():
    yield
    other_process().shutdown()


def both(mesh, *, size=48, supersample=2, lighting=STUDIO, poses=None):
    if poses is None:
        poses = viewpoints.sphere(3, seed=3, distance=viewpoints.fitting_distance(FOV))
    matrix = viewpoints.intrinsics(FOV, size, size)
    render = functools.partial(
        render_views, mesh, poses, matrix, size=size, supersample=supersample, lighting=lighting
    )
    return other_process().submit(render, backend="gl").result(), render(backend="embree")


def assert_agreement(gl, embree, *, edge_share):
    """All but some edge pixels, where the two have their samples at other places, are the same."""
    differ = np.abs(gl.rgba.astype(int) - embree.rgba).max(axis=-1)
    assert (differ > 6).mean() < edge_share
    assert np.median(differ[embree.rgba[..., 3] == 255]) <= 1
    np.testing.assert_allclose(gl.rgba[..., 3].mean(), embree.rgba[..., 3].mean(), rtol=0.01)
    seen = (gl.depth > 0) & (embree.depth > 0)
    assert ((gl.depth > 0) != (embree.depth > 0)).mean() < 2e-3  # centres that lie on an edge
    apart = np.abs(gl.depth - embree.depth)[seen]
    assert (apart > 2e-4).mean() < 2e-3
    normals = np.abs(gl.normal.astype(int) - embree.normal).max(axis=-1)[seen]
    assert (normals > 2).mean() < 2e-3
    assert np.median(np.abs(gl.albedo.astype(int) - embree.albedo)) <= 1


@pytest.mark.parametrize("supersample", [1, 2, 4])
def test_sphere(ball, supersample):
    smooth = (ball.triangles / 0.8).astype(np.float32)  # without facets, whose edges differ everywhere
    mesh = replace(ball, tint=np.abs(smooth), shading=smooth)
    assert_agreement(*both(mesh, supersample=supersample), edge_share=0.05)


def test_box_under_flat_shading_and_no_light(box):
    assert_agreement(*both(box), edge_share=0.05)
    assert_agreement(*both(box, lighting=UNLIT), edge_share=0.05)


def test_crossing_planes(make_soup):
    one = trimesh.creation.box((1.8, 1e-6, 1.8))
    other = trimesh.creation.box((1e-6, 1.8, 1.8))
    both_planes = trimesh.util.concatenate([one, other])
    mesh = make_soup(both_planes.vertices, both_planes.faces)
    tint = np.zeros((24, 3, 3), np.float32)
    tint[:12, :, 0], tint[12:, :, 1] = 1, 1
    assert_agreement(*both(replace(mesh, tint=tint)), edge_share=0.06)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("sampler", [Sampler(), Sampler("clamp", "clamp"), Sampler(nearest=True)])
def test_textured_quad_with_cut_outs_and_wrapping(make_soup, sampler, linear):
    faces = [[0, 1, 2], [0, 2, 3]]
    quad = make_soup([[-1, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1]], faces)
    texture = np.random.default_rng(0).integers(0, 256, (8, 4, 4), dtype=np.uint8)
    texture[..., 3] = np.where(np.arange(8)[:, None] % 4 == 1, 0, 255)
    if linear:
        texture = texture.astype(np.float32) / 255
    uv = np.float32([[-0.3, -0.2], [1.2, -0.2], [1.2, 1.4], [-0.3, 1.4]])[faces]
    mesh = replace(
        quad, tint=np.full((2, 3, 3), 0.8, np.float32), uv=uv, texture=np.zeros(2, np.int64),
        textures=[texture], samplers=[sampler], cutoff=np.full(2, 0.5, np.float32),
    )  # fmt: skip
    assert_agreement(*both(mesh, poses=LOOK_ALONG_Y), edge_share=0.15)  # edges of texels are edges too


def test_blended_materials_are_left_to_ray_casting(ball):
    glass = replace(
        ball, cutoff=np.full(len(ball.faces), -1, np.float32),
        opacity=np.full((len(ball.faces), 3), 0.4, np.float32),
    )  # fmt: skip
    gl, embree = both(glass)
    np.testing.assert_array_equal(gl.rgba, embree.rgba)
    assert embree.rgba[0, 24, 24, 3] == round(255 * (1 - 0.6**2))  # two walls
