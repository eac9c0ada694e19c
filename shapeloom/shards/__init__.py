"""Shards on disk: asset shards (stage 1 -> 2), latent shards (stage 2 -> 3), their writer and readers.

    DIR/dataset.json              header: schema, kind, number of assets, samples of each split, digest, ...
    DIR/index.json                each shard's digest, sizes and counts, so that opening reads no manifest
    DIR/shards/000000.tar         a plain WebDataset tar: members KEY.json, KEY.rgba_000.png, KEY.points.npy
    DIR/shards/000000.index.json  its manifest: sha256, size, and each sample's row and members' byte ranges

DIR is a local folder or a URL of object storage. The tars are readable with `webdataset` alone; the manifest
lets these readers fetch single members by offset. Bytes depend on the samples alone: no time stamps, users or
hosts. A shard is finished once its manifest is there, which is written last.
"""

from shapeloom.shards.cache import ShardCache
from shapeloom.shards.manifests import manifest_path, read_manifest
from shapeloom.shards.members import (
    DEPTH_SCALE,
    decode_member,
    decode_png,
    depth_from_png,
    depth_to_png,
    encode_member,
    encode_png,
)
from shapeloom.shards.order import ReadingOrder
from shapeloom.shards.reading import AssetSample, AssetShards
from shapeloom.shards.rows import Row
from shapeloom.shards.writing import (
    SCHEMA,
    Sample,
    dataset_digest,
    dataset_is_whole,
    finish_dataset,
    list_shards,
    read_back,
    shard_is_finished,
    write_shard,
)

__all__ = [
    "DEPTH_SCALE",
    "SCHEMA",
    "AssetSample",
    "AssetShards",
    "ReadingOrder",
    "Row",
    "Sample",
    "ShardCache",
    "dataset_digest",
    "dataset_is_whole",
    "decode_member",
    "decode_png",
    "depth_from_png",
    "depth_to_png",
    "encode_member",
    "encode_png",
    "finish_dataset",
    "list_shards",
    "manifest_path",
    "read_back",
    "read_manifest",
    "shard_is_finished",
    "write_shard",
]
