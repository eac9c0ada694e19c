"""Shards on disk: asset shards (stage 1 -> 2), latent shards (stage 2 -> 3), their writer and readers.

    DIR/dataset.json              header: schema, kind, number of assets, samples of each split, digest, ...
    DIR/shards/000000.tar         a plain WebDataset tar: members KEY.json, KEY.rgba_000.png, KEY.points.npy
    DIR/shards/000000.index.json  its manifest: sha256, and each sample's row and members' byte ranges

The tars are readable with `webdataset` alone; the manifest lets these readers fetch single members by offset.
Bytes depend on the samples alone: no time stamps, users or hosts. A finished shard is renamed into place
after its manifest, so a tar under its final name is always whole.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int8, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from shapeloom.config import UserError
from shapeloom.runs import file_digest, write_atomic
from shapeloom.seed import numpy_rng

SCHEMA = 1
DEPTH_SCALE = 8192
"""Counts of a 16-bit depth picture per world unit: depths up to 7.9999 in steps of 0.00012."""

Sample = Mapping[str, Any]
"""{"__key__": str, "json": dict, "name.npy": ndarray, "name.png": ndarray or bytes}; see `write_shard`."""


@dataclass(frozen=True)
class Row:
    """What a manifest tells of one sample: enough to choose it, caption it and find its members."""

    key: str
    shard: int
    split: str
    group: str
    category: str
    captions: list[str]
    attributes: dict[str, str]
    members: dict[str, tuple[int, int]]
    """Extension -> (byte offset, size) in the shard's tar."""


@dataclass(frozen=True)
class AssetSample:
    """One decoded asset; arrays that were not asked for are None (camera arrays have zero views)."""

    row: Row
    rgba: UInt8[ndarray, "views height width 4"] | None
    """Straight alpha, sRGB."""
    depth: Float32[ndarray, "views height width"] | None
    """Along the camera's z, world units; 0 is background."""
    cam_to_world: Float32[ndarray, "views 4 4"]
    intrinsics: Float32[ndarray, "views 3 3"]
    points: Float32[ndarray, "points 3"] | None
    """On the surface, in farthest-point order: any prefix covers the whole asset."""
    points_rgb: UInt8[ndarray, "points 3"] | None
    points_normal: Int8[ndarray, "points 3"] | None
    """Unit normals times 127."""
    sdf_points: Float32[ndarray, "samples 3"] | None
    sdf: Float32[ndarray, "samples"] | None
    """Signed distance at `sdf_points`, negative inside."""


# ---------------------------------------------------------------- members


def encode_png(picture: ndarray) -> bytes:
    """PNG bytes of uint8 [H, W], [H, W, 3] or [H, W, 4], or of uint16 [H, W]; level 6, lossless."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def decode_png(data: bytes) -> ndarray:
    """The array that `encode_png` was given."""
    return np.asarray(Image.open(io.BytesIO(data)))


def depth_to_png(depth: Float32[ndarray, "height width"]) -> bytes:
    """16-bit PNG of depths; 0 (background) stays 0, a hit is at least 1 count and at most 65535."""
    counts = np.clip(np.rint(depth * DEPTH_SCALE), 1, 65535)
    return encode_png(np.where(depth > 0, counts, 0).astype(np.uint16))


def depth_from_png(data: bytes) -> Float32[ndarray, "height width"]:
    """Depth in world units, 0 where there is background."""
    return decode_png(data).astype(np.float32) / DEPTH_SCALE


def _encode(name: str, value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if name.endswith("json"):
        return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
    if name.endswith(".png"):
        return encode_png(value)
    if name.endswith(".npy"):
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(value), allow_pickle=False)
        return buffer.getvalue()
    raise ValueError(f"member {name!r}: expected bytes, or a name ending in json, .npy or .png")


def _npy(data: bytes) -> ndarray:
    return np.load(io.BytesIO(data), allow_pickle=False)


# ---------------------------------------------------------------- writing


def manifest_path(shard: Path) -> Path:
    """`000000.index.json` beside `000000.tar`."""
    return shard.with_suffix(".index.json")


def write_shard(path: Path, samples: Iterable[Sample]) -> dict[str, Any]:
    """Write one tar and its manifest, both whole or not at all; returns the manifest.

    Each sample is a mapping with `__key__` (no dots), `json` (a dict holding at least split and captions;
    group, category and attributes are copied to the row too) and any members `name.npy` (array), `name.png`
    (array or bytes). The bytes are a function of the samples and their order alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    rows = []
    try:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                rows.append(_write_sample(tar, sample))
        manifest = {"schema": SCHEMA, "sha256": file_digest(temporary), "count": len(rows), "samples": rows}
        write_atomic(manifest_path(path), json.dumps(manifest, sort_keys=True, ensure_ascii=False))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return manifest


def _write_sample(tar: tarfile.TarFile, sample: Sample) -> dict[str, Any]:
    key, facts = sample["__key__"], sample["json"]
    if "." in key or "/" in key:
        raise ValueError(f"sample key {key!r} holds a dot or a slash, which WebDataset reads as a separator")
    members = {}
    for name in sorted(sample):
        if name == "__key__":
            continue
        data = _encode(name, sample[name])
        info = tarfile.TarInfo(f"{key}.{name}")
        info.size, info.mode, info.mtime = len(data), 0o644, 0
        members[name] = (tar.offset + tarfile.BLOCKSIZE, len(data))
        tar.addfile(info, io.BytesIO(data))
    row = {"key": key, "split": facts["split"], "captions": facts["captions"], "members": members}
    return row | {
        "group": facts.get("group", ""),
        "category": facts.get("category", ""),
        "attributes": facts.get("attributes", {}),
    }


def shard_is_finished(path: Path, *, check_bytes: bool = True) -> bool:
    """Whether a shard and its manifest are there and, with `check_bytes`, agree on the sha256."""
    manifest = manifest_path(path)
    if not (path.is_file() and manifest.is_file()):
        return False
    return not check_bytes or json.loads(manifest.read_text())["sha256"] == file_digest(path)


def finish_dataset(folder: Path, *, kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write `dataset.json` over all shards of `folder`; returns it. `facts` are further header entries."""
    splits: dict[str, int] = {}
    digest = hashlib.sha256()
    for path in sorted((folder / "shards").glob("*.tar")):
        manifest = _read_manifest(path)
        digest.update(f"{path.name} {manifest['sha256']}\n".encode())
        for row in manifest["samples"]:
            splits[row["split"]] = splits.get(row["split"], 0) + 1
    header = {"schema": SCHEMA, "kind": kind, "num_assets": sum(splits.values()), "splits": splits}
    header |= {**facts, "digest": digest.hexdigest()}
    write_atomic(folder / "dataset.json", json.dumps(header, indent=2, sort_keys=True))
    return header


# ---------------------------------------------------------------- reading


def _check_schema(path: Path, found: Any) -> None:
    if found != SCHEMA:
        raise UserError(
            f"{path} has schema {found!r}, and this version reads schema {SCHEMA}: "
            "make the data again with this version, or read it with the version that made it."
        )


def _read_manifest(shard: Path) -> dict[str, Any]:
    path = manifest_path(shard)
    if not path.is_file():
        raise UserError(f"{shard} has no manifest {path.name} beside it: run the stage that writes it again.")
    manifest = json.loads(path.read_text())
    _check_schema(path, manifest.get("schema"))
    return manifest


class _Shards:
    """Header and rows of a finished dataset folder, and byte-range access to its members."""

    kind: str

    def __init__(self, folder: Path | str, split: str | None = None) -> None:
        """Raises UserError when the folder is unfinished, of another kind or schema, or lacks `split`."""
        self.folder = Path(folder)
        header = self.folder / "dataset.json"
        if not header.is_file():
            raise UserError(
                f"{self.folder} is not a finished {self.kind} dataset (no dataset.json in it): "
                "check the path, or run the stage that writes it to its end."
            )
        self.header: dict[str, Any] = json.loads(header.read_text())
        _check_schema(header, self.header.get("schema"))
        if self.header.get("kind") != self.kind:
            kind = self.header.get("kind")
            raise UserError(f"{self.folder} holds {kind!r} shards, but {self.kind!r} are needed here.")
        self.shards = sorted((self.folder / "shards").glob("*.tar"))
        self.rows: list[Row] = []
        for shard, path in enumerate(self.shards):
            samples = _read_manifest(path)["samples"]
            self.rows += [_row(shard, s) for s in samples if split is None or s["split"] == split]
        if not self.rows:
            have = ", ".join(sorted(self.header["splits"])) or "none at all"
            raise UserError(f"{self.folder} has no samples of split {split!r}; it has: {have}.")

    @property
    def digest(self) -> str:
        """Of all shards' bytes."""
        return self.header["digest"]

    @property
    def shard_sizes(self) -> list[int]:
        """Rows of this split in each shard, in the order of `rows`: what `ReadingOrder` wants."""
        return np.bincount([row.shard for row in self.rows], minlength=len(self.shards)).tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def members(self, index: int, names: Sequence[str]) -> list[bytes]:
        """Raw bytes of the named members of row `index`. Safe from many threads and processes."""
        row = self.rows[index]
        path = self.shards[row.shard]
        missing = [name for name in names if name not in row.members]
        if missing:
            raise UserError(f"{path}: asset {row.key} has no {', '.join(missing)}: prepare the data with it.")
        with open(path, "rb", buffering=0) as file:
            ranges = [row.members[name] for name in names]
            return [os.pread(file.fileno(), size, offset) for offset, size in ranges]

    def facts(self, index: int) -> dict[str, Any]:
        """The `json` member of row `index`: provenance, captions and whatever its stage recorded."""
        return json.loads(self.members(index, ["json"])[0])


def _row(shard: int, entry: Mapping[str, Any]) -> Row:
    members = {name: (offset, size) for name, (offset, size) in entry["members"].items()}
    return Row(**{**entry, "shard": shard, "members": members})


class AssetShards(_Shards):
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
        points: bool = False,
        sdf: bool = False,
    ) -> AssetSample:
        """Decode row `index`: the given views (with depth if asked for), surface points, SDF samples.

        Only what is asked for is read and decoded.
        """
        views = list(views)
        names = [f"rgba_{v:03d}.png" for v in views]
        names += [f"depth_{v:03d}.png" for v in views] if depth else []
        names += ["cameras.npy", "intrinsics.npy"] if views else []
        names += ["points.npy", "points_rgb.npy", "points_normal.npy"] if points else []
        names += ["sdf_points.npy", "sdf.npy"] if sdf else []
        data = dict(zip(names, self.members(index, names), strict=True))
        arrays = {name: _npy(raw) for name, raw in data.items() if name.endswith(".npy")}
        rgba = [decode_png(data[f"rgba_{v:03d}.png"]) for v in views]
        depths = [depth_from_png(data[f"depth_{v:03d}.png"]) for v in views] if depth else []
        return AssetSample(
            row=self.rows[index],
            rgba=np.stack(rgba) if rgba else None,
            depth=np.stack(depths) if depths else None,
            cam_to_world=arrays["cameras.npy"][views] if views else np.zeros((0, 4, 4), np.float32),
            intrinsics=arrays["intrinsics.npy"][views] if views else np.zeros((0, 3, 3), np.float32),
            points=arrays.get("points.npy"),
            points_rgb=arrays.get("points_rgb.npy"),
            points_normal=arrays.get("points_normal.npy"),
            sdf_points=arrays.get("sdf_points.npy"),
            sdf=arrays.get("sdf.npy"),
        )


class LatentShards(_Shards):
    """Reader of latents with their text and image embeddings; `header` holds the digests of their makers."""

    kind = "latents"

    def read(self, index: int) -> dict[str, Tensor]:
        """Every array of row `index` as a tensor of its stored type: latent [tokens, channels],
        text_pooled [captions, dim], text_tokens [captions, length, width], text_mask [captions, length],
        image_pooled [views, dim]."""
        names = [name for name in self.rows[index].members if name.endswith(".npy")]
        raw = self.members(index, names)
        return {n.removesuffix(".npy"): torch.from_numpy(_npy(r)) for n, r in zip(names, raw, strict=True)}

    def load(self) -> dict[str, Tensor]:
        """All rows stacked, for sets that fit into memory: each entry of `read` with a leading [assets].

        Assets may have different numbers of captions: the text entries are padded with zeros along captions,
        and `num_captions` int64 [assets] tells how many are real.
        """
        samples = [self.read(i) for i in range(len(self))]
        stacked = {}
        for name in samples[0]:
            entries = [sample[name] for sample in samples]
            stacked[name] = _stack_padded(entries) if name.startswith("text_") else torch.stack(entries)
        stacked["num_captions"] = torch.tensor([len(row.captions) for row in self.rows])
        return stacked


def _stack_padded(entries: Sequence[Tensor]) -> Tensor:
    longest = max(len(entry) for entry in entries)
    stacked = entries[0].new_zeros(len(entries), longest, *entries[0].shape[1:])
    for row, entry in zip(stacked, entries, strict=True):
        row[: len(entry)] = entry
    return stacked


# ---------------------------------------------------------------- order


class ReadingOrder:
    """Which row sample n of a run is: a pure function of (seed, n), the same on every rank and restart.

    Each pass over the data shuffles the shards, cuts them into windows of `window` shards and shuffles the
    samples of each window, so that a reader needs only one window of shards at hand.
    """

    def __init__(self, shard_sizes: Sequence[int], *, seed: int, window: int = 16) -> None:
        if sum(shard_sizes) <= 0 or window < 1:
            raise ValueError(f"expected samples and a window >= 1, got {shard_sizes}, window {window}")
        self.sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.total = int(self.sizes.sum())
        self.seed, self.window = seed, window
        self._windows: dict[tuple[int, int], ndarray] = {}

    def index(self, n: int) -> int:
        """Row of sample n >= 0; every pass of `total` samples visits each row once."""
        epoch, position = divmod(n, self.total)
        order, ends = self._shuffled_shards(epoch)
        window = int(np.searchsorted(ends, position, side="right"))
        start = int(ends[window - 1]) if window else 0
        return int(self._shuffled_window(epoch, window, order)[position - start])

    def _shuffled_shards(self, epoch: int) -> tuple[ndarray, ndarray]:
        """Shard order of a pass, and the end position of each of its windows."""
        order = numpy_rng(self.seed, "shards", epoch).permutation(len(self.sizes))
        ends = np.cumsum(self.sizes[order])
        return order, np.append(ends[self.window - 1 :: self.window], ends[-1])

    def _shuffled_window(self, epoch: int, window: int, order: ndarray) -> ndarray:
        if (epoch, window) not in self._windows:
            shards = order[window * self.window : (window + 1) * self.window]
            rows = np.concatenate([self.starts[s] + np.arange(self.sizes[s]) for s in shards])
            while len(self._windows) >= 4:  # neighbours of the current one suffice for a sequential reader
                self._windows.pop(next(iter(self._windows)))
            self._windows[epoch, window] = numpy_rng(self.seed, "samples", epoch, window).permutation(rows)
        return self._windows[epoch, window]
