"""The page's pipeline is the one of the tests below it."""

import pytest
import torch

from serving.studio import Studio
from tests.sampling.conftest import pipeline, runs
from tests.sampling.refine.conftest import balls
from tests.small_page import SMALL

__all__ = ["balls", "pipeline", "runs"]


@pytest.fixture
def studio(pipeline, tmp_path, monkeypatch):
    # The small prior's latents have 4 tokens, fewer than its decoder's config says.
    half = torch.tensor([True, True, False, False])
    monkeypatch.setattr("sampling.edit.changing_tokens", lambda config, layers: half)
    return Studio(pipeline, SMALL, tmp_path, capacity=2)
