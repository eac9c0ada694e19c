"""A loss that runs away is told once, with where to go back to; one that is merely noisy isn't."""

import json
import logging

import numpy as np
import pytest

from shapeloom.health import WINDOW, Health, describe, go_back_to


@pytest.fixture(autouse=True)
def _heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("shapeloom"), "propagate", True)


def watch(losses: list[float], health: Health | None = None, first: int = 0) -> Health:
    health = health or Health()
    for step, loss in enumerate(losses, first):
        health.see(step, loss, 1e-3)
    return health


def falling(num: int) -> list[float]:
    return [1 / (1 + 0.1 * step) for step in range(num)]


def test_a_noisy_loss_that_falls_is_healthy() -> None:
    noise = np.random.default_rng(0).lognormal(0, 0.7, 500)
    health = watch([float(a * b) for a, b in zip(falling(500), noise, strict=True)])
    assert health.facts() == {} and not health.diverged


def test_a_loss_that_runs_away_says_since_when_and_what_to_change(caplog: pytest.LogCaptureFixture) -> None:
    health = watch([*falling(50), *[1e6] * 30])
    assert health.diverged and health.divergence is not None
    assert 50 <= health.divergence["since"] < 50 + WINDOW
    assert len(caplog.records) == 1 and "lower train.learning_rate" in caplog.text
    assert health.healthy_until(79) < 50
    assert "to the end" in describe(health.facts())[0]


def test_one_that_runs_away_with_its_first_steps_is_measured_against_the_untrained_weights() -> None:
    assert watch([1.0, *[1e4] * WINDOW]).diverged


def test_one_that_comes_back_is_told_as_that() -> None:
    health = watch([*falling(50), *[1e6] * 5, *falling(50)])
    assert not health.diverged
    assert "until step" in describe(health.facts())[0]


def test_a_checkpoint_keeps_what_was_known() -> None:
    losses = [*falling(50), *[1e6] * 30]
    whole = watch(losses)
    kept = json.loads(json.dumps(watch(losses[:57]).state()))
    assert watch(losses[57:], Health(kept), first=57).facts() == whole.facts()


def test_a_run_goes_back_once_and_only_when_something_was_changed() -> None:
    diverged = watch([*falling(50), *[1e6] * 30]).facts()
    assert go_back_to(diverged) is None
    assert go_back_to({"changes": [{"what": ["x"]}]}) is None
    assert go_back_to({**diverged, "changes": [{"what": ["x"]}]}) == diverged["divergence"]["since"] - WINDOW
    assert go_back_to({**diverged, "changes": [{"what": ["x"], "from_step": 40}]}) is None


def test_skipped_steps_are_counted_with_their_samples() -> None:
    health = Health()
    for step, names in ((3, ["chair"]), (5, ["chair", "mug"]), (9, [])):
        health.skip(step, "loss", names)
    told = describe(health.facts())[0]
    assert "3 step(s)" in told and "chair, mug" in told and "first 3" in told and "last 9" in told
