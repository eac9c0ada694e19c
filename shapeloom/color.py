"""sRGB and linear light (IEC 61966-2-1), values in [0, 1]."""

import numpy as np
from numpy import ndarray


def srgb_to_linear(srgb: ndarray) -> ndarray:
    """Returns linear light of sRGB values; 0.5 is 0.214."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: ndarray) -> ndarray:
    """Returns sRGB values of linear light; inverse of `srgb_to_linear`."""
    # The power sees values above the toe alone, so that it has no negative or subnormal input.
    return np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    )


SRGB_DECODE = srgb_to_linear(np.arange(256) / 255).astype(np.float32)
"""Linear light of each 8-bit sRGB value."""
