"""How fast a device trains and decodes."""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.tasks import Training
from encoder.model import Autoencoder, read_for_encoding
from encoder.train import EncoderTask
from sampling.mesh import MeshConfig
from sampling.shape import ShapeSample
from shapeloom.costs import GPUS
from shapeloom.loading import made_ahead, on_device
from shapeloom.runs import peak_bytes
from shapeloom.training import make_optimizer

WARM_UP = 5
REPEATS = 10


def wait(device: torch.device) -> None:
    """For all that the device was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """By the clock, of one call of several, after one to warm up."""
    work()
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - start) / repeats


def peak_flops(device: torch.device) -> float | None:
    """Of dense bfloat16 products, from the maker's data sheet; None for a card that isn't listed."""
    name = torch.cuda.get_device_name(device).replace(" ", "") if device.type == "cuda" else ""
    return next((gpu.flops for known, gpu in GPUS.items() if known in name), None)


def training_rates(training: Training, device: torch.device, steps: int) -> dict[str, str]:
    """Trains for some steps as the trainer does, batches made ahead, and some more on one batch alone."""
    task, config = training.task, training.train
    model = task.model.to(device).train()
    optimizer = make_optimizer(model, config)
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()

    def step(batch: dict[str, Tensor]) -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            loss, _ = task.loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()

    def make(number: int) -> dict[str, Tensor]:
        first = number * config.batch_size
        return task.batch(range(first, first + config.batch_size))

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for number, made in made_ahead(make, range(WARM_UP + steps), device):
        if number == WARM_UP:
            wait(device)
            start = time.perf_counter()
        batch = on_device(made, device)
        step(batch)
    wait(device)
    each = (time.perf_counter() - start) / steps
    alone = seconds(lambda: step(batch), device, repeats=min(REPEATS, steps))
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()
    with FlopCounterMode(display=False) as counter:
        step(batch)
    flops, peak = counter.get_total_flops() / alone, peak_flops(device)
    work = config.batch_size * training.work
    return {
        "step": f"{1000 * each:.1f} ms with loading, {1000 * alone:.1f} ms alone",
        "rate": f"{work / each:,.0f} {training.unit}/s with loading, {work / alone:,.0f} alone",
        "memory": f"{memory / 1e9:.2f} GB",
        "products": f"{flops / 1e9:,.1f} G operations/s"
        + (f", {flops / peak:.1%} of the card's peak" if peak else ", the card's peak isn't known"),
    }  # fmt: skip


def decoding_rates(training: Training, device: torch.device) -> dict[str, str]:
    """A view and a mesh of an asset that the encoder, trained for these few steps, was shown."""
    task = training.task
    assert isinstance(task, EncoderTask)
    model = task.model.to(device).eval()
    assert isinstance(model, Autoencoder)
    with torch.no_grad():
        latent = model.encode([read_for_encoding(task.shards, 0, task.config.encoder)])[0].cpu()
    shape = ShapeSample(latent, "", 0, model.decoder)
    size, resolution = (256, 128) if device.type == "cuda" else (32, 32)
    mesh = MeshConfig(texture_size=0, resolution=resolution)
    view = seconds(lambda: shape.render(None, None, size, size), device)
    return {
        f"a view, {size}x{size}": f"{1000 * view:.1f} ms",
        f"a mesh, {resolution}^3": f"{1000 * seconds(lambda: shape.mesh(mesh), device):.1f} ms",
    }
