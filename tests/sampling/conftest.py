"""A pipeline of small untrained parts whose decoder is a ball in closed form."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from prior.denoiser import Denoiser, NetworkConfig
from prior.model import Prior
from sampling.pipeline import ShapePipeline
from shapeloom.clip import Clip, TextEmbedding
from shapeloom.decoder import Decoder, DecoderConfig
from shapeloom.denoising import Shapes
from shapeloom.diffusion.objectives import DiffusionConfig
from shapeloom.fields.heads import Color, Geometry
from shapeloom.fields.projection import ProjectionConfig

TOKENS, CHANNELS, EMBED, TEXT_WIDTH = 4, 3, 8, 6


class BallDecoder(Decoder):
    """A ball whose colour is its place; its radius grows with the latent's mean; a latent of -1 has none."""

    def __init__(self) -> None:
        super().__init__(DecoderConfig(projection=ProjectionConfig(num_tokens=TOKENS, channels=CHANNELS)))
        self.digest = "the ball's digest"

    def weights(self, latent):
        return [latent]

    def geometry(self, weights, points):
        mean = weights[0].mean(dim=(1, 2))
        radius = torch.where(mean > -0.999, 0.65 + 0.1 * mean, -torch.ones_like(mean))
        sdf = points.norm(dim=-1) - radius[:, None]
        return Geometry(100 * (sdf < 0).float(), sdf)

    def sdf_gradient(self, weights, points):
        return points / points.norm(dim=-1, keepdim=True).clamp(min=1e-6)

    def color(self, weights, points, directions=None):
        colour = (points / 2 + 0.5).clamp(0, 1)
        return Color(colour, colour)


class WordClip(Clip):
    """Embeds captions by their letters and pictures by their mean colour; never saw the word "rocket"."""

    image_size = 12

    def __init__(self) -> None:
        self.digest, self.name = "the clip's digest", "words"
        self.embed_dim, self.text_width = EMBED, TEXT_WIDTH

    def text(self, captions: list[str]) -> TextEmbedding:
        pooled = torch.stack([self._unit(sum(map(ord, caption))) for caption in captions])
        return TextEmbedding(
            pooled, pooled[:, None, :TEXT_WIDTH].expand(-1, 5, -1), torch.ones(len(captions), 5) > 0
        )

    def image(self, rgb) -> Tensor:
        return torch.stack([self._unit(int(picture.mean())) for picture in rgb])

    def differentiable_image(self, rgb: Tensor) -> Tensor:
        return torch.stack([self._unit(255 * picture.mean()) for picture in rgb])

    def unknown_words(self, caption: str) -> list[str]:
        return [word for word in caption.split() if word == "rocket"]

    @staticmethod
    def _unit(number: int | Tensor) -> Tensor:
        return nn.functional.normalize(torch.sin(torch.arange(1.0, EMBED + 1) * number), dim=0)


def make_prior(encoder_digest: str = BallDecoder().digest) -> Prior:
    torch.manual_seed(0)
    shapes = Shapes(tokens=TOKENS, channels=CHANNELS, clip_dim=EMBED, text_width=TEXT_WIDTH)
    network = Denoiser(shapes, NetworkConfig(width=16, depth=1, heads=2))
    for parameter in network.parameters():  # its output layers start at zero, which no condition could change
        nn.init.normal_(parameter, std=0.2)
    network.standard_std.fill_(0.01)
    facts = {"digest": "the prior's digest", "encoder": encoder_digest, "clip": WordClip().digest}
    return Prior(network, shapes, DiffusionConfig(), facts)


@pytest.fixture(scope="session")
def pipeline() -> ShapePipeline:
    return ShapePipeline(make_prior(), BallDecoder(), WordClip())


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline: ShapePipeline) -> SimpleNamespace:
    """Command-line arguments of a small run into a fresh folder, and the folder."""
    monkeypatch.setattr("sampling.__main__.load_pipeline", lambda config: pipeline)
    monkeypatch.setattr("sampling.making.PORTRAIT_SIZE", 32)
    out = tmp_path / "samples"
    small = ["steps=2", "mesh.resolution=16", "mesh.max_faces=200", "mesh.texture_size=32"]
    small += [
        "turntable.frames=2",
        "turntable.size=16",
        "turntable.samples.coarse=8",
        "turntable.samples.fine=0",
    ]
    return SimpleNamespace(arguments=["--out", str(out), "--set", *small], out=out)
