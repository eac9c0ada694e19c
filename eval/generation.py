"""Samples of mutually exclusive prompts, seen by a judge that is not the conditioner.

Each sample's NeRF is rendered from four fixed views; the judge looks for the sample's own prompt among all of
them. Beside the scores stand chance, the judge's own scores on true held-out views (the ceiling), and the
share of right families and main colours by probes; then how samples do as a set (`eval.sets`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from eval.beside import draw_beside
from eval.distributions import frechet_distance
from eval.judge import Judge, pooled
from eval.prompts import COLOUR, Prompt, choose_prompts, own_prompt
from eval.samples import ELEVATION_DEGREES, GenerationConfig, Sampler, make_samples
from eval.sets import DrawnSets, Neighbour, draw_sets, evaluate_sets
from sampling.pipeline import Parts
from shapeloom.decoder import Decoder
from shapeloom.metrics import ranks, retrieval_at_k, share_interval
from shapeloom.pictures import on_white
from shapeloom.shards import AssetShards
from shapeloom.storage import AnyPath

Summary = dict[str, Any]
Record = dict[str, Any]
MakeSamples = Callable[[Sequence[str], Path], tuple[Tensor, UInt8[ndarray, "texts views h w 3"]]]
"""Prompts and a folder to keep them in -> latents and pictures."""


def evaluate_generation(
    data: AnyPath, decoder: Decoder, sampler: Callable[[], Sampler], judge: Judge, config: GenerationConfig,
    folder: Path, on_ray: Parts | None = None,
) -> tuple[Summary, list[Record], list[Record]]:  # fmt: skip
    """Returns the summary, records of samples that were judged and of those in the set; kept in `folder`.

    sampler: makes the sampler, called if any sample is missing; on_ray: what it loads in workers of a Ray
    cluster. The summary is {"skipped": reason} where
    there are fewer than two prompts.
    """
    shards = AssetShards(data)
    prompts = choose_prompts(
        shards.rows, config.num_prompts, seed=config.seed, least_assets=config.least_assets
    )
    if len(prompts) < 2:
        return {"skipped": "the data has fewer than two different captions to tell samples apart by"}, [], []

    loaded = cache(sampler)

    def make(texts: Sequence[str], where: Path) -> tuple[Tensor, UInt8[ndarray, "texts views h w 3"]]:
        return make_samples(shards, decoder, loaded, texts, config, where, on_ray)

    scores, records = _judge(data, judge, prompts, make, config, folder)
    if not config.sets.max_samples:
        return scores, records, []
    scores["sets"], compared = _compare(data, decoder, judge, make, config, folder)
    return scores, records, compared


def _judge(
    data: AnyPath, judge: Judge, prompts: Sequence[Prompt], make: MakeSamples, config: GenerationConfig,
    folder: Path,
) -> tuple[Summary, list[Record]]:  # fmt: skip
    """What the judge says of samples of mutually exclusive prompts."""
    _, pictures = make([prompt.text for prompt in prompts] * config.samples_per_prompt, folder)
    of_prompt = np.tile(np.arange(len(prompts)), config.samples_per_prompt)
    embeddings = judge.embed(pictures)
    text = judge.clip.text([prompt.text for prompt in prompts]).pooled.cpu()
    similarity = (pooled(embeddings) @ text.T).numpy()
    scores = judged_scores(judge, embeddings, similarity, prompts, of_prompt)
    colours, targets = np.array([prompt.colour for prompt in prompts]), np.arange(len(prompts))
    rivals = (colours[of_prompt][:, None] == colours) & (of_prompt[:, None] != targets)
    own_similarity = np.take_along_axis(similarity, of_prompt[:, None], axis=1)[:, 0]
    scores |= same_colour_scores(own_similarity, similarity, rivals)
    scores["mismatched_clip_score"] = _mismatched(similarity, of_prompt)
    scores["chance"] = 1 / len(prompts)
    scores |= ceiling(data, judge, prompts, text, config)
    records = _records(prompts, of_prompt, similarity)
    for number, (record, views) in enumerate(zip(records, pictures, strict=True)):
        record["picture"] = f"{number:04d}.png"
        save_strips([views], folder / record["picture"])
    return scores, records


def _compare(
    data: AnyPath, decoder: Decoder, judge: Judge, make: MakeSamples, config: GenerationConfig, folder: Path
) -> tuple[Summary, list[Record]]:
    """How samples of training assets' captions do as a set: they are spread as the data is."""
    assets = draw_sets(data, config.sets, seed=config.seed)
    if isinstance(assets, str):
        return {"skipped": assets}, []
    captions = [shards.rows[index].captions[0] for shards, index in assets.training]
    latents, pictures = make(captions, folder / "sets")
    summary, neighbours = compare_sets(assets, decoder, judge, latents, pictures, config, folder / "sets")
    training, records = AssetShards(data, "train"), list[Record]()
    for number, (caption, views, found) in enumerate(zip(captions, pictures, neighbours, strict=True)):
        nearest, near = training.rows[found.index], _true_views(training, found.index, config)
        record: Record = {"prompt": caption, "copied": found.is_copied, "picture": f"{number:04d}.png"}
        record["nearest"] = nearest.captions[0] if nearest.captions else nearest.key
        save_strips([views, _resized(near, config.size)], folder / "sets" / record["picture"])
        if number < config.beside:
            asset = training.read(found.index, points=True, views=range(training.num_views))
            path = folder / "sets" / f"{number:04d}_beside.png"
            record |= draw_beside(decoder, latents[number], asset, path, samples=config.samples)
        records.append(record)
    return summary, records


def compare_sets(
    assets: DrawnSets, decoder: Decoder, judge: Judge, latents: Float[Tensor, "samples tokens channels"],
    pictures: UInt8[ndarray, "samples views h w 3"], config: GenerationConfig, folder: Path,
) -> tuple[Summary, list[Neighbour]]:  # fmt: skip
    """Returns what shapes and the judge say of samples of training assets' captions, and their neighbours."""
    summary, neighbours = evaluate_sets(assets, decoder, latents, config.sets, folder)
    embeddings, known = judge.embed(pictures), true_embeddings(assets.training, judge, config)
    summary |= frechet_scores(embeddings, true_embeddings(assets.held_out, judge, config), known)
    return summary | caption_scores(assets, judge, {"": embeddings, "training_": known}), neighbours


def judged_scores(
    judge: Judge, embeddings: Float[Tensor, "samples views embed"],
    similarity: Float[ndarray, "samples prompts"], prompts: Sequence[Prompt], of_prompt: ndarray,
) -> Summary:  # fmt: skip
    """Returns retrieval and attribute scores of all samples, and of those of seen and of held-out prompts."""
    truth = {
        "family": np.array([prompts[i].family for i in of_prompt]),
        "colour": np.array([prompts[i].colour for i in of_prompt]),
    }
    scores = retrieval_scores(similarity, of_prompt) | attribute_scores(judge, embeddings, truth)
    seen = np.array([prompt.seen for prompt in prompts])[of_prompt]
    for name, chosen in (("seen", seen), ("held_out", ~seen)):
        scores[name] = None
        if chosen.any():
            scores[name] = retrieval_scores(similarity[chosen], of_prompt[chosen])
            of_group = {attribute: values[chosen] for attribute, values in truth.items()}
            scores[name] |= attribute_scores(judge, embeddings[torch.from_numpy(chosen)], of_group)
    return scores


def true_embeddings(
    assets: Sequence[tuple[AssetShards, int]], judge: Judge, config: GenerationConfig
) -> Float[Tensor, "assets views embed"]:
    """Returns the judge's embeddings of assets' own views."""
    return judge.embed(np.stack([_true_views(shards, index, config) for shards, index in assets]))


def frechet_scores(
    samples: Float[Tensor, "samples views embed"], held_out: Float[Tensor, "assets views embed"],
    training: Float[Tensor, "assets views embed"],
) -> Summary:  # fmt: skip
    """Returns the Frechet distance of as many samples' views to held-out assets' in the judge's features.

    The training assets' own distance is what samples can be measured against.
    """
    of_samples, truth, known = (each.flatten(0, 1).numpy() for each in (samples, held_out, training))
    return {
        "frechet": round(frechet_distance(of_samples, truth), 5),
        "training_frechet": round(frechet_distance(known, truth), 5),
    }


def caption_scores(
    assets: DrawnSets, judge: Judge, embeddings: Mapping[str, Float[Tensor, "assets views embed"]]
) -> Summary:
    """Returns how often the judge finds a sample's whole caption first among its category's, and chance.

    "a red chair with blue legs" among other chairs: what is told apart are parts and their colours. Of
    embeddings by prefix, of samples of the training assets' captions or of these assets' own views.
    Captions that have no other one of their category are left out; {} if all are.
    """
    rows = [shards.rows[index] for shards, index in assets.training]
    captions, kinds = np.array([row.captions[0] for row in rows]), np.array([row.category for row in rows])
    rivals = (kinds[:, None] == kinds) & (captions[:, None] != captions)
    asked = rivals.any(axis=1)
    if not asked.any():
        return {}
    # Of equal captions one is a rival.
    first = np.array([list(captions).index(caption) == i for i, caption in enumerate(captions)])
    rivals, scores = (rivals & first)[asked], Summary()
    text = judge.clip.text(captions.tolist()).pooled.cpu()
    for prefix, each in embeddings.items():
        similarity = (pooled(each) @ text.T).numpy()
        own = similarity.diagonal()[asked]
        right = ~((similarity[asked] >= own[:, None]) & rivals).any(axis=1)
        scores[f"{prefix}caption_r_at_1"] = round(float(right.mean()), 5)
        scores[f"{prefix}caption_r_at_1_interval"] = [round(end, 5) for end in share_interval(right)]
    return scores | {"chance_caption": round(float((1 / (1 + rivals.sum(axis=1))).mean()), 5)}


def _records(
    prompts: Sequence[Prompt], of_prompt: ndarray, similarity: Float[ndarray, "samples prompts"]
) -> list[Record]:
    """What the judge took each sample for."""
    places, best = ranks(similarity, of_prompt), similarity.argmax(axis=1)
    records = []
    for target, place, judged in zip(of_prompt.tolist(), places.tolist(), best.tolist(), strict=True):
        prompt = prompts[target]
        record = {"prompt": prompt.text, "seen": prompt.seen, "place": place + 1}
        records.append(record | {"judged": prompts[judged].text})
    return records


def _resized(views: UInt8[ndarray, "views h w 3"], size: int) -> UInt8[ndarray, "views size size 3"]:
    if views.shape[1] == size:
        return views
    return np.stack(
        [np.asarray(Image.fromarray(v).resize((size, size), Image.Resampling.BOX)) for v in views]
    )


def retrieval_scores(similarity: Float[ndarray, "samples prompts"], target: ndarray) -> Summary:
    """Returns r_at_1, r_at_5, their 95% intervals, clip_score (mean cosine) and the number of samples."""
    scores: Summary = {"num_samples": len(target)}
    for k in (1, 5):
        scores[f"r_at_{k}"] = round(retrieval_at_k(similarity, target, k), 5)
        interval = share_interval(ranks(similarity, target) < k)
        scores[f"r_at_{k}_interval"] = [round(end, 5) for end in interval]
    scores["clip_score"] = round(float(np.take_along_axis(similarity, target[:, None], axis=1).mean()), 5)
    return scores


def same_colour_scores(
    own: Float[ndarray, " samples"],
    similarity: Float[ndarray, "samples prompts"],
    rivals: Bool[ndarray, "samples prompts"],
) -> Summary:
    """Returns r_at_1_same_colour with its interval: among the prompts of a sample's own colour alone, which
    differ in shape and parts; and chance. {} unless every sample has such rivals, as without colours' names.

    own: similarity to a sample's own prompt. rivals: other prompts of its colour.
    """
    num = rivals.sum(axis=1)
    if not num.all() or (num == similarity.shape[1] - 1).all():
        return {}
    right = ~((similarity >= own[:, None]) & rivals).any(axis=1)
    return {
        "r_at_1_same_colour": round(float(right.mean()), 5),
        "r_at_1_same_colour_interval": [round(end, 5) for end in share_interval(right)],
        "chance_same_colour": round(float((1 / (1 + num)).mean()), 5),
    }


def _mismatched(similarity: Float[ndarray, "samples prompts"], target: ndarray) -> float:
    """Mean cosine with the prompts that are not the sample's own: what clip_score is without any relation."""
    others = np.ones(similarity.shape, bool)
    np.put_along_axis(others, target[:, None], False, axis=1)
    return round(float(similarity[others].mean()), 5)


# ---------------------------------------------------------------- the judge's own scores


def ceiling(
    data: AnyPath, judge: Judge, prompts: Sequence[Prompt], text: Float[Tensor, "prompts embed"],
    config: GenerationConfig,
) -> Summary:  # fmt: skip
    """Returns the judge's scores on true views of held-out assets, among as many prompts as samples have.

    Where there are no held-out assets, every entry is None.
    """
    available = AssetShards(data).header["splits"]
    readers = [AssetShards(data, split) for split in ("val", "test") if available.get(split)]
    by_pairs = bool(prompts[0].colour)
    assets = [(reader, i) for reader in readers for i in range(len(reader)) if reader.rows[i].captions]
    if not assets:
        return dict.fromkeys(("ceiling_r_at_1", "ceiling_r_at_5", "ceiling_clip_score"))
    rows = [reader.rows[i] for reader, i in assets]
    embeddings = judge.embed(np.stack([_true_views(reader, i, config) for reader, i in assets]))
    own = [own_prompt(row, by_pairs=by_pairs) for row in rows]
    own_text = judge.clip.text(own).pooled.cpu()
    similarity = np.stack(
        [
            torch.cat([own_text[i : i + 1], _others(prompts, text, own[i])]).numpy() @ view.numpy()
            for i, view in enumerate(pooled(embeddings))
        ]
    )
    scores = retrieval_scores(similarity, np.zeros(len(assets), np.int64))
    colours = np.array([row.attributes.get(COLOUR, "") for row in rows])
    rivals = (colours[:, None] == [p.colour for p in prompts]) & (
        np.array(own)[:, None] != [p.text for p in prompts]
    )
    to_prompts = (pooled(embeddings) @ text.T).numpy()
    own_similarity = (pooled(embeddings) * own_text).sum(dim=1).numpy()
    scores |= same_colour_scores(own_similarity, to_prompts, rivals)
    named = {f"ceiling_{name}": value for name, value in scores.items()}
    truth = {
        "family": np.array([row.category for row in rows]),
        "colour": np.array([row.attributes.get(COLOUR, "") for row in rows]),
    }
    on_truth = attribute_scores(judge, embeddings, truth)
    return named | {f"ceiling_{name}": value for name, value in on_truth.items() if "skipped" not in name}


def _others(prompts: Sequence[Prompt], text: Tensor, own: str) -> Float[Tensor, "others embed"]:
    """One prompt fewer than there are, none of them `own`: as many candidates as for a sample."""
    keep = [i for i, prompt in enumerate(prompts) if prompt.text != own]
    return text[keep[: len(prompts) - 1]]


def _true_views(shards: AssetShards, index: int, config: GenerationConfig) -> UInt8[ndarray, "views h w 3"]:
    """The stored views that look down most nearly as the fixed ones do."""
    poses = shards.read(index, views=range(shards.num_views)).cam_to_world
    height = poses[:, 2, 3] / np.linalg.norm(poses[:, :3, 3], axis=1)
    off = np.abs(height - np.sin(np.radians(ELEVATION_DEGREES)))
    chosen = np.argsort(off, kind="stable")[: config.views].tolist()
    rgba = shards.read(index, views=chosen).rgba
    assert rgba is not None
    return on_white(rgba)


def attribute_scores(
    judge: Judge, embeddings: Float[Tensor, "samples views embed"], truth: dict[str, ndarray]
) -> Summary:
    """Returns the share of right families and colours with intervals; None and the reason where unknown."""
    scores: Summary = {}
    for name, values in truth.items():
        probe = judge.probes.get(name)
        if probe is None or not values.astype(bool).all():
            scores[f"{name}_accuracy"] = None
            scores[f"{name}_skipped"] = judge.skipped.get(name, f"the prompts do not name a {name}")
            continue
        right = np.array(probe.predict(embeddings)) == values
        scores[f"{name}_accuracy"] = round(float(right.mean()), 5)
        scores[f"{name}_accuracy_interval"] = [round(end, 5) for end in share_interval(right)]
    return scores


def save_strips(rows: Sequence[UInt8[ndarray, "views size size 3"]], path: Path) -> None:
    """Writes rows of views side by side, one beneath the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.vstack([np.hstack(list(views)) for views in rows])).save(path, optimize=True)
