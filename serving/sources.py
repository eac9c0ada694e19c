"""What a change on the page starts from besides the page's own objects, and a refinement of it."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data_prep.formats.load import SUFFIXES
from data_prep.pipeline import Limits
from sampling.assets import encode_asset
from sampling.config import SamplingConfig
from sampling.edit import Layers, check_levels
from sampling.pipeline import ShapePipeline
from sampling.refine.clip_guide import ClipGuide
from sampling.refine.config import RefineConfig
from sampling.refine.distiller import Distiller
from sampling.refine.work import STRIP_PICTURES, OnStep, Refined, refine
from sampling.shape import ShapeSample
from shapeloom.clip import Clip
from shapeloom.config import UserError
from shapeloom.runs import Run

LIMITS = Limits(
    max_faces=500_000, max_megabytes=256, cpu_seconds=60, wall_seconds=300.0, memory_megabytes=2048
)
"""What preparing a visitor's file may cost."""
MATRIX_RATE = 0.005
"""Adam's, where a shape's matrices move: a quarter of a latent's."""


def read_source(pipe: ShapePipeline, file: Path) -> ShapeSample:
    """Returns an uploaded shape; raises UserError, without the file's place, for what isn't any."""
    try:
        if file.suffix == ".safetensors":
            return pipe.load_latent(file)
        if file.suffix in SUFFIXES:
            return encode_asset(pipe, file, limits=LIMITS, by_server=True)
    except UserError as error:
        raise UserError(str(error).replace(str(file), "your file")) from error
    raise UserError("That is no GLB, PLY, binary STL or latent (.safetensors), which can be changed.")


def refined(
    pipe: ShapePipeline, start: ShapeSample, judge: Clip, settings: SamplingConfig, *,
    prompt: str, layers: Layers, steps: int, seed: int, folder: Path, on_step: OnStep,
) -> Refined:  # fmt: skip
    """Returns what `python -m sampling.refine` makes of a start by its defaults.

    folder: gets a folder of the run's own files, which goes afterwards.
    """
    asked: dict[str, Any] = {
        "prompts": [prompt], "seed": seed, "iterations": steps, "layers": layers,
        "picture_every": max(1, steps // (STRIP_PICTURES - 1)),
    }  # fmt: skip
    if start.matrices is not None:
        asked |= {"optimise": "matrices", "rate": MATRIX_RATE}
    config = RefineConfig.model_validate(settings.model_dump() | asked)
    if config.prior_weight:
        check_levels(pipe)
    distiller = Distiller(ClipGuide(pipe.clip), prompt, config)
    with (
        TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as name,
        Run.open(Path(name), config, stage="refine") as run,
    ):
        (done,) = refine(pipe, [start], distiller, judge, config, run, on_step=on_step)
    return done
