"""A mesh in the box, and what is measured of it: surface points, edge points, signed distances."""
