"""prior.json, which describes a prior: its sizes, its network, what that says. Networks are made here."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from prior.denoiser import Denoiser, NetworkConfig
from shapeloom.config import UserError, validated
from shapeloom.denoising import DenoisingNetwork, Shapes
from shapeloom.diffusion.objectives import DiffusionConfig
from shapeloom.shap_e.prior import ShapEDenoiser, ShapEPriorConfig
from shapeloom.storage import read_json, write_atomic

FILE = "prior.json"
MAX_DISTILLED_STEPS = 1000
Predicts = Literal["latents", "views"]


def make_network(
    shapes: Shapes, config: NetworkConfig, *, learned_variance: bool = False
) -> DenoisingNetwork:
    """The network that a config names, with fresh weights; learned_variance: see `DiffusionConfig`."""
    if config.kind == "shapeloom":
        return Denoiser(shapes, config, learned_variance=learned_variance)
    size = ShapEPriorConfig(
        reads="text" if config.kind == "shap_e_text" else "image",
        width=config.width, depth=config.depth, heads=config.heads,
    )  # fmt: skip
    model = ShapEDenoiser(shapes, size, checkpointing=config.checkpointing, learned_variance=learned_variance)
    model.config = config
    return model


@dataclass(frozen=True)
class Distilled:
    """How a distilled prior has to be sampled: it knows no other noise levels and takes no guidance."""

    sigmas: tuple[float, ...]
    """Levels of a sample, falling to 0; a network call each but the last."""
    guidance_scale: float
    """Of the teacher, baked in."""

    @property
    def steps(self) -> int:
        """Network calls of a sample."""
        return len(self.sigmas) - 1


@dataclass(frozen=True)
class Description:
    """What a prior.json says.

    predict: "latents", or "views": pictures' CLIP vectors in place of latents. distilled: how to sample it.
    max_views: pictures of one object that training showed at once, at most.
    """

    shapes: Shapes
    network: NetworkConfig
    diffusion: DiffusionConfig
    predict: Predicts = "latents"
    distilled: Distilled | None = None
    max_views: int = 1

    def make(self) -> DenoisingNetwork:
        """Returns the network, with fresh weights."""
        return make_network(self.shapes, self.network, learned_variance=self.diffusion.learned_variance)

    def write(self, folder: Path) -> None:
        """Writes prior.json."""
        saved: dict[str, Any] = {
            "shapes": asdict(self.shapes), "network": self.network.model_dump(),
            "diffusion": self.diffusion.model_dump(), "predict": self.predict,
            "max_views": self.max_views,
        }  # fmt: skip
        if self.distilled is not None:
            saved["distilled"] = asdict(self.distilled)
        write_atomic(folder / FILE, json.dumps(saved, indent=1))


def read_description(folder: Path) -> Description:
    """Returns what a prior.json says; raises UserError that names it and the key for what no prior has."""
    path = folder / FILE
    saved = read_json(path, advice="Copy it again, or train the prior again.")
    try:
        shapes, distilled = Shapes.of(saved["shapes"]), None
        if "distilled" in saved:
            sigmas, scale = saved["distilled"]["sigmas"], saved["distilled"]["guidance_scale"]
            distilled = Distilled(tuple(map(float, sigmas)), float(scale))
            if len(sigmas) > MAX_DISTILLED_STEPS:
                raise ValueError(f"{len(sigmas)} distilled noise levels, more than {MAX_DISTILLED_STEPS}")
        parts = saved["network"], saved["diffusion"]
        max_views = int(saved.get("max_views", 1))  # which priors of before don't say
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} doesn't describe a prior ({type(error).__name__}: {error}). Copy it again, or train the "
            "prior again."
        ) from error
    network = validated(NetworkConfig, parts[0], f"`network` of {path}")
    diffusion = validated(DiffusionConfig, parts[1], f"`diffusion` of {path}")
    return Description(shapes, network, diffusion, saved.get("predict", "latents"), distilled, max_views)
