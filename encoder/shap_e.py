"""Shap-E's encoder ("transmitter"), under the names of its published checkpoint.

Points become tokens of their own, and 1,024 of them gather their neighbours by convolutions; pixels of 20
views, each with the point it sees, become patches. The gathered tokens and as many learned ones attend to all
points, then to all patches, then to each other; the learned ones end in a tanh: the latent.
Everything here is in the official frame; `official_inputs` is the border. Jun & Nichol 2023, section 4.1.

The reference permutes the samples of each neighbourhood at random, channel by channel, even when it only
encodes; here they keep their order unless a permutation is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field as Key
from torch import Tensor, nn

from shapeloom.config import Config, UserError, load_config
from shapeloom.decoder import Decoder
from shapeloom.diffusion.discrete import bottleneck_process
from shapeloom.fields.shap_e import (
    ASSET_HALF_SIZE,
    POINT_OCTAVES,
    ShapEFieldConfig,
    ShapEProjection,
    encode_octaves,
)
from shapeloom.nn.shap_e import CrossTransformer, SelfTransformer, halve_weights, initialise
from shapeloom.rendering.shap_e import official_rays
from shapeloom.shards import AssetSample
from shapeloom.weights import read_tensors

RADIUS, NEIGHBOURS, WRAP = 0.5, 64, 4
PATCH, MARGIN = 8, 1
MAX_DEPTH = 9.0
MIN_ALPHA = 0.999
"""Of a pixel that counts as seen."""
PIXEL_NUMBERS = 279
CENTRES_AT_ONCE = 64
"""13 MB of offsets to all points."""
PATCHES_AT_ONCE = 256
"""57 MB of pixels in float32."""


class ShapEEncoderConfig(Config):
    """Sizes of the encoder; the defaults are the published ones."""

    width: int = Key(1024, ge=8, le=16384)
    heads: int = Key(8, ge=1, le=512)
    num_layers: int = Key(11, ge=1, le=512)  # self-attention blocks
    num_points: int = Key(16384, ge=16, le=1 << 20)
    num_centres: int = Key(1024, ge=1, le=16384)  # points that gather their neighbours: the first ones
    num_views: int = Key(20, ge=1, le=1024)
    size: int = Key(256, ge=8, le=4096)  # of a view, pixels


@dataclass(frozen=True)
class ShapEInputs:
    """Points and views of a batch of assets, in the official frame.

    points: xyz, then rgb in [0, 1], in farthest-point order. rgb: 0 to 255 on black. seen: pixels that show
    the asset and nothing else. depth: along the camera's z, anything where nothing is seen. tangents: of half
    the angles of view between the outermost pixels' centres, x and y.
    """

    points: Float[Tensor, "batch points 6"]
    rgb: Float[Tensor, "batch views size size 3"]
    seen: Bool[Tensor, "batch views size size"]
    depth: Float[Tensor, "batch views size size"]
    cam_to_world: Float[Tensor, "batch views 4 4"]
    tangents: Float[Tensor, "batch views 2"]


class _PointConv(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp_convs = nn.ModuleList(
            nn.Conv2d(inputs, width, (8, 1), stride=(4, 1)) for inputs in (width + 3, width)
        )

    def forward(
        self,
        xyz: Float[Tensor, "batch points 3"],
        tokens: Float[Tensor, "batch points width"],
        num_centres: int,
        permutations: Sequence[Int[Tensor, "batch _ _"]] | None,
    ) -> Float[Tensor, "batch centres width"]:
        neighbours = ball_query(xyz, xyz[:, :num_centres])
        first, second = self.mlp_convs
        if permutations is None:
            each = zip(xyz, tokens, neighbours, strict=True)
            x = torch.stack([self._first_by_point(*asset) for asset in each])
        else:
            batch = torch.arange(len(xyz), device=xyz.device)[:, None, None]
            offset = xyz[batch, neighbours] - xyz[:, :num_centres, None]
            x = torch.cat([offset.to(tokens.dtype), tokens[batch, neighbours]], dim=-1).permute(0, 3, 2, 1)
            x = first(_around(_shuffled(x, permutations[0])))
        x = F.silu(x)
        if permutations is not None:
            x = _shuffled(x, permutations[1])
        x = F.silu(second(_around(x)))
        return x.mean(dim=2).transpose(1, 2)

    def _first_by_point(
        self,
        xyz: Float[Tensor, "points 3"],
        tokens: Float[Tensor, "points width"],
        neighbours: Int[Tensor, "centres neighbours"],
    ) -> Float[Tensor, "width samples centres"]:
        """The first convolution, each tap of it computed once a point and not once a neighbour.

        Neighbours are a ball's first points, so few of the points are anyone's, and those many times.
        A tap is linear, and what it makes of an offset is the point's share less the centre's.
        """
        convolution = self.mlp_convs[0]
        assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
        taps = convolution.weight[..., 0].permute(2, 0, 1)
        num_taps, width, _ = taps.shape
        used, place = neighbours.unique(return_inverse=True)
        points = torch.cat([xyz[used].to(tokens.dtype), tokens[used]], dim=-1)
        shares = F.linear(points, taps.flatten(0, 1)).float().unflatten(-1, (num_taps, width))
        around = torch.cat([place[:, -WRAP:], place, place[:, :WRAP]], dim=1)
        windows = around.unfold(1, num_taps, convolution.stride[0])
        rows = windows * num_taps + torch.arange(num_taps, device=windows.device)
        total = F.embedding_bag(rows.flatten(0, 1), shares.flatten(0, 1), mode="sum")
        centre = F.linear(xyz[: len(neighbours)], taps[..., :3].sum(0).to(xyz.dtype))
        x = total.unflatten(0, rows.shape[:2]) + (convolution.bias.float() - centre.float())[:, None]
        return x.permute(2, 1, 0)


def _around(x: Float[Tensor, "batch channels samples centres"]) -> Tensor:
    """Samples of the other end at either end."""
    return F.pad(x, (0, 0, WRAP, WRAP), mode="circular")


def _shuffled(
    x: Float[Tensor, "batch channels samples centres"], order: Int[Tensor, "batch channels samples"]
) -> Tensor:
    """Samples in an order of each asset's and channel's own."""
    return x.gather(2, order.long()[..., None].expand(-1, -1, -1, x.shape[-1]))


def ball_query(
    points: Float[Tensor, "batch points 3"], centres: Float[Tensor, "batch centres 3"]
) -> Int[Tensor, "batch centres neighbours"]:
    """Returns the first 64 points within 0.5 of each centre, by index; fewer are filled up with the first."""
    count = points.shape[1]
    numbers = torch.arange(count, device=points.device)
    parts = []
    for some in centres.split(CENTRES_AT_ONCE, dim=1):
        near = (some[:, :, None] - points[:, None]).square().sum(-1) <= RADIUS**2
        index = torch.where(near, numbers, count)
        parts.append(index.topk(min(NEIGHBOURS, count), dim=-1, largest=False, sorted=True).values)
    first = torch.cat(parts, dim=1)
    first = F.pad(first, (0, NEIGHBOURS - first.shape[-1]), value=count)
    return torch.where(first == count, first[..., :1], first)


class _PixelConv(nn.Conv2d):
    """The 3x3 convolution over encoded pixels, with the vector of those that show no asset."""

    def __init__(self, out: int) -> None:
        super().__init__(PIXEL_NUMBERS, out, 3, padding=MARGIN)
        self.unk_token = nn.Parameter(0.01 * torch.randn(PIXEL_NUMBERS))


class ShapEEncoder(nn.Module):
    """Points and views to a latent; `params_proj` is the decoder's projection."""

    def __init__(self, config: ShapEEncoderConfig, field: ShapEFieldConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.output_tokens = nn.Parameter(torch.randn(field.num_tokens, width))
        self.params_proj = ShapEProjection(field)
        self.encoder = nn.ModuleList(CrossTransformer(width, config.heads) for _ in range(2))
        self.processor = SelfTransformer(width, config.heads, config.num_layers)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.output_proj = nn.Linear(width, field.channels)
        self.input_proj = nn.Linear(6 + 12 * POINT_OCTAVES, width)
        self.point_conv = _PointConv(width)
        self.mv_pcl_embed = _PixelConv(width // 2)
        self.patch_emb = nn.Conv2d(width // 2, width, PATCH, stride=PATCH)
        for blocks in (self.encoder, self.processor):
            initialise(blocks, width)
        self._folded: tuple[tuple[int, ...], Tensor, Tensor] | None = None

    def forward(
        self,
        inputs: ShapEInputs,
        permutations: Sequence[Int[Tensor, "batch _ _"]] | None = None,
    ) -> Float[Tensor, "batch tokens channels"]:
        """Returns the latent, in [-1, 1].

        permutations: the reference's two shuffles (`random_permutations`); None: none.
        """
        return torch.tanh(self.before_tanh(inputs, permutations).float())

    def before_tanh(
        self,
        inputs: ShapEInputs,
        permutations: Sequence[Int[Tensor, "batch _ _"]] | None = None,
    ) -> Float[Tensor, "batch tokens channels"]:
        """What the tanh takes; for `with_bottleneck_noise`."""
        points = self.input_proj(encode_octaves(inputs.points, POINT_OCTAVES))
        gathered = self.point_conv(inputs.points[..., :3], points, self.config.num_centres, permutations)
        learned = self.output_tokens.expand(len(points), -1, -1)
        x = self.ln_pre(torch.cat([gathered.float(), learned], dim=1))
        x = self.encoder[0](x, points.float())
        x = self.encoder[1](x, self.view_tokens(inputs).float())
        x = self.processor(x)
        return self.output_proj(self.ln_post(x)[:, -learned.shape[1] :])

    def view_tokens(self, inputs: ShapEInputs) -> Float[Tensor, "batch patches width"]:
        """Returns a token for each patch of 8x8 pixels, row by row, view after view.

        Both convolutions over pixels are one here: nothing lies between them but a sum. Patches around which
        nothing is seen look alike, but for those at a view's edges, and are computed once.
        """
        kernel, bias = self._fold()
        nothing = torch.zeros_like(inputs.seen[:1, 0])
        pixels = self.mv_pcl_embed.unk_token.float().expand(*nothing.shape, -1)
        blank = self._patch_tokens(pixels, nothing, kernel, bias, None)
        views = []
        for view in range(inputs.rgb.shape[1]):
            pixels = pixel_numbers(inputs, view, self.mv_pcl_embed.unk_token)
            views.append(self._patch_tokens(pixels, inputs.seen[:, view], kernel, bias, blank))
        return torch.cat(views, dim=1)

    def _patch_tokens(
        self, pixels: Tensor, seen: Tensor, kernel: Tensor, bias: Tensor, blank: Tensor | None
    ) -> Float[Tensor, "batch patches width"]:
        """Tokens of one view; blank: those of a view that shows nothing, taken where nothing is seen."""
        pixels = pixels.to(kernel.dtype)
        padded = F.pad(pixels, (0, 0, MARGIN, MARGIN, MARGIN, MARGIN))
        span = PATCH + 2 * MARGIN
        windows = padded.unfold(1, span, PATCH).unfold(2, span, PATCH).permute(0, 1, 2, 4, 5, 3)
        rows, columns = windows.shape[1:3]
        if blank is None:
            wanted = torch.ones(len(seen), rows, columns, dtype=torch.bool, device=seen.device)
            tokens = bias.new_empty(len(seen), rows, columns, len(bias))
        else:
            around = F.max_pool2d(F.pad(seen.float(), (MARGIN,) * 4)[:, None], span, PATCH)[:, 0]
            wanted = around > 0
            tokens = blank.unflatten(1, (rows, columns)).expand(len(seen), -1, -1, -1).clone()
        index = wanted.nonzero()
        for part in index.split(PATCHES_AT_ONCE):
            chosen = windows[tuple(part.T)].flatten(1)
            tokens[tuple(part.T)] = torch.addmm(bias, chosen, kernel).to(tokens.dtype)
        return tokens.flatten(1, 2)

    def _fold(self) -> tuple[Float[Tensor, "pixels width"], Float[Tensor, " width"]]:
        """Both convolutions as one matrix, kept until their weights change."""
        parts = (self.mv_pcl_embed.weight, self.mv_pcl_embed.bias, self.patch_emb.weight, self.patch_emb.bias)
        known = tuple(number for part in parts if part is not None for number in (id(part), part._version))
        if torch.is_grad_enabled():
            return fold_convolutions(*parts)
        if self._folded is None or self._folded[0] != known:
            self._folded = known, *fold_convolutions(*parts)
        return self._folded[1], self._folded[2]


class ShapEAutoencoder(nn.Module):
    """Encoder and decoder of the published transmitter, whose projection both share.

    bf16: computes in bfloat16 (see `halve_weights`); latents differ by about 1%. Fields stay in float32.
    """

    def __init__(self, encoder: ShapEEncoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder, self.bf16 = encoder, decoder, False

    def use_bf16(self) -> None:
        """From now on."""
        for name, part in self.encoder.named_children():
            if name != "params_proj":  # its matrices are the decoder's
                halve_weights(part)
        self.bf16 = True

    @torch.no_grad()
    def encode(
        self, samples: Sequence[AssetSample], *, shuffle: torch.Generator | None = None
    ) -> Float[Tensor, "batch tokens channels"]:
        """Returns the latents of assets read by `read_for_encoding`; deterministic.

        shuffle: permutes neighbours' samples as the reference does.
        """
        device = self.encoder.output_tokens.device
        orders = None
        if shuffle is not None:
            drawn = random_permutations(self.encoder.config, len(samples), shuffle)
            orders = [order.to(device) for order in drawn]
        inputs = official_inputs(samples, self.encoder.config, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            latent: Tensor = self.encoder(inputs, orders)
        return latent


def load_shap_e(folder: Path, decoder: Decoder) -> ShapEAutoencoder:
    """Returns the autoencoder of a converted checkpoint; UserError if it has no encoder."""
    if not (folder / "encoder.yaml").is_file():
        raise UserError(
            f"{folder} was converted from Shap-E's decoder alone: convert transmitter.pt to encode assets."
        )
    assert decoder.config.shap_e is not None
    config = load_config(ShapEEncoderConfig, folder / "encoder.yaml")
    with torch.device("meta"):
        encoder = ShapEEncoder(config, decoder.config.shap_e)
    assert isinstance(decoder.projection, ShapEProjection)
    state = {f"params_proj.{name}": value for name, value in decoder.projection.state_dict().items()}
    state |= read_tensors(folder / "weights.safetensors", "encoder.")
    encoder.load_state_dict(state, assign=True)
    encoder.params_proj = decoder.projection
    device = next(decoder.parameters()).device
    return ShapEAutoencoder(encoder.to(device), decoder).eval().requires_grad_(False)


def fold_convolutions(
    first: Float[Tensor, "middle numbers 3 3"],
    first_bias: Float[Tensor, " middle"] | None,
    second: Float[Tensor, "width middle 8 8"],
    second_bias: Float[Tensor, " width"] | None,
) -> tuple[Float[Tensor, "pixels width"], Float[Tensor, " width"]]:
    """Returns the matrix (and bias) that a 3x3 convolution and an 8x8 one of stride 8 after it are together.

    pixels: 10 x 10 x numbers of a patch with a margin of one, row by row. Each of the 64 x 9 pairs of taps
    adds to one of the 100 pixels: 170 billion operations at the published size, a few seconds, once.
    """
    assert first_bias is not None and second_bias is not None
    width, middle, side, _ = second.shape
    numbers = first.shape[1]
    # [9 taps, numbers, middle] and [64 places, middle, width], in the type that they are kept in.
    taps = first.permute(2, 3, 1, 0)
    places = second.permute(2, 3, 1, 0).reshape(side * side, middle, width)
    kernel = torch.zeros(side + 2, side + 2, numbers, width, device=second.device)
    for dy in range(3):
        for dx in range(3):
            product = (taps[dy, dx] @ places).float().unflatten(0, (side, side))
            kernel[dy : dy + side, dx : dx + side] += product
    bias = second_bias + second.sum((2, 3)) @ first_bias
    return kernel.flatten(0, 2).to(second.dtype), bias


def pixel_numbers(
    inputs: ShapEInputs, view: int, unknown: Float[Tensor, " numbers"]
) -> Float[Tensor, "batch size size numbers"]:
    """Returns what the pixels of a view say: encoded colour, ray origin and point seen, or `unknown`."""
    pose, seen = inputs.cam_to_world[:, view], inputs.seen[:, view]
    directions, cosine = official_rays(pose, inputs.tangents[:, view], *seen.shape[1:])
    distance = inputs.depth[:, view].clamp(max=MAX_DEPTH) / cosine
    origin = pose[:, None, None, :3, 3]
    position = origin + distance[..., None] * directions
    pixels = unknown.float().expand(*seen.shape, -1).clone()
    shown = (inputs.rgb[:, view] / 127.5 - 1, origin.expand_as(position), position)
    pixels[seen] = torch.cat([encode_octaves(each[seen], POINT_OCTAVES) for each in shown], dim=-1)
    return pixels


def random_permutations(
    config: ShapEEncoderConfig, batch: int, generator: torch.Generator
) -> list[Int[Tensor, "batch _ _"]]:
    """Returns fresh shuffles of the samples before both point convolutions, as the reference draws them: an
    order of its own for each asset and channel."""
    sizes = ((config.width + 3, NEIGHBOURS), (config.width, NEIGHBOURS // 4 + 1))
    return [
        torch.rand(batch, channels, samples, generator=generator).argsort(dim=-1)
        for channels, samples in sizes
    ]


def with_bottleneck_noise(
    before_tanh: Float[Tensor, " batch *shape"],
    noise: Float[Tensor, " batch *shape"],
    step: Int[Tensor, " batch"],
) -> Float[Tensor, " batch *shape"]:
    """Returns the latent as its decoder was trained with it: step 0 for 9 of 10, else any of 0 to 1023."""
    return bottleneck_process().add_noise(torch.tanh(before_tanh), noise, step)


def official_inputs(
    samples: Sequence[AssetSample], config: ShapEEncoderConfig, device: torch.device | str = "cpu"
) -> ShapEInputs:
    """Returns our assets as the official encoder wants them: scaled by 1 / 0.95, pixels on black.

    Raises ValueError for assets with too few points or views, or views of another size.
    """
    for sample in samples:
        _check(sample, config)
    num, scale = config.num_points, 1 / ASSET_HALF_SIZE
    xyz = _stack([s.points for s in samples])[:, :num] * scale
    point_rgb = _stack([s.points_rgb for s in samples])[:, :num].float() / 255
    rgba = _stack([s.rgba for s in samples]).float()
    depth = _stack([s.depth for s in samples]) * scale
    poses = _stack([s.cam_to_world for s in samples])
    poses[..., :3, 3] *= scale
    intrinsics = _stack([s.intrinsics for s in samples])
    focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], dim=-1)
    return ShapEInputs(
        points=torch.cat([xyz, point_rgb], dim=-1).to(device),
        rgb=(rgba[..., :3] * rgba[..., 3:] / 255).round().to(device),
        seen=((rgba[..., 3] / 255 >= MIN_ALPHA) & (depth > 0)).to(device),
        depth=depth.to(device),
        cam_to_world=poses.to(device),
        # The same rays: ours go through centres at +0.5, the official ones through i / (W - 1).
        tangents=((config.size - 1) / 2 / focal).to(device),
    )


def _check(sample: AssetSample, config: ShapEEncoderConfig) -> None:
    have = (
        0 if sample.points is None else len(sample.points),
        0 if sample.rgba is None else len(sample.rgba),
        0 if sample.rgba is None else sample.rgba.shape[1],
    )
    need = (config.num_points, config.num_views, config.size)
    if have[0] < need[0] or have[1:] != need[1:] or sample.depth is None:
        raise ValueError(
            f"asset {sample.row.key} has {have[0]} points and {have[1]} views of {have[2]} pixels, but "
            f"Shap-E's encoder reads {need[0]} points and {need[1]} views of {need[2]} pixels with depth: "
            "prepare the data with configs/data_prep/shap_e.yaml."
        )


def _stack(arrays: Sequence[np.ndarray | None]) -> Tensor:
    return torch.stack([torch.from_numpy(array) for array in arrays if array is not None])
