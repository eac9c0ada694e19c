"""A tiny model of coloured balls, and an exact 2-D diffusion model of their pictures."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from prior.denoiser import Denoiser, NetworkConfig
from prior.model import Prior
from sampling.pipeline import ShapePipeline
from sampling.refine.rendering import Views
from sampling.shape import ShapeSample
from shapeloom.clip import Clip, TextEmbedding
from shapeloom.decoder import Decoder, DecoderConfig, RenderConfig
from shapeloom.denoising import Shapes
from shapeloom.diffusion.objectives import DiffusionConfig
from shapeloom.diffusion.schedules import VpCosine
from shapeloom.fields.encoding import EncodingConfig
from shapeloom.fields.mlp import ColorTrunkConfig, FieldConfig, TrunkConfig
from shapeloom.fields.projection import ProjectionConfig

NAMES = ("a small red ball", "a large red ball", "a small blue ball", "a large blue ball")
RADII = torch.tensor([0.35, 0.65, 0.35, 0.65])
COLOURS = torch.tensor([[0.8, 0.2, 0.1], [0.8, 0.2, 0.1], [0.1, 0.2, 0.8], [0.1, 0.2, 0.8]])
EMBED = 4
SAMPLES = RenderConfig(coarse=16, fine=8)


class BallClip(Clip):
    """Knows the balls by name, and pictures by their mean red, green and blue beside white."""

    image_size = 12

    def __init__(self) -> None:
        self.digest, self.name = "the clip's digest", "balls"
        self.embed_dim = self.text_width = EMBED

    def text(self, captions: list[str]) -> TextEmbedding:
        colours = [COLOURS[0] if "red" in caption else COLOURS[2] for caption in captions]
        pooled = torch.stack([nn.functional.normalize(self._widened(1 - c), dim=0) for c in colours])
        return TextEmbedding(pooled, pooled[:, None], torch.ones(len(captions), 1) > 0)

    def image(self, rgb) -> Tensor:
        missing = 1 - torch.as_tensor(rgb).float().flatten(1, 2).mean(1) / 255
        return nn.functional.normalize(torch.stack([self._widened(each) for each in missing]), dim=1)

    def differentiable_image(self, rgb: Tensor) -> Tensor:
        missing = 1 - rgb.flatten(1, 2).mean(1)
        return nn.functional.normalize(torch.cat([missing, torch.zeros(len(rgb), 1)], dim=1), dim=1)

    def unknown_words(self, caption: str) -> list[str]:
        return []

    @staticmethod
    def _widened(colour: Tensor) -> Tensor:
        return torch.cat([colour, torch.zeros(1)])


class ExactGuide:
    """The exact denoiser of a set of shapes' pictures, each as likely: E[x_0 | z] over those of a prompt.

    Its network is a linear layer that is never asked, but for VSD's own answer: what it was shown plus the
    layer's.
    """

    size, digest = 12, "the guide's digest"
    sees_alpha, reads_cameras, joins_views = True, True, False

    def __init__(self, decoder: Decoder, latents: Tensor) -> None:
        self.decoder, self.latents = decoder, latents
        torch.manual_seed(0)
        self.network: nn.Module = nn.Linear(4, 4)
        nn.init.zeros_(self.network.weight)
        nn.init.zeros_(self.network.bias)

    def sigma(self, t):
        return VpCosine().sigma(t) / VpCosine().alpha(t)

    def encode(self, pictures, background):
        return pictures

    @torch.no_grad()
    def condition(self, prompts: Sequence[str], views: Views) -> Tensor:
        """[batch, shapes, 4, size, size]: all pictures that fit; of all shapes for the empty prompt."""
        (prompt,) = set(prompts)
        latents = self.latents[torch.tensor([name == prompt or not prompt for name in NAMES])]
        num = len(latents)
        seen = self.decoder.render(
            self.decoder.weights(latents), views.cam_to_world.expand(num, -1, 4, 4),
            views.intrinsics.expand(num, -1, 3, 3), self.size, self.size, samples=SAMPLES, background=0.0,
        )  # fmt: skip
        return torch.cat([seen.rgb, seen.alpha[..., None]], -1).permute(1, 0, 4, 2, 3)

    def null(self, views: Views) -> Tensor:
        return self.condition([""] * len(views.azimuth), views)

    def denoise(self, x, sigma, condition):
        distance = (x[:, None] - condition).square().flatten(2).sum(-1)
        share = torch.softmax(-distance / (2 * sigma[:, None] ** 2), dim=1)
        return (share[:, :, None, None, None] * condition).sum(1)

    def own_condition(self, prompts, views, generator):
        return None

    def own_parts(self):
        return []

    def own_denoise(self, x, sigma, condition):
        return x / (1 + sigma[:, None, None, None] ** 2) + self.network(x.movedim(1, -1)).movedim(-1, 1)


@pytest.fixture(scope="session")
def balls() -> SimpleNamespace:
    """A decoder that was fitted to four balls, with their latents and a pipeline around it."""
    torch.manual_seed(0)
    trunk = {"width": 16, "num_layers": 2}
    decoder = Decoder(
        DecoderConfig(
            projection=ProjectionConfig(num_tokens=4, channels=4),
            field=FieldConfig(
                encoding=EncodingConfig(num_octaves=1, num_random=0),
                geometry=TrunkConfig(**trunk), color=ColorTrunkConfig(**trunk),
            ),
        )
    )  # fmt: skip
    decoder.digest = "the decoder's digest"
    free = nn.Parameter(0.3 * torch.randn(4, 4, 4))
    optimiser = torch.optim.Adam([*decoder.parameters(), free], 0.01)
    for step in range(200):
        points = 2 * torch.rand(4, 256, 3) - 1
        geometry, color = decoder.query(decoder.weights(free.tanh()), points)
        loss = (geometry.sdf - (points.norm(dim=-1) - RADII[:, None])).abs().mean()
        loss = (
            loss
            + (color.rgb - COLOURS[:, None]).abs().mean()
            + (color.texture - COLOURS[:, None]).abs().mean()
        )
        optimiser.param_groups[0]["lr"] = 0.01 * (1 - step / 200)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    decoder.eval().requires_grad_(False)
    latents = free.detach().tanh()
    shapes = Shapes(tokens=4, channels=4, clip_dim=EMBED, text_width=EMBED)
    network = Denoiser(shapes, NetworkConfig(width=16, depth=1, heads=2))
    network.standard_mean.copy_(latents.mean(0))
    network.standard_std.copy_(latents.std(0).clamp_min(0.05))
    facts = {"digest": "the prior's", "encoder": decoder.digest, "clip": BallClip().digest}
    prior = Prior(network, shapes, DiffusionConfig(), facts)
    pipe = ShapePipeline(prior, decoder, BallClip())
    starts = [
        ShapeSample(latent, name, i, decoder)
        for i, (latent, name) in enumerate(zip(latents, NAMES, strict=True))
    ]
    return SimpleNamespace(pipe=pipe, decoder=decoder, latents=latents, shapes=starts)


@pytest.fixture
def guide(balls: SimpleNamespace) -> ExactGuide:
    """A fresh one: VSD changes its network."""
    return ExactGuide(balls.decoder, balls.latents)


def assert_only_inside_changed(start, found, points, outside):
    """Distances, slopes and colours at points: bit-equal outside, others within."""
    for ask in (lambda shape: shape.decoder.sdf(shape.weights, points),
                lambda shape: shape.decoder.gradient(shape.weights, points),
                lambda shape: shape.decoder.texture(shape.weights, points)):  # fmt: skip
        before, after = ask(start), ask(found)
        assert torch.equal(before[outside], after[outside])
        assert not torch.equal(before[~outside], after[~outside])
