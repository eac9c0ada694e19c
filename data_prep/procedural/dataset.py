"""The embedded data set: captioned objects of 24 families in 11 colours, as an ordinary asset folder.

`generate` writes `<family>/<colour>_<family>_<n>.glb` and captions.csv; from then on the folder is treated
like any user's. The same config gives the same bytes. Splits:

- train: pairs (colour, family) that are seen.
- val: further assets of seen pairs.
- test: the held-out pairs alone, which train and val never show.
- judge: every pair, from a random stream of its own; the evaluation's judge learns from these alone.

One shuffled order of all pairs serves every split: pair i is (colour i mod 11, family i mod 24), so that any
run of consecutive pairs covers families and colours evenly. Its head is held out, the rest is seen.
"""

import csv
import io
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import trimesh
from pydantic import Field, model_validator
from trimesh.visual.material import PBRMaterial

from data_prep.procedural import furniture, handheld, outdoor, vehicles
from data_prep.procedural.draft import Builder, Draft
from data_prep.procedural.solids import Solid, join
from data_prep.procedural.wording import captions
from shapeloom.color import srgb_to_linear
from shapeloom.config import Config, UserError
from shapeloom.log import get_logger, progress
from shapeloom.seed import numpy_rng
from shapeloom.storage import write_atomic

SRGB = tuple[float, float, float]
Pair = tuple[str, str]
"""(colour, family)."""
Split = Literal["train", "val", "test", "judge"]

COLOURS: dict[str, SRGB] = {
    "red": (0.82, 0.10, 0.10),
    "orange": (0.96, 0.50, 0.06),
    "yellow": (0.96, 0.86, 0.14),
    "green": (0.14, 0.58, 0.18),
    "blue": (0.12, 0.28, 0.82),
    "purple": (0.50, 0.16, 0.66),
    "pink": (0.96, 0.52, 0.72),
    "brown": (0.42, 0.24, 0.11),
    "black": (0.09, 0.09, 0.10),
    "white": (0.93, 0.93, 0.93),
    "gray": (0.52, 0.52, 0.53),
}
"""The basic colour terms of English as sRGB in [0, 1]. White is short of a white background."""
NEUTRAL_COLOURS: dict[str, SRGB] = {
    "glass": (0.22, 0.30, 0.38),
    "tyre": (0.14, 0.14, 0.15),
    "wood": (0.46, 0.29, 0.16),
    "cream": (0.90, 0.86, 0.76),
    "carrot": (0.95, 0.48, 0.10),
    "white": COLOURS["white"],
    "black": COLOURS["black"],
}
"""Parts such as tyres have these whatever the object's colour; captions don't name them."""
JITTER = 0.03
"""Largest change of each sRGB channel from the named colour."""
_BUILDERS: tuple[Builder, ...] = (
    furniture.chair, furniture.table, furniture.sofa, furniture.bed, furniture.lamp, furniture.bookshelf,
    handheld.mug, handheld.bottle, handheld.vase, handheld.bowl,
    vehicles.car, vehicles.truck, vehicles.boat, vehicles.airplane,
    outdoor.house, outdoor.tower, outdoor.tree, outdoor.cactus, outdoor.mushroom,
    handheld.hammer, handheld.guitar, handheld.umbrella, outdoor.robot, outdoor.snowman,
)  # fmt: skip
FAMILIES: dict[str, Builder] = {builder.__name__: builder for builder in _BUILDERS}
COLUMNS = (
    "path", "caption", "category", "licence", "group", "split", "colour", "accent_colour", "accent_parts",
)  # fmt: skip
ACCENT_PROBABILITY = 0.6
_MARKER = "procedural.json"
# The frame's +Z is glTF's +Y, and its -Y, where objects face, is glTF's front, +Z.
_TO_GLTF = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


class ProceduralConfig(Config):
    """How many assets to make, and which pairs to hold out."""

    num_train: int = Field(800, ge=1, description="assets of seen colour-family pairs")
    num_val: int = Field(60, ge=0, description="further assets of seen pairs")
    num_test: int = Field(66, ge=0, description="assets of held-out pairs")
    num_judge: int = Field(260, ge=0, description="assets of all pairs, for the evaluation's judge alone")
    seed: int = Field(0, ge=0, description="of every object's colours and sizes")
    held_out_fraction: float = Field(0.1, ge=0, le=0.5, description="share of the pairs that is held out")

    @model_validator(mode="after")
    def _test_needs_held_out_pairs(self) -> "ProceduralConfig":
        if self.num_test and not _num_held_out(self.held_out_fraction):
            raise ValueError("num_test > 0 needs a held_out_fraction that holds at least one pair out")
        return self


# ---------------------------------------------------------------- pairs


def _num_held_out(fraction: float) -> int:
    return round(fraction * len(FAMILIES) * len(COLOURS))


def _pair_order(seed: int) -> list[Pair]:
    rng = numpy_rng("procedural", "pairs", seed)
    colours, families = rng.permutation(list(COLOURS)), rng.permutation(list(FAMILIES))
    period = math.lcm(len(colours), len(families))
    return [
        (str(colours[(i + i // period) % len(colours)]), str(families[i % len(families)]))
        for i in range(len(colours) * len(families))
    ]


def split_pairs(config: ProceduralConfig) -> tuple[list[Pair], list[Pair]]:
    """Returns the (colour, family) pairs of the splits train and val, and those of test; judge shows both."""
    order, cut = _pair_order(config.seed), _num_held_out(config.held_out_fraction)
    return order[cut:], order[:cut]


def _plan(config: ProceduralConfig) -> Iterator[tuple[Split, int, Pair]]:
    """Yields split, number within the split and pair of every asset."""
    seen, held_out = split_pairs(config)
    pools: dict[Split, tuple[int, list[Pair]]] = {
        "train": (config.num_train, seen),
        "val": (config.num_val, seen),
        "test": (config.num_test, held_out),
        "judge": (config.num_judge, held_out + seen),
    }
    for split, (count, pairs) in pools.items():
        for number in range(count):
            yield split, number, pairs[number % len(pairs)]


# ---------------------------------------------------------------- one asset


def make_asset(
    family: str, colour: str, rng: np.random.Generator
) -> tuple[trimesh.Scene, list[str], dict[str, str]]:
    """Returns a random asset of a family in a main colour: scene, captions, attributes.

    The scene is in the project's frame (+Z up, facing -Y), one watertight mesh and material a part. Caption 0
    is the fullest; each names colour and family. Attributes: colour, accent_colour, accent_parts
    ("" for none).
    Raises UserError for a family or colour that isn't known.
    """
    if family not in FAMILIES:
        raise UserError(f"There is no family {family!r}; known are {', '.join(FAMILIES)}.")
    if colour not in COLOURS:
        raise UserError(f"There is no colour {colour!r}; known are {', '.join(COLOURS)}.")
    draft = FAMILIES[family](rng)
    accent, accented = _choose_accent(draft, colour, rng)
    main_srgb = _jittered(COLOURS[colour], rng)
    accent_srgb = _jittered(COLOURS[accent], rng) if accent else main_srgb
    scene = trimesh.Scene()
    for part, solids in draft.parts.items():
        if part in accented:
            srgb = accent_srgb
        elif part in draft.neutral:
            srgb = NEUTRAL_COLOURS[draft.neutral[part]]
        else:
            srgb = main_srgb
        scene.add_geometry(_mesh(solids, part, srgb), node_name=part, geom_name=part)
    texts = captions(family, colour, draft, rng, accent=accent, accented=accented)
    attributes = {"colour": colour, "accent_colour": accent, "accent_parts": " ".join(accented)}
    return scene, texts, attributes


def _choose_accent(draft: Draft, colour: str, rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    """The accent colour and its one or two parts; "" and none for the rest."""
    available = [part for part in draft.accents if part in draft.parts]
    if not available or rng.random() >= ACCENT_PROBABILITY:
        return "", ()
    count = min(len(available), 1 + int(rng.random() < 0.3))
    chosen = {str(part) for part in rng.choice(available, count, replace=False)}
    accent = str(rng.choice([name for name in COLOURS if name != colour]))
    return accent, tuple(part for part in available if part in chosen)


def _jittered(srgb: SRGB, rng: np.random.Generator) -> SRGB:
    # One shift for lightness and one a channel: whites and grays stay nearly neutral.
    shift = rng.uniform(-0.5, 0.5) + rng.uniform(-0.5, 0.5, 3)
    red, green, blue = np.clip(np.array(srgb) + JITTER * shift, 0.02, 0.96)
    return float(red), float(green), float(blue)


def _mesh(solids: Sequence[Solid], part: str, srgb: SRGB) -> trimesh.Trimesh:
    vertices, faces = join(solids)
    material = PBRMaterial(name=part, metallicFactor=0.0, roughnessFactor=0.8)
    mesh = trimesh.Trimesh(
        vertices, faces, process=False, visual=trimesh.visual.TextureVisuals(material=material)
    )
    mesh.metadata["linear"] = [round(float(value), 6) for value in srgb_to_linear(np.array(srgb))]
    return mesh


# ---------------------------------------------------------------- files


def glb_bytes(scene: trimesh.Scene) -> bytes:
    """Returns a scene of `make_asset` as a binary glTF file, turned to glTF's +Y up.

    Base colours are written as linear floats; trimesh alone would round them to 8 linear bits.
    """
    colours = {mesh.visual.material.name: mesh.metadata["linear"] for mesh in scene.geometry.values()}

    def finish(tree: dict[str, Any]) -> None:
        for material in tree["materials"]:
            material["pbrMetallicRoughness"]["baseColorFactor"] = [*colours[material["name"]], 1.0]
        for mesh in tree["meshes"]:
            mesh.pop("extras", None)

    turned = scene.copy()
    turned.apply_transform(_TO_GLTF)
    return bytes(turned.export(file_type="glb", tree_postprocessor=finish, include_normals=False))


def generate(config: ProceduralConfig, out: Path) -> None:
    """Writes the data set into the new folder `out`; does nothing if this config's is there already.

    Everything goes to a temporary folder beside `out` that is renamed at the end.
    Raises UserError if `out` holds anything else.
    """
    marker = config.model_dump_json(indent=1) + "\n"
    if out.exists():
        if (out / _MARKER).is_file() and (out / _MARKER).read_text() == marker:
            return
        raise UserError(
            f"{out} holds something other than this procedural set. Remove it or name another folder."
        )
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for family in FAMILIES:
        (partial / family).mkdir(parents=True)
    rows, plan, numbers = [], list(_plan(config)), Counter[Pair]()
    with progress(len(plan), "Generating assets") as bar:
        for split, number, (colour, family) in plan:
            rng = numpy_rng("procedural", config.seed, split, number)
            scene, texts, attributes = make_asset(family, colour, rng)
            path = f"{family}/{colour}_{family}_{numbers[colour, family]:03d}.glb"
            numbers[colour, family] += 1
            (partial / path).write_bytes(glb_bytes(scene))
            rows += [_row(path, caption, split, family, attributes) for caption in texts]
            bar.advance()
    write_atomic(partial / "captions.csv", _csv(rows))
    write_atomic(partial / _MARKER, marker)
    partial.rename(out)
    get_logger("data_prep").info("%d procedural assets are written", len(plan))


def _row(path: str, caption: str, split: Split, family: str, attributes: Mapping[str, str]) -> dict[str, str]:
    group = f"{attributes['colour']} {family}"
    return {
        "path": path,
        "caption": caption,
        "category": family,
        "licence": "CC0-1.0",
        "group": f"judge {group}" if split == "judge" else group,
        "split": split,
        **attributes,
    }


def _csv(rows: list[dict[str, str]]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
