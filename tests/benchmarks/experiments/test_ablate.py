"""Variants at equal CPU time, at toy size: every run of the table trains, is measured and goes on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from benchmarks.drills.kill_training import write_latents
from benchmarks.experiments import ablate
from benchmarks.experiments.ablate import (
    TABLE,
    Ablation,
    Planned,
    flatten,
    main,
    markdown,
    read_table,
    seconds_a_step,
    train_and_measure,
)
from encoder.train import EncoderTrainConfig
from prior.model import load_prior
from prior.task import PriorConfig
from shapeloom import distributed
from shapeloom.config import Config, UserError, load_config
from shapeloom.training import TrainConfig

ENCODER = {
    "base": "configs/encoder/smoke.yaml",
    "changes": {"train": {"precision": "fp32"}},
    "evaluation": {"base": "configs/eval/smoke.yaml", "changes": {"reconstruction": {"max_assets": 1}}},
    "variants": {
        "smoke": {},
        "small": {"changes": {"encoder": {"width": 16}, "train": {"batch_size": 2}}},
    },
}


def test_every_run_is_trained_measured_and_never_made_twice(
    ball_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "data").symlink_to(ball_dataset)
    table, out = tmp_path / "table.yaml", tmp_path / "out"
    table.write_text(yaml.safe_dump({"encoder": ENCODER}, sort_keys=False))
    arguments = ["encoder", "--run", str(tmp_path / "run"), "--out", str(out), "--table", str(table)]
    arguments += ["--seconds", "0.3", "--seeds", "1"]
    main(arguments)
    scores = json.loads((out / "small_seed1" / "scores.json").read_text())
    assert scores["psnr"] > 0 and scores["train_psnr"] > 0 and scores["cpu_seconds"] > 0
    lines = (out / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| smoke", "| small", "| nearest training asset"]
    plan = json.loads((out / "small.plan.json").read_text())
    assert plan["steps"] == max(1, round(0.3 / plan["seconds_a_step"]))
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "table.md"}
    capsys.readouterr()
    main(arguments)
    assert written == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "table.md"}
    with pytest.raises(UserError, match="another variant or budget"):
        main([*arguments, "--seconds", "9"])
    with pytest.raises(UserError, match="no variant nonsense"):
        main([*arguments, "--variants", "nonsense"])


@pytest.mark.parametrize(("stage", "kind"), [("encoder", EncoderTrainConfig), ("prior", PriorConfig)])
def test_every_variant_of_the_table_is_a_config(stage: str, kind: type[Config]) -> None:
    table = read_table(TABLE, stage)
    resolved = []
    for variant in table.variants.values():
        settings = [*flatten(table.changes), *flatten(variant.changes)]
        config = load_config(
            kind, variant.base or table.base, ["data=x" if stage == "encoder" else "latents=x", *settings]
        )
        resolved.append(config.model_dump_json())
    assert len(set(resolved)) == len(resolved), "two variants are the same"


class Busy:
    """A task whose step takes a known number of products."""

    def __init__(self, products: int) -> None:
        self.model, self.products = nn.Linear(2, 1), products

    def batch(self, samples: range) -> dict[str, Tensor]:
        return {"x": torch.ones(len(samples), 2)}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.ones(512, 512)
        for _ in range(self.products):
            x @ x
        return model(batch["x"]).mean(), {}

    def pictures(self, model: nn.Module, step: int) -> dict[str, np.ndarray]:
        return {}


def test_a_step_of_twice_the_work_is_measured_as_twice_as_long() -> None:
    config, world = TrainConfig(batch_size=2, precision="fp32"), distributed.start()
    one, two = (seconds_a_step(Busy(n), config, world) for n in (8, 16))
    # Other processes' use of the caches moves CPU seconds, but not by half.
    assert 1.4 < two / one < 2.8


def test_seeds_share_a_row_and_unknown_scores_are_left_open() -> None:
    runs = [{"steps": 10, "cpu_seconds": None, "psnr": 20.0}, {"steps": 10, "cpu_seconds": 3.0, "psnr": 21.0}]
    row = markdown("encoder", {"tiny": runs}).splitlines()[2]
    assert row.startswith("| tiny | 2 | 10 | 3 | 20.50 (20 to 21) | – |")


def test_a_prior_and_the_reference_s_recipe_are_trained_on_a_run_s_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_latents(tmp_path / "run" / "latents")
    small = {
        "network": {"width": 32, "depth": 1, "heads": 2},
        "train": {"batch_size": 8, "checkpoint_every": 9},
    }
    variants = {
        "ours": {"changes": small},
        "reference": {"base": "configs/prior/reference_tiny.yaml", "changes": small},
    }
    spec = {**ENCODER, "base": "configs/prior/tiny.yaml", "changes": {}, "variants": variants}
    table, out = tmp_path / "table.yaml", tmp_path / "out"
    table.write_text(yaml.safe_dump({"prior": spec}))
    # What a judge says of samples is tests/eval's matter.
    monkeypatch.setattr(ablate, "measure_prior", lambda *_: {"r_at_1": 0.5})
    arguments = ["prior", "--run", str(tmp_path / "run"), "--out", str(out), "--table", str(table)]
    main([*arguments, "--seconds", "0.2"])
    rows = [line.split("|") for line in (out / "table.md").read_text().splitlines()]
    r_at_1 = rows[0].index(" R@1 ")
    assert [row[r_at_1].strip() for row in rows[2:]] == ["0.5000", "0.5000"]
    priors = {name: load_prior(out / f"{name}_seed0" / "prior") for name in variants}
    assert priors["reference"].diffusion.target == "x0"
    assert (priors["reference"].network.standard_std == 1).all()
    assert not (priors["ours"].network.standard_std == 1).any()


def test_a_training_that_diverges_leaves_its_row_open_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(argv: list[str]) -> None:
        raise UserError("The loss was not finite for 10 steps on end.")

    monkeypatch.setattr("encoder.train.main", diverge)
    table = Ablation.model_validate(ENCODER)
    planned = Planned("smoke", 0, Path("configs/encoder/smoke.yaml"), [], steps=7, seconds_a_step=1.0)
    world = distributed.start()
    scores = train_and_measure("encoder", planned, table, run=tmp_path, out=tmp_path, world=world)
    assert scores == {"steps": 7, "error": "The loss was not finite for 10 steps on end."}
    assert markdown("encoder", {"smoke": [scores]}).splitlines()[2].startswith("| smoke | 1 | 7 | – | – |")
