"""The 2-D model and the judge that a config names."""

from pathlib import Path

from sampling.pipeline import ShapePipeline
from sampling.refine.config import RefineConfig
from sampling.refine.guides import Guide
from shapeloom.clip import Clip, load_clip
from shapeloom.config import UserError


def load_guide(config: RefineConfig, pipe: ShapePipeline) -> Guide:
    """Returns the 2-D model; raises UserError if there is none."""
    if (Path(config.guide) / "unet").is_dir():
        from sampling.refine.text_to_image import load_text_to_image  # diffusers takes seconds

        return load_text_to_image(Path(config.guide), pipe.prior.device)
    raise UserError(
        f"guide={config.guide} is no 2-D model: name the folder of a diffusers text-to-image model."
    )


def load_judge(config: RefineConfig, pipe: ShapePipeline) -> Clip:
    """Returns the CLIP that scores: `judge`, or the run's own judge, or the model's CLIP."""
    folder = None if config.model is None else Path(config.model, "eval", "judge")
    if config.judge is not None:
        return load_clip(config.judge, pipe.prior.device)
    if folder is not None and (folder / "weights.safetensors").is_file():
        return load_clip(folder, pipe.prior.device)
    return pipe.clip
