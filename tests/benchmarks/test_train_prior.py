"""A killed prior goes on bit for bit; ZeRO's stages train the same thing."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.train_prior import SETTINGS, curve, kill_and_compare, write_latents
from prior.train import main


def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    assert "1 kills" in kill_and_compare(tmp_path, kills=1, steps=12)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_stages_agree(tmp_path: Path, stage: int) -> None:
    latents, losses = write_latents(tmp_path / "latents"), []
    for zero_stage in (0, stage):
        settings = [f"latents={latents}", *SETTINGS, "train.steps=6", f"train.zero_stage={zero_stage}"]
        main(["--out", str(tmp_path / str(zero_stage)), "--set", *settings])
        losses.append(list(curve(tmp_path / str(zero_stage)).values()))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)  # the same sums in another order
