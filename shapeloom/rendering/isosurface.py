"""The zero level of a signed-distance field as triangles: marching cubes, dense or coarse to fine.

A grid of `resolution` cells a side spans the box [-1, 1]^3, with nodes on its faces. The field is negative
inside. It is closed at the box: what touches the border gets a wall there.

Coarse to fine: a grid is interpolated to twice its size, and evaluated where interpolation may be wrong about
the sign, judging by how much the slope changes from node to node nearby; and at the ends of all edges that
the surface crosses, until there are no new ones. Marching cubes reads no other values. So a surface is
followed wherever it leads; a part may only be missed if coarser grids show no trace of it.
"""

import functools
import itertools
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from skimage.measure import marching_cubes
from torch import Tensor

from shapeloom.box import HIGH, LOW, SIDE

Field = Callable[[Float[Tensor, "points 3"]], Float[Tensor, " points"]]
Gradient = Callable[[Float[Tensor, "points 3"]], Float[Tensor, "points 3"]]

# How far linear interpolation is trusted: a share of the largest second differences around, summed over the
# axes. It errs by an eighth of those at its place where the slope changes evenly, by more at folds. Chosen by
# measuring trained fields (docs/LOG.md): half of it missed a few cells of one.
INTERPOLATION_ERROR = 0.06
NOT_EXACT = 1e-30  # the error of an interpolated value is never called none
# From a point of a cell to its eight corners, in cell sides, it is this far at most: on average (from
# a corner), and to the furthest one.
MEAN_REACH = (3 + 3 * 2**0.5 + 3**0.5) / 8
LARGEST_REACH = 3**0.5
# The steepest slope between nodes underestimates the steepest slope; wider margins cost time only.
SLOPE_MARGIN = 1.05
# The wall of an open field lies this share of a cell inside the box, so that no node has the value zero.
WALL = 1e-3


def extract_surface(
    sdf: Field, *, resolution: int = 128, coarsest: int = 32, device: torch.device | str = "cpu"
) -> tuple[Float[np.ndarray, "vertices 3"], Int[np.ndarray, "faces 3"]]:
    """Returns vertices (world coordinates, float32) and faces (outward, counter-clockwise, int64).

    sdf: points [n, 3] in [-1, 1]^3 on `device` -> signed distances [n], negative inside; any n.
    resolution: cells a side. coarsest: cells a side of the first grid; `resolution` or more means dense.
    A field that does not change its sign in the box has no surface: both arrays are empty then.
    Raises ValueError for a field that isn't finite or returns another shape.
    """
    return triangulate(grid_values(sdf, resolution=resolution, coarsest=coarsest, device=device))


def grid_values(
    sdf: Field, *, resolution: int, coarsest: int = 32, device: torch.device | str = "cpu"
) -> Float[Tensor, "x y z"]:
    """Returns the field at a grid's nodes: evaluated near its zeros, interpolated elsewhere (same sign).

    Arguments and errors: see extract_surface.
    """
    if resolution < 2 or coarsest < 2:
        raise ValueError(f"resolution and coarsest must be at least 2, got {resolution} and {coarsest}.")
    sizes = _grid_sizes(resolution, coarsest)
    values = _evaluate(sdf, _nodes(sizes[0], device), sizes[0]).reshape((sizes[0] + 1,) * 3)
    error = torch.zeros_like(values)
    for _ in sizes[1:]:
        values, error = _refine(sdf, values, error)
    return values


def triangulate(
    values: Float[Tensor, "x y z"],
) -> tuple[Float[np.ndarray, "vertices 3"], Int[np.ndarray, "faces 3"]]:
    """Returns the zero level of a field at a grid's nodes, closed at the box, as extract_surface does."""
    closed = _close(values)
    # What is inside at the box's very faces alone is gone once they are closed.
    if not bool((values > 0).any() and (closed < 0).any()):
        return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64)
    # scikit-image orders faces outward of what is low for "descent", whatever its documentation says.
    vertices, faces, _, _ = marching_cubes(
        closed.cpu().numpy(), 0.0, gradient_direction="descent", allow_degenerate=False
    )
    return (vertices * (SIDE / (len(values) - 1)) + LOW).astype(np.float32), faces.astype(np.int64)


def surface_cells(values: Float[Tensor, "x y z"]) -> Bool[Tensor, "x-1 y-1 z-1"]:
    """Returns the cells whose corners have both signs: those that the surface passes through."""
    return (_pool(values, 2, 2, 2) > 0) & (_pool(-values, 2, 2, 2) > 0)


def _grid_sizes(resolution: int, coarsest: int) -> list[int]:
    """Returns the sizes of the grids from coarse to fine, each half of the next: 128, 32 -> 32, 64, 128."""
    sizes = [resolution]
    while sizes[0] > coarsest and sizes[0] % 2 == 0:
        sizes.insert(0, sizes[0] // 2)
    return sizes


def _nodes(size: int, device: torch.device | str) -> Int[Tensor, "nodes 3"]:
    line = torch.arange(size + 1, device=device)
    return torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1).reshape(-1, 3)


def _evaluate(sdf: Field, nodes: Int[Tensor, "nodes 3"], size: int) -> Float[Tensor, " nodes"]:
    """Returns the field at grid nodes; exact zeros become the least positive step that float32 can tell."""
    values = sdf(nodes.float() * (SIDE / size) + LOW).detach().float()
    if values.shape != nodes.shape[:1]:
        raise ValueError(
            f"sdf must return [{len(nodes)}] values for as many points, not {list(values.shape)}."
        )
    num_bad = int((~values.isfinite()).sum())
    if num_bad:
        raise ValueError(f"the field is not finite at {num_bad} of {len(nodes)} points; it has no surface.")
    # A vertex on a node would make triangles without an area.
    return torch.where(values == 0, torch.full_like(values, 1e-6 / size), values)


def _refine(
    sdf: Field, values: Float[Tensor, "x y z"], error: Float[Tensor, "x y z"]
) -> tuple[Float[Tensor, "x2 y2 z2"], Float[Tensor, "x2 y2 z2"]]:
    """Returns a grid of twice the size, and by how much its values may err: 0 where evaluated."""
    size = 2 * (values.shape[0] - 1)
    fine = torch.nn.functional.interpolate(
        values[None, None], size=(size + 1,) * 3, mode="trilinear", align_corners=True
    )[0, 0]
    fine_error = torch.empty_like(fine)
    uncertain = error + INTERPOLATION_ERROR * _bend(values)
    # New nodes lie in the middle of edges, faces and cells; they err as the corners around them tell.
    for offset in itertools.product((0, 1), repeat=3):
        part = tuple(slice(start, None, 2) for start in offset)
        if any(offset):
            around = _pool(uncertain, *(1 + start for start in offset))
            fine_error[part] = around.clamp(min=NOT_EXACT)
        else:
            fine[part], fine_error[part] = values, error
    inexact = fine_error > 0
    needed = (fine.abs() <= fine_error) | _ends_of_crossed_edges(fine)
    while len(nodes := (needed & inexact).nonzero()):
        x, y, z = nodes.unbind(1)
        fine[x, y, z], fine_error[x, y, z], inexact[x, y, z] = _evaluate(sdf, nodes, size), 0.0, False
        needed = _ends_of_crossed_edges(fine)
    return fine, fine_error


def _bend(values: Float[Tensor, "x y z"]) -> Float[Tensor, "x y z"]:
    """Returns the largest second difference at a node or its neighbours, summed over the axes."""
    total = torch.zeros_like(values)
    for axis in range(3):
        total.narrow(axis, 1, values.shape[axis] - 2).add_(values.diff(dim=axis, n=2).abs())
    return _pool(total, 3, 3, 3, padding=1)


def _ends_of_crossed_edges(values: Float[Tensor, "x y z"]) -> Bool[Tensor, "x y z"]:
    """Returns which nodes a neighbour along an axis isn't inside with; nothing is inside on the box."""
    inside = torch.zeros_like(values, dtype=torch.bool)
    inside[1:-1, 1:-1, 1:-1] = values[1:-1, 1:-1, 1:-1] < 0
    ends = torch.zeros_like(inside)
    for axis in range(3):
        num = inside.shape[axis] - 1
        crossed = inside.narrow(axis, 0, num) != inside.narrow(axis, 1, num)
        ends.narrow(axis, 0, num).logical_or_(crossed)
        ends.narrow(axis, 1, num).logical_or_(crossed)
    return ends


def may_hold_zero(values: Float[Tensor, "x y z"]) -> Bool[Tensor, "x-1 y-1 z-1"]:
    """Returns which cells of a grid may hold a zero, by the slopes seen between its own nodes."""
    return _near_surface(values, _local_slope(values))


def _local_slope(values: Float[Tensor, "x y z"]) -> Float[Tensor, "x-1 y-1 z-1"]:
    """Returns the largest gradient norm, by forward differences, in a cell and its neighbours."""
    inner = values[:-1, :-1, :-1]
    squares = (values[1:, :-1, :-1] - inner) ** 2
    squares = squares + (values[:-1, 1:, :-1] - inner) ** 2 + (values[:-1, :-1, 1:] - inner) ** 2
    return _pool(squares, 3, 3, 3, padding=1).sqrt() * ((len(values) - 1) / SIDE)


def _near_surface(
    values: Float[Tensor, "x y z"], slope: Float[Tensor, "x-1 y-1 z-1"]
) -> Bool[Tensor, "x-1 y-1 z-1"]:
    """Returns which cells may hold a zero of a field whose gradient is nowhere longer than `slope`."""
    side = SIDE / (len(values) - 1)
    size, cell = values.abs()[None, None], values[None, None]
    mean = torch.nn.functional.avg_pool3d(size, 2, 1)[0, 0]
    # Edges of a cell along each axis, averaged.
    edges = [torch.nn.functional.avg_pool3d(cell.diff(dim=axis), _window(axis), 1) for axis in (2, 3, 4)]
    gradient = torch.cat(edges)[:, 0] / side
    rise = SLOPE_MARGIN * slope * side
    folded = (rise - gradient.norm(dim=0) * side).clamp(min=0)
    near = mean <= torch.minimum(MEAN_REACH * rise, 0.5 * side * gradient.abs().sum(0) + MEAN_REACH * folded)
    near &= _pool(size[0, 0], 2, 2, 2) <= LARGEST_REACH * rise
    return near | surface_cells(values)


def _window(axis: int) -> tuple[int, int, int]:
    """Returns the pooling window over the four edges of a cell along an axis (2, 3 or 4)."""
    x, y, z = (1 if axis == place else 2 for place in (2, 3, 4))
    return x, y, z


def _pool(values: Float[Tensor, "x y z"], *widths: int, padding: int = 0) -> Tensor:
    """Returns the largest value of each window, as max_pool3d, which is slower: it looks for indices too."""
    values = torch.nn.functional.pad(values, (padding,) * 6, value=-torch.inf)
    for axis, width in enumerate(widths):
        values = functools.reduce(torch.maximum, values.unfold(axis, width, 1).unbind(-1))
    return values


def _close(values: Float[Tensor, "x y z"]) -> Float[Tensor, "x y z"]:
    """Returns the intersection with the box: max(sdf, sdf of the box)."""
    size = values.shape[0] - 1
    line = torch.linspace(LOW, HIGH, size + 1, device=values.device).abs() - (HIGH - WALL * SIDE / size)
    wall = torch.maximum(torch.maximum(line[:, None, None], line[None, :, None]), line[None, None, :])
    return torch.maximum(values, wall)
