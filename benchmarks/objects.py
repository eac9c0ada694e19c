"""python -m benchmarks.objects --model RUN --out OUT [--num 100] [--validator]: are the GLBs sound?

Saves --num objects of prompts of the embedded data set as OUT/NNN.glb and reports

- CPU seconds from latent to file, of one thread,
- whether trimesh reads them again, and how far the texture that it reads is from the field's colour at 10,000
  points of the surface, in 255ths,
- whether the page's viewer shows them, where there are a Chromium and playwright,
- with --validator what Khronos's glTF validator finds; npm fetches it into OUT.

The exit status is 1 if any object fails. An object without a surface is counted and has no file.
"""

import argparse
import base64
import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import trimesh
from scipy.ndimage import map_coordinates

from data_prep.procedural import COLOURS, FAMILIES
from sampling.export import Z_UP_TO_Y_UP
from sampling.mesh import MeshConfig, sample_colours
from sampling.pipeline import ShapePipeline
from sampling.shape import ShapeSample
from shapeloom import viewer
from shapeloom.log import progress

POINTS = 10_000
LARGEST_ERROR = 3 / 255
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


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the objects and prints what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objects", description=__doc__)
    parser.add_argument("--model", required=True, help="a run or saved pipeline folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=100)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--max-faces", type=int, default=6_000)
    parser.add_argument("--validator", action="store_true", help="fetch and ask Khronos's glTF validator")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    pipeline = ShapePipeline.from_pretrained(options.model)
    config = MeshConfig(resolution=96, max_faces=options.max_faces, texture_size=512)
    options.out.mkdir(parents=True, exist_ok=True)
    paths, seconds, errors = [], [], []
    with progress(options.num, "objects") as bar:
        for i, prompt in enumerate(prompts(options.num)):
            (shape,) = pipeline(prompt, seed=i, steps=options.steps)
            start, path = time.process_time(), options.out / f"{i:03d}.glb"
            mesh = shape.mesh(config)
            if mesh.num_faces:
                mesh.save(path)
                seconds.append(time.process_time() - start)
                paths.append(path)
                errors.append(texture_error(path, shape))
            bar.advance()
    problems = [
        f"{path.name}: the texture is {error * 255:.1f}/255 from the field"
        for path, error in zip(paths, errors, strict=True)
        if error > LARGEST_ERROR
    ]
    print(f"{len(paths)} objects with a surface, {options.num - len(paths)} without")
    if paths:
        print(f"latent to GLB: median {statistics.median(seconds):.2f} CPU-s, at most {max(seconds):.2f}")
        mean, largest = statistics.mean(errors) * 255, max(errors) * 255
        print(f"texture: {mean:.2f}/255 from the field, at most {largest:.2f}/255")
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
