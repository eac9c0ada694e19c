"""python -m benchmarks.speed.decode --data RUN/data: a field of Shap-E's size to pixels and surface.

Fits a field 256 wide (6 hidden layers and a head for geometry, 3 for colour; --shap-e: the published models'
own) to one asset of a data_prep run, from its rays, surface points and signed distances, and keeps it in
--cache. Then, in fp32 on one thread:

- view: every sample evaluated (64 coarse ones for density, then 64 + 128 for density and colour), against
  `Decoder.render`; PSNR between the two pictures.
- surface: all nodes of the grid, against `extract_surface`; the cells that the dense values' surface passes
  through and that the sparse values' doesn't.

CPU seconds are those of this process and don't depend on what else the machine does. Points: evaluations of
geometry and of colour.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from encoder.batches import AugmentConfig, make_batch
from encoder.losses import LossConfig, point_losses, ray_losses, total_loss
from encoder.model import EncoderConfig
from shapeloom.decoder import Decoder, DecoderConfig, RenderConfig, points_at_once
from shapeloom.fields.heads import Color, Directions, Geometry
from shapeloom.fields.mlp import ColorTrunkConfig, FieldConfig, TrunkConfig, own_shapes
from shapeloom.fields.projection import FieldWeights
from shapeloom.metrics import psnr
from shapeloom.rendering.cameras import intrinsics, sphere
from shapeloom.rendering.isosurface import grid_values, surface_cells, triangulate
from shapeloom.rendering.rays import camera_rays, edges_from_samples, intersect_box
from shapeloom.rendering.volume import composite, importance_samples, ray_weights
from shapeloom.shap_e.field import POINT_OCTAVES, ShapEFieldConfig
from shapeloom.shards import AssetShards
from shapeloom.viewpoints import fitting_distance

FOV = 0.7
DENSE = RenderConfig(coarse=64, fine=128)
LOSSES = LossConfig(
    num_rays=192, free_samples=6, surface_samples=8, num_surface_points=512, num_sdf_points=1024
)


class CountingDecoder(Decoder):
    """Counts the points at which geometry and colour are evaluated."""

    num_geometry = num_color = 0

    def geometry(self, weights: FieldWeights, points: Tensor) -> Geometry:
        self.num_geometry += points.shape[0] * points.shape[1]
        return super().geometry(weights, points)

    def color(self, weights: FieldWeights, points: Tensor, directions: Directions = None) -> Color:
        self.num_color += points.shape[0] * points.shape[1]
        return super().color(weights, points, directions)


def fit(
    data: Path, asset: int, cache: Path, *, width: int, steps: int, shap_e: bool = False
) -> tuple[CountingDecoder, FieldWeights]:
    """Returns a decoder and the weights of its field of one asset, fitted or from `cache`."""
    torch.manual_seed(0)
    if shap_e:
        size = ShapEFieldConfig(width=width, channels=1)
        config, shapes = DecoderConfig(shap_e=size), [(width, columns) for columns in size.row_lengths]
    else:
        geometry, color = TrunkConfig(width=width, num_layers=6), ColorTrunkConfig(width=width, num_layers=3)
        config = DecoderConfig(field=FieldConfig(geometry=geometry, color=color))
        shapes = own_shapes(config.field)
    decoder = CountingDecoder(config)
    weights = [nn.Parameter(torch.randn(1, *shape) * (2 / shape[1]) ** 0.5) for shape in shapes]
    if shap_e:
        # The published encoding reaches 16,384 radians a unit, which trained fields don't answer to.
        octaves = torch.arange(POINT_OCTAVES).repeat_interleave(3)
        quiet = (4 / 2.0**octaves).clamp(max=1)
        weights[0].data *= torch.cat([torch.ones(3), quiet, quiet])
    own = nn.ParameterList(weights)
    field = nn.ModuleDict({"field": decoder.field, "own": own})
    if cache.exists():
        field.load_state_dict(load_file(cache))
    else:
        _train(decoder, list(own), field, data, asset, steps)
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in field.state_dict().items()}, cache)
    return decoder.eval(), [matrix.detach() for matrix in own]


def _train(
    decoder: Decoder, weights: FieldWeights, field: nn.Module, data: Path, asset: int, steps: int
) -> None:
    shards = AssetShards(data)
    optimizer = torch.optim.Adam(field.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        batch = make_batch(
            shards, [(step, asset)], encoder=EncoderConfig(num_points=16), losses=LOSSES,
            augment=AugmentConfig(mirror=False, turn=False, colors=False), view_dropout=0.0, seed=0,
        )  # fmt: skip
        parts = {
            **ray_losses(decoder, weights, batch, LOSSES),
            **point_losses(decoder, weights, batch, LOSSES),
        }
        optimizer.zero_grad()
        total_loss(parts, LOSSES).backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(
                f"fit, step {step}: " + ", ".join(f"{k} {v.detach():.4f}" for k, v in parts.items()),
                flush=True,
            )


@torch.no_grad()
def dense_view(decoder: Decoder, weights: FieldWeights, pose: Tensor, matrix: Tensor, size: int) -> Tensor:
    """Returns a picture [size, size, 3] on white with the field evaluated at every sample of every ray."""
    origins, directions, _ = (x.reshape(1, size * size, -1) for x in camera_rays(pose, matrix, size, size))
    at_once = max(1, points_at_once(pose.device) // (DENSE.coarse + DENSE.fine))
    parts = []
    for o, d in zip(origins.split(at_once, 1), directions.split(at_once, 1), strict=True):
        t_near, t_far, _ = intersect_box(o, d)
        share = (torch.arange(DENSE.coarse) + 0.5) / DENSE.coarse
        t = t_near[..., None] + (t_far - t_near)[..., None] * share
        edges = edges_from_samples(t, t_near, t_far)
        density = decoder.geometry(weights, _points(o, d, t)).density.reshape(t.shape)
        fine = importance_samples(edges, ray_weights(density, edges.diff(dim=-1)), DENSE.fine)
        t = torch.cat([t, fine], dim=-1).sort(dim=-1).values
        points = _points(o, d, t)
        geometry, color = decoder.query(weights, points)
        density, rgb = geometry.density.reshape(t.shape), color.rgb.reshape(*t.shape, 3)
        seen = composite(density, rgb, t, edges_from_samples(t, t_near, t_far))
        parts.append(seen.rgb + (1 - seen.alpha[..., None]))
    return torch.cat(parts, dim=1).reshape(size, size, 3)


def _points(origins: Tensor, directions: Tensor, t: Tensor) -> Tensor:
    return (origins[:, :, None] + t[..., None] * directions[:, :, None]).flatten(1, 2)


def cpu_seconds(work: Callable[[], Tensor], repeats: int) -> tuple[float, Tensor]:
    """Returns the least CPU seconds of `repeats` calls, and what the last returned."""
    least = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        least = min(least, time.process_time() - start)
    return least, result


def compare_views(
    decoder: CountingDecoder, weights: FieldWeights, size: int, samples: Sequence[RenderConfig], repeats: int
) -> None:
    """Prints the dense view's cost and the fast ones' beside it."""
    pose = sphere(1, seed=3, distance=fitting_distance(FOV))[0]
    matrix = intrinsics(FOV, size, size)
    dense, truth = cpu_seconds(lambda: dense_view(decoder, weights, pose, matrix, size), 1)
    print(f"view {size}x{size}, dense: {dense:.2f} s")
    for choice in samples:
        decoder.num_geometry = decoder.num_color = 0

        def fast(choice: RenderConfig = choice) -> Tensor:
            poses, matrices = pose[None, None], matrix[None, None]
            return decoder.render(weights, poses, matrices, size, size, samples=choice).rgb[0, 0]

        seconds, picture = cpu_seconds(fast, repeats)
        error = float(psnr(picture[None].numpy(), truth[None].numpy())[0])
        print(
            f"view {size}x{size}, {choice.coarse} + {choice.fine} samples: {seconds:.2f} s, "
            f"{dense / seconds:.1f} times less, {error:.1f} dB to dense; "
            f"{decoder.num_geometry // repeats:,} + {decoder.num_color // repeats:,} points"
        )


@torch.no_grad()
def compare_surfaces(decoder: CountingDecoder, weights: FieldWeights, resolution: int, repeats: int) -> None:
    """Prints both surfaces' cost, the points evaluated and the cells missed."""

    def surface(coarsest: int) -> Tensor:
        values = grid_values(lambda p: decoder.sdf(weights, p), resolution=resolution, coarsest=coarsest)
        triangulate(values)
        return values

    dense, truth = cpu_seconds(lambda: surface(resolution), 1)
    decoder.num_geometry = 0
    sparse, found = cpu_seconds(lambda: surface(min(32, resolution // 2)), repeats)
    cells = surface_cells(truth)
    missed = int((cells & ~surface_cells(found)).sum())
    num = int(cells.sum())
    print(
        f"surface {resolution}^3, dense: {dense:.2f} s; sparse: {sparse:.2f} s, {dense / sparse:.1f} times "
        f"less; {decoder.num_geometry // repeats:,} of {truth.numel():,} points; "
        f"{missed} of {num:,} cells missed "
        f"({100 * missed / max(num, 1):.3f}%)"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Fits or loads the field, then compares."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.decode", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a data_prep run")
    parser.add_argument("--asset", type=int, default=0, help="which of its assets")
    parser.add_argument("--cache", type=Path, default=Path("runs/decode/field.safetensors"))
    parser.add_argument("--shap-e", action="store_true", help="the published models' field in place of ours")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--size", type=int, default=128, help="pixels a side of the view")
    parser.add_argument("--resolution", type=int, default=128, help="cells a side of the surface's grid")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    decoder, weights = fit(
        options.data,
        options.asset,
        options.cache,
        width=options.width,
        steps=options.steps,
        shap_e=options.shap_e,
    )
    fast = [RenderConfig(coarse=coarse, fine=fine) for coarse, fine in ((48, 32), (48, 16), (32, 12))]
    compare_views(decoder, weights, options.size, fast, options.repeats)
    compare_surfaces(decoder, weights, options.resolution, options.repeats)


if __name__ == "__main__":
    main()
