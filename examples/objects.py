"""From a prompt to files: python examples/objects.py MODEL OUT [--prompt "a red chair"] [--steps 32]

MODEL is a run folder, a saved pipeline, or a hub's owner/name. OUT gets a GLB, an OBJ, a picture with alpha,
the latent, and the pipeline itself as others would load it.
"""

import argparse
from pathlib import Path

from PIL import Image

from sampling.mesh import MeshConfig
from sampling.pipeline import ShapePipeline


def main(argv: list[str] | None = None) -> None:
    """Makes all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompt", default="a red chair")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--resolution", type=int, default=128, help="of the isosurface")
    parser.add_argument("--size", type=int, default=128, help="of pictures, in pixels")
    options = parser.parse_args(argv)
    pipe = ShapePipeline.from_pretrained(options.model)
    shape = pipe(options.prompt, steps=options.steps, guidance_scale=3.0, seed=0)[0]
    fine = MeshConfig(resolution=options.resolution, max_faces=10_000, texture_size=512)
    for suffix in (".glb", ".obj", ".safetensors"):
        shape.save(options.out / f"object{suffix}", mesh=fine)
    rgba = shape.render(height=options.size, width=options.size, alpha=True)[0]
    Image.fromarray(rgba).save(options.out / "object.png")
    if pipe.parts is not None:
        pipe.save_pretrained(options.out / "pipeline", licence="Apache-2.0")


if __name__ == "__main__":
    main()
