"""What is refined: the latents of a few shapes, or the matrices of their fields."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prior.model import Prior
from sampling.edit import changing_tokens
from sampling.refine.config import RefineConfig
from sampling.refine.painted import region_of
from sampling.shape import ShapeSample, regional
from shapeloom.config import UserError
from shapeloom.decoder import Decoder
from shapeloom.fields.projection import FieldWeights
from shapeloom.noise import torch_generator

BLOB_RADIUS, BLOB_STEPS, BLOB_POINTS = 0.5, 300, 2048


class Subject:
    """A few particles; `leaves` are what an optimiser moves.

    decoder: reads `weights`; within a region alone, where there is one.
    """

    def __init__(self, starts: list[ShapeSample], prior: Prior, config: RefineConfig) -> None:
        """Raises UserError for a start that the config can't go on from."""
        self.starts, self.prior, self.region = starts, prior, region_of(config)
        base = starts[0].decoder
        if any(start.region is not None for start in starts):
            raise UserError("This shape was refined within a region; save it as .glb and start from that.")
        if config.optimise == "latent" and any(start.matrices is not None for start in starts):
            raise UserError(
                "This shape's matrices were refined, and no latent says it: set optimise=matrices."
            )
        self.decoder: Decoder = base if self.region is None else regional(base, self.region)
        device = prior.device
        self.before = [
            torch.cat(layer).to(device) for layer in zip(*(s.weights for s in starts), strict=True)
        ]
        self._latent = torch.stack([start.latent for start in starts]).to(device)
        if config.optimise == "latent":
            self.changing: Bool[Tensor, " tokens"] | None = changing_tokens(base.config, config.layers).to(
                device
            )
            self.leaves = [prior.standardise(self._latent).clone().requires_grad_()]
            return
        self.changing = None
        num_geometry = base.config.layout.num_geometry
        if num_geometry is None and config.layers != "all":
            raise UserError("This model's field has no layers of geometry or color alone: use layers=all.")
        geometry = range(num_geometry or 0)
        self._own = [
            config.layers == "all" or (config.layers == "geometry") == (layer in geometry)
            for layer in range(len(self.before))
        ]
        self.leaves = [
            matrix.clone().requires_grad_()
            for matrix, own in zip(self.before, self._own, strict=True) if own
        ]  # fmt: skip

    def weights(self) -> FieldWeights:
        """What the decoder takes, with a graph to the leaves."""
        now = self._now()
        return now if self.region is None else [*self.before, *now]

    def _now(self) -> FieldWeights:
        if self.changing is not None:
            return self._base.weights(self.latents())
        leaves = iter(self.leaves)
        return [next(leaves) if own else each for each, own in zip(self.before, self._own, strict=True)]

    @property
    def _base(self) -> Decoder:
        return self.starts[0].decoder

    def latents(self) -> Float[Tensor, "particles tokens channels"]:
        """The latents that a decoder takes; tokens that may not change are the start's, bit for bit."""
        assert self.changing is not None, "asked of latents alone"
        return torch.where(self.changing[:, None], self.prior.unstandardise(self.leaves[0]), self._latent)

    @torch.no_grad()
    def constrain(self) -> None:
        """Keeps latents within what an encoder says."""
        if self.changing is not None:
            self.leaves[0].clamp_(*self.prior.bounds())

    @torch.no_grad()
    def shapes(self, prompt: str) -> list[ShapeSample]:
        """The particles as they are now."""
        latents = self._latent if self.changing is None else self.latents()
        plain = self.changing is not None and self.region is None
        weights = self.weights()
        return [
            ShapeSample(
                latents[i].detach().float().cpu().clone(), prompt, start.seed, self.decoder,
                None if plain else [matrix[i : i + 1].detach().float().cpu().clone() for matrix in weights],
                self.region,
            )
            for i, start in enumerate(self.starts)
        ]  # fmt: skip


def blob(decoder: Decoder, prompt: str, seed: int) -> ShapeSample:
    """Returns a grey ball of radius 0.5 in the middle: where there is no shape to start from.

    Other systems add such a ball to the density for good (DreamFusion, Magic3D). Here the field's own
    matrices, from those of a latent of zeros on, are fitted to its signed distance: a field like any other.
    seed: of the points that it is fitted at.
    """
    device = next(decoder.parameters()).device
    latent = torch.zeros(decoder.latent_shape)
    with torch.no_grad():
        matrices = decoder.weights(latent[None].to(device))
    leaves = [matrix.clone().requires_grad_() for matrix in matrices]
    optimiser = torch.optim.Adam(leaves, 0.01)
    generator = torch_generator("blob", seed)
    for step in range(BLOB_STEPS):
        points = (2 * torch.rand(1, BLOB_POINTS, 3, generator=generator) - 1).to(device)
        geometry, color = decoder.query(leaves, points)
        off = (geometry.sdf - (points.norm(dim=-1) - BLOB_RADIUS)).abs().mean()
        loss = off + (color.rgb - 0.5).abs().mean() + (color.texture - 0.5).abs().mean()
        optimiser.param_groups[0]["lr"] = 0.01 * (1 - step / BLOB_STEPS)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return ShapeSample(latent, prompt, seed, decoder, [leaf.detach().cpu() for leaf in leaves])
