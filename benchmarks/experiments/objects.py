"""python -m benchmarks.experiments.objects --model RUN --out OUT [--num 1000] [--validator]: sound GLBs?

Saves --num objects as OUT/NNNN.glb, of the run's own captions where it has them, else of prompts of the
embedded data set, and reports

- how many are broken, and how: no surface, crumbs, specks,
- of the others how many are watertight in the file as well (vertices joined by place), how many have a shell
  inside that nobody can see, how many parts and faces they have beside the faces that were asked for,
- CPU seconds from latent to file, of one thread,
- how far the texture that trimesh reads is from the field's colour at 10,000 points of it, in 255ths,
- whether the page's viewer shows them, where there are a Chromium and playwright,
- with --validator what Khronos's glTF validator finds; npm fetches it into OUT.

OUT/objects.json has a line for each. The exit status is 1 if any object that is written fails; broken ones
are counted, and those without a surface have no file.
"""

import argparse
import base64
import json
import shutil
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import trimesh
from scipy.ndimage import map_coordinates

from data_prep.procedural.dataset import COLOURS, FAMILIES
from sampling.export import Z_UP_TO_Y_UP
from sampling.mesh import MeshConfig, sample_colours
from sampling.pipeline import ShapePipeline
from sampling.prompts import own_prompts
from sampling.shape import ShapeSample
from sampling.topology import fill_cavities, is_watertight, part_areas
from shapeloom import viewer
from shapeloom.log import progress
from shapeloom.storage import write_atomic

POINTS = 10_000
LARGEST_ERROR = 3 / 255
BATCH = 8
VALIDATOR = "gltf-validator@2.0.0-dev.3.10"
_VALIDATE = """
const fs = require('fs'), validator = require('gltf-validator');
(async () => {
  const found = {};
  for (const path of process.argv.slice(1)) {
    const {issues} = await validator.validateBytes(new Uint8Array(fs.readFileSync(path)));
    found[path] = [issues.numErrors, issues.numWarnings];
  }
  console.log(JSON.stringify(found));
})();
"""


def prompts(num: int) -> list[str]:
    """Returns `num` prompts, families changing fastest; the same one again only after all of them."""
    pairs = [f"a {colour} {family}" for colour in COLOURS for family in FAMILIES]
    return [pairs[i % len(pairs)] for i in range(num)]


def texture_error(path: Path, shape: ShapeSample) -> float:
    """Returns how far the file's bilinear texture is from the field's colour: a mean in [0, 1]."""
    (mesh,) = trimesh.load_scene(path).geometry.values()
    points, faces = trimesh.sample.sample_surface(mesh, POINTS, seed=0)
    corners = trimesh.triangles.points_to_barycentric(mesh.triangles[faces], points)
    uv = (mesh.visual.uv[mesh.faces[faces]] * corners[..., None]).sum(axis=1)
    picture = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB"), np.float64)
    size = picture.shape[0]
    at = np.stack([(1 - uv[:, 1]) * size - 0.5, uv[:, 0] * size - 0.5])
    baked = np.stack(
        [map_coordinates(picture[..., i], at, order=1, mode="nearest") for i in range(3)], axis=1
    )
    field = sample_colours(
        lambda points: shape.decoder.texture(shape.weights, points), points @ Z_UP_TO_Y_UP
    )  # fmt: skip
    return float(np.abs(baked - field).mean() / 255)


def not_shown(paths: Sequence[Path]) -> list[str] | None:
    """Returns what the page's viewer says of files that it can't show; None where there is no browser."""
    browser, library = shutil.which("chromium") or shutil.which("google-chrome"), viewer.library()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if browser is None or library is None:
        return None
    box = "<div id=box style='width:400px;height:400px'></div>"
    html = f"{box}<script>{library}</script><script>{viewer.CODE}</script>"
    show = """async data => {
      const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)).buffer;
      window.view ??= shapeloomViewer(document.getElementById('box'));
      return await new Promise(end => window.view.show(bytes, () => end(''), error => end(String(error))));
    }"""
    problems = []
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        chromium = playwright.chromium.launch(executable_path=browser, args=flags)
        page = chromium.new_page()
        page.set_content(html)
        for path in paths:
            error = page.evaluate(show, base64.b64encode(path.read_bytes()).decode())
            problems += [f"{path.name}: {error}"] if error else []
        chromium.close()
    return problems


def validate(paths: Sequence[Path], folder: Path) -> list[str]:
    """Returns the files in which Khronos's validator finds errors or warnings, with their numbers."""
    subprocess.run(["npm", "install", "--silent", "--prefix", folder, VALIDATOR], check=True)
    command = ["node", "-e", _VALIDATE, *(str(path.resolve()) for path in paths)]
    found = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    issues = json.loads(found.stdout).items()
    return [
        f"{Path(path).name}: {errors} errors, {warnings} warnings"
        for path, (errors, warnings) in issues
        if errors or warnings
    ]


@dataclass(frozen=True)
class Object:
    """What was found of one object; error: of its texture, in [0, 1]."""

    name: str
    fault: str
    parts: int
    faces: int
    watertight: bool
    inner_shells: int
    error: float
    seconds: float

    def problems(self, max_faces: int) -> list[str]:
        """What is wrong with the file."""
        found = {
            "is not watertight": not self.watertight,
            f"has {self.inner_shells} inner shells": self.inner_shells > 0,
            f"has {self.faces} faces, more than {max_faces}": self.faces > max_faces,
            f"has a texture {self.error * 255:.1f}/255 from the field": self.error > LARGEST_ERROR,
        }
        return [f"{self.name} {what}" for what, is_so in found.items() if is_so]


def make_object(shape: ShapeSample, path: Path, config: MeshConfig) -> Object:
    """Writes an object, if it has a surface, and examines the file."""
    start = time.process_time()
    mesh = shape.mesh(config)
    fault = mesh.mesh.surface.fault
    if not mesh.num_faces:
        return Object(path.name, fault, 0, 0, False, 0, 0.0, time.process_time() - start)
    mesh.save(path)
    seconds = time.process_time() - start
    (back,) = trimesh.load_scene(path).geometry.values()
    joined = trimesh.Trimesh(back.vertices, back.faces)
    joined.merge_vertices(merge_tex=True, merge_norm=True)
    parts = len(part_areas(joined.vertices, joined.faces))
    outer = fill_cavities(joined.vertices, joined.faces)
    return Object(
        path.name, fault, parts, len(joined.faces), is_watertight(joined.faces),
        parts - len(part_areas(*outer)), texture_error(path, shape), round(seconds, 3),
    )  # fmt: skip


def report(objects: Sequence[Object], config: MeshConfig) -> None:
    """Prints what was found of all objects."""
    faults = Counter(each.fault or "sound" for each in objects)
    print(f"{len(objects)} objects: " + ", ".join(f"{num} {name}" for name, num in faults.most_common()))
    files = [each for each in objects if each.faces]
    if not files:
        return
    tight, shells = sum(each.watertight for each in files), sum(each.inner_shells > 0 for each in files)
    whole = sum(each.parts == 1 for each in files)
    print(f"{len(files)} files: {tight} watertight, {shells} with inner shells, {whole} of one part")
    faces = sorted(each.faces for each in files)
    print(
        f"faces: {config.max_faces} asked for at most, median {faces[len(faces) // 2]}, at most {faces[-1]}"
    )
    seconds, errors = [each.seconds for each in files], [each.error * 255 for each in files]
    print(f"latent to GLB: median {statistics.median(seconds):.2f} CPU-s, at most {max(seconds):.2f}")
    print(f"texture: {statistics.mean(errors):.2f}/255 from the field, at most {max(errors):.2f}/255")


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the objects and prints what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments.objects", description=__doc__)
    parser.add_argument("--model", required=True, help="a run or saved pipeline folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=100)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--max-faces", type=int, default=6_000)
    parser.add_argument("--validator", action="store_true", help="fetch and ask Khronos's glTF validator")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    pipeline = ShapePipeline.from_pretrained(options.model)
    own = [] if pipeline.parts is None else own_prompts(pipeline.parts.prior, options.num)
    texts = [own[i % len(own)] for i in range(options.num)] if own else prompts(options.num)
    config = MeshConfig(resolution=96, max_faces=options.max_faces, texture_size=512)
    options.out.mkdir(parents=True, exist_ok=True)
    objects: list[Object] = []
    with progress(options.num, "objects") as bar:
        for start in range(0, options.num, BATCH):
            seeds = list(range(start, min(start + BATCH, options.num)))
            for i, shape in zip(
                seeds, pipeline([texts[i] for i in seeds], seeds=seeds, steps=options.steps), strict=True
            ):
                objects.append(make_object(shape, options.out / f"{i:04d}.glb", config))
                bar.advance()
    write_atomic(options.out / "objects.json", json.dumps([asdict(each) for each in objects], indent=1))
    report(objects, config)
    paths = [options.out / each.name for each in objects if each.faces]
    problems = [what for each in objects if each.faces for what in each.problems(options.max_faces)]
    unseen = not_shown(paths)
    print("viewer: no browser here" if unseen is None else f"viewer: {len(paths) - len(unseen)} shown")
    problems += unseen or []
    if options.validator:
        invalid = validate(paths, options.out)
        print(f"validator: {len(paths) - len(invalid)} without errors and warnings")
        problems += invalid
    print("\n".join(problems) or "no problems")
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
