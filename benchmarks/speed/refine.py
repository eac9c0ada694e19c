"""python -m benchmarks.speed.refine --model RUN: a refinement's step beside a plain one of equal gradient.

Both render the same views of a sample and hand the same gradient of the pictures back to the field's
matrices. The plain step evaluates density and colour at every sample of every ray; that of `sampling.refine`
skips empty cells, what is hidden and what is too faint. CPU seconds of one thread, medians of steps taken in
turn; the gradients' difference is relative to their length. The 2-D model costs the same in both and is left
out.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sampling.pipeline import ShapePipeline
from sampling.refine.config import RefineConfig
from sampling.refine.rendering import distil, random_views, rays_of
from shapeloom.decoder import Decoder, RenderConfig
from shapeloom.fields.projection import FieldWeights
from shapeloom.rendering.rays import edges_from_samples, intersect_box
from shapeloom.rendering.volume import composite, importance_samples, ray_weights

Slope = Callable[[Tensor], Tensor]


def plain_step(
    decoder: Decoder, weights: FieldWeights, rays: Float[Tensor, "particles rays 6"], samples: RenderConfig,
    slope: Slope,
) -> list[Tensor]:  # fmt: skip
    """Returns what `distil` returns, the way a textbook has it."""
    leaves = [matrix.detach().requires_grad_() for matrix in weights]
    origins, directions = rays[..., :3], rays[..., 3:]
    t_near, t_far, _ = intersect_box(origins, directions)
    share = (torch.arange(samples.coarse) + 0.5) / samples.coarse
    t = t_near[..., None] + (t_far - t_near)[..., None] * share
    edges = edges_from_samples(t, t_near, t_far)

    def points(t: Tensor) -> Tensor:
        return (origins[..., None, :] + t[..., None] * directions[..., None, :]).flatten(1, 2)

    with torch.no_grad():
        density = decoder.geometry(leaves, points(t)).density.reshape(t.shape)
        fine = importance_samples(edges, ray_weights(density, edges.diff(dim=-1)), samples.fine)
    t, _ = torch.cat([t, fine], dim=-1).sort(dim=-1)
    geometry, color = decoder.query(leaves, points(t))
    values = composite(
        geometry.density.reshape(t.shape), color.rgb.reshape(*t.shape, 3), t,
        edges_from_samples(t, t_near, t_far),
    )  # fmt: skip
    pictures = torch.cat([values.rgb, values.alpha[..., None]], dim=-1)
    pictures.backward(slope(pictures.detach()))
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


def compare(
    decoder: Decoder, weights: FieldWeights, other: FieldWeights, *, size: int, views: int, steps: int
) -> tuple[float, float, float]:
    """Returns CPU seconds of a step of ours and of a plain one, and how far their gradients differ.

    other: of the asset whose pictures are the goal.
    """
    config = RefineConfig(samples=RenderConfig(coarse=32, fine=16))
    generator = torch.Generator().manual_seed(0)
    rays = rays_of(random_views(config.cameras, 1, views, size=size, generator=generator))
    with torch.no_grad():
        goal = decoder.along_rays(
            other, decoder.occupancy(other, rays.shape[1]), rays, samples=config.samples
        )[..., :4]

    def slope(pictures: Tensor) -> Tensor:
        return (pictures - goal) / goal.numel()

    times: dict[str, list[float]] = {"ours": [], "plain": []}
    found: dict[str, Tensor] = {}
    for step in range(steps + 1):
        for name in times:
            start = time.process_time()
            if name == "ours":
                made = distil(decoder, weights, rays, config.samples, slope, at_once=config.rays_at_once)
            else:
                made = plain_step(decoder, weights, rays, config.samples, slope)
            if step:  # the first one warms up
                times[name].append(time.process_time() - start)
            found[name] = torch.cat([gradient.flatten() for gradient in made])
    off = float((found["ours"] - found["plain"]).norm() / found["plain"].norm())
    return statistics.median(times["ours"]), statistics.median(times["plain"]), off


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.refine", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a run")
    parser.add_argument("--prompt", action="append", default=[])
    parser.add_argument("--size", type=int, default=64, help="side of the renders")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    pipe = ShapePipeline.from_pretrained(arguments.model)
    prompts = arguments.prompt or ["a red chair", "a blue mug", "a yellow house"]
    shapes = pipe(prompts, steps=16)
    for shape, other in zip(shapes, [*shapes[1:], shapes[0]], strict=True):
        ours, plain, off = compare(
            pipe.decoder, shape.weights, other.weights, size=arguments.size, views=arguments.views,
            steps=arguments.steps,
        )  # fmt: skip
        print(
            f"{shape.prompt:24} {ours:6.2f} s, plain {plain:6.2f} s: {plain / ours:5.1f} times less CPU; "
            f"gradients differ by {off:.1e}"
        )


if __name__ == "__main__":
    main()
