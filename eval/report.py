"""RUN/report.html: one page with the data, reconstructions, samples in 3D, curves and numbers.

It embeds all it shows and loads nothing. A part whose stage has not run, or left nothing, says so.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from eval import tables, viewer, views
from eval.reconstruction import SHEET
from sampling.faults import FAULTS
from shapeloom import page
from shapeloom.config import Config
from shapeloom.health import describe
from shapeloom.pictures import on_white
from shapeloom.runs import read_metrics
from shapeloom.shards import AssetShards
from shapeloom.storage import AnyPath, read_json
from shapeloom.viewer import library

Record = Mapping[str, Any]


class ReportConfig(Config):
    """How much the page shows."""

    assets: int = Field(48, ge=0, description="training assets on the contact sheet")
    generated: int = Field(100, ge=0, description="samples of the evaluation")
    failures: int = Field(200, ge=0, description="lines of quarantine.jsonl that are listed")
    model_megabytes: float = Field(
        8, ge=0, description="of GLB files to embed; later ones show their picture alone"
    )
    picture_megabytes: float = Field(4, ge=0, description="of the samples' GIF or PNG files to embed")


@dataclass(frozen=True)
class Folders:
    """Where the stages of a run lie."""

    data: AnyPath
    clip: Path
    encoder: Path
    prior: Path
    samples: Path
    evaluation: Path


def build_report(
    title: str, folders: Folders, metrics: Record, reconstructed: Sequence[Record],
    generated: Sequence[Record], compared: Sequence[Record], config: ReportConfig,
) -> str:  # fmt: skip
    """Returns the page. metrics: what goes to metrics.json; the others: records of single assets."""
    figures, models = _sample_figures(folders.samples, config)
    code = library() if models else None
    sections = [
        f"<h1>{page.text(title)}</h1>",
        "<p class='soft'>What this run's models make, and how good it is.</p>",
        _warnings(folders),
        tables.cards(metrics),
        _samples(figures, _counts_of(folders.samples), has_viewer=code is not None),
        tables.numbers(metrics),
        _shapes(folders.evaluation),
        _reconstructions(folders.evaluation, reconstructed),
        _compared(folders.evaluation, compared, config.generated),
        _generated(folders.evaluation, generated, config.generated),
        _contact_sheet(folders.data, config.assets),
        _views(folders.evaluation.parent / "views_eval"),
        _curves(folders),
        tables.costs(metrics),
        _failures(folders.data, config.failures),
    ]
    scripts = [*models, *viewer.scripts(code)] if code else []
    return page.document(title, sections, scripts)


def _warnings(folders: Folders) -> str:
    """What went wrong in the trainings, above everything that follows from it."""
    found = []
    stages = {"CLIP": folders.clip, "encoder": folders.encoder, "prior": folders.prior}
    for name, folder in {**stages, "judge": folders.evaluation / "judge"}.items():
        path = folder / "meta.json"
        meta = read_json(path, advice="Copy it again.") if path.is_file() else {}
        found += [f"{name}: {sentence}" for sentence in describe(meta)]
    return "".join(f'<p class="bad">{page.text(sentence)}</p>' for sentence in found)


# ---------------------------------------------------------------- pictures


def _sample_figures(folder: Path, config: ReportConfig) -> tuple[list[str], list[str]]:
    """Figures of the run's samples, and the script elements of the models that fit the limit."""
    figures, models = [], []
    model_left, picture_left = config.model_megabytes * 1e6, config.picture_megabytes * 1e6
    for number, (glb, picture, prompt) in enumerate(_samples_of(folder)):
        picture_left -= picture.stat().st_size
        if picture_left < 0:
            break
        attributes = ""
        model_left -= glb.stat().st_size if glb.is_file() else 0
        if glb.is_file() and model_left >= 0:
            models.append(viewer.model_element(f"glb-{number}", glb.read_bytes()))
            attributes = f' class="model" data-model="glb-{number}" data-prompt="{page.text(prompt)}"'
        figures.append(
            page.figure(page.file_uri(picture), page.text(prompt), alt=prompt, attributes=attributes)
        )
    return figures, models


def _samples_of(folder: Path) -> Iterator[tuple[Path, Path, str]]:
    """GLB, picture and prompt of each sample, by file name; those without a picture are left out."""
    prompts = _prompts_of(folder)
    stems = sorted({path.stem for path in folder.glob("*.g[il][fb]")})
    for stem in stems:
        pictures = [path for suffix in (".gif", ".png") if (path := folder / f"{stem}{suffix}").is_file()]
        if pictures:
            yield folder / f"{stem}.glb", pictures[0], prompts.get(stem, stem)


def _metadata(folder: Path) -> Record:
    """The sampling stage's metadata.json; {} where there is none."""
    path = folder / "metadata.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _prompts_of(folder: Path) -> dict[str, str]:
    """What each file stem shows: its prompt, and what is wrong with it."""
    entries = _metadata(folder).get("samples", [])
    faults = {entry["name"]: f" ({entry['fault']})" for entry in entries if entry.get("fault")}
    return {
        Path(entry["name"]).stem: str(entry["prompt"]) + faults.get(entry["name"], "") for entry in entries
    }


def _counts_of(folder: Path) -> str:
    """How many samples are broken, in words."""
    counts = _metadata(folder).get("counts")
    if not counts:
        return ""
    broken = ", ".join(f"{counts[fault]} {fault}" for fault in FAULTS if counts.get(fault)) or "none broken"
    again = f", {counts['retried']} made with another seed than asked for" if counts.get("retried") else ""
    return f"{counts['objects']} objects: {broken}{again}."


def _samples(figures: Sequence[str], counts: str, *, has_viewer: bool) -> str:
    if not figures:
        return "<h2>Samples</h2><p class='soft'>The sampling stage has left no samples in this run.</p>"
    hint = "Choose a picture to turn its textured mesh in 3D." if has_viewer else ""
    told = f"<p class='soft'>{page.text(counts)} {hint}</p>"
    return f"<h2>Samples</h2>{told}{viewer.VIEWER if has_viewer else ''}{page.tiles(figures)}"


def _shapes(folder: Path) -> str:
    path = folder / SHEET
    if not path.is_file():
        return ""
    legend = (
        "Each column an asset: the truth, and what its latent's field has for it, without texture; then a "
        "stored view, and the mesh with its colours. Texture hides what a surface is like."
    )
    picture = page.figure(page.file_uri(path), "", alt="held-out shapes, truth above ours", pixels=True)
    return f"<h2>Shapes of held-out assets</h2><p class='soft'>{legend}</p>{picture}"


def _reconstructions(folder: Path, records: Sequence[Record]) -> str:
    figures = []
    for record in records:
        if picture := record.get("picture"):
            numbers = (
                f"PSNR {record['psnr']:.1f} dB, IoU {record['iou']:.2f}, F-score {record['fscore_0.02']:.2f}"
            )
            caption = f"{page.text(record['caption'])} ({page.text(record['split'])})<br>{numbers}"
            uri = page.file_uri(folder / "reconstruction" / picture)
            figures.append(page.figure(uri, caption, alt=record["caption"], pixels=True))
    if not figures:
        return ""
    legend = "Rows: truth, NeRF, mesh, nearest training asset; columns: views that the encoder was not given."
    intro = f"<h2>Reconstructions of held-out assets</h2><p class='soft'>{legend}</p>"
    return intro + page.tiles(figures, "large")


def _generated(folder: Path, records: Sequence[Record], num_shown: int) -> str:
    figures = []
    for record in records[:num_shown]:
        right = record["place"] == 1
        mark = '<span class="good">✓</span>' if right else f'<span class="bad">{record["place"]}.</span>'
        caption = f"{mark} {page.text(record['prompt'])}{'' if record['seen'] else ' (held out)'}"
        if not right:
            caption += f"<br>taken for {page.text(record['judged'])}"
        uri = page.file_uri(folder / "generation" / record["picture"])
        figures.append(page.figure(uri, caption, alt=record["prompt"], pixels=True))
    if not figures:
        return ""
    num = len({record["prompt"] for record in records})
    legend = f"Renders of NeRFs, and at which place among {num} prompts the judge puts a sample's own."
    return f"<h2>Samples that were judged</h2><p class='soft'>{legend}</p>{page.tiles(figures, 'medium')}"


def _compared(folder: Path, records: Sequence[Record], num_shown: int) -> str:
    large, small = list[str](), list[str]()
    for record in records[:num_shown]:
        copied = " (closer than its own neighbour)" if record["copied"] else ""
        fault = f" ({record['fault']})" if record.get("fault") else ""
        caption = f"{page.text(record['prompt'])}{fault}<br>nearest: {page.text(record['nearest'])}{copied}"
        picture, place = record.get("beside", record["picture"]), large if "beside" in record else small
        uri = page.file_uri(folder / "generation" / "sets" / picture)
        place.append(page.figure(uri, caption, alt=record["prompt"], pixels="beside" not in record))
    if not records:
        return ""
    legend = "Samples of training assets' captions, above the training asset that is nearest by shape."
    if large:
        legend += (
            " Of the large ones: volume, textured mesh, the same without texture; one of the asset's own "
            "views, its points, the same without colour."
        )
    intro = f"<h2>Samples beside the nearest training assets</h2><p class='soft'>{legend}</p>"
    return intro + page.tiles(large, "large") + page.tiles(small, "medium")


def _contact_sheet(data: AnyPath, num: int) -> str:
    shards = (
        AssetShards(data, "train") if AssetShards(data).header["splits"].get("train") else AssetShards(data)
    )
    chosen = np.unique(np.linspace(0, len(shards) - 1, min(num, len(shards))).astype(int)).tolist()
    figures = []
    for index in chosen:
        sample = shards.read(index, views=[0])
        assert sample.rgba is not None  # a view was asked for
        step = max(1, shards.resolution // 96)
        picture = on_white(sample.rgba[0])[::step, ::step]
        caption = sample.row.captions[0] if sample.row.captions else sample.row.key
        figures.append(page.figure(page.picture_uri(picture), page.text(caption), alt=caption))
    counts = ", ".join(f"{count} {split}" for split, count in sorted(shards.header["splits"].items()))
    return f"<h2>Data</h2><p class='soft'>{page.text(counts)}. Some of them:</p>{page.tiles(figures)}"


# ---------------------------------------------------------------- curves and failures


def _curves(folders: Folders) -> str:
    parts = []
    stages = {"CLIP": folders.clip, "encoder": folders.encoder, "prior": folders.prior}
    for name, folder in {**stages, "judge": folders.evaluation / "judge"}.items():
        drawn = page.curves(read_metrics(folder))
        if drawn:
            parts.append(f"<h3>{name}</h3>{page.tiles(drawn, 'large')}")
    return f"<h2>Training curves</h2>{''.join(parts)}" if parts else ""


def _views(folder: Path) -> str:
    """What eval.views found, if it has looked at this run's view model."""
    if not (folder / views.RESULTS).is_file():
        return ""
    results = read_json(folder / views.RESULTS, advice="Run eval.views again.")
    return views.section(results, folder / views.SHEET)


def _failures(data: AnyPath, limit: int) -> str:
    path = data / "quarantine.jsonl"
    entries = [json.loads(line) for line in path.read_text().split("\n") if line] if path.is_file() else []
    if not entries:
        return "<h2>Failures</h2><p>Every asset was prepared.</p>"
    counts = Counter(str(entry["reason"]) for entry in entries)
    summary = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    rows = [[page.text(entry[key]) for key in ("path", "reason", "message")] for entry in entries[:limit]]
    more = (
        f"<p class='soft'>… and {len(entries) - limit} more in data/quarantine.jsonl.</p>"
        if len(entries) > limit
        else ""
    )
    intro = f"<p>{len(entries)} files were left out: {page.text(summary)}.</p>"
    return "<h2>Failures</h2>" + intro + page.table(["File", "reason", "what was found"], rows) + more
