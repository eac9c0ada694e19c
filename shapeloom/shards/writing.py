"""Writing shards and the header over them, whole or not at all, and reading a manifest or a shard back."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from shapeloom.config import UserError
from shapeloom.shards.members import encode_member
from shapeloom.storage import AnyPath, file_digest, put_file, read_json, scratch_file, write_atomic

SCHEMA = 1
REMAKE = "Copy it again, or delete it and run the stage that writes it again."

Sample = Mapping[str, Any]
"""{"__key__": str, "json": dict, "name.npy": ndarray, "name.png": ndarray or bytes}; see `write_shard`."""


def manifest_path(shard: AnyPath) -> AnyPath:
    """`000000.index.json` beside `000000.tar`."""
    return shard.with_suffix(".index.json")


def write_shard(path: AnyPath, samples: Iterable[Sample]) -> dict[str, Any]:
    """Write one tar and, last, its manifest; returns the manifest. A shard that was there is replaced.

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
            "schema": SCHEMA,
            "sha256": file_digest(temporary),
            "size": temporary.stat().st_size,
            "count": len(rows),
            "samples": rows,
        }
        manifest_path(path).unlink(missing_ok=True)  # an older shard's: it must never describe this one
        put_file(temporary, path)
    write_atomic(manifest_path(path), json.dumps(manifest, sort_keys=True, ensure_ascii=False))
    return manifest


def _write_sample(tar: tarfile.TarFile, sample: Sample) -> dict[str, Any]:
    key, facts = sample["__key__"], sample["json"]
    if "." in key or "/" in key:
        raise ValueError(f"sample key {key!r} holds a dot or a slash, which WebDataset reads as a separator")
    members = {}
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
    return digest_of(shards, [read_manifest(path) for path in shards])


def digest_of(shards: Sequence[AnyPath], manifests: Sequence[Mapping[str, Any]]) -> str:
    """Of the shards' names and sha256."""
    pairs = zip(shards, manifests, strict=True)
    lines = (f"{path.name} {manifest['sha256']}\n" for path, manifest in pairs)
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
    """Write `dataset.json` over all shards of `folder`; returns it. `facts` are further header entries."""
    splits: dict[str, int] = {}
    for path in list_shards(folder):
        for row in read_manifest(path)["samples"]:
            splits[row["split"]] = splits.get(row["split"], 0) + 1
    header = {"schema": SCHEMA, "kind": kind, "num_assets": sum(splits.values()), "splits": splits}
    names = [path.name for path in list_shards(folder)]
    header |= {**facts, "digest": dataset_digest(folder), "shards": names}
    write_atomic(folder / "dataset.json", json.dumps(header, indent=2, sort_keys=True))
    return header


def check_schema(path: AnyPath, found: Any) -> None:
    """Raises UserError when the file `path` says that it is of another schema than this version's."""
    if found != SCHEMA:
        raise UserError(
            f"{path} has schema {found!r}, and this version reads schema {SCHEMA}: "
            "make the data again with this version, or read it with the version that made it."
        )


def read_manifest(shard: AnyPath) -> dict[str, Any]:
    """The manifest of a finished shard: schema, sha256, size, count, samples (see `Row`)."""
    path = manifest_path(shard)
    if not path.is_file():
        raise UserError(f"{shard} has no manifest {path.name} beside it: run the stage that writes it again.")
    manifest = read_json(path, advice=REMAKE)
    check_schema(path, manifest.get("schema"))
    return manifest


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
