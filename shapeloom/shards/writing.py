"""Writing shards and the header over them, whole or not at all, and reading a manifest or a shard back."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from shapeloom.config import UserError
from shapeloom.shards import manifests
from shapeloom.shards.manifests import REMAKE, manifest_path, packed, read_manifest
from shapeloom.shards.members import encode_member
from shapeloom.storage import AnyPath, file_digest, put_file, read_json, scratch_file, write_atomic

SCHEMA = 1
"""Of `dataset.json` and `index.json`."""
INDEX = "index.json"

Sample = Mapping[str, Any]
"""{"__key__": str, "json": dict, "name.npy": ndarray, "name.png": ndarray or bytes}; see `write_shard`."""


@dataclass(frozen=True)
class ShardFacts:
    """Of a finished shard: its digest, its bytes and its manifest's, and how many samples of which split."""

    sha256: str
    size: int | None
    """None: an old manifest doesn't tell."""
    manifest_size: int
    splits: dict[str, int]


def write_shard(path: AnyPath, samples: Iterable[Sample]) -> str:
    """Write one tar and, last, its manifest; returns the tar's SHA-256. A shard that was there is replaced.

    Each sample is a mapping with `__key__` (no dots), `json` (a dict holding at least split and captions;
    group, category and attributes are copied to the row too) and any members `name.npy` (array), `name.png`
    (array or bytes). The bytes are a function of the samples and their order alone.
    """
    rows = []
    with scratch_file(path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                rows.append(_write_sample(tar, sample))
        manifest = {
            "schema": manifests.SCHEMA,
            "sha256": file_digest(temporary),
            "size": temporary.stat().st_size,
            "count": len(rows),
            **packed(rows),
        }
        manifest_path(path).unlink(missing_ok=True)  # an older shard's: it must never describe this one
        put_file(temporary, path)
    write_atomic(manifest_path(path), json.dumps(manifest, sort_keys=True, ensure_ascii=False))
    return str(manifest["sha256"])


def _write_sample(tar: tarfile.TarFile, sample: Sample) -> dict[str, Any]:
    key, facts = sample["__key__"], sample["json"]
    if "." in key or "/" in key:
        raise ValueError(f"sample key {key!r} holds a dot or a slash, which WebDataset reads as a separator")
    members: dict[str, tuple[int, int]] = {}
    for name in sorted(sample):
        if name == "__key__":
            continue
        data = encode_member(name, sample[name])
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


def shard_is_finished(path: AnyPath) -> bool:
    """Whether a shard has its manifest, which is written last, and the size that it tells."""
    manifest = manifest_path(path)
    if not (path.is_file() and manifest.is_file()):
        return False
    try:
        return bool(read_json(manifest, advice=REMAKE).get("size") == path.stat().st_size)
    except UserError:  # damaged: the shard is made again
        return False


def list_shards(folder: AnyPath) -> list[AnyPath]:
    """The tars of a dataset folder, by name."""
    return sorted((folder / "shards").glob("*.tar"), key=lambda path: path.name)


def dataset_digest(folder: AnyPath) -> str:
    """Of the names and sha256 of all finished shards."""
    shards = list_shards(folder)
    return digest_of(shards, [read_manifest(path)["sha256"] for path in shards])


def digest_of(shards: Sequence[AnyPath], sha256: Sequence[str]) -> str:
    """Of the shards' names and sha256."""
    lines = (f"{path.name} {digest}\n" for path, digest in zip(shards, sha256, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def dataset_is_whole(folder: AnyPath) -> bool:
    """Whether all shards that dataset.json was written over are there, in their sizes."""
    header = folder / "dataset.json"
    if not header.is_file() or not all(shard_is_finished(path) for path in list_shards(folder)):
        return False
    try:
        return bool(read_json(header, advice=REMAKE)["digest"] == dataset_digest(folder))
    except UserError:
        return False


def finish_dataset(folder: AnyPath, *, kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write `dataset.json` over all shards of `folder`; returns it. `facts` are further header entries.

    `index.json` says the same of each shard, so that readers needn't read all manifests.
    """
    shards = list_shards(folder)
    known = [shard_facts(path, read_manifest(path)) for path in shards]
    splits: dict[str, int] = {}
    for each in known:
        for name, count in each.splits.items():
            splits[name] = splits.get(name, 0) + count
    header = {"schema": SCHEMA, "kind": kind, "num_assets": sum(splits.values()), "splits": splits}
    names, digest = [path.name for path in shards], digest_of(shards, [each.sha256 for each in known])
    header |= {**facts, "digest": digest, "shards": names}
    index = {name: list(astuple(each)) for name, each in zip(names, known, strict=True)}
    write_atomic(folder / INDEX, json.dumps({"schema": SCHEMA, "digest": digest, "shards": index}))
    write_atomic(folder / "dataset.json", json.dumps(header, indent=2, sort_keys=True))
    return header


def shard_facts(shard: AnyPath, manifest: Mapping[str, Any]) -> ShardFacts:
    """Returns what `index.json` says of a shard."""
    splits: dict[str, int] = {}
    for row in manifest["samples"]:
        splits[row["split"]] = splits.get(row["split"], 0) + 1
    size = manifest_path(shard).stat().st_size
    return ShardFacts(manifest["sha256"], manifest.get("size"), size, splits)


def read_index(folder: AnyPath, header: Mapping[str, Any]) -> dict[str, ShardFacts]:
    """Returns what is known of each shard, by name; nothing where the index is missing, damaged or of another
    header."""
    try:
        index = read_json(folder / INDEX, advice=REMAKE)
        if index["digest"] != header["digest"]:
            return {}
        return {name: ShardFacts(*entry) for name, entry in index["shards"].items()}
    except (OSError, UserError, KeyError, TypeError, AttributeError):
        return {}


def read_back(shard: AnyPath) -> Iterator[dict[str, Any]]:
    """The samples that `write_shard` was given, their members (but json) as bytes, in order.

    The manifest is read at once, the tar as the samples are taken.
    """
    return _read_rows(shard, read_manifest(shard)["samples"])


def _read_rows(shard: AnyPath, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    with shard.open("rb") as file:
        for row in rows:
            sample: dict[str, Any] = {"__key__": row["key"]}
            for name, (offset, size) in sorted(row["members"].items(), key=lambda member: member[1]):
                file.seek(offset)
                sample[name] = file.read(size)
            sample["json"] = json.loads(sample["json"])
            yield sample
