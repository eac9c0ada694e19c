"""The compiled z-buffer against the ray caster: tight inside, few flips at edges, no bias; hostile meshes.

The closed forms that both must fulfil are in test_views.py.
"""

import math
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import trimesh

from data_prep.mesh import BLEND, Mesh, Sampler
from data_prep.render import zbuffer
from data_prep.render.lighting import STUDIO, UNLIT
from data_prep.render.views import render_views
from shapeloom import viewpoints

pytestmark = pytest.mark.skipif(bool(zbuffer.reason_against()), reason=zbuffer.reason_against())
FOV = math.radians(40)
LOOK_ALONG_Y = viewpoints.look_at(np.array([[0.0, -4.0, 0.0]]), np.zeros((1, 3)))


def draw(mesh, backend="zbuffer", *, size=64, supersample=3, lighting=STUDIO, poses=None):
    if poses is None:
        poses = viewpoints.sphere(4, seed=3, distance=viewpoints.fitting_distance(FOV))
    matrix = viewpoints.intrinsics(FOV, size, size)
    return render_views(
        mesh, poses, matrix, size=size, supersample=supersample, lighting=lighting, backend=backend
    )


def assert_agreement(mesh, *, flips=2e-3, **settings):
    """All but a few pixels at edges are the same to a step of 8 bits, and what differs cancels out."""
    found, truth = draw(mesh, **settings), draw(mesh, "embree", **settings)
    seen = (found.rgba[..., 3] > 0) | (truth.rgba[..., 3] > 0)
    assert seen.mean() > 0.03
    for name in ("rgba", "albedo", "normal"):
        differ = (getattr(found, name).astype(int) - getattr(truth, name))[seen]
        assert (np.abs(differ).max(axis=-1) > 1).mean() <= flips, name
        assert np.abs(differ.mean(axis=0)).max() < 0.02, name
    hit = (found.depth > 0) & (truth.depth > 0)
    assert ((found.depth > 0) != (truth.depth > 0)).mean() <= flips / 4
    assert (np.abs(found.depth - truth.depth)[hit] > 1e-5).mean() <= flips


@pytest.mark.parametrize("supersample", [1, 2, 3, 5])
def test_smooth_and_flat_surfaces_agree(ball, box, supersample):
    smooth = (ball.triangles / 0.8).astype(np.float32)
    assert_agreement(replace(ball, tint=np.abs(smooth), shading=smooth), supersample=supersample)
    assert_agreement(box, supersample=supersample)


def soup(rng, num=400, **kinds):
    """Random triangles with random colours, normals and textures, of several kinds of surface."""
    middles = rng.uniform(-0.8, 0.8, (num, 1, 3))
    vertices = (middles + rng.normal(0, 0.12, (num, 3, 3))).reshape(-1, 3)
    coarse, fine = (rng.integers(0, 256, (size, size, 4), dtype=np.uint8) for size in (2, 8))
    return Mesh(
        vertices=vertices, faces=np.arange(3 * num).reshape(num, 3),
        tint=rng.random((num, 3, 3)).astype(np.float32),
        shading=rng.normal(size=(num, 3, 3)).astype(np.float32),
        uv=rng.uniform(-1.5, 2.5, (num, 3, 2)).astype(np.float32), texture=rng.integers(-1, 2, num),
        cutoff=np.zeros(num, np.float32), textures=[coarse.repeat(4, 0).repeat(4, 1), fine], **kinds,
    )  # fmt: skip


@pytest.mark.parametrize("wrap", ["repeat", "clamp", "mirror"])
@pytest.mark.parametrize("nearest", [False, True])
def test_textures_agree_under_every_sampler(wrap, nearest):
    mesh = soup(np.random.default_rng(0), samplers=[Sampler(wrap, wrap, nearest)] * 2)
    # A texel's border is another edge; 3 x 3 rays on one side of it move a colour by a ninth.
    assert_agreement(mesh, flips=6e-3)


def test_layers_cut_outs_and_unlit_faces_agree():
    rng = np.random.default_rng(1)
    kind = rng.integers(0, 3, 400)
    mesh = replace(
        soup(rng), cutoff=np.choose(kind, np.float32([0, 0.5, BLEND])), unlit=rng.random(400) < 0.3,
        opacity=rng.uniform(0.2, 1, (400, 3)).astype(np.float32),
    )  # fmt: skip
    assert_agreement(mesh, flips=6e-3)


def test_many_small_faces_agree():
    dense = trimesh.creation.icosphere(subdivisions=6, radius=0.8)  # 20 faces a pixel
    normals = dense.vertices[dense.faces].astype(np.float32)
    mesh = replace(
        soup(np.random.default_rng(0), len(dense.faces)), vertices=dense.vertices, faces=dense.faces,
        shading=normals, texture=np.full(len(dense.faces), -1), tint=np.abs(normals),
    )  # fmt: skip
    assert_agreement(mesh, size=32)


def test_a_label_flush_on_a_surface_is_laid_over_it(make_soup):
    square = [[-9, 0, -9], [9, 0, -9], [9, 0, 9], [-9, 0, 9]]
    both = make_soup(square * 2, [[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    kinds = np.float32([0, 0, BLEND, BLEND])
    for order in ([0, 1, 2, 3], [2, 3, 0, 1]):
        mesh = replace(
            both, cutoff=kinds, opacity=np.full((4, 3), 0.5, np.float32)
        ).select(np.array(order))  # fmt: skip
        rgba = draw(mesh, poses=LOOK_ALONG_Y).rgba
        assert (rgba[..., 3] == 255).all()  # the surface is there, whether or not the label is


def test_no_ray_passes_between_faces_that_share_an_edge():
    """A bumpy sphere is opaque everywhere but near its rim."""
    sphere = trimesh.creation.icosphere(subdivisions=3, radius=0.8)
    sphere.vertices += np.random.default_rng(0).normal(0, 0.01, sphere.vertices.shape)
    mesh = replace(
        soup(np.random.default_rng(0), len(sphere.faces)), vertices=sphere.vertices, faces=sphere.faces,
        texture=np.full(len(sphere.faces), -1),
    )  # fmt: skip
    poses = viewpoints.sphere(16, seed=1, distance=viewpoints.fitting_distance(FOV))
    views = draw(mesh, poses=poses, size=96, supersample=4)
    y, x = np.mgrid[:96, :96] + 0.5 - 48
    distance, focal = viewpoints.fitting_distance(FOV), 48 / math.tan(FOV / 2)
    inner = np.hypot(x, y) < 0.9 * focal * 0.8 / math.sqrt(distance**2 - 0.8**2)
    assert inner.sum() > 1000
    assert (views.rgba[:, inner, 3] == 255).all()


# ---------------------------------------------------------------- hostile meshes


HOSTILE = {
    "nan": lambda v: np.where(np.arange(v.size).reshape(v.shape) % 50 == 0, np.nan, v),
    "infinite": lambda v: np.where(np.arange(v.size).reshape(v.shape) % 50 == 0, np.inf, v),
    "huge": lambda v: np.where(np.arange(v.size).reshape(v.shape) % 50 == 0, 1e30, v),
    "all huge": lambda v: v * 1e37,
    "tiny": lambda v: v * 1e-38,
    "one point": lambda v: v * 0,
    "behind the camera": lambda v: v - [0, 9, 0],
    "around the camera": lambda v: v * 9 - [0, 4, 0],
}


@pytest.mark.filterwarnings("ignore:overflow|invalid value:RuntimeWarning")
@pytest.mark.parametrize("kind", HOSTILE)
def test_any_vertices_are_survived(kind):
    rng = np.random.default_rng(0)
    mesh = replace(
        soup(rng), cutoff=rng.choice(np.float32([0, 0.5, BLEND]), 400),
        opacity=rng.random((400, 3)).astype(np.float32),
    )  # fmt: skip
    painter = zbuffer.ZBuffer(mesh, STUDIO, size=32, supersample=3, pixel=0.1)
    vertices = np.ascontiguousarray(HOSTILE[kind](mesh.vertices), np.float32)
    painter._mesh.vertices = painter._pointer(vertices, np.float32, zbuffer._FLOATS)
    planes = [np.zeros((32, 32, *tail), kind) for tail, kind in
              (((4,), np.uint8), ((), np.float32), ((3,), np.uint8), ((3,), np.uint8))]  # fmt: skip
    painter.draw(LOOK_ALONG_Y[0], viewpoints.intrinsics(FOV, 32, 32), tuple(planes))
    assert np.isfinite(planes[1]).all()
    if kind in ("behind the camera", "one point"):
        assert not planes[0].any()


def test_what_passes_the_cameras_plane_is_seen_as_the_ray_caster_sees_it():
    mesh = soup(np.random.default_rng(0), 60)
    inside = replace(mesh, vertices=mesh.vertices * 6, textures=[], texture=np.full(60, -1))
    pose = viewpoints.look_at(np.array([[0.3, -0.2, 0.1]]), np.array([[0.0, 9.0, 0.0]]))
    assert_agreement(inside, poses=pose)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_any_attributes_are_survived(value):
    rng = np.random.default_rng(0)
    for name in ("tint", "shading", "uv", "opacity"):
        mesh = replace(
            soup(rng), opacity=np.ones((400, 3), np.float32), cutoff=np.full(400, BLEND, np.float32)
        )
        getattr(mesh, name)[::3] = value
        views = zbuffer.ZBuffer(mesh, STUDIO, size=32, supersample=2, pixel=0.1)
        planes = (
            np.zeros((32, 32, 4), np.uint8), np.zeros((32, 32), np.float32),
            np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32, 3), np.uint8),
        )  # fmt: skip
        views.draw(LOOK_ALONG_Y[0], viewpoints.intrinsics(FOV, 32, 32), planes)
        assert np.isfinite(planes[1]).all()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"faces": np.full((400, 3), 1200)}, "faces indices"),
        ({"faces": np.full((400, 3), -1)}, "faces indices"),
        ({"texture": np.full(400, 2)}, "texture indices"),
        ({"tint": np.ones((399, 3, 3), np.float32)}, "tint have the shape"),
        ({"uv": np.ones((400, 3, 3), np.float32)}, "uv have the shape"),
        ({"textures": [np.zeros((0, 4, 4), np.uint8)] * 2}, "a texture of shape"),
        ({"textures": [np.zeros((4, 4, 4), np.float64)] * 2}, "a texture of float64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, complaint):
    mesh = soup(np.random.default_rng(0))
    for name, value in change.items():
        object.__setattr__(mesh, name, value)  # past the tests' own checks of shapes
    with pytest.raises(ValueError, match=complaint):
        zbuffer._check(mesh)


def test_a_pile_of_panes_is_cut_off_after_the_layers_that_the_ray_caster_passes(make_soup):
    square = np.array([[-9, 0, -9], [9, 0, -9], [9, 0, 9], [-9, 0, 9]], float)
    vertices = np.concatenate([square + np.array([0, 0.01 * n, 0]) for n in range(40)])
    faces = np.concatenate([np.array([[0, 1, 2], [0, 2, 3]]) + 4 * n for n in range(40)])
    thin = np.full((80, 3), 0.05, np.float32)
    mesh = replace(make_soup(vertices, faces), cutoff=np.full(80, BLEND, np.float32), opacity=thin)
    for order in (slice(None), slice(None, None, -1)):
        rgba = draw(mesh.select(np.arange(80)[order]), poses=LOOK_ALONG_Y, lighting=UNLIT).rgba
        np.testing.assert_array_equal(rgba[..., 3], round(255 * (1 - 0.95**16)))


# ---------------------------------------------------------------- determinism


def _in_a_child(mesh, queue):
    queue.put(draw(mesh).rgba.tobytes())


def test_the_same_bytes_again_and_in_a_fork():
    mesh = replace(soup(np.random.default_rng(2)), cutoff=np.full(400, BLEND, np.float32),
                   opacity=np.full((400, 3), 0.4, np.float32))  # fmt: skip
    here = draw(mesh).rgba.tobytes()
    assert draw(mesh).rgba.tobytes() == here
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_a_child, args=(mesh, queue))
    child.start()
    assert queue.get(timeout=60) == here
    child.join()


def test_a_large_picture_in_bands_is_the_small_one_enlarged(box):
    """At 640 a pass takes two bands and several batches; each pixel must still see what its rays see."""
    assert_agreement(box, size=640, supersample=4, poses=LOOK_ALONG_Y)
