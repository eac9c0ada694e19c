"""Edits of a shape, a strip of pictures each: python examples/edits.py MODEL OUT [--shape FILE]

FILE is a latent (.safetensors), a 3D file (which the model's encoder makes a latent of) or a picture; without
one the first prompt is sampled. OUT gets vary.png (re-noised by more and more), repaint.png (the surface is
kept), reshape.png (the look is kept), walk.png (latent to latent) and morph.png (prompt to prompt).
"""

import argparse
from pathlib import Path

from PIL import Image

from sampling.assets import read_shape
from sampling.edit import interpolate, morph, strip, vary
from sampling.pipeline import ShapePipeline


def main(argv: list[str] | None = None) -> None:
    """Makes all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", type=Path)
    parser.add_argument("--prompt", default="a red chair")
    parser.add_argument("--other", default="a blue table")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--size", type=int, default=128, help="of pictures, in pixels")
    options = parser.parse_args(argv)
    pipe = ShapePipeline.from_pretrained(options.model)
    fresh = pipe([options.prompt, options.other], steps=options.steps)
    shape = fresh[0] if options.shape is None else read_shape(pipe, options.shape, steps=options.steps)
    noisier = [
        vary(pipe, shape, options.other, strength=strength, steps=options.steps)[0]
        for strength in (0.3, 0.6, 0.9)
    ]
    repainted = vary(
        pipe, shape, options.other, strength=1.0, layers="color", num_samples=2, steps=options.steps
    )
    reshaped = vary(
        pipe, shape, options.other, strength=1.0, layers="geometry", num_samples=2, steps=options.steps
    )
    strips = {
        "vary": [shape, *noisier],
        "repaint": [shape, *repainted],
        "reshape": [shape, *reshaped],
        "walk": interpolate(pipe, shape, fresh[1], num_samples=5),
        "morph": morph(
            pipe, (options.prompt, options.other), seeds=(0, 0), num_samples=5, steps=options.steps
        ),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name, shapes in strips.items():
        Image.fromarray(strip(shapes, size=options.size)).save(options.out / f"{name}.png")


if __name__ == "__main__":
    main()
