"""Reading shards: by index from local tars, and through a cache of whole shards from remote ones."""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float32, Int8, Int32, UInt8
from numpy import ndarray

from shapeloom.config import UserError
from shapeloom.shards.cache import ShardCache
from shapeloom.shards.manifests import REMAKE, check_schema
from shapeloom.shards.members import decode_npy, decode_png, depth_from_png
from shapeloom.shards.rows import Row, Rows, read_facts
from shapeloom.shards.writing import SCHEMA, ShardFacts, digest_of, list_shards
from shapeloom.storage import AnyPath, is_local, parse_path, read_json


@dataclass(frozen=True)
class AssetSample:
    """One decoded asset; arrays that were not asked for are None (camera arrays have zero views)."""

    row: Row
    rgba: UInt8[ndarray, "views height width 4"] | None
    """Straight alpha, sRGB."""
    depth: Float32[ndarray, "views height width"] | None
    """Along the camera's z, world units; 0 is background."""
    normal: UInt8[ndarray, "views height width 3"] | None
    """128 + 127 times the unit normal in world axes, on the viewer's side; (0, 0, 0) without depth."""
    albedo: UInt8[ndarray, "views height width 3"] | None
    """Unlit base colour, sRGB; its alpha is that of `rgba`."""
    cam_to_world: Float32[ndarray, "views 4 4"]
    intrinsics: Float32[ndarray, "views 3 3"]
    points: Float32[ndarray, "points 3"] | None
    """On the surface, in farthest-point order: any prefix covers the whole asset."""
    points_rgb: UInt8[ndarray, "points 3"] | None
    points_normal: Int8[ndarray, "points 3"] | None
    """Unit normals times 127."""
    edge_points: Float32[ndarray, "edge_points 3"] | None
    """On sharp edges, where the mesh has some."""
    edge_normals: Int8[ndarray, "edge_points 2 3"] | None
    """Of the faces on either side of the edge, unit normals times 127; at a boundary twice the same."""
    view_points: Float32[ndarray, "view_points 3"] | None
    """Seen by the views, in farthest-point order."""
    view_points_rgb: UInt8[ndarray, "view_points 3"] | None
    sdf_points: Float32[ndarray, "samples 3"] | None
    sdf: Float32[ndarray, " samples"] | None
    """Signed distance at `sdf_points`, negative inside."""
    mesh_vertices: Float32[ndarray, "vertices 3"] | None
    mesh_faces: Int32[ndarray, "faces 3"] | None
    """The triangles that everything was made from, outward where they enclose something."""


class Shards:
    """Header and rows of a finished dataset folder, and byte-range access to its members."""

    kind: str

    def __init__(
        self, folder: AnyPath | str, split: str | None = None, *, cache: ShardCache | None = None,
        checked: bool = True,
    ) -> None:  # fmt: skip
        """`folder`: a path or URL. `cache`: where shards of a URL are kept; by default a cache of its own.

        checked: False to look at a damaged set too, with what is wrong with it in `problems`.
        Raises UserError when the folder is unfinished, of another kind or schema, lacks `split`, or doesn't
        hold what its header says: shards, counts and sizes are compared, not bytes.
        """
        self.folder = parse_path(folder)
        header = self.folder / "dataset.json"
        if not header.is_file():
            raise UserError(
                f"{self.folder} is not a finished {self.kind} dataset (no dataset.json in it): "
                "check the path, or run the stage that writes it to its end."
            )
        self.header: dict[str, Any] = read_json(header, advice=REMAKE)
        check_schema(header, self.header.get("schema"), SCHEMA)
        if self.header.get("kind") != self.kind:
            kind = self.header.get("kind")
            raise UserError(f"{self.folder} holds {kind!r} shards, but {self.kind!r} are needed here.")
        self.shards = list_shards(self.folder)
        # To look for damage, the manifests themselves are read, whatever the index says.
        facts = read_facts(self.folder, self.shards, self.header if checked else {})
        with ThreadPoolExecutor(1 if is_local(self.folder) else 16) as pool:
            sizes = list(pool.map(_size, self.shards))
        self.problems = _problems(self.header, self.shards, facts, sizes)
        if checked and self.problems:
            raise UserError(
                f"{self.folder} isn't whole: {'; '.join(self.problems[:3])}. Run the stage that wrote it "
                "again (it makes what is missing), or copy the missing files back."
            )
        self.rows = Rows(self.shards, facts, split)
        if not self.rows:
            have = ", ".join(sorted(self.header["splits"])) or "none at all"
            raise UserError(f"{self.folder} has no samples of split {split!r}; it has: {have}.")
        self._sha256 = [each.sha256 for each in facts]
        self._cache = cache or (None if is_local(self.folder) else ShardCache())

    @property
    def digest(self) -> str:
        """Of all shards' bytes."""
        return self.header["digest"]

    @property
    def shard_sizes(self) -> list[int]:
        """Rows of this split in each shard, in the order of `rows`: what `ReadingOrder` wants."""
        return self.rows.per_shard()

    def __len__(self) -> int:
        return len(self.rows)

    def members(self, index: int, names: Sequence[str]) -> list[bytes]:
        """Raw bytes of the named members of row `index`. Safe from many threads and processes."""
        row = self.rows[index]
        missing = [name for name in names if name not in row.members]
        if missing:
            shard = self.shards[row.shard]
            raise UserError(
                f"{shard}: asset {row.key} has no {', '.join(missing)}: prepare the data with it."
            )
        ranges = [row.members[name] for name in names]
        with self._open(row.shard) as file:
            data = [os.pread(file.fileno(), size, offset) for offset, size in ranges]
        if any(len(part) < size for part, (_, size) in zip(data, ranges, strict=True)):
            raise UserError(
                f"{self.shards[row.shard]} ends before asset {row.key}: the shard was cut off. Delete it and "
                "run the stage that wrote it again, or copy it anew."
            )
        return data

    def _open(self, shard: int) -> IO[bytes]:
        path = self.shards[shard]
        if isinstance(path, Path):
            return path.open("rb", buffering=0)
        assert self._cache is not None
        return self._cache.open(path, self._sha256[shard])

    def read_ahead(self, shards: Sequence[int]) -> None:
        """Starts to fetch these shards, soonest needed first, if they are remote. Returns at once."""
        if self._cache is not None:
            self._cache.read_ahead([(self.shards[s], self._sha256[s]) for s in shards])

    def facts(self, index: int) -> dict[str, Any]:
        """The `json` member of row `index`: provenance, captions and whatever its stage recorded."""
        return json.loads(self.members(index, ["json"])[0])


def _size(path: AnyPath) -> int:
    return int(path.stat().st_size)


def _problems(
    header: Mapping[str, Any], shards: Sequence[AnyPath], facts: Sequence[ShardFacts], sizes: Sequence[int]
) -> list[str]:
    """How the shards that are there differ from what the header was written over."""
    found = []
    known = header.get("shards")  # data sets from before they were listed have no names to compare
    names = [path.name for path in shards]
    if known is not None:
        found += [f"shards/{name} is missing" for name in sorted(set(known) - set(names))]
        found += [f"shards/{name} isn't of this data set" for name in sorted(set(names) - set(known))]
    have = sum(sum(each.splits.values()) for each in facts)
    if have != header["num_assets"]:
        found.append(f"dataset.json counts {header['num_assets']} assets, the shards have {have}")
    for path, each, size in zip(shards, facts, sizes, strict=True):
        if each.size is not None and size != each.size:
            found.append(f"shards/{path.name} has {size} bytes in place of {each.size}")
    if not found and digest_of(shards, [each.sha256 for each in facts]) != header["digest"]:
        found.append("dataset.json was written over other shards than these")
    return found


class AssetShards(Shards):
    """Reader of prepared assets; `rows` in shard order, all or those of one split."""

    kind = "assets"

    @property
    def num_views(self) -> int:
        """Views of every asset."""
        return self.header["views"]

    @property
    def resolution(self) -> int:
        """Height and width of every view, pixels."""
        return self.header["resolution"]

    def read(
        self,
        index: int,
        *,
        views: Sequence[int] = (),
        depth: bool = False,
        normal: bool = False,
        albedo: bool = False,
        points: bool = False,
        edges: bool = False,
        view_points: bool = False,
        sdf: bool = False,
        mesh: bool = False,
    ) -> AssetSample:
        """Decode row `index`: the given views (with depth, normals and albedo if asked for), surface points,
        points on sharp edges, points that the views saw, SDF samples, the mesh.

        Only what is asked for is read and decoded. Raises UserError for what the data was prepared without.
        """
        views = list(views)
        kinds = ["rgba"]
        kinds += [kind for kind, on in (("depth", depth), ("normal", normal), ("albedo", albedo)) if on]
        names = [f"{kind}_{v:03d}.png" for kind in kinds for v in views]
        names += ["cameras.npy", "intrinsics.npy"] if views else []
        names += ["points.npy", "points_rgb.npy", "points_normal.npy"] if points else []
        names += ["edge_points.npy", "edge_normals.npy"] if edges else []
        names += ["view_points.npy", "view_points_rgb.npy"] if view_points else []
        names += ["sdf_points.npy", "sdf.npy"] if sdf else []
        names += ["mesh_vertices.npy", "mesh_faces.npy"] if mesh else []
        data = dict(zip(names, self.members(index, names), strict=True))
        arrays = {name: decode_npy(raw) for name, raw in data.items() if name.endswith(".npy")}
        pictures = {}
        for kind in kinds if views else ():
            decode = depth_from_png if kind == "depth" else decode_png
            pictures[kind] = np.stack([decode(data[f"{kind}_{v:03d}.png"]) for v in views])
        return AssetSample(
            row=self.rows[index],
            rgba=pictures.get("rgba"),
            depth=pictures.get("depth"),
            normal=pictures.get("normal"),
            albedo=pictures.get("albedo"),
            cam_to_world=arrays["cameras.npy"][views] if views else np.zeros((0, 4, 4), np.float32),
            intrinsics=arrays["intrinsics.npy"][views] if views else np.zeros((0, 3, 3), np.float32),
            points=arrays.get("points.npy"),
            points_rgb=arrays.get("points_rgb.npy"),
            points_normal=arrays.get("points_normal.npy"),
            edge_points=arrays.get("edge_points.npy"),
            edge_normals=arrays.get("edge_normals.npy"),
            view_points=arrays.get("view_points.npy"),
            view_points_rgb=arrays.get("view_points_rgb.npy"),
            sdf_points=arrays.get("sdf_points.npy"),
            sdf=arrays.get("sdf.npy"),
            mesh_vertices=arrays.get("mesh_vertices.npy"),
            mesh_faces=arrays.get("mesh_faces.npy"),
        )
