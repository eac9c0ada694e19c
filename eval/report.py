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

from eval import viewer
from eval.reconstruction import SHEET
from shapeloom import page
from shapeloom.config import Config
from shapeloom.pictures import on_white
from shapeloom.shards import AssetShards
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

    data: Path
    clip: Path
    encoder: Path
    prior: Path
    samples: Path
    evaluation: Path


def build_report(
    title: str, folders: Folders, metrics: Record, reconstructed: Sequence[Record],
    generated: Sequence[Record], config: ReportConfig,
) -> str:  # fmt: skip
    """Returns the page. metrics: what goes to metrics.json; the others: records of single assets."""
    figures, models = _sample_figures(folders.samples, config)
    code = library() if models else None
    sections = [
        f"<h1>{page.text(title)}</h1>",
        "<p class='soft'>What this run's models make, and how good it is.</p>",
        _cards(metrics),
        _samples(figures, has_viewer=code is not None),
        _numbers(metrics),
        _shapes(folders.evaluation),
        _reconstructions(folders.evaluation, reconstructed),
        _generated(folders.evaluation, generated, config.generated),
        _contact_sheet(folders.data, config.assets),
        _curves(folders),
        _costs(metrics),
        _failures(folders.data, config.failures),
    ]
    scripts = [*models, *viewer.scripts(code)] if code else []
    return page.document(title, sections, scripts)


# ---------------------------------------------------------------- numbers


_CARDS = (
    ("Held-out PSNR", "psnr", 2, " dB"), ("Mask IoU", "iou", 3, ""),
    ("Surface F-score at 0.02", "fscore_0.02", 3, ""), ("Normals off by over 30°", "normals_off", 3, ""),
)  # fmt: skip


def _cards(metrics: Record) -> str:
    rec, gen = metrics["reconstruction"], metrics["generation"]
    near = rec.get("nearest") or {}
    cards = [
        page.card(
            label,
            f"{page.number(rec[key], digits)}{unit}",
            f"nearest training asset {page.number(near.get(key))}",
        )
        for label, key, digits, unit in _CARDS
    ]
    if "skipped" not in gen:
        beside = f"chance {page.number(gen['chance'])}, ceiling {page.number(gen['ceiling_r_at_1'])}"
        cards.append(page.card("R@1 of samples", page.number(gen["r_at_1"]), beside))
    return f'<div class="cards">{"".join(cards)}</div>'


_RECONSTRUCTION_ROWS = {
    "psnr": "PSNR of NeRF renders, dB", "ssim": "SSIM of NeRF renders", "iou": "Mask IoU of NeRF renders",
    "mesh_psnr": "PSNR of mesh renders, dB", "mesh_iou": "Mask IoU of mesh renders",
    "fscore_0.01": "Surface F-score at 0.01", "fscore_0.02": "Surface F-score at 0.02",
    "fscore_0.05": "Surface F-score at 0.05", "chamfer": "Chamfer distance (less is better)",
    "normal_consistency": "Normal consistency", "normals_off": "Normals off by over 30° (less is better)",
    "normal_psnr": "PSNR of normal maps, dB", "slope": "Slope of the signed distance (1 is best)",
}  # fmt: skip
_GENERATION_ROWS = {
    "r_at_1": "R@1", "r_at_5": "R@5", "clip_score": "CLIP score by the judge",
    "family_accuracy": "Right family", "colour_accuracy": "Right main colour",
}  # fmt: skip


def _numbers(metrics: Record) -> str:
    gen = metrics["generation"]
    parts = ["<h2>Numbers</h2>", _reconstruction_table(metrics["reconstruction"])]
    if "skipped" in gen:
        return "".join([*parts, f"<p>Samples were not judged: {page.text(gen['skipped'])}</p>"])
    reasons = [str(gen[key]) for key in ("family_skipped", "colour_skipped") if key in gen]
    parts.append(_generation_table(gen))
    parts.append(_sets_table(gen.get("sets")))
    return "".join([*parts, *(f'<p class="soft small">{page.text(reason)}</p>' for reason in reasons)])


def _reconstruction_table(rec: Record) -> str:
    """All assets and each split beside the nearest training asset, whose gap is paired, with its interval."""
    columns: dict[str, Record | None] = {"all": rec}
    for name, group in (("", rec), *rec["splits"].items()):
        if name:
            columns[name] = group
        columns[f"{name} nearest training asset".strip()] = group["nearest"]
    columns["blank"] = rec["blank"]
    over = rec.get("over_nearest") or {}
    rows = [
        [
            label,
            *(page.number((column or {}).get(key)) for column in columns.values()),
            page.interval(over.get(f"{key}_interval")),
        ]
        for key, label in _RECONSTRUCTION_ROWS.items()
    ]
    head = ["Reconstruction of held-out assets", *map(page.text, columns), "better than the nearest by (95%)"]
    return page.table(head, rows, main=1) + _truth_note(rec)


def _truth_note(rec: Record) -> str:
    without = rec["num_assets"] - rec["num_true_meshes"]
    notes = []
    if without:
        notes.append(
            f"{without} of {rec['num_assets']} assets have no stored mesh: their surface is known by points "
            "alone, so distances below the points' spacing and normal maps say little. Prepare the data anew."
        )
    if rec["num_empty"]:
        notes.append(f"{rec['num_empty']} fields have no surface; they count as a point at the centre.")
    return "".join(f"<p class='soft small'>{note}</p>" for note in notes)


def _generation_table(gen: Record) -> str:
    chance = {"r_at_1": gen["chance"], "r_at_5": min(1.0, 5 * gen["chance"])}
    chance["clip_score"] = gen["mismatched_clip_score"]
    rows = []
    for key, label in _GENERATION_ROWS.items():
        interval = page.interval(gen.get(f"{key}_interval"))
        groups = [page.number((gen[group] or {}).get(key)) for group in ("seen", "held_out")]
        ceiling = page.number(gen.get(f"ceiling_{key}"))
        rows.append(
            [label, page.number(gen.get(key)), interval, *groups, ceiling, page.number(chance.get(key))]
        )
    named = ["all", "95% interval", "seen prompts", "held-out prompts", "true views (ceiling)", "chance"]
    return page.table([f"{gen['num_samples']} samples", *named], rows, main=1)


_SET_ROWS = {
    "mmd_cd": "MMD-CD (less is better)", "cov_cd": "COV-CD", "one_nna_cd": "1-NNA-CD (0.5 is best)",
    "frechet": "Frechet distance of the judge's features (less is better)",
}  # fmt: skip


def _sets_table(sets: Record | None) -> str:
    if sets is None:
        return ""
    if "skipped" in sets:
        return f"<p class='soft small'>Samples were not compared as a set: {page.text(sets['skipped'])}.</p>"
    rows = [
        [label, page.number(sets.get(key)), page.number(sets.get(f"training_{key}")), "–"]
        for key, label in _SET_ROWS.items()
    ]
    copied, held_out = page.number(sets["memorised"]), page.number(sets["held_out_memorised"])
    rows.append(["Closer to a training asset than that is to any other", copied, "–", held_out])
    named = ["samples", "training assets in their place", "held-out assets in their place"]
    return page.table(
        [f"{sets['num_samples']} samples as a set, against held-out assets", *named], rows, main=1
    )


def _costs(metrics: Record) -> str:
    memory = metrics["peak_memory_gb"]
    rows = [
        [page.text(stage), page.number(value, 1), page.number(memory.get(stage), 2)]
        for stage, value in metrics["seconds"].items()
    ]
    return "<h2>Cost</h2>" + page.table(["Stage", "seconds", "peak memory, GB"], rows)


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


def _prompts_of(folder: Path) -> dict[str, str]:
    """Prompt of each file stem, from the sampling stage's metadata.json."""
    path = folder / "metadata.json"
    if not path.is_file():
        return {}
    return {
        Path(entry["name"]).stem: str(entry["prompt"]) for entry in json.loads(path.read_text())["samples"]
    }


def _samples(figures: Sequence[str], *, has_viewer: bool) -> str:
    if not figures:
        return "<h2>Samples</h2><p class='soft'>The sampling stage has left no samples in this run.</p>"
    hint = "<p class='soft'>Choose a picture to turn its textured mesh in 3D.</p>" if has_viewer else ""
    return f"<h2>Samples</h2>{hint}{viewer.VIEWER if has_viewer else ''}{page.tiles(figures)}"


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
        if "nearest" in record:
            copied = " (closer than its own neighbour)" if record["copied"] else ""
            caption += f"<br>nearest: {page.text(record['nearest'])}{copied}"
        uri = page.file_uri(folder / "generation" / record["picture"])
        figures.append(page.figure(uri, caption, alt=record["prompt"], pixels=True))
    if not figures:
        return ""
    num = len({record["prompt"] for record in records})
    legend = f"Renders of NeRFs, and at which place among {num} prompts the judge puts a sample's own."
    if any("nearest" in record for record in records):
        legend += " Beneath: the nearest training asset, by shape."
    return f"<h2>Samples that were judged</h2><p class='soft'>{legend}</p>{page.tiles(figures, 'medium')}"


def _contact_sheet(data: Path, num: int) -> str:
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
        path = folder / "metrics.jsonl"
        drawn = (
            page.curves([json.loads(line) for line in path.read_text().splitlines()])
            if path.is_file()
            else []
        )
        if drawn:
            parts.append(f"<h3>{name}</h3>{page.tiles(drawn, 'large')}")
    return f"<h2>Training curves</h2>{''.join(parts)}" if parts else ""


def _failures(data: Path, limit: int) -> str:
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
