"""A trained pipeline as a folder or a hub's repository, to hand to others.

    prior/    weights.safetensors, prior.json, meta.json
    encoder/  weights.safetensors, encoder.yaml, decoder.yaml, meta.json
    clip/     weights.safetensors, model.json (a pretrained open_clip model is named in pipeline.json instead)
    pipeline.json   the format's version and, for a pretrained CLIP, its name
    README.md       the model card: data, licences, metrics, use

A run folder has the same layout, so it loads as it is. These files alone are copied, sent and fetched,
whatever else a repository holds; weights are safetensors, and nothing is unpickled.
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from shapeloom.config import UserError
from shapeloom.runs import read_meta
from shapeloom.shards import AssetShards
from shapeloom.storage import put_file, scratch_file, write_atomic

FORMAT = 1
FILES = {
    "prior": ("weights.safetensors", "prior.json", "meta.json"),
    "encoder": ("weights.safetensors", "encoder.yaml", "decoder.yaml", "meta.json"),
    "clip": ("weights.safetensors", "model.json"),
}
ALLOWED = ["pipeline.json", "README.md", *(f"{part}/{name}" for part in FILES for name in FILES[part])]


@dataclass(frozen=True)
class Parts:
    """Where a pipeline's parts lie. clip: a folder, or open_clip's MODEL/TAG.

    root: the folder that they all came in, which links in it must not lead out of; None if they were named
    one by one.
    """

    prior: Path
    encoder: Path
    clip: str
    root: Path | None = None


def fetch_package(source: str | Path, *, revision: str | None = None) -> Parts:
    """Returns the parts of a local folder, or of a hub's "owner/name", fetched into the hub's own cache.

    Raises UserError if it is neither, can't be reached, or is of a format that this version doesn't know.
    """
    folder = root = Path(source)
    if not folder.is_dir():
        folder = _download(str(source), revision)
        root = folder.parents[1]  # the hub's cache: its snapshots are links to blobs beside them
    if not (folder / "prior").is_dir():
        raise UserError(
            f"{source} is no pipeline: it has no folder prior/. Name a run folder, what save_pretrained "
            "wrote, or a hub's owner/name."
        )
    return Parts(folder / "prior", folder / "encoder", _clip_of(folder), root)


def _download(repository: str, revision: str | None) -> Path:
    if repository.count("/") != 1 or repository.startswith((".", "/")):
        raise UserError(f"{repository} is neither a folder nor a hub's owner/name.")
    try:
        return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=ALLOWED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{repository} is no folder here, and the hub didn't give it ({type(error).__name__}: {reason})."
        ) from error


def _clip_of(folder: Path) -> str:
    path = folder / "pipeline.json"
    if not path.is_file():
        return str(folder / "clip")
    try:
        facts = json.loads(path.read_text())
        version, name = facts["format"], facts["clip"]
        own = json.loads((folder / "clip" / "model.json").read_text()) if name is None else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} isn't what save_pretrained writes ({error!r}).") from error
    if version != FORMAT:
        raise UserError(f"{path} has format {version!r}, but this version reads {FORMAT}. Update Shapeloom.")
    import open_clip

    # A file that came from elsewhere must not make open_clip open paths or addresses of its choice.
    if name is None:
        if own.get("model", open_clip.list_models()[0]) not in open_clip.list_models():
            raise UserError(f"{folder}/clip is of a model {own['model']!r}, which open_clip doesn't have.")
        return str(folder / "clip")
    if tuple(str(name).split("/")) not in open_clip.list_pretrained():
        raise UserError(f"{path} names the CLIP {name!r}, which open_clip doesn't have.")
    return str(name)


def write_package(folder: Path, parts: Parts, *, licence: str | None) -> None:
    """Copies the parts' files into `folder` and writes pipeline.json and the model card.

    licence: the model's, an SPDX identifier. Links are followed neither out of the parts' folders nor out of
    `folder`. Raises UserError for such a link, and for a folder that holds anything but a package.
    """
    strangers = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if folder.is_file() or (strangers and "pipeline.json" not in strangers):
        raise UserError(f"{folder} holds something else; name a new folder to save the pipeline in.")
    if folder.resolve() == parts.prior.parent.resolve():
        raise UserError(f"The pipeline was loaded from {folder}; name another folder to save it in.")
    own_clip = Path(parts.clip).is_dir()
    sources = {"prior": parts.prior, "encoder": parts.encoder}
    if own_clip:
        sources["clip"] = Path(parts.clip)
    # Of an encoder without its encoding half there is no encoder.yaml.
    files = {
        folder / part / name: _within(source / name, parts.root or source)
        for part, source in sources.items() for name in FILES[part] if (source / name).is_file()
    }  # fmt: skip
    for target, file in files.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        _within(target.parent, folder)
        with scratch_file(target) as temporary:  # a link in the target's place is replaced
            shutil.copyfile(file, temporary)
            put_file(temporary, target)
    write_atomic(folder / "README.md", model_card(parts, licence=licence))
    facts = {"format": FORMAT, "clip": None if own_clip else parts.clip}
    write_atomic(folder / "pipeline.json", json.dumps(facts, indent=1) + "\n")


def _within(path: Path, folder: Path) -> Path:
    """The path itself; raises UserError if links lead it out of the folder."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{path} is a link to {path.resolve()}, outside of {folder}: what is handed to others must not "
            "hold another place's files. Put the file itself there, or load the parts from where they are: "
            "ShapePipeline.load(prior=..., encoder=..., clip=...)."
        )
    return path


def upload_package(
    save: Callable[..., None], repository: str, *, licence: str | None, private: bool, token: str | None
) -> str:
    """Saves (`save(folder, licence=...)`) and uploads; returns the repository's address.

    Raises UserError if the hub refuses.
    """
    client = huggingface_hub.HfApi(token=token)
    with tempfile.TemporaryDirectory() as name:
        save(Path(name, "package"), licence=licence)
        try:
            address = client.create_repo(repository, private=private, exist_ok=True)
            client.upload_folder(
                repo_id=repository, folder_path=str(Path(name, "package")), allow_patterns=ALLOWED
            )
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"The hub didn't take {repository} ({type(error).__name__}: {reason}). Is the name "
                "owner/name, and are you logged in (`hf auth login`)?"
            ) from error
    return str(address)


# ---------------------------------------------------------------- the model card


def model_card(parts: Parts, *, licence: str | None) -> str:
    """Returns README.md: what the model is, what it was trained on and under which licences, its metrics."""
    run, meta = parts.prior.parent, read_meta(parts.prior, stage="prior")
    header = ["---", *([f"license: {licence.lower()}"] if licence else []), "library_name: shapeloom"]
    header += ["pipeline_tag: text-to-3d", "tags: [text-to-3d, image-to-3d, diffusion]", "---"]
    lines = [
        *header, "", f"# A text- and image-to-3D model made with Shapeloom {meta['shapeloom']}", "",
        f"Licence: {licence or 'not stated by its maker'}.", "",
        "```python", "from sampling.pipeline import ShapePipeline", "",
        'pipe = ShapePipeline.from_pretrained("owner/name")  # or a local folder',
        'pipe("a red chair", steps=32, guidance_scale=3.0, seed=0)[0].save("chair.glb")', "```", "",
        "## Training data", "", *_data_lines(run / "data"), "", "## Metrics", "",
        *_metric_lines(run / "metrics.json"), "", "## Provenance", "",
        f"- commit `{meta['commit']}`, " + ", ".join(f"{k} {v}" for k, v in meta["versions"].items()),
        *(f"- {name} `{digest}`" for name, digest in meta["inputs"].items()),
        f"- prior `{meta['weights_digest']}`",
        "", "The weights are safetensors; loading them runs no code of this repository.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _data_lines(folder: Path) -> list[str]:
    """Counts, categories and licences of the training split, where the data still lies beside the prior."""
    if not (folder / "dataset.json").is_file():
        return ["Not recorded: the data didn't lie beside the prior when this card was written."]
    shards = AssetShards(folder, split="train")
    facts = [shards.facts(index) for index in range(len(shards))]
    lines = [f"{len(facts):,} assets (digest `{shards.digest}`).", "", "| licence | assets |", "|---|---|"]
    licences = Counter(" ".join(str(fact.get("licence") or "not stated").split()) for fact in facts)
    lines += [f"| {name.replace('|', '/')} | {count:,} |" for name, count in licences.most_common()]
    common = Counter(row.category for row in shards.rows if row.category).most_common(12)
    lines += ["", "Most common categories: " + ", ".join(f"{name} ({count:,})" for name, count in common)]
    return lines if common else lines[:-2]


def _metric_lines(path: Path) -> list[str]:
    """The leading numbers of `python -m eval`, where it was run."""
    if not path.is_file():
        return ["Not measured: `python -m eval` hadn't been run when this card was written."]
    metrics = json.loads(path.read_text())
    lines = ["| metric | value |", "|---|---|"]
    for group in ("reconstruction", "generation"):
        numbers = {
            name: value for name, value in metrics.get(group, {}).items() if isinstance(value, int | float)
        }
        lines += [f"| {group}: {name} | {_round(value)} |" for name, value in numbers.items()]
    return lines


def _round(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}"
