"""The web page with a small model, in the background of a test."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from sampling.config import SamplingConfig
from sampling.pipeline import ShapePipeline
from serving.__main__ import served
from serving.studio import Studio
from shapeloom.clip import Clip
from shapeloom.view_diffusion import random_view_model

SMALL = SamplingConfig(
    prompts=["a red chair"],
    steps=2,
    mesh={"resolution": 16, "texture_size": 32},
    turntable={"frames": 2, "size": 16, "samples": {"coarse": 8, "fine": 0}},
)


def another_judge(pipeline: ShapePipeline) -> Clip:
    """A CLIP that isn't the pipeline's own, by its digest."""
    judge = copy(pipeline.clip)
    judge.digest = "another's"
    return judge


@contextmanager
def small_site(pipeline: ShapePipeline, folder: Path) -> Iterator[Any]:
    """A page in the background: Gradio's blocks."""
    from benchmarks.drills.page_load import free_port

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", "")  # which serving changes
        half = torch.tensor([True, True, False, False])
        for room in ("sampling.edit", "sampling.refine.subject"):
            patch.setattr(f"{room}.changing_tokens", lambda config, layers: half)
        views = random_view_model(clip=pipeline.clip)
        studio = Studio(pipeline, SMALL, folder, views=views, judge=another_judge(pipeline))
        with served(studio, port=free_port()) as blocks:
            yield blocks
