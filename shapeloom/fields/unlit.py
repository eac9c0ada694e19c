"""A field seen without its light: what a texture is, where a picture shows colours."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor, nn

from shapeloom.fields.heads import Color, Directions, Field, Geometry
from shapeloom.fields.projection import FieldWeights


class UnlitField(nn.Module):
    """A `Field` whose NeRF colours are its texture's."""

    def __init__(self, field: Field) -> None:
        super().__init__()
        self.field = field

    def forward(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"], directions: Directions = None
    ) -> tuple[Geometry, Color]:
        """See `Field`."""
        return self.geometry(weights, points), self.color(weights, points, directions)

    def geometry(self, weights: FieldWeights, points: Float[Tensor, "batch points 3"]) -> Geometry:
        """See `Field`."""
        return self.field.geometry(weights, points)

    def color(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"], directions: Directions = None
    ) -> Color:
        """See `Field`."""
        color = self.field.color(weights, points, directions)
        return replace(color, rgb=color.texture)

    def sdf_and_gradient(
        self, weights: FieldWeights, points: Float[Tensor, "batch points 3"]
    ) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch points 3"]]:
        """See `Field`."""
        return self.field.sdf_and_gradient(weights, points)
