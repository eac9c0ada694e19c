"""Networks that turn pictures into feature vectors, each from a file with a known SHA-256.

    clip        a folder that `python -m prior.train_clip` wrote (such as RUN/eval/judge), or open_clip's
                "MODEL/FILE"
    dinov2      Meta's checkpoints (`dinov2_vitb14_pretrain.pth` and its sizes), in timm's network; the CLS
                token
    inception   the network of FID (`pt_inception-2015-12-05-6726825d.pth`), its 2,048 pooled features
    seeded      no file: three convolutions that nothing has trained, drawn from a seed, which see edges,
                colours and textures and know no objects. It stands in where there are no weights, under its
                own name

What a standard network would say is "not computed" without its file; another one never bears its name. Files
are read by torch's unpickler of tensors alone, after their SHA-256 has been checked.
Pictures are uint8 sRGB [n, height, width, 3] on white.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchvision.models import inception

from shapeloom.clip import load_clip
from shapeloom.config import Config, UserError
from shapeloom.storage import file_digest

BATCH = 16
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINOV2_SIZE = 224
DINOV2_MODELS = {384: "small", 768: "base", 1024: "large", 1536: "giant"}
"""Width of a checkpoint's tokens -> timm's name of its size."""
SEEDED_WIDTHS = (16, 32, 64)


class BackboneConfig(Config):
    """One feature network."""

    kind: Literal["seeded", "clip", "dinov2", "inception"] = Field(
        description="seeded: random convolutions, of no meaning but always there; the others: their weights"
    )
    file: str | None = Field(None, description="weights; none: not computed. clip: a folder, or MODEL/FILE")
    sha256: str | None = Field(
        None, description="of the file; clip: the digest in its meta.json, may be left out"
    )

    @model_validator(mode="after")
    def _file_has_a_digest(self) -> "BackboneConfig":
        if self.kind in ("dinov2", "inception") and self.file is not None and self.sha256 is None:
            raise ValueError(
                f"{self.kind}: name the file's sha256 as well, so that figures say what they are of"
            )
        return self

    @property
    def is_given(self) -> bool:
        """Whether it can be computed at all."""
        return self.kind == "seeded" or self.file is not None


@dataclass(frozen=True)
class Backbone:
    """A feature network, ready to use."""

    name: str
    digest: str
    """Of what its features depend on."""
    embed: Callable[[UInt8[np.ndarray, "n height width 3"]], Float[Tensor, "n features"]]

    @torch.no_grad()
    def __call__(self, rgb: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n features"]:
        """Returns features, a batch at a time."""
        parts = [self.embed(rgb[i : i + BATCH]) for i in range(0, len(rgb), BATCH)]
        return torch.cat(parts).float().numpy()


@lru_cache(maxsize=8)
def load_backbone(config: BackboneConfig) -> Backbone:
    """Loads a network on the CPU. Raises UserError for a file that is missing, another, or doesn't fit."""
    match config.kind:
        case "seeded":
            return _seeded()
        case "clip":
            return _clip(config)
        case "dinov2":
            network, name = _dinov2(_tensors(config), config)
            return Backbone(name, str(config.sha256), lambda rgb: network(_normalised(rgb, DINOV2_SIZE)))
        case "inception":
            fid = _fitting(FidInception(), _tensors(config), config)
            return Backbone("Inception (FID)", str(config.sha256), lambda rgb: fid(_pixels(rgb)))


def read_checked(file: str, sha256: str, what: str) -> dict[str, Any]:
    """Returns a checkpoint's tensors; UserError if the file is missing or has another SHA-256."""
    path = Path(file)
    if not path.is_file():
        raise UserError(f"The weights of {what} are missing: {path} is no file.")
    digest = file_digest(path)
    if digest != sha256:
        raise UserError(f"{path} isn't the file that was named: its SHA-256 is {digest}, not {sha256}.")
    return torch.load(path, map_location="cpu", weights_only=True)


def _tensors(config: BackboneConfig) -> dict[str, Any]:
    return read_checked(str(config.file), str(config.sha256), config.kind)


def _fitting(network: nn.Module, tensors: dict[str, Any], config: BackboneConfig) -> nn.Module:
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{config.file} doesn't hold the weights of {config.kind}: {error}") from error
    return network.eval().requires_grad_(False)


def _pixels(rgb: UInt8[np.ndarray, "n height width 3"]) -> Float[Tensor, "n 3 height width"]:
    return torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255


def _normalised(rgb: UInt8[np.ndarray, "n height width 3"], size: int) -> Float[Tensor, "n 3 size size"]:
    """By ImageNet's mean and deviation, resized bicubically, as DINOv2 was trained."""
    x = F.interpolate(_pixels(rgb), (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (x - mean) / std


# ---------------------------------------------------------------- networks


def _seeded() -> Backbone:
    """Means and deviations over pixels of three layers of 3x3 convolutions with He's variance, stride 2."""
    generator = torch.Generator().manual_seed(0)
    kernels, before = [], 3
    for width in SEEDED_WIDTHS:
        kernel = torch.randn(width, before, 3, 3, generator=generator)
        kernels.append(kernel * (2 / (9 * before)) ** 0.5)
        before = width

    def embed(rgb: UInt8[np.ndarray, "n height width 3"]) -> Float[Tensor, "n features"]:
        x, found = 2 * _pixels(rgb) - 1, []
        for kernel in kernels:
            x = F.conv2d(x, kernel, stride=2, padding=1).relu()
            found += [x.mean(dim=(2, 3)), x.std(dim=(2, 3))]
        return torch.cat(found, dim=1)

    return Backbone("seeded convolutions (untrained)", "seeded 1", embed)


def _clip(config: BackboneConfig) -> Backbone:
    clip = load_clip(str(config.file), "cpu")
    if config.sha256 not in (None, clip.digest):
        raise UserError(f"{config.file} isn't the CLIP that was named: its digest is {clip.digest}.")
    return Backbone(f"CLIP {clip.name}", clip.digest, clip.image)


def _dinov2(tensors: dict[str, Any], config: BackboneConfig) -> tuple[nn.Module, str]:
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    width = tensors["cls_token"].shape[-1] if "cls_token" in tensors else 0
    if width not in DINOV2_MODELS or "mask_token" not in tensors:
        raise UserError(f"{config.file} is no checkpoint of DINOv2 (dinov2_vit{{s,b,l,g}}14_pretrain.pth).")
    registers = "reg4_" if "register_tokens" in tensors else ""
    name = f"vit_{DINOV2_MODELS[width]}_patch14_{registers}dinov2"
    network: Any = timm.create_model(
        name, pretrained=False, num_classes=0, img_size=DINOV2_SIZE, global_pool="token"
    )
    return _fitting(network, checkpoint_filter_fn(tensors, network), config), f"DINOv2 ({name})"


def _mean_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _A(inception.InceptionA):
    def _forward(self, x: Tensor) -> list[Tensor]:
        return [*super()._forward(x)[:-1], self.branch_pool(_mean_pool(x))]


class _C(inception.InceptionC):
    def _forward(self, x: Tensor) -> list[Tensor]:
        return [*super()._forward(x)[:-1], self.branch_pool(_mean_pool(x))]


class _E(inception.InceptionE):
    takes_largest = False

    def _forward(self, x: Tensor) -> list[Tensor]:
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.takes_largest else _mean_pool(x)
        return [*super()._forward(x)[:-1], self.branch_pool(pooled)]


class FidInception(inception.Inception3):
    """The network that FID is defined by: Inception v3 as TensorFlow had it in 2015, by torchvision's blocks.

    It differs from torchvision's own in the pools of its blocks (borders don't count in means, the last one
    takes maxima) and its 1,008 classes; the keys are the same. After M. Seitzer's pytorch-fid.
    """

    def __init__(self) -> None:
        own = inception
        blocks = [own.BasicConv2d, _A, own.InceptionB, _C, own.InceptionD, _E, own.InceptionAux]
        super().__init__(1008, aux_logits=False, inception_blocks=blocks, init_weights=False)
        self.Mixed_7c.takes_largest = True

    def forward(self, pixels: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 2048"]:
        """Returns pooled features of pictures in [0, 1] of any size."""
        x = F.interpolate(pixels, (299, 299), mode="bilinear", align_corners=False) * 2 - 1
        for name, layer in self.named_children():
            if name == "avgpool":
                break
            x = layer(x)
        return x.mean(dim=(2, 3))
