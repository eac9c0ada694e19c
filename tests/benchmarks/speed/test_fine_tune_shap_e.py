"""The benchmark of fine-tuning Shap-E runs, and the loss of its batch falls with each step."""

import re
from itertools import pairwise

import pytest

from benchmarks.speed.fine_tune_shap_e import main


def test_the_loss_of_a_fixed_batch_falls(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--set", "train.steps=12", "train.batch_size=4", "train.learning_rate=0.01"])
    out = capsys.readouterr().out
    losses = [float(number) for number in re.findall(r"loss ([\d.]+)", out)]
    assert len(losses) == 12 and all(after < before for before, after in pairwise(losses))
    assert "GiB" in out
