"""Prompts exclude each other, and held-out ones are told apart from seen ones."""

from eval.prompts import choose_prompts, pair_prompt
from shapeloom.shards import Row


def row(split: str, family: str, colour: str = "", *, group: str = "", captions: tuple[str, ...] = ()) -> Row:
    attributes = {"colour": colour} if colour else {}
    key = f"{split}-{family}-{colour}-{group}"
    return Row(key, 0, split, group, family, list(captions), attributes, {})


def test_pairs_are_distinct_and_seen_if_a_training_asset_shows_them() -> None:
    rows = [row("train", "chair", "red", group=str(i)) for i in range(3)]
    rows += [row("val", "chair", "red"), row("test", "bed", "orange"), row("judge", "mug", "blue")]
    prompts = {prompt.text: prompt for prompt in choose_prompts(rows, 10, seed=0)}
    assert prompts.keys() == {"a red chair", "an orange bed"}
    assert prompts["a red chair"].seen and not prompts["an orange bed"].seen
    assert (prompts["an orange bed"].family, prompts["an orange bed"].colour) == ("bed", "orange")


def test_held_out_pairs_take_up_to_half_of_the_prompts_and_the_order_hangs_on_the_seed_alone() -> None:
    rows = [row("train", f"family{i}", "red") for i in range(50)]
    rows += [row("test", f"family{i}", "blue") for i in range(30)]
    prompts = choose_prompts(rows, 40, seed=0)
    assert len({prompt.text for prompt in prompts}) == 40
    assert sum(not prompt.seen for prompt in prompts) == 20
    assert prompts == choose_prompts(rows[::-1], 40, seed=0) != choose_prompts(rows, 40, seed=1)


def test_a_half_that_has_too_few_is_filled_from_the_other() -> None:
    few_seen = [row("train", "a", "red")] + [row("test", f"family{i}", "blue") for i in range(30)]
    assert len(choose_prompts(few_seen, 20, seed=0)) == 20
    few_held_out = [row("train", f"family{i}", "blue") for i in range(30)] + [row("test", "a", "red")]
    assert len(choose_prompts(few_held_out, 20, seed=0)) == 20


def test_without_colours_each_group_has_one_caption_and_no_caption_two_groups() -> None:
    rows = [
        row("train", "tree", group="tree", captions=("a tree", "an oak")),
        row("train", "tree2", group="tree", captions=("a big tree",)),
        row("test", "other", group="other", captions=("a tree",)),
        row("test", "rock", group="rock", captions=("a rock",)),
        row("test", "nameless", group="nameless"),
    ]
    prompts = choose_prompts(rows, 10, seed=0)
    assert sorted(prompt.text for prompt in prompts) == ["a rock", "a tree"]
    assert all(prompt.colour == prompt.family == "" for prompt in prompts)


def test_names_that_few_assets_have_can_be_left_out() -> None:
    rows = [row("train", f"tree{i}", group="tree", captions=("tree",)) for i in range(3)]
    rows += [row("train", f"rock{i}", group="rock", captions=("rock",)) for i in range(2)]
    rows += [row("judge", f"rock{i}", group="rock", captions=("rock",)) for i in range(2)]
    assert [prompt.text for prompt in choose_prompts(rows, 10, seed=0, least_assets=3)] == ["tree"]
    assert len(choose_prompts(rows, 10, seed=0, least_assets=2)) == 2


def test_articles_agree_with_colours() -> None:
    assert pair_prompt(row("train", "chair", "orange")) == "an orange chair"
    assert pair_prompt(row("train", "umbrella", "pink")) == "a pink umbrella"
