"""Networks that turn pictures or point clouds into feature vectors, each from a file with a known SHA-256.

    clip        a folder that `python -m prior.train_clip` wrote (such as RUN/eval/judge), or open_clip's
                "MODEL/FILE"
    dinov2      Meta's checkpoints (`dinov2_vitb14_pretrain.pth` and its sizes), in timm's network; the CLS
                token
    inception   the network of FID (`pt_inception-2015-12-05-6726825d.pth`), its 2,048 pooled features
    pointnet2   PointNet++ of P-FID (Point-E's `pointnet.pt`), 512 features of 4,096 points
    ulip2       ULIP-2's PointBERT of 10,000 coloured points, or the one of 8,192 positions
    uni3d       Uni3D (`model.pt`, of any of its sizes), of 10,000 coloured points
    seeded      no file: three convolutions that nothing has trained, drawn from a seed, which see edges,
                colours and textures and know no objects. It stands in where there are no weights, under its
                own name

What a standard network would say is "not computed" without its file; another one never bears its name. How
files are read is in `shapeloom.checkpoints`, the networks of points in `eval.point_networks`.
Pictures are uint8 sRGB [n, height, width, 3] on white, clouds float32 [n, points, 6] of xyz, then sRGB in
[0, 1], in the frame and in farthest-first order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchvision.models import inception

from eval.point_networks import UNI3D_EMBED, UNI3D_SIZES, PointNet2, Ulip2, Uni3d
from shapeloom.checkpoints import fit, read_checked
from shapeloom.clip import load_clip
from shapeloom.config import Config, UserError

BATCH = 16
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINOV2_SIZE = 224
DINOV2_MODELS = {384: "small", 768: "base", 1024: "large", 1536: "giant"}
"""Width of a checkpoint's tokens -> timm's name of its size."""
SEEDED_WIDTHS = (16, 32, 64)
MOST_POINTS = 10_000
"""Of the largest cloud that a network sees: as many as Uni3D's and ULIP-2's were trained on."""
SHAPED = ("ulip2", "uni3d")
"""Kinds whose vectors of shapes stand beside a CLIP's of texts."""
Pictures = UInt8[np.ndarray, "n height width 3"]
Clouds = Float32[np.ndarray, "n points 6"]
NetworkT = TypeVar("NetworkT", bound=nn.Module)


class BackboneConfig(Config):
    """One feature network."""

    kind: Literal["seeded", "clip", "dinov2", "inception", "pointnet2", "ulip2", "uni3d"] = Field(
        description="seeded: random convolutions, of no meaning but always there; the others: their weights; "
        "the last three see points"
    )
    file: str | None = Field(None, description="weights; none: not computed. clip: a folder, or MODEL/FILE")
    sha256: str | None = Field(
        None, description="of the file; clip: the digest in its meta.json, may be left out"
    )
    text: str | None = Field(
        None,
        description="CLIP that ulip2 or uni3d was trained beside, MODEL/FILE: finds prompts by shape; none: "
        "not computed",
    )

    @model_validator(mode="after")
    def _is_whole(self) -> "BackboneConfig":
        if self.kind not in ("seeded", "clip") and self.file is not None and self.sha256 is None:
            raise ValueError(
                f"{self.kind}: name the file's sha256 as well, so that figures say what they are of"
            )
        if self.text is not None and self.kind not in SHAPED:
            raise ValueError(f"{self.kind} knows no texts: leave `text` to ulip2 and uni3d")
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
    embed: Callable[[Any], Float[Tensor, "n features"]]
    """Of Pictures, or of Clouds."""
    num_points: int = 0
    """Of the clouds that it sees; 0: it sees pictures."""
    embed_dim: int = 0
    """Of the CLIP beside which it learnt to see points; 0: there is none."""

    @torch.no_grad()
    def __call__(self, seen: Pictures | Clouds) -> Float32[np.ndarray, "n features"]:
        """Returns features, a batch at a time."""
        parts = [self.embed(seen[i : i + BATCH]) for i in range(0, len(seen), BATCH)]
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
            vit, name = _dinov2(_tensors(config), config)
            return Backbone(name, str(config.sha256), lambda rgb: vit(_normalised(rgb, DINOV2_SIZE)))
        case "inception":
            fid = _fit(FidInception(), _tensors(config), config)
            return Backbone("Inception (FID)", str(config.sha256), lambda rgb: fid(_pixels(rgb)))
        case "pointnet2":
            network = _fit(PointNet2(), _tensors(config), config)
            return _of_points("PointNet++ (P-FID)", network, config, 4096)
        case "ulip2":
            return _ulip2(_tensors(config), config)
        case "uni3d":
            return _uni3d(_tensors(config), config)


def _tensors(config: BackboneConfig) -> dict[str, Tensor]:
    return read_checked(str(config.file), str(config.sha256), config.kind)


def _fit(network: NetworkT, tensors: dict[str, Tensor], config: BackboneConfig) -> NetworkT:
    return fit(network, tensors, file=str(config.file), what=config.kind)


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


def _dinov2(tensors: dict[str, Tensor], config: BackboneConfig) -> tuple[nn.Module, str]:
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
    return _fit(network, checkpoint_filter_fn(tensors, network), config), f"DINOv2 ({name})"


def _of_points(
    name: str, network: nn.Module, config: BackboneConfig, num: int, embed_dim: int = 0
) -> Backbone:
    return Backbone(
        name, str(config.sha256), lambda clouds: network(torch.from_numpy(clouds)), num, embed_dim
    )


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _ulip2(tensors: dict[str, Tensor], config: BackboneConfig) -> Backbone:
    """The file's other towers are left alone."""
    own, projection = _part(tensors, "point_encoder."), tensors.get("pc_projection")
    first = own.get("encoder.first_conv.0.weight")
    if first is None or first.ndim != 3 or projection is None or projection.ndim != 2:
        raise UserError(f"{config.file} is no checkpoint of ULIP-2's PointBERT.")
    depth = len({name.split(".")[0] for name in _part(own, "blocks.blocks.")})
    channels, embed_dim = first.shape[1], projection.shape[1]
    network = Ulip2(depth=depth, channels=channels, embed=embed_dim)
    _fit(network, {**own, "pc_projection": projection}, config)
    num, what = (MOST_POINTS, "xyzrgb") if channels == 6 else (8192, "xyz")
    return _of_points(f"ULIP-2 (PointBERT, {num // 1000}k {what})", network, config, num, embed_dim)


def _uni3d(tensors: dict[str, Tensor], config: BackboneConfig) -> Backbone:
    """What its transformer keeps of its life among pictures is left alone."""
    import timm

    pictures = tuple(f"visual.{name}" for name in ("cls_token", "pos_embed", "patch_embed.", "head."))
    named = _part(tensors, "point_encoder.")
    own = {name: value for name, value in named.items() if not name.startswith(pictures)}
    width = own["cls_token"].numel() if "cls_token" in own else 0
    if width not in UNI3D_SIZES:
        raise UserError(f"{config.file} is no checkpoint of Uni3D (Ti, S, B, L or g).")
    size, name = UNI3D_SIZES[width]
    trunk: Any = timm.create_model(name, pretrained=False, num_classes=0)
    network = _fit(Uni3d(trunk, width, embed=UNI3D_EMBED), own, config)
    return _of_points(f"Uni3D-{size}", network, config, MOST_POINTS, UNI3D_EMBED)


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
