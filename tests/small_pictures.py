"""Pictures with an object in them, for tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def disc(colour=(200, 0, 0), *, background=(230, 230, 230), width=64, height=48, radius=14, alpha=False):
    """A disc in the middle: RGB on its background, or RGBA with nothing else."""
    y, x = np.mgrid[:height, :width]
    inside = (x - width / 2 + 0.5) ** 2 + (y - height / 2 + 0.5) ** 2 <= radius**2
    rgb = np.where(inside[..., None], colour, background).astype(np.uint8)
    return np.dstack([rgb, 255 * inside.astype(np.uint8)]) if alpha else rgb


def save_disc(path: Path, colour=(200, 0, 0), **how) -> None:
    """Writes it as a picture."""
    Image.fromarray(disc(colour, **how)).save(path)
