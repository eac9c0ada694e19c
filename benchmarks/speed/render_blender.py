"""PYTHON-WITH-BPY render_blender.py FOLDER SAMPLES: Cycles' side of `benchmarks.speed.render`.

Imports none of our packages. Reads FOLDER/scene.npz and texture.png; writes SPP_VIEW.png and seconds.json,
CPU seconds a view for each number of samples. Diffuse surfaces, sun lights, a white world for ambient light,
no bounces, depth and normal passes.
"""

import json
import math
import sys
import time
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix, Vector


def build(scene, data, texture: str) -> None:
    """The mesh with its texture and the lights."""
    for item in list(bpy.data.objects):
        bpy.data.objects.remove(item)
    mesh = bpy.data.meshes.new("asset")
    mesh.from_pydata(data["vertices"].tolist(), [], data["faces"].tolist())
    mesh.uv_layers.new().data.foreach_set("uv", data["uv"].reshape(-1))
    mesh.polygons.foreach_set("use_smooth", np.ones(len(data["faces"]), bool))
    mesh.normals_split_custom_set(data["normals"].reshape(-1, 3).tolist())
    material = bpy.data.materials.new("diffuse")
    material.use_nodes = True
    nodes, links = material.node_tree.nodes, material.node_tree.links
    nodes.clear()
    kinds = ("TexImage", "BsdfDiffuse", "OutputMaterial")
    image, diffuse, output = (nodes.new(f"ShaderNode{kind}") for kind in kinds)
    image.image = bpy.data.images.load(texture)
    links.new(image.outputs["Color"], diffuse.inputs["Color"])
    links.new(diffuse.outputs["BSDF"], output.inputs["Surface"])
    mesh.materials.append(material)
    scene.collection.objects.link(bpy.data.objects.new("asset", mesh))
    for direction, intensity in zip(data["lights"], data["intensities"], strict=True):
        light = bpy.data.lights.new("sun", "SUN")
        light.energy, light.angle, light.use_shadow = math.pi * float(intensity), 0.0, False
        sun = bpy.data.objects.new("sun", light)
        sun.rotation_euler = Vector(direction).to_track_quat("Z", "Y").to_euler()
        scene.collection.objects.link(sun)
    scene.world = bpy.data.worlds.new("ambient")
    scene.world.use_nodes = True
    background = scene.world.node_tree.nodes["Background"]
    background.inputs["Color"].default_value = (*[float(data["ambient"])] * 3, 1)


def configure(scene, data) -> None:
    """Cycles on one thread, without bounces."""
    scene.render.engine = "CYCLES"
    scene.cycles.device, scene.cycles.use_denoising, scene.cycles.use_adaptive_sampling = "CPU", False, False
    scene.cycles.max_bounces = 0
    scene.render.threads_mode, scene.render.threads = "FIXED", 1
    scene.render.resolution_x = scene.render.resolution_y = int(data["size"])
    scene.render.film_transparent, scene.render.use_persistent_data = True, True
    scene.render.image_settings.color_mode = "RGBA"
    scene.view_settings.view_transform = "Standard"
    layer = scene.view_layers[0]
    layer.use_pass_z = layer.use_pass_normal = True
    lens = bpy.data.cameras.new("camera")
    lens.angle = float(data["fov"])
    scene.camera = bpy.data.objects.new("camera", lens)
    scene.collection.objects.link(scene.camera)


def main() -> None:
    """Renders every view at every number of samples."""
    folder, samples = Path(sys.argv[1]), json.loads(sys.argv[2])
    data, scene = np.load(folder / "scene.npz"), bpy.context.scene
    build(scene, data, str(folder / "texture.png"))
    configure(scene, data)
    opencv = Matrix.Diagonal((1, -1, -1, 1))  # Blender's cameras look along -z, with y up
    seconds = []
    for spp in [samples[0], *samples]:  # the first time warms up
        scene.cycles.samples = spp
        start = time.process_time()
        for number, pose in enumerate(data["poses"]):
            scene.camera.matrix_world = Matrix(pose.tolist()) @ opencv
            scene.render.filepath = str(folder / f"{spp}_{number}.png")
            bpy.ops.render.render(write_still=True)
        seconds.append((time.process_time() - start) / len(data["poses"]))
    (folder / "seconds.json").write_text(json.dumps(seconds[1:]))


if __name__ == "__main__":
    main()
