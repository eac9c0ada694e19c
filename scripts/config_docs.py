"""Writes docs/config.md, every key of every stage's config, from the configs: `make config-docs`."""

import importlib
import json
import sys
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

PATH = Path(__file__).resolve().parents[1] / "docs" / "config.md"
STAGES = {
    "data_prep": "data_prep.pipeline:DataConfig",
    "prior.train_clip": "prior.train_clip:DualEncoderConfig",
    "encoder.train": "encoder.train:EncoderTrainConfig",
    "encoder.train_cloud": "encoder.train_cloud:CloudTrainConfig",
    "encoder.encode": "encoder.encode:EncodeConfig",
    "prior.train": "prior.train:PriorConfig",
    "prior.distill": "prior.distill:DistillConfig",
    "prior.classifier": "prior.classifier:ClassifierConfig",
    "prior.train_views": "prior.views:ViewTrainConfig",
    "sampling": "sampling.config:SamplingConfig",
    "sampling.edits": "sampling.edits:EditConfig",
    "sampling.views": "sampling.views:ViewsConfig",
    "sampling.refine": "sampling.refine.config:RefineConfig",
    "eval": "eval.__main__:EvalConfig",
    "eval.views": "eval.views:ViewEvalConfig",
}
"""Command -> module:class of its config."""
HEAD = """# Configuration

Every key of every stage. Written by `make config-docs` from the configs in the code; edit those.

`--config FILE` names a preset (`configs/<stage>/*.yaml`, which holds differences from these defaults),
`--set KEY=VALUE` changes one key, and `--print-config` prints what comes of both and stops. A group's keys
are written with dots: `--set train.steps=100`. Presets come in sets with one file for each stage: `smoke`
(CI, seconds), `tiny` (2 CPU cores), `small` (one GPU) and `base` (a node of GPUs); `make demo CONFIG=small`
runs one.
"""


def config_of(stage: str) -> type[BaseModel]:
    """Returns the class of a stage's config."""
    module, name = STAGES[stage].split(":")
    return getattr(importlib.import_module(module), name)


def group_of(annotation: Any) -> type[BaseModel] | None:
    """Returns the config that an annotation such as `TrainConfig | None` names, if any."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    parts = [part for part in get_args(annotation) if part is not NoneType]
    return group_of(parts[0]) if len(parts) == 1 else None


def keys(cls: type[BaseModel], default: Any, prefix: str = "") -> list[tuple[str, Any, str]]:
    """Returns (dotted key, default, description) of every key; groups come as one line, then their keys.

    default: the instance that this stage starts from, or None.
    """
    found = []
    for name, field in cls.model_fields.items():
        value = field.default if default is None else getattr(default, name)
        group = group_of(field.annotation)
        if group is None:
            meaning = field.description or ""
            if meaning and get_origin(field.annotation) is Literal:
                meaning += f" ({', '.join(f'`{each}`' for each in get_args(field.annotation))})"
            found.append((prefix + name, value, meaning))
            continue
        whole = " ".join((group.__doc__ or "").split())
        found.append((f"**{prefix}{name}**", None if value is None else "", field.description or whole))
        found += keys(group, value if isinstance(value, BaseModel) else None, f"{prefix}{name}.")
    return found


def shown(value: Any) -> str:
    """Returns a default as YAML would write it."""
    if value is PydanticUndefined:
        return "required"
    if value == "":
        return ""
    return f"`{json.dumps(value, default=str)}`"


def text() -> str:
    """Returns the page."""
    out = [HEAD]
    for stage in STAGES:
        cls = config_of(stage)
        out.append(f"## `python -m {stage}`\n\n{' '.join((cls.__doc__ or '').split())}\n")
        out.append("| key | default | meaning |\n|---|---|---|")
        for key, default, meaning in keys(cls, None):
            name = key if key.startswith("**") else f"`{key}`"
            out.append(f"| {name} | {shown(default)} | {meaning.replace('|', chr(92) + '|')} |")
        out.append("")
    return "\n".join(out)


if __name__ == "__main__":
    sys.path.insert(0, str(PATH.parents[1]))
    PATH.write_text(text())
