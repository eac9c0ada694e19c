"""A trained prior, frozen, as sampling uses it."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from prior.description import Distilled, Predicts, read_description
from shapeloom.checkpoint import extra_weights
from shapeloom.clip import TextEmbedding
from shapeloom.config import UserError
from shapeloom.denoising import NO_LABEL, Condition, DenoisingNetwork, Shapes
from shapeloom.diffusion.objectives import DiffusionConfig, predict_x0, split_answer
from shapeloom.diffusion.variance import learned_log_variance
from shapeloom.runs import read_meta
from shapeloom.saved import check_fits
from shapeloom.weights import checked_digest, halve_weights, read_tensors


class Prior:
    """A trained prior. Make it with `load_prior`.

    Works on standardised latents; `unstandardise` brings them back to what a decoder takes.

    Attributes:
        digest: SHA-256 of its weights.
        encoder_digest, clip_digest: of the decoder and the CLIP that its latents and conditions came from.
        shape: (tokens, channels) of a latent.
        predicts: "latents", or "views": pictures' CLIP vectors in place of latents.
        distilled: how to sample it, if it was distilled.
        max_views: pictures of one object that its training showed at once, at most.
    """

    def __init__(
        self, network: DenoisingNetwork, shapes: Shapes, diffusion: DiffusionConfig, facts: dict[str, Any]
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.shapes, self.diffusion = shapes, diffusion
        self.digest, self.encoder_digest = str(facts["digest"]), str(facts["encoder"])
        self.clip_digest = str(facts["clip"])
        self.predicts: Predicts = facts.get("predict", "latents")
        self.distilled: Distilled | None = facts.get("distilled")
        self.max_views: int = facts.get("max_views", 1)
        self.device = next(network.parameters()).device
        self.bf16 = False

    @property
    def shape(self) -> tuple[int, int]:
        """(tokens, channels) of a latent."""
        return self.shapes.tokens, self.shapes.channels

    def check(self, *, encoder_digest: str | None = None, clip_digest: str | None = None) -> None:
        """Raises UserError if a decoder or a CLIP of another digest is to be used with this prior."""
        for name, have, need in (
            ("encoder", encoder_digest, self.encoder_digest), ("CLIP", clip_digest, self.clip_digest)
        ):  # fmt: skip
            # A published checkpoint doesn't say which file its CLIP was in: an empty digest.
            if have is not None and need and have != need:
                raise UserError(
                    f"This prior was trained with the {name} {need[:12]}, but was given {have[:12]}: their "
                    f"numbers mean different things. Use the {name} of the prior's own run, or encode the "
                    "latents anew and train a prior on them."
                )

    def condition(
        self, text: TextEmbedding | None = None,
        image: Float[Tensor, "batch embed"] | Float[Tensor, "batch views embed"] | None = None, *,
        grid: Float[Tensor, "batch views cells grid_width"] | None = None,
        has_view: Bool[Tensor, "batch views"] | None = None,
        label: Int64[Tensor, " batch"] | None = None, batch: int | None = None,
    ) -> Condition:  # fmt: skip
        """Conditions for `denoise`: captions (`Clip.text`), pictures (`Clip.image`), classes, or neither.

        image: one vector a row, or several views'. has_view: which of these there are; all, if None.
        grid: their grids (`Clip.grid`), for a prior that reads them. label: numbers of `shapes.classes`.
        batch: number of rows; needed when there is no condition. A single row is repeated to it.
        Raises ValueError when numbers of rows or widths don't fit, or a grid is missing or not expected.
        """
        given = (text.pooled if text else None, image, label)
        counts = [len(part) for part in given if part is not None]
        size = batch if batch is not None else max(counts, default=0)
        if size < 1 or any(count not in (1, size) for count in counts):
            raise ValueError(
                f"expected 1 or {size} rows of text, image and label conditions, got {counts}, batch {batch}"
            )
        shapes = self.shapes
        if text is None:
            tokens, mask = torch.zeros(size, 1, shapes.text_width), torch.zeros(size, 1, dtype=torch.bool)
            text = TextEmbedding(torch.zeros(size, shapes.clip_dim), tokens, mask)
        views = torch.zeros(size, 1, shapes.clip_dim) if image is None else image
        views = views[:, None] if views.ndim == 2 else views
        widths = (text.pooled.shape[-1], views.shape[-1], text.tokens.shape[-1])
        expected = (shapes.clip_dim, shapes.clip_dim, shapes.text_width)
        if widths != expected:
            raise ValueError(f"text, image and text tokens have widths {widths}; this prior knows {expected}")
        if image is not None and (0 if grid is None else grid.shape[-1]) != shapes.grid_width:
            raise ValueError(
                f"this prior reads pictures' grids of width {shapes.grid_width} (0: none), but was given "
                f"{'none' if grid is None else grid.shape[-1]}"
            )
        if label is not None and not bool(((label >= NO_LABEL) & (label < len(shapes.classes))).all()):
            raise ValueError(f"labels are numbers below {len(shapes.classes)}, got {label.tolist()}")
        dtype = self.network.standard_mean.dtype  # of matrices kept in half, float32

        def fitted(value: Tensor) -> Tensor:
            kind = dtype if value.is_floating_point() else value.dtype
            return value.expand(size, *value.shape[1:]).to(self.device, kind)

        return Condition(
            text_pooled=fitted(text.pooled), text_tokens=fitted(text.tokens), text_mask=fitted(text.mask),
            has_text=fitted(torch.full((size,), given[0] is not None)), image_pooled=fitted(views),
            has_view=fitted(torch.full(views.shape[:2], image is not None) if has_view is None else has_view),
            label=fitted(torch.full((size,), NO_LABEL) if label is None else label),
            image_grid=None if image is None or grid is None else fitted(grid),
        )  # fmt: skip

    def denoise(
        self, x: Float[Tensor, "batch tokens channels"], sigma: Float[Tensor, " batch"], condition: Condition
    ) -> Float[Tensor, "batch tokens channels"]:
        """The expected x_0 of x = x_0 + sigma eps, all standardised: the seam of `diffusion.samplers`.

        Within [-1, 1] where the network clamps x_0.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            x0 = predict_x0(self.network, self.diffusion, x, sigma, condition)
        return x0.clamp(-1, 1) if self.network.clamps == "x0" else x0

    def log_variance(
        self,
        x: Float[Tensor, "batch tokens channels"],
        start: Float[Tensor, " batch"],
        end: Float[Tensor, " batch"],
        condition: Condition,
    ) -> Float[Tensor, "batch tokens channels"]:
        """Log variance of the step of x from noise level `start` to `end`: `samplers.LogVariance`.

        Raises ValueError for a prior that was trained without diffusion.learned_variance.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            answer = self.network(x, start, condition)
        share = split_answer(answer, self.diffusion)[1]
        if share is None:
            raise ValueError("this prior was trained without diffusion.learned_variance")
        return learned_log_variance(share.to(x.dtype), start, end)

    def use_bf16(self) -> None:
        """Computes in bfloat16 from now on, with weights to match (see `halve_weights`)."""
        halve_weights(self.network)
        self.bf16 = True

    def standardise(
        self, latent: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """From an encoder's latents to x_0."""
        return (latent - self.network.standard_mean) / self.network.standard_std

    def unstandardise(
        self, x0: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """From x_0 to a decoder's latents; within [-1, 1] where the network clamps samples."""
        latent = x0 * self.network.standard_std + self.network.standard_mean
        return latent.clamp(-1, 1) if self.network.clamps == "samples" else latent

    def bounds(self) -> tuple[Float[Tensor, "tokens channels"], Float[Tensor, "tokens channels"]]:
        """The least and the largest x_0 that an encoder's latents can have."""
        ends = torch.ones_like(self.network.standard_mean)
        return self.standardise(-ends[None])[0], self.standardise(ends[None])[0]


def load_prior(folder: Path, device: torch.device | str = "cpu", *, ema: float | None = None) -> Prior:
    """Loads a finished prior run; raises UserError if `folder` isn't one.

    ema: which of the run's averages to use (train.ema_decay and train.ema_extra); None: train.ema_decay's.
    """
    meta, description = read_meta(folder, stage="prior"), read_description(folder)
    weights = folder / ("weights.safetensors" if ema is None else extra_weights(ema))
    if ema is not None and not weights.is_file():
        have = ", ".join(sorted(path.name for path in folder.glob("weights*.safetensors")))
        raise UserError(f"{folder} keeps no average of decay {ema:g}; it has {have}.")
    expected = meta["weights_digest"] if ema is None else meta.get("extra_digests", {}).get(weights.name)
    digest = checked_digest(weights, expected)
    check_fits(description.make, weights)
    # Priors may be large: neither random numbers first nor a copy.
    with torch.device("meta"):
        network = description.make()
    network.load_state_dict(read_tensors(weights), assign=True)
    facts = {**meta["inputs"], "predict": description.predict, "digest": digest}
    facts |= {"distilled": description.distilled, "max_views": description.max_views}
    return Prior(network.to(device), description.shapes, description.diffusion, facts)
