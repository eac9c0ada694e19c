"""A killed training goes on bit for bit; ZeRO's stages train the same thing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.drills.kill_training import SETTINGS, curve, prepare_assets, write_latents
from encoder.train import main as train_encoder
from prior.task import PriorTask
from prior.train import main


def test_a_training_that_ends_anywhere_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = write_latents(tmp_path / "latents")
    arguments = ["--set", f"latents={latents}", *SETTINGS["prior"], "train.steps=12"]
    main(["--out", str(tmp_path / "whole"), *arguments])
    made = PriorTask.batch
    for step in (3, 7, 11):  # before the first checkpoint, and between others

        def batch(task: PriorTask, samples: Sequence[int], last: int = 8 * step) -> dict:
            if samples[0] >= last:
                raise KeyboardInterrupt
            return made(task, samples)

        monkeypatch.setattr(PriorTask, "batch", batch)
        with pytest.raises(KeyboardInterrupt):
            main(["--out", str(tmp_path / "ended"), *arguments])
    monkeypatch.setattr(PriorTask, "batch", made)
    main(["--out", str(tmp_path / "ended"), *arguments])
    assert curve(tmp_path / "whole") == curve(tmp_path / "ended")
    for name in ("weights.safetensors", "weights_ema0.9.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "ended" / name).read_bytes()


def test_the_encoder_trains_on_the_benchmarks_data(tmp_path: Path) -> None:
    data = prepare_assets(tmp_path / "data")
    settings = [f"data={data}", *SETTINGS["encoder"], "train.steps=3"]
    train_encoder(["--out", str(tmp_path / "run"), "--set", *settings])
    assert sorted(curve(tmp_path / "run")) == [1, 2, 3]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_stages_agree(tmp_path: Path, stage: int) -> None:
    latents, losses = write_latents(tmp_path / "latents"), []
    for zero_stage in (0, stage):
        settings = [
            f"latents={latents}",
            *SETTINGS["prior"],
            "train.steps=6",
            f"train.zero_stage={zero_stage}",
        ]
        main(["--out", str(tmp_path / str(zero_stage)), "--set", *settings])
        losses.append(list(curve(tmp_path / str(zero_stage)).values()))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)  # the same sums in another order
