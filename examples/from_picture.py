"""From a picture to objects that follow it: python examples/from_picture.py MODEL PICTURE OUT [--prompt ...]

OUT gets a GLB of each, and a strip with pictures of all of them. With a prompt they follow both.
"""

import argparse
from pathlib import Path

from PIL import Image

from sampling.cutouts import load_image
from sampling.edit import strip
from sampling.mesh import MeshConfig
from sampling.pipeline import ShapePipeline


def main(argv: list[str] | None = None) -> None:
    """Makes all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("picture", type=Path, help="PNG or JPEG")
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompt", default="")
    parser.add_argument("--num", type=int, default=4)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--resolution", type=int, default=128, help="of the isosurface")
    parser.add_argument("--size", type=int, default=128, help="of pictures, in pixels")
    options = parser.parse_args(argv)
    pipe = ShapePipeline.from_pretrained(options.model)
    shapes = pipe(
        options.prompt, image=load_image(options.picture), num_samples=options.num, steps=options.steps
    )
    for number, shape in enumerate(shapes):
        fine = MeshConfig(resolution=options.resolution, max_faces=10_000, texture_size=512)
        shape.save(options.out / f"object_{number}.glb", mesh=fine)
    labels = [f"seed {shape.seed}" for shape in shapes]
    Image.fromarray(strip(shapes, labels, size=options.size)).save(options.out / "strip.png")


if __name__ == "__main__":
    main()
