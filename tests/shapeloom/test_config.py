"""Configs: what a user may get wrong, and what the error says about it."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field as Key

from shapeloom.config import Config, UserError, load_config, parse_stage, run_main


class Inner(Config):
    steps: int = Key(10, ge=1)
    kind: Literal["a", "b"] = "a"


class Outer(Config):
    data: Path = Path("x")
    inner: Inner = Inner()


def test_yaml_holds_differences_and_set_wins_over_it(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("inner: {steps: 20}\n")
    assert load_config(Outer, path, ["inner.kind=b"]) == Outer(inner=Inner(steps=20, kind="b"))
    assert load_config(Outer, path, ["inner.steps=30"]).inner.steps == 30


class Stage(Config):
    inner: Inner = Inner(kind="b")


class Pipeline(Config):
    stage: Stage = Stage(inner=Inner(steps=7))


def test_a_group_with_one_changed_key_keeps_what_its_stage_states() -> None:
    assert load_config(Stage, None, ["inner.steps=3"]).inner == Inner(steps=3, kind="b")
    assert load_config(Pipeline, None, ["stage.inner.kind=a"]).stage.inner == Inner(steps=7, kind="a")
    assert load_config(Pipeline, None) == Pipeline()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.stepz=3", r"unknown key `inner.stepz` \(known there: kind, steps\)"),
        ("inner.steps=0", r"`inner.steps`: .*greater than or equal to 1"),
        ("inner.steps=many", r"`inner.steps`: .*integer"),
        ("inner.kind=c", r"`inner.kind`: .*'a' or 'b'"),
        ("inner.steps", "takes key=value"),
        ("data.more=3", "`data`"),
        ("inner.steps=[", "not valid YAML"),
    ],
)
def test_an_error_names_the_key_and_what_would_do(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(Outer, None, [override])


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        load_config(Outer, tmp_path / "nowhere.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match=r"list\.yaml must hold `key: value`"):
        load_config(Outer, tmp_path / "list.yaml")


def test_set_takes_several_keys_and_may_be_repeated() -> None:
    argv = ["--out", "o", "--set", "inner.steps=3", "inner.kind=b", "--set", "data=y"]
    config, out, _ = parse_stage(Outer, stage="s", description="d", argv=argv)
    assert (config.inner.steps, config.inner.kind, config.data, out) == (3, "b", Path("y"), Path("o"))


def test_a_user_error_ends_the_command_with_one_paragraph(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise UserError("Do this instead.")

    with pytest.raises(SystemExit) as end:
        run_main(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == "\nerror: Do this instead.\n"


@pytest.mark.parametrize("preset", sorted(Path("configs").rglob("*.yaml")), ids=str)
def test_every_preset_is_valid(preset: Path) -> None:
    from data_prep.pipeline import DataConfig
    from encoder.encode import EncodeConfig
    from encoder.train import EncoderTrainConfig
    from encoder.train_cloud import CloudTrainConfig
    from eval.__main__ import EvalConfig
    from eval.judging import JudgingConfig
    from prior.distill import DistillConfig
    from prior.task import PriorConfig
    from prior.train_clip import DualEncoderConfig
    from prior.views import ViewTrainConfig
    from sampling.config import SamplingConfig

    owners = {
        "data_prep": (DataConfig, []),
        "clip": (DualEncoderConfig, ["data=x"]),
        "encoder": (EncoderTrainConfig, ["data=x"]),
        "encode": (EncodeConfig, ["data=x", "encoder=x", "clip=x"]),
        "prior": (PriorConfig, ["latents=x"]),
        "sampling": (SamplingConfig, ["prior=x", "encoder=x", "clip=x"]),
        "eval": (EvalConfig, ["run=x"]),
        "views": (ViewTrainConfig, ["data=x"]),
    }
    owner, inputs = owners[preset.parent.name]
    if preset.name.startswith("distill_"):
        owner, inputs = DistillConfig, ["teacher=x", "latents=x"]
    elif preset.name.startswith("cloud_"):
        owner = CloudTrainConfig
    elif preset.name.startswith("judge"):
        owner, inputs = JudgingConfig, []
    elif preset.name.endswith("_lora.yaml"):
        inputs = [*inputs, "fine_tune.init_from=x"]
    assert isinstance(load_config(owner, preset, inputs), owner)
