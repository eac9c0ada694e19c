"""The 2-D model and the judge that a config names."""

from pathlib import Path

from sampling.pipeline import ShapePipeline
from sampling.refine.clip_guide import ClipGuide
from sampling.refine.config import RefineConfig
from sampling.refine.guides import Guide
from sampling.refine.zero123 import is_zero123, load_zero123_guide
from shapeloom.clip import Clip, load_clip
from shapeloom.config import UserError


def load_guide(config: RefineConfig, pipe: ShapePipeline) -> Guide | ClipGuide:
    """Returns the 2-D model; raises UserError if there is none."""
    if config.guide == "clip":
        return ClipGuide(pipe.clip)
    folder = Path(config.guide)
    if config.guide == "views":
        if config.model is None:
            raise UserError(
                "guide=views is the view model of --model RUN; or name a folder: guide=RUN/views, or a "
                "diffusers text-to-image one."
            )
        folder = Path(config.model, "views")
    # diffusers takes seconds to be imported.
    if (folder / "view_model.json").is_file():
        from sampling.refine.view_model import ViewGuide, picture_of
        from shapeloom.view_diffusion import load_view_model

        has_clip = (folder.parent / "clip" / "model.json").is_file()
        clip = None if has_clip else pipe.clip  # the one beside it may be another than the prior's
        model = load_view_model(folder, pipe.prior.device, clip=clip)
        if config.image is None:
            return ViewGuide(model)
        seen = picture_of(
            config.image, model, elevation=config.image_elevation, matting=config.pictures.matting
        )
        return ViewGuide(model, seen)
    if is_zero123(folder):
        if config.image is None:
            raise UserError(f"{folder} is Zero-1-to-3's, which follows a picture: image=FILE.")
        return load_zero123_guide(
            folder, config.image, elevation=config.image_elevation, matting=config.pictures.matting,
            device=pipe.prior.device,
        )  # fmt: skip
    if config.image is not None:
        raise UserError(
            "Only a view model and Zero-1-to-3 follow a picture; leave `image` out, or use guide=views."
        )
    if (folder / "unet").is_dir():
        from sampling.refine.text_to_image import load_text_to_image

        return load_text_to_image(folder, pipe.prior.device)
    raise UserError(
        f"{folder} is no 2-D diffusion model. Train one on the run's own pictures (python -m "
        "prior.train_views), or name a diffusers text-to-image folder or Zero-1-to-3's weights: guide=PATH."
    )


def load_judge(run: str | None, pipe: ShapePipeline, judge: str | None = None) -> Clip:
    """Returns the CLIP that scores: `judge`, or the run's own judge, or the model's CLIP."""
    folder = None if run is None else Path(run, "eval", "judge")
    if judge is not None:
        return load_clip(judge, pipe.prior.device)
    if folder is not None and (folder / "weights.safetensors").is_file():
        return load_clip(folder, pipe.prior.device)
    return pipe.clip
