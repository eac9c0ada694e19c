"""Diffuse light that is fixed in the world: ambient light and directional lights, on both sides of a face.

As in the data of the reference (Shap-E, after Point-E: diffuse only, from fixed directions). The sum never
exceeds 1, so base colours never clip. Linear light.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from numpy import ndarray


@dataclass(frozen=True)
class Lighting:
    """What a Lambertian surface of unit albedo reflects, by its normal."""

    ambient: float
    directions: Float32[ndarray, "lights 3"]
    """Unit, towards the light."""
    intensities: Float32[ndarray, " lights"]

    def irradiance(self, normals: Float32[ndarray, "hits 3"]) -> Float32[ndarray, " hits"]:
        """Light on a surface whose unit normal faces the viewer, in [ambient, 1]."""
        return np.float32(self.ambient) + np.maximum(normals @ self.directions.T, 0) @ self.intensities

    def facts(self) -> dict[str, object]:
        """For an asset's provenance."""
        lights = zip(self.directions.tolist(), self.intensities.tolist(), strict=True)
        return {
            "ambient": self.ambient,
            "lights": [{"direction": direction, "intensity": intensity} for direction, intensity in lights],
        }


def _float32(values: object) -> ndarray:
    return np.array(values, np.float32)


STUDIO = Lighting(0.4, _float32([[0.48, -0.6, 0.64], [-0.8, 0.36, 0.48]]), _float32([0.45, 0.15]))
"""A key light, and a weaker fill light from the other side."""
UNLIT = Lighting(1.0, np.zeros((0, 3), np.float32), np.zeros(0, np.float32))
"""Base colours as they are."""


def random_lighting(rng: np.random.Generator) -> Lighting:
    """A key light from anywhere above the horizon, a fill light from the other side, and ambient light."""
    ambient, key = rng.uniform(0.25, 0.6), rng.uniform(0.55, 0.95)
    azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.95)
    across = np.sqrt(1 - height**2)
    direction = np.array([across * np.cos(azimuth), across * np.sin(azimuth), height])
    opposite = direction * (-1, -1, 1)
    shares = (1 - ambient) * np.array([key, 1 - key])
    return Lighting(float(ambient), _float32([direction, opposite]), _float32(shares))
