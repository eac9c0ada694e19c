"""What of a picture is its object: an alpha channel for pictures that have none.

Without a network: superpixels whose colours can't be reached from the border without a jump are taken for
the object (geodesic saliency: Wei et al. 2012, "Geodesic Saliency Using Background Priors"), then both sides
learn a mixture of colours and the cut between them is made anew (Rother et al. 2004, "GrabCut"). That does
plain, shaded and noisy backgrounds, and some busy ones. A network does more: `load_network` reads the weights
of one that rembg knows, from a file.

Pictures are sRGB uint8 [height, width, 3]; colours are compared in CIELAB, where 1 is just visible.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8
from numpy import ndarray
from PIL import Image
from scipy.cluster.vq import kmeans, vq
from scipy.ndimage import label as label_pieces
from scipy.ndimage import mean as mean_by_label
from scipy.ndimage import uniform_filter
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, dijkstra, maximum_flow
from skimage.color import rgb2gray, rgb2lab
from skimage.filters import threshold_otsu
from skimage.segmentation import slic

from shapeloom.config import UserError

RGB = UInt8[ndarray, "height width 3"]
Matter = Callable[[RGB], Float32[ndarray, "height width"]]
"""Returns how much of each pixel is the object's, 0 to 1; all 0 where there is none."""

LEAST_PIECE = 0.05
"""Of the largest piece's area: smaller ones are specks of the background."""
FAINT = 0.1
"""Alpha that near is taken for 0 or 1."""
SEEN_SIDE = 256
"""Of the picture that is cut into superpixels."""
SUPERPIXELS = 600
SMOOTH_STEP = 4.0
"""Colour differences between neighbouring superpixels that count as shading: free of charge."""
STANDS_OUT = 12.0
"""How far from the border's colours, step by step, an object must get."""
COLOURS = 5
"""Of each side's mixture."""
LEAST_VARIANCE = 9.0
"""Of a mixture's colours along any axis: a plain background has none of its own."""
STIFFNESS = 25.0
"""What a superpixel's length of outline costs where the colour doesn't change."""
SURE = 20.0
"""A superpixel's colour decides no more than that, in nats."""
ROUNDS = 5
FLOW_UNITS = 100
"""The cut is made in integers."""
OTHERS = ("sam", "u2net_cloth_seg", "u2net_custom", "dis_custom", "ben_custom")
"""Of rembg's: they want to be pointed at the object, answer with several masks, or don't know their input."""


def matte(rgb: RGB) -> Float32[ndarray, "height width"]:
    """Returns how much of each pixel is the object's: the `Matter` that needs no network."""
    height, width = rgb.shape[:2]
    scale = min(1.0, SEEN_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    seen = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BOX))
    mask = Image.fromarray((255 * _cut(seen)).astype(np.uint8)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    return _guided(rgb, np.asarray(mask, np.float32) / 255, radius=max(1, round(1 / scale)))


# ---------------------------------------------------------------- superpixels and their cut


class _Superpixels:
    """Patches of one colour, their areas (mean 1), which ones touch the border, and their neighbours."""

    def __init__(self, rgb: RGB) -> None:
        wanted = max(4, min(SUPERPIXELS, rgb.shape[0] * rgb.shape[1] // 4))
        label: Int[ndarray, "height width"] = slic(
            rgb, wanted, compactness=10, start_label=0, channel_axis=-1
        )
        self.label, self.count = label, int(label.max()) + 1
        lab, index = rgb2lab(rgb), np.arange(self.count)
        self.colour = np.stack([mean_by_label(lab[..., i], label, index) for i in range(3)], axis=1)
        self.area = np.bincount(label.ravel(), minlength=self.count) * (self.count / label.size)
        self.at_border = np.zeros(self.count, bool)
        for side in (label[0], label[-1], label[:, 0], label[:, -1]):
            self.at_border[side] = True
        steps = [(label[:, :-1], label[:, 1:]), (label[:-1], label[1:])]
        pairs = np.concatenate([np.stack([a.ravel(), b.ravel()], axis=1) for a, b in steps])
        pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
        self.pairs, length = np.unique(pairs, axis=0, return_counts=True)
        self.length = length * np.sqrt(self.count / label.size)
        """Of the border that two neighbours share; about 1 in the mean."""
        self.jump = np.linalg.norm(self.colour[self.pairs[:, 0]] - self.colour[self.pairs[:, 1]], axis=1)

    def graph(self, weights: Float[ndarray, " pairs"]) -> Any:
        """A sparse matrix of the pairs' weights, one way."""
        return coo_matrix((weights, tuple(self.pairs.T)), shape=(self.count, self.count)).tocsr()


def _cut(rgb: RGB) -> Bool[ndarray, "height width"]:
    """Returns which pixels are the object's."""
    parts = _Superpixels(rgb)
    if parts.count < 2 or parts.at_border.all():
        return np.zeros(rgb.shape[:2], bool)
    # A step that costs nothing wouldn't be stored.
    steps = parts.graph(np.maximum(parts.jump - SMOOTH_STEP, 0) + 1e-3)
    away = dijkstra(steps, directed=False, indices=np.nonzero(parts.at_border)[0], min_only=True)
    if away.max() < STANDS_OUT:
        return np.zeros(rgb.shape[:2], bool)
    # Otsu's threshold alone would leave out parts of an object that differ less than its others.
    rough = np.percentile(parts.jump[parts.at_border[parts.pairs].all(axis=1)], 90)
    inside = away > min(threshold_otsu(away), max(STANDS_OUT, 2 * rough))
    for _ in range(ROUNDS):
        if not inside.any():
            break
        before, inside = inside, _recut(parts, inside)
        if (inside == before).all():
            break
    return _without_specks(inside[parts.label])


def _without_specks(mask: Bool[ndarray, "height width"]) -> Bool[ndarray, "height width"]:
    pieces, count = label_pieces(mask)
    areas = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    kept = np.concatenate([[False], areas >= LEAST_PIECE * areas.max(initial=0)])
    return np.asarray(kept[pieces])


def _recut(parts: _Superpixels, inside: Bool[ndarray, " parts"]) -> Bool[ndarray, " parts"]:
    """Returns the cheapest cut under the colours that both sides have now; the border stays background."""
    odds = _cost(parts, ~inside) - _cost(parts, inside)  # above 0: rather the object's
    odds = np.clip(odds, -SURE, SURE) * parts.area
    odds[parts.at_border] = -1e4
    spread = 2 * np.mean(parts.jump**2) + 1e-9
    held = STIFFNESS * parts.length * np.exp(-(parts.jump**2) / spread)
    source, sink = parts.count, parts.count + 1
    ours, theirs = np.nonzero(odds > 0)[0], np.nonzero(odds < 0)[0]
    start = np.concatenate([np.full(len(ours), source), theirs, parts.pairs[:, 0], parts.pairs[:, 1]])
    end = np.concatenate([ours, np.full(len(theirs), sink), parts.pairs[:, 1], parts.pairs[:, 0]])
    capacity = np.concatenate([odds[ours], -odds[theirs], held, held])
    shape = (parts.count + 2, parts.count + 2)
    graph = coo_matrix(((FLOW_UNITS * capacity).astype(np.int32), (start, end)), shape=shape).tocsr()
    left = graph - maximum_flow(graph, source, sink).flow
    left.data = np.maximum(left.data, 0)
    left.eliminate_zeros()
    found = np.zeros(parts.count + 2, bool)
    found[breadth_first_order(left, source, return_predecessors=False)] = True
    return np.asarray(found[: parts.count])


def _cost(parts: _Superpixels, chosen: Bool[ndarray, " parts"]) -> Float[ndarray, " parts"]:
    """Returns -log density of each colour in a mixture of Gaussians fitted to the chosen ones'."""
    colours, areas = parts.colour[chosen], parts.area[chosen]
    found, _ = kmeans(colours, _far_apart(colours, COLOURS))
    kinds, _ = vq(colours, found)
    logs = []
    for kind in np.unique(kinds):
        own, weights = colours[kinds == kind], areas[kinds == kind]
        middle = np.average(own, axis=0, weights=weights)
        covariance = np.cov(own.T, aweights=weights, ddof=0).reshape(3, 3) + LEAST_VARIANCE * np.eye(3)
        offset = parts.colour - middle
        distance = np.einsum("ni,ij,nj->n", offset, np.linalg.inv(covariance), offset)
        share = np.log(weights.sum() / areas.sum())
        logs.append(share - (distance + np.linalg.slogdet(covariance)[1]) / 2)
    return -np.logaddexp.reduce(logs, axis=0)


def _far_apart(colours: Float[ndarray, "colours 3"], num: int) -> Float[ndarray, "chosen 3"]:
    """Returns up to `num` different colours, each the farthest from those before."""
    chosen = [colours[0]]
    distance = np.linalg.norm(colours - chosen[0], axis=1)
    while len(chosen) < num and distance.max() > 0:
        chosen.append(colours[distance.argmax()])
        distance = np.minimum(distance, np.linalg.norm(colours - chosen[-1], axis=1))
    return np.stack(chosen)


def _guided(
    rgb: RGB, mask: Float32[ndarray, "height width"], *, radius: int, epsilon: float = 1e-4
) -> Float32[ndarray, "height width"]:
    """Returns the mask with its edges where the picture's are (He et al. 2013, "Guided Image Filtering")."""
    guide, size = rgb2gray(rgb).astype(np.float32), 4 * radius + 1
    of_guide, of_mask = uniform_filter(guide, size), uniform_filter(mask, size)
    variance = uniform_filter(guide * guide, size) - of_guide**2
    slope = (uniform_filter(guide * mask, size) - of_guide * of_mask) / (variance + epsilon)
    offset = of_mask - slope * of_guide
    soft = uniform_filter(slope, size) * guide + uniform_filter(offset, size)
    # Far from the mask's edge the filter has nothing to say, and what it says faintly is the mask's blur.
    soft = np.where((of_mask > 0) & (of_mask < 1), soft, mask)
    return np.clip((soft - FAINT) / (1 - 2 * FAINT), 0, 1).astype(np.float32)


# ---------------------------------------------------------------- networks


@lru_cache(1)
def load_network(path: Path) -> Matter:
    """Returns the matter of an ONNX file that rembg knows by its name; nothing is fetched.

    Raises UserError if rembg isn't installed, or the file isn't there or isn't one of its networks.
    """
    if not path.is_file():
        raise UserError(f"pictures.matting names {path}, which does not exist.")
    try:
        from rembg.sessions import sessions
    except ImportError as error:
        raise UserError(
            "pictures.matting needs rembg: pip install 'shapeloom[matting]'. Without pictures.matting plain "
            "backgrounds are removed all the same."
        ) from error
    kinds = {name: kind for name, kind in sessions.items() if name not in OTHERS}
    if path.stem not in kinds:
        raise UserError(
            f"{path} must have the name that rembg gives to its network, which says how pictures go in: "
            f"{', '.join(sorted(kinds))}."
        )

    class Given(kinds[path.stem]):  # type: ignore[misc, valid-type]
        """Of that very file, where rembg would look for one of its own and download it."""

        @classmethod
        def download_models(cls, *arguments: Any, **named: Any) -> str:
            return str(path)

    import onnxruntime

    try:
        session = Given(path.stem, onnxruntime.SessionOptions(), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds, which it doesn't name in public
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path} can't be read as a network in ONNX format ({reason}).") from error

    def ask(rgb: RGB) -> Float32[ndarray, "height width"]:
        (mask,) = session.predict(Image.fromarray(rgb))[:1]
        return np.asarray(mask.convert("L"), np.float32) / 255

    return ask
