"""Shap-E's encoder ("transmitter"), under the names of its published checkpoint.

Points become tokens of their own, and 1,024 of them gather their neighbours by convolutions; pixels of 20
views, each with the point it sees, become patches. The gathered tokens and as many learned ones attend to all
points, then to all patches, then to each other; the learned ones end in a tanh: the latent.
Everything here is in the official frame. Jun & Nichol 2023, section 4.1.

The reference permutes the samples of each neighbourhood at random, channel by channel, even when it only
encodes; here they keep their order unless a permutation is asked for.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from shapeloom.shap_e.blocks import CrossTransformer, SelfTransformer, initialise
from shapeloom.shap_e.field import POINT_OCTAVES, ShapEFieldConfig, ShapEProjection, encode_octaves
from shapeloom.shap_e.inputs import ShapEEncoderConfig, ShapEInputs, pixel_numbers

RADIUS, NEIGHBOURS, WRAP = 0.5, 64, 4
PATCH, MARGIN = 8, 1
PIXEL_NUMBERS = 279
CENTRES_AT_ONCE = 64
"""13 MB of offsets to all points."""
PATCHES_AT_ONCE = 256
"""57 MB of pixels in float32."""


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
        self.output_tokens = nn.Parameter(torch.randn(field.layout.shape[0], width))
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
        points = self.input_proj(encode_octaves(inputs.points, POINT_OCTAVES))
        gathered = self.point_conv(inputs.points[..., :3], points, self.config.num_centres, permutations)
        learned = self.output_tokens.expand(len(points), -1, -1)
        x = self.ln_pre(torch.cat([gathered.float(), learned], dim=1))
        x = self.encoder[0](x, points.float())
        x = self.encoder[1](x, self.view_tokens(inputs).float())
        x = self.processor(x)
        return torch.tanh(self.output_proj(self.ln_post(x)[:, -learned.shape[1] :]).float())

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
