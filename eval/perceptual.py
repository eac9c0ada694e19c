"""LPIPS, the distance of pictures in a network's features, from two files.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", eq. 1. The files
are torchvision's network and the heads of LPIPS v0.1, each named with its SHA-256 and read by torch's
unpickler of tensors alone. Without them there is no such figure, and no other distance bears its name.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy import ndarray
from pydantic import Field
from torch import Tensor, nn
from torchvision import models

from shapeloom.checkpoints import read_checked
from shapeloom.config import Config, UserError

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of pictures in [-1, 1], as in the reference."""
LAYERS = {"alex": (2, 5, 8, 10, 12), "vgg": (4, 9, 16, 23, 30)}
"""Where torchvision's `features` are read: after the ReLUs before each pool, or each of AlexNet's."""
EPSILON = 1e-10
BATCH = 16

Distance = Callable[
    [Float[ndarray, "n height width 3"], Float[ndarray, "n height width 3"]], Float64[ndarray, " n"]
]


class LpipsConfig(Config):
    """Which LPIPS, and its files."""

    network: Literal["alex", "vgg"] = Field("alex", description="AlexNet, LPIPS's own default, or VGG-16")
    file: str = Field(description="torchvision's weights, such as alexnet-owt-7be5be79.pth")
    sha256: str = Field(description="of that file")
    heads: str = Field(description="LPIPS's own, lpips/weights/v0.1/alex.pth of its package")
    heads_sha256: str = Field(description="of that file")


class Lpips(nn.Module):
    """The distance. Weights are to be loaded."""

    def __init__(self, network: Literal["alex", "vgg"]) -> None:
        super().__init__()
        whole = models.alexnet() if network == "alex" else models.vgg16()
        self.features: nn.Sequential = whole.features[: LAYERS[network][-1]]
        self.ends = LAYERS[network]
        convolutions = [self._last_convolution(end) for end in self.ends]
        self.heads = nn.ModuleList([nn.Conv2d(each.out_channels, 1, 1, bias=False) for each in convolutions])

    def _last_convolution(self, end: int) -> nn.Conv2d:
        return [layer for layer in list(self.features)[:end] if isinstance(layer, nn.Conv2d)][-1]

    def forward(
        self, a: Float[Tensor, "n 3 height width"], b: Float[Tensor, "n 3 height width"]
    ) -> Float[Tensor, " n"]:
        """Returns distances of pictures in [0, 1]."""
        shift, scale = (torch.tensor(each, device=a.device)[:, None, None] for each in (SHIFT, SCALE))
        x, y = ((2 * each - 1 - shift) / scale for each in (a, b))
        total, start = torch.zeros(len(a), device=a.device), 0
        for end, head in zip(self.ends, self.heads, strict=True):
            part = self.features[start:end]
            x, y, start = part(x), part(y), end
            total = total + head((_unit(x) - _unit(y)).square()).mean(dim=(1, 2, 3))
        return total


def _unit(x: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n channels height width"]:
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + EPSILON)


@lru_cache(maxsize=2)
def load_lpips(config: LpipsConfig) -> Distance:
    """Returns the distance of pictures in [0, 1], pair by pair.

    Raises UserError for a file that is missing, isn't the one that was named, or doesn't fit.
    """
    with torch.device("meta"):
        network = Lpips(config.network)
    backbone = read_checked(config.file, config.sha256, f"the {config.network} network of LPIPS")
    heads = read_checked(config.heads, config.heads_sha256, "the heads of LPIPS")
    kept = {name: value for name, value in backbone.items() if name in network.state_dict()}
    named = {f"heads.{i}.weight": heads.get(f"lin{i}.model.1.weight") for i in range(len(network.heads))}
    if None in named.values():
        raise UserError(f"{config.heads} doesn't hold LPIPS's heads: it has {', '.join(sorted(heads)[:5])}.")
    try:
        network.load_state_dict({**kept, **named}, assign=True)
    except RuntimeError as error:
        raise UserError(
            f"{config.file} and {config.heads} aren't LPIPS's {config.network}: {error}"
        ) from error
    network.eval().requires_grad_(False)

    def distance(
        a: Float[ndarray, "n height width 3"], b: Float[ndarray, "n height width 3"]
    ) -> Float64[ndarray, " n"]:
        parts = []
        for i in range(0, len(a), BATCH):
            pair = [
                torch.from_numpy(np.ascontiguousarray(each[i : i + BATCH], np.float32)).permute(0, 3, 1, 2)
                for each in (a, b)
            ]
            parts.append(network(*pair).double().numpy())
        return np.concatenate(parts)

    return distance
