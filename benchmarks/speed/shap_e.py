"""python -m benchmarks.speed.shap_e [encode] [step] [sample]: Shap-E's networks at full size, plain and fast.

Random weights of the published shapes, one thread, CPU seconds, all in one process. Plain: float32, attention
as two products and a softmax, both convolutions over all pixels.

- encode: one procedural asset with 20 views of 256x256, and the most memory held by it.
- step: a guided denoising step of text300M, and whole samples by a step's cost: the reference's 64 Heun steps
  from 160 to 0.001 take 127 evaluations.
- sample: how far few steps end from 127 evaluations between the noise levels that the model knows, 160 to
  0.109. Of a smaller network, random too: this shows that the solvers are in order, not what a trained model
  makes of few steps.

Fields: `benchmarks.speed.decode --shap-e`. Fine-tuning: `benchmarks.speed.fine_tune_shap_e`.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

from data_prep.build import prepare
from data_prep.pipeline import DataConfig
from prior.denoiser import NetworkConfig
from prior.description import make_network
from prior.model import Prior
from prior.task import PriorConfig
from shapeloom.clip import TextEmbedding
from shapeloom.config import load_config
from shapeloom.decoder import Decoder, DecoderConfig
from shapeloom.diffusion.guidance import classifier_free
from shapeloom.diffusion.samplers import initial_noise, sample
from shapeloom.diffusion.steps import karras_sigmas
from shapeloom.shap_e.autoencoder import ShapEAutoencoder
from shapeloom.shap_e.encoder import ShapEEncoder, ball_query
from shapeloom.shap_e.field import ShapEFieldConfig
from shapeloom.shap_e.inputs import ShapEEncoderConfig, ShapEInputs, official_inputs, pixel_numbers
from shapeloom.shap_e.prior import ShapEDenoiser
from shapeloom.shap_e.published import CLIP_DIM, PUBLISHED
from shapeloom.shards import AssetShards

GUIDANCE = 15.0
REFERENCE_EVALUATIONS = 127
FEW = (8, 10, 12, 16, 32)
SMALL_ENCODER = ShapEEncoderConfig(
    width=64, heads=4, num_layers=2, num_points=256, num_centres=64, num_views=2, size=32
)
SMALL_FIELD = ShapEFieldConfig(width=8, channels=16)
SMALL_NETWORK = ("width=64", "depth=2", "heads=4")


def cpu_seconds(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """CPU seconds of a call, and what it returns."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention as it is written down."""
    return torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, dim=-1) @ value


def plainly() -> AbstractContextManager[object]:
    """Every attention is `plain_attention`."""
    return mock.patch.object(functional, "scaled_dot_product_attention", plain_attention)


def plain_view_tokens(encoder: ShapEEncoder, inputs: ShapEInputs) -> Tensor:
    """Both convolutions over every pixel of every view, one after the other."""
    tokens = []
    for view in range(inputs.rgb.shape[1]):
        pixels = pixel_numbers(inputs, view, encoder.mv_pcl_embed.unk_token).permute(0, 3, 1, 2)
        patches = encoder.patch_emb(encoder.mv_pcl_embed(pixels))
        tokens.append(patches.flatten(2).transpose(1, 2))
    return torch.cat(tokens, dim=1)


def plain_point_conv(
    module: nn.Module, xyz: Tensor, tokens: Tensor, num_centres: int, _permutations: None
) -> Tensor:
    """Both convolutions over every neighbour of every centre."""
    neighbours = ball_query(xyz, xyz[:, :num_centres])[0]
    offset = xyz[0, neighbours] - xyz[0, :num_centres, None]
    x = torch.cat([offset, tokens[0, neighbours]], dim=-1).permute(2, 1, 0)[None]
    assert isinstance(module.mlp_convs, nn.ModuleList)
    for convolution in module.mlp_convs:
        x = functional.silu(convolution(functional.pad(x, (0, 0, 4, 4), mode="circular")))
    return x.mean(dim=2).transpose(1, 2)


def read_asset(folder: Path, config: ShapEEncoderConfig) -> ShapEInputs:
    """A procedural asset as the encoder wants it."""
    overrides = [
        "procedural={num_train: 1, num_val: 0, num_test: 0, num_judge: 0}", "workers=0", "num_sdf=512",
        f"num_points={config.num_points}", f"num_views={config.num_views}", f"resolution={config.size}",
    ]  # fmt: skip
    prepared = load_config(DataConfig, Path("configs/data_prep/shap_e.yaml"), overrides)
    # In a process of its own: its memory isn't the encoder's.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(prepare, prepared, folder).result()
    shards = AssetShards(folder, "train")
    return official_inputs([shards.read(0, views=range(config.num_views), depth=True, points=True)], config)


def gigabytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@torch.no_grad()
def compare_encoders(*, quick: bool) -> Iterator[str]:
    """Lines on encoding one asset."""
    config = SMALL_ENCODER if quick else ShapEEncoderConfig()
    field = SMALL_FIELD if quick else ShapEFieldConfig()
    with tempfile.TemporaryDirectory() as folder:
        inputs = read_asset(Path(folder) / "data", config)
    torch.manual_seed(0)
    encoder = ShapEEncoder(config, field).eval()
    with torch.device("meta"):
        decoder = Decoder(DecoderConfig(shap_e=field))
    decoder.projection = encoder.params_proj  # as when loaded: both share it
    yield f"of the pixels {100 * inputs.seen.float().mean():.0f}% show the asset"
    before = gigabytes()
    folding, _ = cpu_seconds(lambda: encoder._fold()[0])
    seconds, latent = cpu_seconds(lambda: encoder(inputs))
    yield (
        f"float32: {seconds:.1f} s, and {folding:.1f} s once a model; "
        f"{gigabytes():.2f} GiB held at most, {before:.2f} before"
    )
    with (
        plainly(),
        mock.patch.object(ShapEEncoder, "view_tokens", plain_view_tokens),
        mock.patch.object(type(encoder.point_conv), "forward", plain_point_conv),
    ):
        plain, truth = cpu_seconds(lambda: encoder(inputs))
    yield f"plain: {plain:.1f} s, {plain / seconds:.1f} times more; difference {_relative(latent, truth):.1e}"
    half = ShapEAutoencoder(encoder, decoder)
    half.use_bf16()
    with torch.autocast("cpu", torch.bfloat16):
        encoder._fold()
        seconds, latent = cpu_seconds(lambda: encoder(inputs))
    yield f"bfloat16: {seconds:.1f} s, {plain / seconds:.1f} times less; {_relative(latent, truth):.1e}"


def _relative(found: Tensor, truth: Tensor) -> float:
    return float((found.float() - truth).norm() / truth.norm())


def random_prior(field: ShapEFieldConfig, overrides: Sequence[str] = ()) -> Prior:
    """text300M with random weights, the last layer's too, which starts at zero."""
    preset = load_config(PriorConfig, Path("configs/prior/shap_e_text_full.yaml"), ["latents=none"])
    network = NetworkConfig.model_validate(
        preset.network.model_dump() | dict(item.split("=") for item in overrides)
    )
    shapes = PUBLISHED.model_copy(update={"field": field}).shapes("text300M")
    torch.manual_seed(0)
    model = make_network(shapes, network)
    assert isinstance(model, ShapEDenoiser)
    torch.nn.init.normal_(model.wrapped.output_proj.weight, std=0.02)
    return Prior(model, shapes, preset.diffusion, {"digest": "", "encoder": "", "clip": ""})


def guided(prior: Prior) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
    """A guided denoiser for a random caption, and noise to start from."""
    generator = torch.Generator().manual_seed(1)
    vector = torch.nn.functional.normalize(torch.randn(1, CLIP_DIM, generator=generator), dim=-1)
    tokens, mask = torch.zeros(1, 1, prior.shapes.text_width), torch.zeros(1, 1, dtype=torch.bool)
    condition = prior.condition(TextEmbedding(vector, tokens, mask))
    denoise = classifier_free(prior.denoise, condition.without(), scale=GUIDANCE)
    noise = torch.randn(1, *prior.shape, generator=generator)
    return lambda x, sigma: denoise(x, sigma, condition), noise


@torch.no_grad()
def compare_steps(*, quick: bool) -> Iterator[str]:
    """Lines on a guided step and on whole samples."""
    field = SMALL_FIELD if quick else ShapEFieldConfig()
    prior = random_prior(field, SMALL_NETWORK if quick else ())
    denoise, noise = guided(prior)
    sigma = torch.ones(1)
    seconds, found = cpu_seconds(lambda: denoise(noise, sigma))
    with plainly():
        plain, truth = cpu_seconds(lambda: denoise(noise, sigma))
    yield (
        f"plain: {plain:.2f} s; float32: {seconds:.2f} s, {plain / seconds:.2f} times less; "
        f"difference {_relative(found, truth):.1e}"
    )
    for few in FEW:
        times = plain * REFERENCE_EVALUATIONS / (seconds * few)
        yield f"{few} evaluations: {seconds * few:.0f} s, {times:.1f} times less than 127 plain ones"
    prior.use_bf16()
    seconds, found = cpu_seconds(lambda: denoise(noise, sigma))
    yield f"bfloat16: {seconds:.2f} s, {plain / seconds:.2f} times less; {_relative(found, truth):.1e}"


@torch.no_grad()
def compare_solvers(*, quick: bool) -> Iterator[str]:
    """Lines on the latent's error by the number of evaluations, of a smaller network."""
    prior = random_prior(SMALL_FIELD, SMALL_NETWORK if quick else ("width=256", "depth=6", "heads=4"))
    denoise, noise = guided(prior)
    low, high = ShapEDenoiser.sigma_range

    def run(steps: int, method: str) -> Tensor:
        sigmas = karras_sigmas(steps, sigma_min=low, sigma_max=high)
        return sample(
            lambda x, s, _: denoise(x, s), initial_noise(noise, sigmas), sigmas, None, method=method
        )

    truth = run((REFERENCE_EVALUATIONS + 1) // 2, "heun")
    for few in FEW:
        errors = {name: _relative(run(few, name), truth) for name in ("dpmpp_2m", "unipc")}
        yield f"{few} evaluations: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items())


COMPARISONS = {"encode": compare_encoders, "step": compare_steps, "sample": compare_solvers}


def main(argv: Sequence[str] | None = None) -> None:
    """Prints as it goes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.shap_e", description=__doc__)
    parser.add_argument("what", nargs="*", help=f"of {', '.join(COMPARISONS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    for name in arguments.what or COMPARISONS:
        for line in COMPARISONS[name](quick=arguments.quick):
            sys.stdout.write(f"{name}: {line}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
