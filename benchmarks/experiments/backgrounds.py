"""Held-out assets before backgrounds, as people photograph things: how well are they cut out again?

Each asset is drawn at 256x256 by data preparation's renderer, and put in front of

    shaded  two colours that run into one another, with noise
    busy    a crop of one of the photographs and textures that scikit-image ships

All with the asset's own alpha as the truth. There are no shadows and no blur, so photographs are harder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from skimage import data
from skimage.transform import resize

from data_prep.formats.load import load_mesh
from data_prep.geometry.normalize import normalize
from data_prep.pipeline import DataConfig
from data_prep.procedural.dataset import generate
from data_prep.render.view_members import shoot
from data_prep.sources.find import assets_root, find_sources
from sampling.cutouts import PictureConfig, centred, cut_out, on_square
from sampling.pipeline import Picture
from shapeloom.config import UserError, load_config
from shapeloom.metrics import mask_iou
from shapeloom.seed import numpy_rng

Background = Literal["shaded", "busy"]
SIZE = 256
PHOTOS = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "motorcycle")
TEXTURES = ("brick", "grass", "gravel")


def rendered(run: Path, keys: Sequence[str], scratch: Path) -> list[np.ndarray]:
    """Returns a view of each asset of a run's data, RGBA; raises UserError if their files aren't there."""
    config = load_config(DataConfig, run / "data" / "config.yaml")
    if config.objaverse is not None:
        raise UserError("Backgrounds are put behind assets of a folder or the embedded set: use --busy 0.")
    listed = config.assets or scratch / "assets"
    if config.assets is None:
        generate(config.procedural, listed)
    root = assets_root(listed)
    sources = {source.key: source for source in find_sources(listed, config.splits)[0]}
    missing = [key for key in keys if key not in sources]
    if missing:
        raise UserError(f"{listed} hasn't the assets of {run} any more: {', '.join(missing[:5])}.")
    camera = config.model_copy(update={"num_views": 1, "num_ring_views": 0, "resolution": SIZE})
    pictures = []
    for key in keys:
        mesh, _ = normalize(load_mesh(root / sources[key].path, root=root, up=config.up))
        pictures.append(shoot(mesh, camera, key, config.seed)[0].rgba[0])
    return pictures


def backdrop(kind: Background, number: int) -> np.ndarray:
    """Returns the background of picture `number`, RGB in [0, 1]."""
    rng = numpy_rng("backdrop", kind, number)
    if kind == "shaded":
        first, other = rng.uniform(0.2, 1, (2, 3))
        share = 0.25 * np.linspace(0, 1, SIZE)[:, None, None]
        return np.clip(first + share * (other - first) + rng.normal(0, 0.012, (SIZE, SIZE, 3)), 0, 1)
    name = (*PHOTOS, *TEXTURES)[number % (len(PHOTOS) + len(TEXTURES))]
    photo = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
    photo = photo / 255 if photo.ndim == 3 else photo[..., None] / 255 * rng.uniform(0.5, 1, 3)
    least = min(photo.shape[:2])
    side = int(rng.uniform(0.5, 1) * least)
    y, x = (int(rng.integers(length - side + 1)) for length in photo.shape[:2])
    return resize(photo[y : y + side, x : x + side], (SIZE, SIZE), anti_aliasing=True)


def in_front(rgba: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Returns an opaque RGBA picture of the object before a background."""
    alpha = rgba[..., 3:] / 255
    mixed = 255 * (rgba[..., :3] / 255 * alpha + background * (1 - alpha))
    return np.dstack([mixed.round().astype(np.uint8), np.full(rgba.shape[:2], 255, np.uint8)])


def cut_again(rgba: np.ndarray, truth: np.ndarray, config: PictureConfig) -> tuple[Picture, float]:
    """Returns what the model sees of a picture, and its matte's IoU; all of it and 0 where none is found."""
    try:
        found = cut_out(rgba, config)
    except UserError:
        return on_square(rgba), 0.0
    iou = mask_iou(found[None, ..., 3] / 255, truth[None, ..., 3] / 255)
    return centred(found), float(iou[0])
