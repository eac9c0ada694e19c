"""Prompts that nobody gave: captions of the run that the prior comes from."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from sampling.__main__ import main
from sampling.prompts import own_prompts
from shapeloom.config import UserError
from shapeloom.shards import finish_dataset, write_shard

CATEGORIES = {"boat": 6, "chair": 3, "lamp": 1}


def write_run(folder: Path, latents: Path, told: Path | None) -> Path:
    """A prior's folder, and latents of assets with captions "boat 0", "boat 0 with a flag" and so on."""
    samples = []
    for category, number in CATEGORIES.items():
        for i in range(number):
            captions = ["lost"] if i == 5 else [f"{category}  {i}", f"{category} {i} with a flag"]
            facts = {"captions": captions, "split": "val" if i == 5 else "train", "category": category}
            key = f"{category}{i}"
            latent = np.zeros((2, 1), np.float16)
            samples.append({"__key__": key, "json": {**facts, "group": key}, "latent.npy": latent})
    # Two assets of the same words, one of too many, and one without any.
    for key, captions in (("twin", ["boat 0"]), ("long", ["x" * 1001]), ("mute", [])):
        facts = {"captions": captions, "split": "train", "category": "boat", "group": key}
        samples.append({"__key__": key, "json": facts, "latent.npy": latent})
    write_shard(latents / "shards" / "000000.tar", samples)
    finish_dataset(latents, kind="latents", facts={"encoder": "e", "clip": "c", "tokens": 2, "channels": 1})
    (folder / "prior").mkdir(parents=True)
    if told is not None:
        (folder / "prior" / "config.yaml").write_text(yaml.safe_dump({"latents": str(told)}))
    return folder / "prior"


def test_they_are_training_captions_of_as_many_categories_as_there_are(tmp_path: Path):
    prior = write_run(tmp_path / "run", tmp_path / "far", tmp_path / "far")
    found = own_prompts(prior, 3)
    assert {caption.split()[0] for caption in found} == set(CATEGORIES)
    assert found == own_prompts(prior, 3)
    everything = own_prompts(prior, 100)
    assert everything[:3] == found
    assert sorted(everything) == sorted(
        f"{category} {i}" for category, number in CATEGORIES.items() for i in range(min(5, number))
    )


def test_latents_that_moved_with_the_run_are_found_beside_the_prior(tmp_path: Path):
    prior = write_run(tmp_path / "run", tmp_path / "run" / "latents", Path("where/it/was"))
    assert len(own_prompts(prior, 8)) == 8
    assert own_prompts(tmp_path / "elsewhere", 8) == []


def test_the_command_makes_them_when_no_prompt_is_given(runs, tmp_path: Path):
    prior = write_run(tmp_path / "run", tmp_path / "run" / "latents", None)
    main([*runs.arguments, f"prior={prior}", "captions=2", "formats=[safetensors]"])
    records = json.loads((runs.out / "metadata.json").read_text())["samples"]
    assert [record["prompt"] for record in records] == own_prompts(prior, 2)
    main([*runs.arguments, f"prior={prior}", "formats=[safetensors]", "prompts=[a mug]"])
    records = json.loads((runs.out / "metadata.json").read_text())["samples"]
    assert records[-1]["prompt"] == "a mug"
    with pytest.raises(UserError, match='Say what to make: --prompt "a red chair"'):
        main([*runs.arguments, f"prior={tmp_path}/none"])
