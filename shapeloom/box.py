"""The box that fields live in, [-1, 1]^3, and how much of it an asset takes.

Grids have cells of SIDE / num along each axis, and (points - LOW) * (num / SIDE) is a place in cells.
"""

LOW, HIGH = -1.0, 1.0
SIDE = HIGH - LOW
ASSET_HALF_SIZE = 0.95
"""An asset is centred, and scaled to touch [-0.95, 0.95]^3 along its largest extent: off the box's walls."""
