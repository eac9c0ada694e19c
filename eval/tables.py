"""The report's numbers as cards and tables: HTML of what is in metrics.json."""

from collections.abc import Mapping
from typing import Any

from shapeloom import page

Record = Mapping[str, Any]

_CARDS = (
    ("Held-out PSNR", "psnr", 2, " dB"), ("Mask IoU", "iou", 3, ""),
    ("Surface F-score at 0.02", "fscore_0.02", 3, ""), ("Normals off by over 30°", "normals_off", 3, ""),
)  # fmt: skip


def cards(metrics: Record) -> str:
    """Returns the main numbers, each beside what it is to be compared with."""
    rec, gen = metrics["reconstruction"], metrics["generation"]
    near = rec.get("nearest") or {}
    shown = [
        page.card(
            label,
            f"{page.number(rec[key], digits)}{unit}",
            f"nearest training asset {page.number(near.get(key))}",
        )
        for label, key, digits, unit in _CARDS
    ]
    if "skipped" not in gen:
        beside = f"chance {page.number(gen['chance'])}, ceiling {page.number(gen['ceiling_r_at_1'])}"
        shown.append(page.card("R@1 of samples", page.number(gen["r_at_1"]), beside))
    return f'<div class="cards">{"".join(shown)}</div>'


_RECONSTRUCTION_ROWS = {
    "psnr": "PSNR of NeRF renders, dB", "ssim": "SSIM of NeRF renders", "iou": "Mask IoU of NeRF renders",
    "lpips": "LPIPS of NeRF renders (less is better)",
    "mesh_psnr": "PSNR of mesh renders, dB", "mesh_iou": "Mask IoU of mesh renders",
    "fscore_0.01": "Surface F-score at 0.01", "fscore_0.02": "Surface F-score at 0.02",
    "fscore_0.05": "Surface F-score at 0.05", "chamfer": "Chamfer distance (less is better)",
    "normal_consistency": "Normal consistency", "normals_off": "Normals off by over 30° (less is better)",
    "normal_psnr": "PSNR of normal maps, dB", "slope": "Slope of the signed distance (1 is best)",
    "color_error": "Colour error at surface points (less is better)",
    "color_error_edge": "... within 0.05 of a colour edge", "color_error_flat": "... elsewhere",
}  # fmt: skip
_GENERATION_ROWS = {
    "r_at_1": "R@1", "r_at_5": "R@5", "r_at_1_same_colour": "R@1 among prompts of its own colour",
    "clip_score": "CLIP score by the judge",
    "family_accuracy": "Right family", "colour_accuracy": "Right main colour",
}  # fmt: skip


def numbers(metrics: Record) -> str:
    """Returns the tables of reconstructions and of samples."""
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
    chance["r_at_1_same_colour"] = gen.get("chance_same_colour")
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
    "caption_r_at_1": "R@1 of whole captions among those of their category",
}  # fmt: skip


_PRINT_ROWS = {
    "printable": "Could be printed: all three of", "watertight": "– watertight",
    "one_piece": "– of one piece", "no_inner_shell": "– without an inner shell",
}  # fmt: skip


def _sets_table(sets: Record | None) -> str:
    if sets is None:
        return ""
    if "skipped" in sets:
        return f"<p class='soft small'>Samples were not compared as a set: {page.text(sets['skipped'])}.</p>"
    labels = dict(_SET_ROWS)
    if "chance_caption" in sets:
        labels["caption_r_at_1"] += f" (chance {page.number(sets['chance_caption'])})"
    rows = [
        [label, page.number(sets.get(key)), page.number(sets.get(f"training_{key}")), "–"]
        for key, label in labels.items()
    ]
    for key, label in _PRINT_ROWS.items():
        rows.append([label, page.number(sets.get(key)), "–", "–"])
    copied, held_out = page.number(sets["memorised"]), page.number(sets["held_out_memorised"])
    rows.append(["Closer to a training asset than that is to any other", copied, "–", held_out])
    named = ["samples", "training assets in their place", "held-out assets in their place"]
    return page.table(
        [f"{sets['num_samples']} samples as a set, against held-out assets", *named], rows, main=1
    )


def costs(metrics: Record) -> str:
    """Returns seconds and memory of the stages."""
    memory = metrics["peak_memory_gb"]
    rows = [
        [page.text(stage), page.number(value, 1), page.number(memory.get(stage), 2)]
        for stage, value in metrics["seconds"].items()
    ]
    return "<h2>Cost</h2>" + page.table(["Stage", "seconds", "peak memory, GB"], rows)
