"""Latents and conditions of a split, in memory, and what training draws from them."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from shapeloom.config import Config, UserError
from shapeloom.denoising import NO_LABEL, Shapes
from shapeloom.log import get_logger
from shapeloom.shards.tensors import LatentShards

log = get_logger("prior")


class MixtureConfig(Config):
    """Which conditions training samples are shown with. Draws are independent of one another but for the
    first three, which are shares of the samples."""

    no_condition: float = Field(
        default=0.1, ge=0, le=1, description="share of samples shown without any condition"
    )
    image_only: float = Field(
        default=0.15, ge=0, le=1, description="share shown with a view's CLIP vector alone"
    )
    text_and_image: float = Field(0.1, ge=0, le=1, description="share with both; the rest: text alone")
    max_views: int = Field(default=1, ge=1, description="views of a sample that is shown any: 1 to so many")
    drop_tokens: float = Field(
        default=0.0, ge=0, le=1, description="share of captions shown by their pooled vector alone"
    )
    grid: bool = Field(default=False, description="show views' grids too (encode with clip_grid=true)")
    labels: bool = Field(default=False, description="show the asset's category as a class label too")
    drop_label: float = Field(default=0.1, ge=0, le=1, description="share of labels that are not shown")

    @model_validator(mode="after")
    def _shares_fit(self) -> "MixtureConfig":
        total = self.no_condition + self.image_only + self.text_and_image
        if total > 1:
            raise ValueError(f"no_condition + image_only + text_and_image must be at most 1, got {total:g}")
        return self


class Latents:
    """A split's latents and conditions in memory, as stored.

    copies: [assets, copies, tokens, channels], latents of the assets' mirror images and turns, or none.
    """

    def __init__(self, shards: LatentShards, config: MixtureConfig, classes: Sequence[str] = ()) -> None:
        """classes: of the prior, in their order; by default those of this split.

        Raises UserError for latents or embeddings that aren't finite, and for grids that aren't there.
        """
        data = shards.load()
        keys = [row.key for row in shards.rows]
        self.labels = [row.label for row in shards.rows]
        self.latent: Tensor = data["latent"]
        check_finite(self.latent, keys, "latents", "The encoder that made them")
        self.copies: Tensor | None = data.get("latent_copies")
        if self.copies is not None:
            check_finite(self.copies, keys, "latents of copies", "The encoder that made them")
        check_finite(data["text_pooled"], keys, "caption embeddings", "The CLIP that made them")
        check_finite(data["image_pooled"], keys, "view embeddings", "The CLIP that made them")
        self.num_captions = data["num_captions"]
        _check_captions(shards)
        self.num_captionless = int((self.num_captions == 0).sum())
        if self.num_captionless:
            log.warning("%d of %d assets have no caption: shown by picture", self.num_captionless, len(keys))
        if config.grid and "image_grid" not in data:
            raise UserError(f"{shards.folder} holds no grids of the views: encode with clip_grid=true.")
        self._grid = data["image_grid"] if config.grid else None
        num_views = data["image_pooled"].shape[1]
        if not num_views:
            if config.image_only or config.text_and_image or self.num_captionless:
                raise UserError(
                    f"{shards.folder} holds no pictures: every asset needs a caption, and the config "
                    "mixture.image_only=0 mixture.text_and_image=0."
                )
            # A view that is never shown.
            data["image_pooled"] = torch.zeros(len(keys), 1, data["image_pooled"].shape[-1])
        self._data, self._config = data, config
        categories = [row.category for row in shards.rows]
        self._classes = tuple(classes) or tuple(sorted(set(categories) - {""})) if config.labels else ()
        number = {name: i for i, name in enumerate(self._classes)}
        self._labels = [number.get(category, NO_LABEL) for category in categories]
        self.is_set = bool(shards.header.get("is_set"))
        self._layers = () if self.is_set else tuple(shards.header.get("layers", ()))

    @property
    def max_views(self) -> int:
        """Views of an asset that a sample is shown at most."""
        return min(self._config.max_views, self._data["image_pooled"].shape[1])

    @property
    def shapes(self) -> Shapes:
        """Sizes of the latents and conditions."""
        _, tokens, channels = self.latent.shape
        clip_dim, text_width = self._data["text_pooled"].shape[-1], self._data["text_tokens"].shape[-1]
        grid_width = 0 if self._grid is None else self._grid.shape[-1]
        return Shapes(
            tokens, channels, clip_dim, text_width, grid_width, self._classes, self._layers, self.is_set
        )

    def draw(self, row: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """A row's latent, one of its captions, some of its views, its class, and which of them are shown."""
        config, data = self._config, self._data
        num_captions = int(self.num_captions[row])
        caption = int(rng.integers(max(1, num_captions)))
        first, num_views = int(rng.integers(data["image_pooled"].shape[1])), data["image_pooled"].shape[1]
        share = rng.random() - config.no_condition
        image_alone = 0 <= share < config.image_only
        both = 0 <= share - config.image_only < config.text_and_image
        if share >= 0 and not num_captions:
            image_alone = True
        views = (first + np.arange(self.max_views)) % num_views
        has_view = torch.zeros(len(views), dtype=torch.bool)
        if image_alone or both:
            has_view[: 1 if len(views) == 1 else int(rng.integers(1, len(views) + 1))] = True
        labelled = bool(self._classes) and share >= 0 and rng.random() >= config.drop_label
        latent = self.latent[row]
        if self.copies is not None and (pose := int(rng.integers(1 + self.copies.shape[1]))):
            latent = self.copies[row, pose - 1]
        tokens_kept = not config.drop_tokens or rng.random() >= config.drop_tokens
        out = {
            "latent": latent.float(),
            "text_pooled": data["text_pooled"][row, caption].float(),
            "text_tokens": data["text_tokens"][row, caption].float(),
            "text_mask": data["text_mask"][row, caption] & tokens_kept,
            "has_text": torch.tensor(share >= 0 and not image_alone),
            "image_pooled": data["image_pooled"][row, views].float(),
            "has_view": has_view,
            "label": torch.tensor(self._labels[row] if labelled else NO_LABEL),
        }
        if self._grid is not None:
            out["image_grid"] = self._grid[row, views].float()
        return out


VIEW_CHANNELS = 16
"""Numbers of a token that a picture embedding is cut into."""


class ViewLatents(Latents):
    """Views' CLIP vectors in place of latents: what a prior from captions to picture embeddings learns.

    As in unCLIP (Ramesh et al. 2022, section 2.2), but each vector is cut into several tokens.
    """

    def __init__(self, shards: LatentShards, config: MixtureConfig, classes: Sequence[str] = ()) -> None:
        super().__init__(shards, config, classes)
        pooled = self._data["image_pooled"].float()
        if pooled.shape[-1] % VIEW_CHANNELS:
            raise UserError(
                f"A prior of picture embeddings cuts them into tokens of {VIEW_CHANNELS} numbers, which "
                f"doesn't fit their width {pooled.shape[-1]}. Use a CLIP of another width."
            )
        self._views = pooled.unflatten(-1, (-1, VIEW_CHANNELS))
        self.latent, self._layers, self.is_set = self._views.flatten(0, 1), (), False
        self.labels = [label for label in self.labels for _ in range(self._views.shape[1])]

    def draw(self, row: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """A view's vector, with its asset's caption and class."""
        num_views = self._views.shape[1]
        return {**super().draw(row // num_views, rng), "latent": self.latent[row]}


def check_finite(values: Float[Tensor, " assets *shape"], keys: Sequence[str], what: str, maker: str) -> None:
    """Raises UserError that names the assets whose `what` are not finite."""
    bad = (~torch.isfinite(values).flatten(1).all(1)).tolist()
    if any(bad):
        raise UserError(
            f"{sum(bad)} of {len(keys)} {what} hold NaN or infinity ({_names(keys, bad)}). {maker} "
            "has diverged: train it again with a lower learning rate, then encode again."
        )


def _check_captions(shards: LatentShards) -> None:
    blank = [not all(text.strip() for text in row.captions) for row in shards.rows]
    if any(blank):
        names = _names([row.key for row in shards.rows], blank)
        raise UserError(
            f"{sum(blank)} assets have an empty caption ({names}). Prepare the data again: data_prep leaves "
            "empty captions out."
        )


def _names(keys: Sequence[str], chosen: Sequence[bool]) -> str:
    return name_some([key for key, wanted in zip(keys, chosen, strict=True) if wanted])


def name_some(names: Sequence[str]) -> str:
    """Returns the first five, for messages."""
    return ", ".join(names[:5]) + ("..." if len(names) > 5 else "")


def standardisation(
    latents: Float[Tensor, "assets tokens channels"], *, common: bool = False, strength: float = 8.0,
    floor: float = 0.05,
) -> tuple[Float[Tensor, "tokens channels"], Float[Tensor, "tokens channels"]]:  # fmt: skip
    """Mean and standard deviation of every latent number; common: that of all numbers together for each.

    A variance estimated from few assets is drawn towards the mean variance of all numbers, as if `strength`
    more assets had shown that one, and is at least (floor x its root)^2: a number that never varied in
    training would otherwise be blown up to unit variance, and its rounding errors with it.
    """
    count = latents.shape[0]
    latents = latents.float()
    mean = latents.mean(0)
    variance = (latents - mean).square().mean(0)
    overall = variance.mean()
    shrunk = (count * variance + strength * overall) / (count + strength)
    if common:
        shrunk = overall.expand_as(variance)
    # 1e-4: about the rounding of stored 16-bit latents, for sets whose assets are all alike.
    return mean, shrunk.clamp_min(max(float(floor**2 * overall), 1e-4**2)).sqrt()


def principal_components(
    latents: Float[Tensor, "assets tokens channels"], layers: Sequence[int], num: int
) -> tuple[Float[Tensor, "num numbers"], Float[Tensor, " num"]]:
    """Orthonormal axes of standardised latents along which they vary most, and the variance along each.

    layers: tokens of each of the field's layers, which get axes of their own, so that one layer's tokens say
    nothing of another's. num: as `num_components` gives it.
    """
    _, tokens, channels = latents.shape
    layers = list(layers) or [tokens]
    each = num // len(layers)
    axes, variances = torch.zeros(len(layers), each, tokens, channels), []
    first = 0
    for layer, size in enumerate(layers):
        own = latents[:, first : first + size].flatten(1).float()
        found = torch.linalg.svd(own, full_matrices=False)[2][:each]
        axes[layer, :, first : first + size] = found.unflatten(1, (size, channels))
        variances.append((own @ found.T).var(dim=0))
        first += size
    return axes.flatten(0, 1).flatten(1), torch.cat(variances)


def num_components(
    latents: Float[Tensor, "assets tokens channels"], layers: Sequence[int], wanted: int
) -> int:
    """How many of the `wanted` axes there are: as many for each layer, no more than latents or numbers."""
    count, tokens, channels = latents.shape
    layers = list(layers) or [tokens]
    return len(layers) * min(-(-wanted // len(layers)), count, min(layers) * channels)
