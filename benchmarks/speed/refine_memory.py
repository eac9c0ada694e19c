"""python -m benchmarks.speed.refine_memory [--measure]: the memory of a refinement's step with a 2-D model.

By arithmetic: the very code of a step runs on tensors without data (torch's meta device), operation by
operation, and the bytes that live at once are added up; the networks have Stable Diffusion 1.5's sizes, half
precision but for the autoencoder, as `sampling.refine` loads them on a GPU. Attention counts as fused kernels
keep it: without its matrix of all pairs. What libraries need inside of an operation is not counted, nor what
an allocator wastes.

The field's part is counted on a decoder of random weights of the default sizes: rays in twice the number take
twice the bytes, so that `rays_at_once` bounds it whatever the pictures' size.

--measure: smaller cases of the same code in float32 on this CPU, counted and, in a process of its own,
measured by the system (peak resident memory over what it was before). Linux only.
"""

import argparse
import ctypes
import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sampling.refine.config import RefineConfig
from sampling.refine.own import OwnNetwork
from sampling.refine.rendering import Views, distil, random_views, rays_of
from sampling.refine.text_to_image import TextToImage
from shapeloom.costs import CONTEXT_BYTES
from shapeloom.decoder import Decoder, DecoderConfig, RenderConfig
from shapeloom.diffusion.distillation import own_loss, sds


@dataclass(frozen=True)
class Sizes:
    """Of a latent diffusion model; the defaults are Stable Diffusion 1.5's."""

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    context: int = 768
    heads: int = 8
    groups: int = 32
    text_numbers: int = 123_060_480
    """Of the text encoder."""


SMALL = Sizes((64, 128, 256, 256), (32, 64, 128, 128), 256, 4, 16, 0)
TOKENS = 77


class Live(TorchDispatchMode):
    """Bytes of the storages that operations make while it is on, as long as they live, but for `known`."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive = {each.untyped_storage()._cdata for each in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operation and counts what it returns."""
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self._add(each.untyped_storage())
        return out

    def _add(self, storage: Any) -> None:
        if storage._cdata not in self._alive:
            self._alive.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._end, storage._cdata, storage.nbytes())

    def _end(self, place: int, size: int) -> None:
        self._alive.discard(place)
        self.now -= size


class _Fused(torch.autograd.Function):
    """What a fused attention makes and keeps: its output, and a number a query and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


@contextmanager
def fused_attention() -> Iterator[None]:
    """Within it attention is that of `_Fused`, which computes nothing."""
    plain = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda q, k, v, *_, **__: _Fused.apply(q, k, v)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def make_guide(sizes: Sizes, *, side: int, half: bool) -> TextToImage:
    """Returns a model of these sizes for pictures of `side` pixels, on torch's default device."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    levels, factor = len(sizes.channels), 2 ** (len(sizes.vae_channels) - 1)
    unet: Any = UNet2DConditionModel(
        sample_size=side // factor, block_out_channels=sizes.channels, cross_attention_dim=sizes.context,
        attention_head_dim=sizes.heads, norm_num_groups=sizes.groups,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
    )  # fmt: skip
    vae: Any = AutoencoderKL(
        block_out_channels=sizes.vae_channels, layers_per_block=2, latent_channels=4,
        norm_num_groups=sizes.groups, down_block_types=("DownEncoderBlock2D",) * len(sizes.vae_channels),
        up_block_types=("UpDecoderBlock2D",) * len(sizes.vae_channels),
    )  # fmt: skip
    with torch.device("cpu"):
        scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")

    def encode(prompts: Sequence[str]) -> Tensor:
        return torch.zeros(len(prompts), TOKENS, sizes.context)

    return TextToImage(unet.half() if half else unet, vae, scheduler, encode)


def weights_bytes(guide: TextToImage, sizes: Sizes) -> dict[str, int]:
    """Returns bytes of the networks."""

    def of(module: Any) -> int:
        return sum(each.numel() * each.element_size() for each in module.parameters())

    return {"UNet": of(guide.network), "autoencoder": of(guide.vae), "text encoder": 4 * sizes.text_numbers}


def make_step(guide: TextToImage, *, views: int, side: int, own: bool) -> Callable[[], None]:
    """Returns a step of the 2-D model from pictures to their gradient. own: VSD's own network learns too."""
    device = next(guide.network.parameters()).device
    pictures = torch.zeros(views, 4, side, side, device=device)
    sigma, white = torch.ones(views, device=device), torch.ones(views, 3, device=device)
    seen = Views(
        torch.zeros(views, 4, 4),
        torch.zeros(views, 3, 3),
        torch.zeros(views),
        torch.zeros(views),
        views,
        side,
    )
    learner = None
    if own:
        config = RefineConfig.model_validate({"guide": "views", "estimator": {"kind": "vsd"}})
        learner = OwnNetwork(guide, config.estimator, 0)

    def step() -> None:
        leaf = pictures.requires_grad_()
        x = guide.encode(leaf, white)
        prompts = ["a chair"] * views
        condition, null = guide.condition(prompts, seen), guide.null(seen)
        eps = torch.zeros_like(x)
        denoise = guide.denoise if learner is None else learner.guide_denoise

        def guided(x: Tensor, sigma: Tensor, told: Any) -> Tensor:
            # As `classifier_free`, which looks at the noise levels first: tensors without data have none.
            positive, other = denoise(x, sigma, told), denoise(x, sigma, null)
            return other + 20.0 * (positive - other)

        gradient = sds(guided, x.detach(), sigma, eps, condition)
        if learner is not None:
            told = guide.own_condition(prompts, seen, torch.Generator())
            own_loss(guide.own_denoise, x.detach(), sigma, eps, told).backward()
        torch.autograd.backward([x], [gradient], inputs=[leaf])
        leaf.grad = None

    return step


def counted(
    sizes: Sizes, *, views: int, side: int, half: bool = True, own: bool = False
) -> tuple[dict[str, int], int]:
    """Returns bytes of the networks by name, and the most that a step of the 2-D model makes beside them."""
    with torch.device("meta"), fused_attention():
        guide = make_guide(sizes, side=side, half=half)
        step = make_step(guide, views=views, side=side, own=own)
        modules: list[Any] = [guide.network, guide.vae]
        known = [each for module in modules for each in (*module.parameters(), *module.buffers())]
        with Live(known) as live:
            step()
    return weights_bytes(guide, sizes), live.peak


def field_bytes(rays_at_once: int, config: RefineConfig | None = None) -> int:
    """Returns the most that rendering so many rays and their gradient make, for a field of default sizes."""
    config = config or RefineConfig(samples=RenderConfig(coarse=32, fine=16))
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig()).requires_grad_(False)
    with torch.no_grad():
        weights = decoder.weights(torch.zeros(1, *decoder.latent_shape))
    peaks = []
    for side in (16, 24):
        generator = torch.Generator().manual_seed(0)
        rays = rays_of(random_views(config.cameras, 1, 1, size=side, generator=generator))
        with Live(list(decoder.parameters())) as live:
            distil(decoder, weights, rays, config.samples, torch.ones_like, at_once=side**2)
        peaks.append(live.peak)
    each = (peaks[1] - peaks[0]) / (24**2 - 16**2)
    return round(max(0.0, peaks[0] - each * 16**2) + each * rays_at_once)


def table(*, views: int, side: int, own: bool, rays_at_once: int) -> str:
    """Returns the parts of a step with Stable Diffusion 1.5, in GB."""
    weights, peak = counted(Sizes(), views=views, side=side, own=own)
    parts = {f"{name}, weights": size for name, size in weights.items()}
    parts["2-D model, at most at once"] = peak
    parts[f"field, {rays_at_once:,} rays"] = field_bytes(rays_at_once)
    field = parts[f"field, {rays_at_once:,} rays"]
    # Pictures of more rays are rendered anew after the 2-D model has seen them: the two aren't there at once.
    made = max(peak, field) if views * side**2 > rays_at_once else peak + field
    total = sum(weights.values()) + made + CONTEXT_BYTES
    rows = "".join(f"  {name:<32} {size / 1e9:6.2f}\n" for name, size in parts.items())
    kind = "VSD" if own else "SDS"
    return (
        f"{kind}, {views} views of {side} x {side}, GB:\n{rows}  {'all, with CUDA':<32} {total / 1e9:6.2f}\n"
    )


def peak_resident(*, views: int, side: int, own: bool) -> int:
    """Returns how far a small step in float32 raises this process's resident memory, in bytes."""
    guide = make_guide(SMALL, side=side, half=False)
    step = make_step(guide, views=views, side=side, own=own)
    step()  # libraries prepare what they keep
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is from now on
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name + ":"))


def compare(*, views: int, side: int, own: bool) -> tuple[int, int]:
    """Returns bytes of a small step, counted and measured in a process of its own."""
    code = (
        "from benchmarks.speed.refine_memory import peak_resident; "
        f"print(peak_resident(views={views}, side={side}, own={own}))"
    )
    # So that the C library gives back what is freed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return counted(SMALL, views=views, side=side, half=False, own=own)[1], int(done.stdout)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.refine_memory", description=__doc__)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rays-at-once", type=int, default=RefineConfig().rays_at_once)
    parser.add_argument("--measure", action="store_true", help="a small case on this CPU too")
    options = parser.parse_args(argv)
    for own in (False, True):
        print(table(views=options.views, side=options.size, own=own, rays_at_once=options.rays_at_once))
    if options.measure:
        for side, views in ((128, 1), (128, 2), (256, 1)):
            said, found = compare(views=views, side=side, own=False)
            print(
                f"small model, SDS, {views} views of {side} x {side}, float32: counted {said / 1e6:.0f} MB, "
                f"measured {found / 1e6:.0f} MB ({found / said - 1:+.0%})"
            )


if __name__ == "__main__":
    main()
