"""Who judges samples: a dual encoder that is not the conditioner, and classifiers of what is known true.

The judge learns from assets of its own (the split "judge") with another seed, or is another pretrained CLIP;
being the conditioner itself is refused, since a prior learns to please that one. Linear probes on its picture
embeddings tell family and main colour; how often they are right on true pictures is reported beside.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor

from eval.prompts import COLOUR, has_colours, pair_prompt
from prior.train_clip import DualEncoderConfig, fit, read_pairs
from shapeloom.clip import Clip, load_clip
from shapeloom.config import Config, UserError
from shapeloom.distributed import World
from shapeloom.log import get_logger
from shapeloom.runs import Run
from shapeloom.shards import AssetShards
from shapeloom.storage import AnyPath

log = get_logger("judge")

Views = UInt8[np.ndarray, "assets views size size 3"]


class NoJudge(UserError):
    """There is nothing that a judge could learn from; all but the samples can be measured."""


class JudgeConfig(Config):
    """The judge: what it is trained on, or which pretrained CLIP it is (`clip.pretrained`)."""

    # Unlike the conditioner it sees assets of its own, and starts from other weights.
    clip: DualEncoderConfig = DualEncoderConfig(
        split="judge", train=DualEncoderConfig().train.model_copy(update={"seed": 1})
    )
    # Families lie close together in embeddings that colours dominate: a larger penalty hides them.
    probe_penalty: float = Field(1e-6, gt=0, description="weight decay of the linear probes")


@dataclass(frozen=True)
class Probe:
    """A linear classifier of picture embeddings."""

    classes: list[str]
    weight: Float[Tensor, "embed classes"]
    bias: Float[Tensor, " classes"]

    def predict(self, embeddings: Float[Tensor, "assets views embed"]) -> list[str]:
        """Returns each asset's most likely class, all its views together."""
        logits = (embeddings @ self.weight + self.bias).log_softmax(dim=-1).sum(dim=1)
        return [self.classes[i] for i in logits.argmax(dim=1).tolist()]


@dataclass(frozen=True)
class Judge:
    """A dual encoder and its probes, by attribute name; `skipped` tells why one is missing."""

    clip: Clip
    probes: Mapping[str, Probe] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    def embed(self, pictures: Views) -> Float[Tensor, "assets views embed"]:
        """Returns unit vectors of all views."""
        return embed_views(self.clip, pictures)


def embed_views(clip: Clip, pictures: Views) -> Float[Tensor, "assets views embed"]:
    """Returns unit vectors of all views, on the CPU."""
    flat = clip.image(pictures.reshape(-1, *pictures.shape[2:])).cpu()
    return flat.reshape(*pictures.shape[:2], -1)


def pooled(embeddings: Float[Tensor, "assets views embed"]) -> Float[Tensor, "assets embed"]:
    """Returns the unit vector along the mean of each asset's views."""
    return F.normalize(embeddings.mean(dim=1), dim=-1)


def fit_probe(embeddings: Float[Tensor, "samples embed"], labels: Sequence[str], *, penalty: float) -> Probe:
    """Returns the multinomial logistic regression of `labels`; ValueError for fewer than two classes."""
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise ValueError(f"a classifier needs two classes or more, got {classes}")
    target = torch.tensor([classes.index(label) for label in labels])
    weight = torch.zeros(embeddings.shape[1], len(classes), requires_grad=True)
    bias = torch.zeros(len(classes), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(embeddings @ weight + bias, target) + penalty * weight.square().sum()
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    return Probe(classes, weight.detach(), bias.detach())


def make_judge(data: AnyPath, config: JudgeConfig, folder: Path, *, conditioner: str, world: World) -> Judge:
    """Returns the judge, trained in `folder` unless it is there already.

    conditioner: digest of the CLIP that the prior was conditioned on. Raises UserError if the judge is that
    one, and NoJudge if the data has nothing for it to learn from.
    """
    available = AssetShards(data).header["splits"]
    split = config.clip.split
    if not available.get(split) and config.clip.pretrained is None:
        raise NoJudge(
            f"{data} has no assets of the split {split!r}, which the judge learns from; it has: "
            f"{', '.join(sorted(available))}. Prepare the data with a share for it (splits.judge), or name a "
            "pretrained CLIP that the prior was not conditioned on (judge.clip.pretrained)."
        )
    shards = AssetShards(data, split) if available.get(split) else None
    clip = _make_clip(shards, config.clip.model_copy(update={"data": str(data)}), folder, world)
    refuse_conditioner(clip.digest, conditioner)
    probes, skipped = make_probes(shards, clip, config)
    return Judge(clip, probes, skipped)


def refuse_conditioner(judge: str, conditioner: str) -> None:
    """Raises UserError if both digests are the same."""
    if judge == conditioner:
        raise UserError(
            "The judge is the very CLIP that conditioned the prior, which was trained to please it; its "
            "scores would say nothing. Train the judge on other assets or with another seed "
            "(judge.clip.split, judge.clip.train.seed), or name another CLIP (judge.clip.pretrained)."
        )


def _make_clip(shards: AssetShards | None, config: DualEncoderConfig, folder: Path, world: World) -> Clip:
    if config.pretrained is not None:
        return load_clip(config.pretrained, world.device)
    assert shards is not None  # the caller has looked
    inputs = {"data": shards.digest}
    with Run.open(folder, config, stage="judge", inputs=inputs, writes=world.is_main) as run:
        if run.done:
            return load_clip(folder, world.device)
        images, captions = read_pairs(shards, size=config.image_size, num_views=config.num_views)
        if has_colours(shards.rows):  # the prompts that it will be asked about
            extra = [pair_prompt(row) for row in shards.rows]
            captions = [[*own, prompt] for own, prompt in zip(captions, extra, strict=True)]
        if len({caption for own in captions for caption in own}) < 2 or not all(captions):
            raise NoJudge(
                f"The assets of the split {config.split!r} have fewer than two different captions, or some "
                "have none, so a judge can't learn from them. Add captions, or name a pretrained CLIP "
                "(judge.clip.pretrained)."
            )
        log.info("training the judge on %d assets of the split %r", len(shards), config.split)
        clip = fit(images, captions, config, run, world)
        run.finish(digest=clip.digest)
    return load_clip(folder, world.device)


def make_probes(
    shards: AssetShards | None, clip: Clip, config: JudgeConfig
) -> tuple[dict[str, Probe], dict[str, str]]:
    if shards is None:
        reason = f"the data has no assets of the split {config.clip.split!r} to learn it from"
        return {}, {"family": reason, "colour": reason}
    images, _ = read_pairs(shards, size=clip.image_size, num_views=config.clip.num_views)
    embeddings = embed_views(clip, images).flatten(0, 1)
    labels = {
        "family": [row.category for row in shards.rows],
        "colour": [row.attributes.get(COLOUR, "") for row in shards.rows],
    }
    probes, skipped = {}, {}
    for name, values in labels.items():
        if not all(values) or len(set(values)) < 2:
            what = "no colour column" if name == "colour" else "fewer than two categories"
            skipped[name] = f"the judge's assets have {what} to learn it from"
            continue
        repeated = [value for value in values for _ in range(images.shape[1])]
        probes[name] = fit_probe(embeddings, repeated, penalty=config.probe_penalty)
    return probes, skipped
