"""The encoder network: what it reads, and what recomputing and a spread change."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from encoder.model import Autoencoder, Encoder, EncoderConfig, EncoderInputs, _shares_by_place
from encoder.train import EncoderTrainConfig
from shapeloom.config import load_config
from shapeloom.decoder import DecoderConfig

SMALL = EncoderConfig(width=32, heads=2, num_layers=2, num_points=64, grid=8, grid_hidden=8, num_views=3)
DECODER = DecoderConfig.model_validate({"projection": {"num_tokens": 8, "channels": 4, "rank": 8}})


def make(**settings: bool) -> Encoder:
    torch.manual_seed(0)
    return Encoder(SMALL.model_copy(update=settings), DECODER)


def inputs(views: int = 3) -> EncoderInputs:
    generator = torch.Generator().manual_seed(0)
    points = normalize(torch.randn(2, 64, 3, generator=generator), dim=-1)
    pixels = torch.rand(2, 3, 16, 16, 13, generator=generator)[:, :views]
    return EncoderInputs(0.5 * points, points.abs(), points, pixels)


def test_a_view_that_is_not_kept_changes_nothing() -> None:
    encoder = make()
    kept = torch.tensor([[True, True, False], [False, False, False]])
    latent = encoder(inputs(), kept)
    torch.testing.assert_close(latent[:1], encoder(inputs(views=2))[:1])
    points_alone = EncoderInputs(inputs().points, inputs().rgb, inputs().normals)
    torch.testing.assert_close(latent[1:], encoder(points_alone)[1:])
    assert not torch.allclose(encoder(inputs())[:1], latent[:1])


@pytest.mark.parametrize("num_tokens", [8, 12, 64, 256])
def test_the_tokens_of_each_layer_start_from_the_whole_box(num_tokens: int) -> None:
    decoder = DecoderConfig.model_validate({"projection": {"num_tokens": num_tokens}})
    shares = Encoder(SMALL, decoder).shares.detach()
    torch.testing.assert_close(shares.square().sum(dim=1), torch.ones(num_tokens), rtol=0.5, atol=0)
    for layer in shares.split(num_tokens // 2):
        assert layer.abs().sum(dim=0).min() > 0


def test_tokens_of_cells_start_from_the_places_within_them() -> None:
    eye = torch.eye(64)
    torch.testing.assert_close(_shares_by_place(64), eye)
    torch.testing.assert_close(_shares_by_place(1), torch.full((1, 64), 1 / 8))
    eighths = _shares_by_place(8)
    halves = eye.unflatten(0, (2, 2, 2, 2, 2, 2)).sum(dim=(1, 3, 5)).flatten(0, 2)  # [8, 64], of 2^3 each
    torch.testing.assert_close(eighths, halves / 8**0.5)
    # Finer cells than the places': each is within one, or lies across two (their shares then are even).
    fine = _shares_by_place(6**3).unflatten(0, (6, 6, 6)).unflatten(-1, (4, 4, 4))
    torch.testing.assert_close(fine[0, 0, 0, 0, 0, 0], torch.tensor(1.0))
    torch.testing.assert_close(fine[1, 0, 0, :, 0, 0], torch.tensor([0.5**0.5, 0.5**0.5, 0, 0]))


def test_what_assets_differ_in_reaches_the_latent_from_the_start() -> None:
    """Less than the noise that training adds would take long to be found."""
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(num_layers=1), DECODER)
    points = normalize(torch.randn(4, 2048, 3), dim=-1) * torch.tensor([0.9, 0.9, 0.5, 0.5])[:, None, None]
    red, blue = torch.tensor([1.0, 0, 0]).expand(2048, 3), torch.tensor([0, 0, 1.0]).expand(2048, 3)
    assets = EncoderInputs(points, torch.stack([red, blue, red, blue]), normalize(points, dim=-1))
    latent = encoder(assets)
    by_colour, by_shape = (latent[0] - latent[1]).std(), (latent[0] - latent[2]).std()
    noise = EncoderTrainConfig.model_fields["bottleneck_noise"].default
    assert by_colour > noise and by_shape > noise


def test_recomputing_blocks_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        encoder = make(checkpointing=checkpointing)
        encoder(inputs()).square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_a_variational_encoder_has_a_spread_and_encodes_to_the_middle() -> None:
    encoder = make(variational=True)
    latent, log_std = encoder.distribution(inputs())
    assert log_std is not None and log_std.shape == latent.shape
    torch.testing.assert_close(encoder(inputs()), latent)
    assert make().distribution(inputs())[1] is None


@pytest.mark.parametrize(
    ("preset", "millions"), [("tiny", 1.2), ("reference_tiny", 0.75), ("small", 46), ("base", 246)]
)
def test_presets_make_networks_of_their_sizes(preset: str, millions: float) -> None:
    config = load_config(EncoderTrainConfig, Path(f"configs/encoder/{preset}.yaml"), ["data=none"])
    with torch.device("meta"):
        model = Autoencoder(config.encoder, config.decoder)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.1)
