"""A judge that knows colours finds right samples, and only right ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from encoder.model import Autoencoder
from eval.generation import evaluate_generation, retrieval_scores
from eval.judge import Judge, fit_probe
from eval.samples import GenerationConfig, Sampler
from eval.sets import DrawnSets, SetsConfig, draw_sets
from shapeloom.clip import Clip, TextEmbedding
from shapeloom.shards import AssetShards

SETS = SetsConfig(points=256, resolution=16)
CONFIG = GenerationConfig(
    num_prompts=10, samples_per_prompt=2, batch_size=4, views=2, size=16, beside=1, sets=SETS
)
RGB = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


class ColourClip(Clip):
    """Embeds a picture as how much of each channel is missing from white, a caption as its colour does."""

    def __init__(self) -> None:
        pass

    def text(self, captions: Sequence[str], *, batch_size: int = 256) -> TextEmbedding:
        missing = [1 - torch.tensor(RGB[c]) for caption in captions for c in RGB if c in caption]
        pooled = F.normalize(torch.stack(missing), dim=-1)
        return TextEmbedding(pooled, torch.zeros(len(pooled), 1, 1), torch.ones(len(pooled), 1).bool())

    def image(self, rgb: Tensor | np.ndarray, *, batch_size: int = 64) -> Tensor:
        return F.normalize(1 - torch.as_tensor(rgb).float().mean(dim=(1, 2)) / 255, dim=-1)


@pytest.fixture
def judge() -> Judge:
    clip = ColourClip()
    probe = fit_probe(clip.text([f"a {c} ball" for c in RGB]).pooled, list(RGB), penalty=1e-4)
    return Judge(clip, {"colour": probe}, {"family": "there is one family only"})


def sampler(answers: dict[str, str]) -> Sampler:
    """Balls whose colour is the answer to the prompt's colour."""

    def sample(prompts: list[str], seeds: list[int]) -> Tensor:
        colours = [answers[colour] for prompt in prompts for colour in RGB if colour in prompt]
        return torch.tensor([[[0.8, *RGB[colour]]] for colour in colours])

    return sample


def test_right_samples_are_retrieved_and_reported_by_seen_and_held_out_prompts(
    coloured_balls: Path, oracle: Autoencoder, judge: Judge, tmp_path: Path
) -> None:
    right = sampler({colour: colour for colour in RGB})
    scores, records, compared = evaluate_generation(
        coloured_balls, oracle.decoder, lambda: right, judge, CONFIG, tmp_path
    )
    assert scores["num_samples"] == len(records) == 6
    assert scores["r_at_1"] == scores["r_at_5"] == scores["ceiling_r_at_1"] == 1
    assert scores["chance"] == pytest.approx(1 / 3)
    assert scores["clip_score"] == pytest.approx(1, abs=1e-3)
    assert scores["mismatched_clip_score"] == pytest.approx(0.5, abs=1e-3)  # e.g. (0,1,1) and (1,0,1)
    assert (scores["seen"]["num_samples"], scores["held_out"]["num_samples"]) == (4, 2)
    assert scores["colour_accuracy"] == scores["ceiling_colour_accuracy"] == 1
    assert scores["family_accuracy"] is None and scores["family_skipped"] == "there is one family only"
    assert {r["prompt"]: r["seen"] for r in records} == {
        "a red ball": True, "a green ball": True, "a blue ball": False,
    }  # fmt: skip
    assert all(record["place"] == 1 and (tmp_path / record["picture"]).is_file() for record in records)
    # As many as there are held-out assets, of training assets' own captions; neighbours are drawn beneath.
    sets = draw_sets(coloured_balls, SETS, seed=0)
    assert isinstance(sets, DrawnSets)
    captions = [shards.rows[i].captions[0] for shards, i in sets.training]
    assert [record["prompt"] for record in compared] == captions and len(captions) == 4
    assert [record.get("beside") for record in compared] == ["0000_beside.png", *[None] * 3]
    with Image.open(tmp_path / "sets" / "0000_beside.png") as picture:
        sample, asset = np.split(np.array(picture), 2)
    # Volume, mesh and bare surface of the one, view (of 16 pixels, scaled up) and points of the other: balls,
    # all as large. Their points lie at random, so that their squares leave gaps.
    panels = [panel for row in (sample, asset) for panel in np.split(row, 3, axis=1)]
    for number, panel in enumerate(panels):
        for place in np.nonzero((panel < 250).any(axis=-1)):
            assert 0.88 < (np.ptp(place) + 1) / 192 < (1.01 if number == 3 else 0.92)
        assert 0.35 < (panel < 250).any(axis=-1).mean() < 0.75
    heights = []
    for folder, group in ((tmp_path, records), (tmp_path / "sets", compared)):
        for record in group:
            with Image.open(folder / record["picture"]) as picture:
                heights.append(picture.height)
    assert heights == [16] * 6 + [32] * 4
    assert scores["sets"]["frechet"] == pytest.approx(scores["sets"]["training_frechet"], abs=0.01)
    assert scores["sets"]["caption_r_at_1"] == scores["sets"]["training_caption_r_at_1"] == 1
    assert scores["sets"]["chance_caption"] == 1 / len(set(captions)) == 0.5


def test_samples_of_the_wrong_colour_are_not_retrieved_while_the_ceiling_stays(
    coloured_balls: Path, oracle: Autoencoder, judge: Judge, tmp_path: Path
) -> None:
    wrong = sampler({"red": "green", "green": "blue", "blue": "red"})
    scores, records, _ = evaluate_generation(
        coloured_balls, oracle.decoder, lambda: wrong, judge, CONFIG, tmp_path
    )
    assert scores["r_at_1"] == scores["colour_accuracy"] == scores["sets"]["caption_r_at_1"] == 0
    assert scores["sets"]["training_caption_r_at_1"] == 1
    assert scores["ceiling_r_at_1"] == 1
    assert {r["judged"] for r in records if r["prompt"] == "a red ball"} == {"a green ball"}


def test_finished_batches_are_not_sampled_again_and_seeds_hang_on_the_prompt_alone(
    coloured_balls: Path, oracle: Autoencoder, judge: Judge, tmp_path: Path
) -> None:
    made: dict[str, set[int]] = {}

    def remember(prompts: list[str], seeds: list[int]) -> Tensor:
        for prompt, seed in zip(prompts, seeds, strict=True):
            made.setdefault(prompt, set()).add(seed)
        return sampler({colour: colour for colour in RGB})(prompts, seeds)

    def run(folder: Path, batch_size: int) -> dict:
        config = CONFIG.model_copy(update={"batch_size": batch_size})
        return evaluate_generation(coloured_balls, oracle.decoder, lambda: remember, judge, config, folder)[0]

    first = run(tmp_path / "a", 4)
    assert min(map(len, made.values())) == 2
    before = {prompt: set(seeds) for prompt, seeds in made.items()}
    (tmp_path / "a" / "part_001.safetensors").unlink()
    made.clear()
    assert run(tmp_path / "a", 4) == first
    assert sum(len(seeds) for seeds in made.values()) == 2  # the second of two batches, 4 + 2
    made.clear()
    run(tmp_path / "b", 5)
    assert made == before


def test_a_single_prompt_is_skipped_with_the_reason(
    ball_dataset: Path, oracle: Autoencoder, judge: Judge, tmp_path: Path
) -> None:
    assert len({row.attributes["colour"] for row in AssetShards(ball_dataset).rows}) == 1
    scores, records, _ = evaluate_generation(
        ball_dataset, oracle.decoder, lambda: sampler({}), judge, CONFIG, tmp_path
    )
    assert records == [] and "fewer than two" in scores["skipped"]


def test_retrieval_scores_of_a_known_matrix() -> None:
    similarity = np.array([[0.9, 0.1], [0.8, 0.2]])
    scores = retrieval_scores(similarity, np.array([0, 1]))
    assert (scores["r_at_1"], scores["r_at_5"]) == (0.5, 1.0)
    assert scores["clip_score"] == pytest.approx(0.55)
