"""What `python -m sampling.refine` is told."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field as Key
from pydantic import model_validator

from sampling.config import SamplingConfig
from sampling.edit import Layers
from sampling.formats import Format
from shapeloom.config import Config
from shapeloom.decoder import RenderConfig
from shapeloom.diffusion.distillation import TimesConfig, Weighting

Range = tuple[float, float]
Corner = Annotated[tuple[float, float, float], Key(description="x, y, z in the box [-1, 1]^3")]


class CameraConfig(Config):
    """From where the shape is looked at: each view drawn evenly from these ranges, from any azimuth."""

    elevation: Range = Key((-10.0, 45.0), description="degrees above the horizon")
    fov: Range = Key((40.0, 40.0), description="degrees")
    distance: Range = Key((1.0, 1.0), description="1: the sphere around the asset's cube fills the picture")

    @model_validator(mode="after")
    def _ordered(self) -> "CameraConfig":
        limits = {"elevation": (-90.0, 90.0), "fov": (5.0, 120.0), "distance": (0.2, 5.0)}
        for name, (least, most) in limits.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(f"{name} is a range within {least:g} to {most:g}, not {low:g} to {high:g}")
        return self


class EstimatorConfig(Config):
    """The gradient that pictures follow: see `shapeloom.diffusion.distillation`."""

    kind: Literal["sds", "vsd", "ism"] = Key("sds", description="which estimator")
    scale: float = Key(
        20.0, ge=0, description="of guidance; 1: none. Everywhere x(null) + scale (x(prompt) - x(null))"
    )
    rescale: float = Key(0.0, ge=0, le=1, description="brings the spread back that a high scale adds")
    perp_neg: bool = Key(False, description="keeps other sides' looks away; for models without cameras")
    weighting: Weighting = Key("sds", description="of the noise levels")
    times: TimesConfig = TimesConfig()
    clip: float | None = Key(None, gt=0, description="the most that a number's gradient may be; none: any")
    path_steps: int = Key(4, ge=2, le=64, description="of ism: noise levels from the picture to z_t")
    lora_rank: int = Key(4, ge=1, le=128, description="of vsd: of its own network's change")
    lora_rate: float = Key(1e-3, gt=0, description="of vsd: its own network's learning rate")


class MeshStageConfig(Config):
    """The second stage: the mesh's vertices and texture."""

    iterations: int = Key(0, ge=0, description="steps of the second stage; 0: none")
    vertex_rate: float = Key(1e-3, gt=0, description="Adam's learning rate of vertices, in the box's units")
    texel_rate: float = Key(0.01, gt=0, description="of texels, sRGB in [0, 1]")
    normal_weight: float = Key(1e-3, ge=0, description="of neighbouring faces' bend: 1 - cos, a mean")


class RefineConfig(SamplingConfig):
    """A refinement; the settings of a sample are those of the shape that it starts from."""

    shape: str = Key(
        "latent",
        description="the start: latent (a sample of the prompt), none (a ball), or a file: a saved shape "
        "(.safetensors), a 3D file or a picture",
    )
    guide: str = Key(
        "clip",
        description="what pictures follow: clip (the model's own CLIP, no diffusion), views (RUN/views), the "
        "folder of a diffusers text-to-image model, or Zero-1-to-3's weights, which follow `image` alone",
    )
    image: Path | None = Key(
        None,
        description="a picture of the object: guide=views follows it beside the prompt, Zero-1-to-3 instead",
    )
    image_elevation: float = Key(20.0, ge=-89, le=89, description="of the picture's camera, degrees")
    style: Path | None = Key(
        None,
        description="a picture whose colours and grain the look is to have; the shape stays then, unless "
        "`layers` says more",
    )
    style_share: float = Key(
        1.0, gt=0, description="of the style's gradient, beside that of the 2-D model of length 1"
    )
    optimise: Literal["latent", "matrices"] = Key(
        "latent", description="the latent, which stays near what the prior knows; or the field's own matrices"
    )
    layers: Layers = Key("all", description="what may change")
    region: tuple[Corner, Corner] | Path | None = Key(
        None,
        description="outside of which nothing changes: a box (low, high), or a 3D file of the shape whose "
        "vertices are painted magenta where it may; none: everywhere",
    )
    particles: int = Key(
        1, ge=1, le=64, description="shapes that are refined together; latent: seeds seed, ..."
    )
    iterations: int = Key(100, ge=1, description="steps of the optimisation")
    rate: float = Key(
        0.02, gt=0, description="Adam's learning rate at first, which falls to 0; latents are standardised"
    )
    estimator: EstimatorConfig = EstimatorConfig()
    prior_share: float | None = Key(
        None,
        ge=0,
        description="of the latent prior's own score, beside the pictures' gradient of length 1; none: 1 "
        "where a latent follows clip, else 0",
    )
    mesh_stage: MeshStageConfig = MeshStageConfig()
    views: int = Key(2, ge=1, le=64, description="pictures of each particle a step")
    cameras: CameraConfig = CameraConfig()
    size: int | None = Key(None, ge=8, le=1024, description="side of the renders; none: the 2-D model's")
    samples: RenderConfig = RenderConfig(coarse=16, fine=8)
    rays_at_once: int = Key(
        16384, ge=64, description="rays whose activations are held at a time: what bounds memory"
    )
    background: Literal["white", "random"] = Key(
        "white", description="behind the shape, for models that don't see alpha; random: half of the time"
    )
    unlit: float = Key(
        0.5,
        ge=0,
        le=1,
        description="of matrices: the share of steps that see the texture's colours, not the lit ones, so "
        "that meshes follow too; a latent moves both at once",
    )
    sparsity: float = Key(0.0, ge=0, description="weight of mean sqrt(alpha^2 + 0.01), against fog")
    entropy: float = Key(0.0, ge=0, description="weight of alpha's entropy, against half-transparent pixels")
    judge: str | None = Key(
        None, description="folder of the CLIP that scores; none: RUN/eval/judge, or the model's own"
    )
    checkpoint_every: int = Key(25, ge=1, description="steps between two savings")
    log_every: int = Key(5, ge=1, description="steps between two lines of metrics.jsonl")
    picture_every: int = Key(50, ge=1, description="steps between two pictures of the strip")
    formats: list[Format] = Key(
        ["gif", "glb", "safetensors"], min_length=1, description="files of each shape"
    )

    @model_validator(mode="before")
    @classmethod
    def _styles_keep_the_shape(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("style") is not None:
            return {"layers": "color", **given}
        return given

    @model_validator(mode="after")
    def _fitting(self) -> "RefineConfig":
        if self.shape == "none" and self.optimise == "latent":
            raise ValueError("a ball isn't a latent: shape=none needs optimise=matrices")
        if self.guide == "clip" and (self.estimator.kind != "sds" or self.image is not None):
            raise ValueError(
                "guide=clip has no noise and reads words alone: leave out estimator.kind and image, or name "
                "another guide (guide=views)"
            )
        if self.prior_share and self.optimise != "latent":
            raise ValueError("prior_share is of a latent's prior: it needs optimise=latent")
        if isinstance(self.region, tuple) and any(
            not -1 <= low < high <= 1 for low, high in zip(*self.region, strict=True)
        ):
            raise ValueError(
                f"region is a box in [-1, 1]^3, its low corner below its high one, not {self.region}"
            )
        return self

    @property
    def prior_weight(self) -> float:
        """Of the latent prior's score: `prior_share`, or what stands for none."""
        if self.prior_share is None:
            return float(self.guide == "clip" and self.optimise == "latent")
        return self.prior_share

    @property
    def start(self) -> Path | None:
        """The file that it starts from, if it does."""
        return None if self.shape in ("latent", "none") else Path(self.shape)
