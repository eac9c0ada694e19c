"""Looking at a prepared dataset: is every byte what its manifest says, and what is in it."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.failures import from_jsonl
from shapeloom.config import UserError
from shapeloom.shards import AssetSample, AssetShards, Row, shard_is_finished


def verify(folder: Path) -> str:
    """A line of praise for a sound dataset; UserError that lists everything wrong with another one.

    Checks every shard's sha256, decodes every member of every sample, and holds its shapes and ranges to the
    contract.
    """
    shards = AssetShards(folder)
    problems = [f"{path.name}: its bytes are not those of its manifest" for path in shards.shards
                if not shard_is_finished(path)]  # fmt: skip
    repeated = [key for key, count in Counter(row.key for row in shards.rows).items() if count > 1]
    problems += [f"{key}: more than one sample has this key" for key in repeated]
    if len(shards) != shards.header["num_assets"]:
        problems.append(
            f"dataset.json counts {shards.header['num_assets']} assets, the shards have {len(shards)}"
        )
    for index, row in enumerate(shards.rows):
        try:
            sample = shards.read(index, views=range(shards.num_views), depth=True, points=True, sdf=True)
        except Exception as error:  # whatever a damaged member makes a decoder raise
            problems.append(f"{row.key}: {type(error).__name__}: {error}")
            continue
        problems += [f"{row.key}: {problem}" for problem in check_sample(sample, shards.resolution)]
    if problems:
        shown = "; ".join(problems[:10]) + (" ..." if len(problems) > 10 else "")
        raise UserError(f"{folder} has {len(problems)} problem(s): {shown}. Prepare it again.")
    return f"{folder}: {len(shards)} assets in {len(shards.shards)} shards are sound"


def check_sample(sample: AssetSample, resolution: int) -> list[str]:
    """What of a fully read sample breaks the contract of shapes, ranges and frames."""
    rgba, depth, poses, points = sample.rgba, sample.depth, sample.cam_to_world, sample.points
    assert rgba is not None and depth is not None and points is not None
    assert sample.sdf is not None and sample.sdf_points is not None and sample.points_normal is not None
    rotation = poses[:, :3, :3].astype(float)
    normals = np.linalg.norm(sample.points_normal / 127.0, axis=1)
    claims = {
        "views have another size": rgba.shape[1:] == (resolution, resolution, 4),
        "depth where there is no colour": not (depth[rgba[..., 3] == 0] > 0).any(),
        "no view shows anything": bool(rgba[..., 3].any()),
        "a pose is not a rotation": np.allclose(rotation @ rotation.transpose(0, 2, 1), np.eye(3), atol=1e-4),
        "a pose is mirrored": bool((np.linalg.det(rotation) > 0).all()),
        "points leave the cube": bool((np.abs(points) <= 0.95 + 1e-5).all()),  # float32 of the scaled extent
        "normals are not unit vectors": bool((np.abs(normals - 1) < 0.02).all()),  # 8-bit rounding
        "SDF samples leave the box": bool((np.abs(sample.sdf_points) <= 1).all()),
        "signed distances are not finite": bool(np.isfinite(sample.sdf).all()),
        "it has no caption": any(sample.row.captions),
    }
    return [problem for problem, holds in claims.items() if not holds]


def inspect_dataset(folder: Path) -> str:
    """What a dataset holds: counts, splits, categories, captions, and what was left out and why."""
    shards = AssetShards(folder)
    categories = Counter(row.category or "(none)" for row in shards.rows).most_common(12)
    quarantine = from_jsonl((folder / "quarantine.jsonl").read_text())
    reasons = Counter(f"{failure.stage}: {failure.reason}" for failure in quarantine)
    lines = [
        f"{folder}: {len(shards)} assets, {len(shards.shards)} shards, digest {shards.digest[:16]}",
        f"splits: {_counts(shards.header['splits'])}",
        f"views: {shards.num_views} of {shards.resolution} x {shards.resolution}",
        f"categories: {_counts(dict(categories))}",
        f"captions: {sum(len(row.captions) for row in shards.rows)}, such as {shards.rows[0].captions[0]!r}",
        f"left out: {_counts(reasons) or 'nothing'}",
    ]
    lines += [f"  {f.path} [{f.stage}: {f.reason}] {f.message}" for f in quarantine[:20]]
    if len(quarantine) > 20:
        lines.append(f"  ... {len(quarantine) - 20} more in {folder}/quarantine.jsonl")
    return "\n".join(lines)


def inspect_asset(folder: Path, key: str, picture: Path) -> str:
    """One asset's provenance and members; writes its views on white, depth below, to `picture`.

    `key` may be the start of a key. Raises UserError when it fits no asset or several.
    """
    shards = AssetShards(folder)
    found = [index for index, row in enumerate(shards.rows) if row.key.startswith(key)]
    if len(found) != 1:
        raise UserError(
            f"{len(found)} assets of {folder} have a key that starts with {key!r}; one is needed."
        )
    row = shards.rows[found[0]]
    views = range(min(shards.num_views, 8))
    sample = shards.read(found[0], views=views, depth=True)
    Image.fromarray(contact_sheet(sample)).save(picture)
    facts = json.dumps(shards.facts(found[0]), indent=2, ensure_ascii=False)
    return f"{facts}\nmembers: {_members(row)}\npicture: {picture}"


def contact_sheet(sample: AssetSample) -> np.ndarray:
    """uint8 [2 * height, views * width, 3]: the read views on white above their depth, near is bright."""
    assert sample.rgba is not None and sample.depth is not None
    alpha = sample.rgba[..., 3:] / 255
    white = np.rint(sample.rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    hit = sample.depth > 0
    low, high = sample.depth[hit].min(initial=np.inf), sample.depth.max(initial=0)
    near = np.where(hit, 255 - 200 * (sample.depth - low) / max(high - low, 1e-6), 0).astype(np.uint8)
    rows = [
        np.concatenate(list(white), axis=1),
        np.concatenate(list(near), axis=1)[..., None].repeat(3, axis=2),
    ]
    return np.concatenate(rows)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _members(row: Row) -> str:
    return ", ".join(f"{name} {size}" for name, (_, size) in sorted(row.members.items()))
