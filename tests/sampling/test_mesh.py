"""Meshes, atlases, textures and exports against a coloured sphere and torus in closed form."""

import io
import sys
import zipfile

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from torch import Tensor

from sampling.export import Z_UP_TO_Y_UP, TexturedMesh
from sampling.mesh import Mesh, MeshConfig, field_to_mesh
from sampling.texture import Atlas, bake, rasterize, unwrap
from sampling.topology import drop_crumbs, simplify, split_creases
from shapeloom.color import srgb_to_linear
from shapeloom.config import UserError

SIZE = 256


def ball(p: Tensor) -> Tensor:
    return p.norm(dim=-1) - 0.7


def colour(p: Tensor) -> Tensor:
    """Every place has its own colour, smoothly."""
    return (p / 2 + 0.5).clamp(0, 1)


def srgb_at(points: np.ndarray) -> np.ndarray:
    return 255 * (points / 2 + 0.5)


@pytest.fixture(scope="module")
def textured() -> TexturedMesh:
    mesh = field_to_mesh(ball, colour, MeshConfig(resolution=64, max_faces=3000))
    atlas = unwrap(mesh.vertices, mesh.faces, size=SIZE)
    return TexturedMesh(mesh, atlas, bake(mesh, atlas, colour, size=SIZE))


def colours_by_uv(mesh: trimesh.Trimesh, texture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points inside faces and the texels that a viewer finds there."""
    weights = np.array([0.5, 0.3, 0.2])
    points = np.einsum("fcx,c->fx", mesh.vertices[mesh.faces], weights)
    u, v = np.einsum("fcx,c->fx", mesh.visual.uv[mesh.faces], weights).T
    size = len(texture)
    row, column = ((1 - v) * size).astype(int), (u * size).astype(int)
    return points, texture[row.clip(0, size - 1), column.clip(0, size - 1)].astype(float)


def test_the_mesh_fits_its_budget_and_stays_on_the_surface(textured):
    mesh = textured.mesh
    assert 1500 < len(mesh.faces) <= 3000
    # A triangle of 3000 on this sphere has sides of 0.07: its corners stay within a tenth of that.
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices, axis=1), 0.7, atol=0.007)
    assert trimesh.Trimesh(mesh.vertices, mesh.faces).is_watertight


def test_normals_and_vertex_colours_are_the_fields_own(textured):
    mesh = textured.mesh
    radial = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
    assert (mesh.normals * radial).sum(axis=1).min() > 0.999
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(mesh.colours, srgb_at(mesh.vertices), atol=0.51)


def test_crumbs_go_and_parts_stay():
    def parts(p: Tensor) -> Tensor:
        leg = (p - torch.tensor([0.8, 0.0, 0.0])).norm(dim=-1) - 0.15
        crumb = (p - torch.tensor([0.8, 0.8, 0.8])).norm(dim=-1) - 0.03
        return torch.stack([p.norm(dim=-1) - 0.5, leg, crumb]).amin(0)

    mesh = field_to_mesh(parts, colour, MeshConfig(resolution=64, min_component=0.01))
    assert trimesh.Trimesh(mesh.vertices, mesh.faces).body_count == 2
    crumb_alone = field_to_mesh(ball, colour, MeshConfig(resolution=32, min_component=1.0))
    assert len(crumb_alone.faces) > 0


def test_as_many_of_the_largest_parts_stay_as_asked_for():
    def parts(p: Tensor) -> Tensor:
        centres = torch.tensor([[-0.6, 0, 0], [0.1, 0, 0], [0.7, 0, 0]])
        return ((p[:, None] - centres).norm(dim=-1) - torch.tensor([0.3, 0.25, 0.2])).amin(1)

    for count in (1, 2):
        mesh = field_to_mesh(parts, colour, MeshConfig(resolution=48, max_components=count))
        assert trimesh.Trimesh(mesh.vertices, mesh.faces).body_count == count
        assert mesh.vertices[:, 0].min() == pytest.approx(-0.9, abs=0.02)


def test_solid_meshes_have_no_hollows_and_no_holes():
    def shell(p: Tensor) -> Tensor:
        return ball(p).abs() - 0.1

    hollow = field_to_mesh(shell, colour, MeshConfig(resolution=48, solid=False))
    assert trimesh.Trimesh(hollow.vertices, hollow.faces).body_count == hollow.num_parts == 2
    solid = field_to_mesh(shell, colour, MeshConfig(resolution=48, max_faces=500))
    filled = trimesh.Trimesh(solid.vertices, solid.faces)
    assert filled.body_count == solid.num_parts == 1
    assert filled.is_watertight
    assert filled.volume == pytest.approx(4 / 3 * np.pi * 0.8**3, rel=0.03)


def test_what_floats_in_a_hollow_goes_with_it_and_neighbours_stay():
    def nested(p: Tensor) -> Tensor:
        shell = ((p + torch.tensor([0.3, 0, 0])).norm(dim=-1) - 0.5).abs() - 0.08
        kernel = (p + torch.tensor([0.3, 0, 0])).norm(dim=-1) - 0.2
        neighbour = (p - torch.tensor([0.7, 0, 0])).norm(dim=-1) - 0.2
        return torch.stack([shell, kernel, neighbour]).amin(0)

    assert field_to_mesh(nested, colour, MeshConfig(resolution=48, solid=False)).num_parts == 4
    mesh = field_to_mesh(nested, colour, MeshConfig(resolution=48))
    assert mesh.num_parts == 2
    assert trimesh.Trimesh(mesh.vertices, mesh.faces).volume == pytest.approx(
        4 / 3 * np.pi * (0.58**3 + 0.2**3), rel=0.03
    )


def box(p: Tensor) -> Tensor:
    outside = p.abs() - 0.6
    return outside.clamp(min=0).norm(dim=-1) + outside.amax(-1).clamp(max=0)


def test_sharp_normals_are_the_faces_own_up_to_the_creases():
    mesh = field_to_mesh(box, colour, MeshConfig(resolution=40, max_faces=100_000, normals="sharp"))
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    flat = np.cross(b - a, c - a)
    area = np.linalg.norm(flat, axis=1)
    flat /= np.maximum(area, 1e-12)[:, None]
    on_sides = np.abs(flat).max(axis=1) > 0.999
    assert area[on_sides].sum() > 0.97 * area.sum()
    turned = (mesh.normals[mesh.faces[on_sides]] * flat[on_sides, None]).sum(axis=-1)
    assert turned.min() > 0.9
    smooth = field_to_mesh(box, colour, MeshConfig(resolution=40, max_faces=100_000))
    assert len(smooth.vertices) < len(mesh.vertices)


def test_creases_split_a_cube_into_its_six_sides_and_leave_a_ball_whole():
    cube = trimesh.creation.box().subdivide()
    vertices, faces = split_creases(cube.vertices, cube.faces, degrees=40.0)
    assert trimesh.Trimesh(vertices, faces, process=False).body_count == 6
    np.testing.assert_array_equal(vertices[faces], cube.vertices[cube.faces])
    sphere = trimesh.creation.icosphere(subdivisions=3)
    vertices, faces = split_creases(sphere.vertices, sphere.faces, degrees=40.0)
    assert len(vertices) == len(sphere.vertices)


def test_empty_fields_give_empty_meshes_that_refuse_to_be_saved(tmp_path):
    mesh = field_to_mesh(lambda p: torch.ones(len(p)), colour, MeshConfig(resolution=16))
    assert mesh.vertices.shape == mesh.normals.shape == mesh.colours.shape == (0, 3)
    with pytest.raises(UserError, match=r"no surface to write to a\.glb"):
        TexturedMesh(mesh).save(tmp_path / "a.glb")
    with pytest.raises(ValueError, match="can't be unwrapped"):
        unwrap(mesh.vertices, mesh.faces, size=64)
    no_faces = drop_crumbs(mesh.vertices, mesh.faces, min_share=0.1)
    assert len(simplify(*no_faces, max_faces=10)[1]) == 0


def test_rasterize_finds_the_face_and_place_of_each_texel():
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    face, barycentric = rasterize(uv, np.array([[0, 1, 2], [0, 2, 3]]), size=8)
    assert (face >= 0).all()
    rows, columns = np.mgrid[:8, :8]
    u, v = (columns + 0.5) / 8, 1 - (rows + 0.5) / 8
    assert (face[u > v] == 0).all()
    assert (face[u < v] == 1).all()
    corners = uv[np.array([[0, 1, 2], [0, 2, 3]])[face]]
    np.testing.assert_allclose((corners * barycentric[..., None]).sum(2), np.stack([u, v], -1), atol=1e-6)
    outside, _ = rasterize(uv[:3] * 0.5, np.array([[0, 1, 2], [0, 0, 1]]), size=8)
    assert (outside[:4] == -1).all()
    assert (outside[4:, :4] >= 0).sum() == 10


@pytest.mark.parametrize("chunk_faces", [400, 10_000])
def test_atlases_keep_the_faces_and_do_not_overlap(textured, monkeypatch, chunk_faces):
    # Charts of several chunks share one atlas.
    monkeypatch.setattr("sampling.texture.CHUNK_FACES", chunk_faces)
    mesh = textured.mesh
    atlas = unwrap(mesh.vertices, mesh.faces, size=SIZE)
    ours = np.sort(np.sort(mesh.faces, axis=1).view("i8,i8,i8").ravel())
    theirs = np.sort(np.sort(atlas.origin[atlas.faces], axis=1).view("i8,i8,i8").ravel())
    np.testing.assert_array_equal(ours, theirs)
    assert atlas.uv.min() >= 0
    assert atlas.uv.max() <= 1
    corners = atlas.uv[atlas.faces].astype(float)
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]).sum() / 2
    face, _ = rasterize(atlas.uv, atlas.faces, size=1024)
    # What the triangles cover together is as much as they have: nothing lies on top of another.
    assert (face >= 0).mean() == pytest.approx(area, rel=0.01)
    assert area > 0.4


def test_the_texture_shows_each_place_its_colour(textured):
    assert textured.texture.shape == (SIZE, SIZE, 3)
    assert textured.texture.dtype == np.uint8
    atlas = textured.atlas
    visual = trimesh.visual.TextureVisuals(uv=atlas.uv)
    mesh = trimesh.Trimesh(textured.mesh.vertices[atlas.origin], atlas.faces, visual=visual, process=False)
    points, found = colours_by_uv(mesh, textured.texture)
    # A texel is 0.01 wide here or so, 1.3 of 255 in colour; seams look up a neighbour.
    assert np.abs(found - srgb_at(points)).max() < 5


def test_large_textures_are_baked_in_bands_to_the_same_picture(textured, monkeypatch):
    monkeypatch.setattr("sampling.texture.TEXELS_AT_ONCE", 3000)
    np.testing.assert_array_equal(bake(textured.mesh, textured.atlas, colour, size=SIZE), textured.texture)


def test_charts_smaller_than_a_texel_still_get_a_colour(textured):
    atlas = Atlas(textured.atlas.origin, textured.atlas.faces, textured.atlas.uv * 0)
    picture = bake(textured.mesh, atlas, colour, size=4)
    assert (picture == textured.mesh.colours[0]).all()


def test_glb_comes_back_y_up_with_its_texture(textured, tmp_path):
    textured.save(tmp_path / "ball.glb")
    assert (tmp_path / "ball.glb").read_bytes() == textured.glb()
    scene = trimesh.load_scene(tmp_path / "ball.glb")
    (back,) = scene.geometry.values()
    material = back.visual.material
    assert (material.metallicFactor, material.roughnessFactor, material.doubleSided) == (0, 0.8, True)
    picture = np.array(material.baseColorTexture.convert("RGB"))
    np.testing.assert_array_equal(picture, textured.texture)
    normals = back.vertex_normals @ Z_UP_TO_Y_UP
    np.testing.assert_allclose(normals, textured.mesh.normals[textured.atlas.origin], atol=1e-6)
    back.vertices = back.vertices @ Z_UP_TO_Y_UP
    expected = textured.mesh.vertices[textured.atlas.origin]
    np.testing.assert_allclose(back.vertices, expected, atol=1e-6)
    points, found = colours_by_uv(back, picture)
    assert np.abs(found - srgb_at(points)).max() < 5


def test_up_becomes_gltfs_up():
    np.testing.assert_array_equal(Z_UP_TO_Y_UP @ [0, 0, 1], [0, 1, 0])
    # -Y, where objects face, is glTF's front, +Z; and nothing is mirrored.
    np.testing.assert_array_equal(Z_UP_TO_Y_UP @ [0, -1, 0], [0, 0, 1])
    assert np.linalg.det(Z_UP_TO_Y_UP) == pytest.approx(1)


def test_ply_comes_back_with_srgb_colours_and_normals(textured, tmp_path):
    textured.save(tmp_path / "ball.ply")
    (back,) = trimesh.load_scene(tmp_path / "ball.ply", process=False).geometry.values()
    np.testing.assert_allclose(back.vertices, textured.mesh.vertices, atol=1e-6)
    np.testing.assert_array_equal(back.faces, textured.mesh.faces)
    np.testing.assert_array_equal(back.visual.vertex_colors[:, :3], textured.mesh.colours)
    np.testing.assert_allclose(back.vertex_normals, textured.mesh.normals, atol=1e-6)


def test_obj_comes_back_y_up_with_its_texture(textured, tmp_path):
    textured.save(tmp_path / "ball.obj")
    assert {path.name for path in tmp_path.iterdir()} == {"ball.obj", "ball.mtl", "ball_texture.png"}
    back = trimesh.load_mesh(tmp_path / "ball.obj", process=False)
    back.vertices = back.vertices @ Z_UP_TO_Y_UP
    points, found = colours_by_uv(back, np.array(back.visual.material.image.convert("RGB")))
    assert np.abs(found - srgb_at(points)).max() < 5


def test_stl_comes_back_as_the_bare_surface(textured, tmp_path):
    textured.save(tmp_path / "ball.stl")
    back = trimesh.load_mesh(tmp_path / "ball.stl")
    assert back.is_watertight
    np.testing.assert_allclose(back.triangles, textured.mesh.vertices[textured.mesh.faces], atol=1e-6)


def test_usdz_comes_back_y_up_in_metres_with_its_texture(textured, tmp_path):
    pytest.importorskip("pxr")
    from pxr import Usd, UsdGeom, UsdValidation

    textured.save(tmp_path / "ball.usdz")
    stage = Usd.Stage.Open(str(tmp_path / "ball.usdz"))
    assert (UsdGeom.GetStageUpAxis(stage), UsdGeom.GetStageMetersPerUnit(stage)) == ("Y", 1)
    mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/object/mesh"))
    points = np.array(mesh.GetPointsAttr().Get()) @ Z_UP_TO_Y_UP
    np.testing.assert_allclose(points, textured.mesh.vertices[textured.atlas.origin], atol=1e-6)
    uv = np.array(UsdGeom.PrimvarsAPI(mesh).GetPrimvar("st").Get())
    np.testing.assert_array_equal(uv, textured.atlas.uv)
    with zipfile.ZipFile(tmp_path / "ball.usdz") as package:
        (name,) = [each for each in package.namelist() if each.endswith(".png")]
        picture = np.array(Image.open(io.BytesIO(package.read(name))))
    np.testing.assert_array_equal(picture, textured.texture)
    TexturedMesh(textured.mesh).save(tmp_path / "plain.usdz")
    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    for file in ("ball.usdz", "plain.usdz"):
        stage = Usd.Stage.Open(str(tmp_path / file))
        assert UsdValidation.ValidationContext(validators).Validate(stage) == []


def test_without_openusd_the_error_says_what_to_install(textured, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pxr", None)
    with pytest.raises(UserError, match=r"pip install 'shapeloom\[usd\]'"):
        textured.save(tmp_path / "ball.usdz")


def test_glb_without_a_texture_has_linear_vertex_colours(textured, tmp_path):
    plain = TexturedMesh(textured.mesh)
    plain.save(tmp_path / "plain.glb")
    (back,) = trimesh.load_scene(tmp_path / "plain.glb").geometry.values()
    expected = 255 * srgb_to_linear(textured.mesh.colours / 255)
    np.testing.assert_allclose(back.visual.vertex_colors[:, :3], expected, atol=1)


def test_unknown_suffixes_are_refused(textured, tmp_path):
    with pytest.raises(UserError, match=r"\.stl, \.usdz, not as a\.fbx"):
        textured.save(tmp_path / "a.fbx")


def test_a_vertex_whose_normals_cancel_gets_a_unit_normal():
    flat = np.array([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0]], np.float32)
    both_sides = np.array([[0, 1, 2], [0, 2, 1]])
    from sampling.mesh import _normals

    normals = _normals(lambda p: p[:, 0] * 0, flat, both_sides, step=0.1, device="cpu")
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)
    assert Mesh(flat, both_sides, normals, np.zeros((3, 3), np.uint8)).faces.shape == (2, 3)
