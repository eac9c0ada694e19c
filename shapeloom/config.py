"""YAML and `--set` to frozen dataclass-like models, and the errors that users read.

A `Config` subclass lives beside what it configures and is the only source of its defaults; a YAML preset
holds differences. Unknown keys, wrong types and values out of range are refused with the key's name.
"""

import argparse
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from upath import UPath

from shapeloom import finished, watch
from shapeloom.options import stage_parser
from shapeloom.troubles import explain, is_lost_peer

MAX_BYTES = 1 << 20
"""Of a config file."""


class UserError(ValueError):
    """A user's mistake. Its text is one paragraph: what was expected, what came, and what to do."""


class Config(BaseModel):
    """Base of every config: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


ConfigT = TypeVar("ConfigT", bound=Config)


def load_config(cls: type[ConfigT], path: Path | UPath | None, overrides: Sequence[str] = ()) -> ConfigT:
    """Returns `cls` from its defaults, then the YAML file `path`, then overrides such as "train.steps=100".

    Raises UserError that names the file and the key for anything that doesn't fit.
    """
    values: dict[str, Any] = {}
    origin = "the command line"
    if path is not None:
        origin = str(path)
        if not path.is_file():
            raise UserError(f"The config file {path} does not exist. Presets are in configs/<stage>/*.yaml.")
        try:
            if path.stat().st_size > MAX_BYTES:
                raise UserError(f"{path} is larger than {MAX_BYTES >> 20} MB, so it is no config file.")
            values = yaml.safe_load(path.read_text()) or {}
        except yaml.YAMLError as error:
            raise UserError(f"{path} is not valid YAML: {error}") from error
        if not isinstance(values, dict):
            raise UserError(f"{path} must hold `key: value` lines, but holds a {type(values).__name__}.")
    for override in overrides:
        _set_key(values, override)
    return validated(cls, _merge(_group_defaults(cls), values), origin)


def validated(cls: type[ConfigT], values: object, origin: str) -> ConfigT:
    """Returns `cls` from a mapping; raises UserError that names `origin` and the key of what doesn't fit."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, cls, origin)) from error


def _group_defaults(cls: type[Config]) -> dict[str, Any]:
    """What a stage states of its groups, as `train: TrainConfig = TrainConfig(steps=300)` states the steps.

    A preset that names one key of such a group must not lose the stage's other ones.
    """
    defaults = {name: field.default for name, field in cls.model_fields.items()}
    return {name: value.model_dump() for name, value in defaults.items() if isinstance(value, Config)}


def _merge(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    merged = base | given
    for name in base.keys() & given.keys():
        if isinstance(base[name], dict) and isinstance(given[name], dict):
            merged[name] = _merge(base[name], given[name])
    return merged


def _set_key(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"--set takes key=value, such as --set train.steps=100, but got {override!r}.")
    *parents, last = key.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {override}: {parent!r} is a value, not a group of keys.")
        values = child
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: the value is not valid YAML: {error}") from error


def _explain(error: ValidationError, cls: type[Config], origin: str) -> str:
    problems = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "(whole config)"
        if item["type"] == "extra_forbidden":
            known = ", ".join(_keys_at(cls, item["loc"][:-1]))
            problems.append(f"unknown key `{key}` (known there: {known})")
        else:
            # Keys that don't fit together have their whole group for an input.
            got = "" if isinstance(item["input"], dict) else f", got {item['input']!r}"
            problems.append(f"`{key}`: {item['msg']}{got}")
    return f"{cls.__name__} from {origin} has {len(problems)} error(s): " + "; ".join(problems) + "."


def _keys_at(cls: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        field = cls.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ["none"]
        cls = annotation
    return sorted(cls.model_fields)


def resolved(
    cls: type[ConfigT], arguments: argparse.Namespace, shortcuts: Sequence[str] = (),
    *, preset: Path | UPath | None = None,
) -> ConfigT:  # fmt: skip
    """Returns the config that `add_config_options` describes; with --print-config prints it and exits.

    shortcuts: overrides from a command's own options; they win. preset: stands in for a missing --config.
    """
    overrides = [item for group in arguments.set for item in group]
    config = load_config(cls, arguments.config or preset, [*overrides, *shortcuts])
    if arguments.print_config:
        sys.stdout.write(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        raise SystemExit(0)
    finished.note_read(config.model_dump(mode="json"))
    return config


def parse_stage(
    cls: type[ConfigT],
    *,
    stage: str,
    description: str,
    argv: Sequence[str] | None = None,
    shortcuts: Callable[[argparse.Namespace], Sequence[str]] = lambda arguments: (),
    preset: Callable[[argparse.Namespace], Path | UPath | None] = lambda arguments: None,
    out_may_be_url: bool = False,
) -> tuple[ConfigT, Path, argparse.Namespace]:
    """Parses the options that every stage shares: `--config F --out DIR [--set a.b=v ...] [--print-config]`,
    and the stage's own (`shapeloom.options`).

    `shortcuts` turns those into overrides, `preset` stands in for a missing --config. Returns the config, the
    output folder and the namespace, in which `out` is as typed: a URL, where the stage takes one, is no Path.
    """
    parser = stage_parser(stage, description)
    arguments = parser.parse_args(argv)
    if arguments.out is None and not arguments.print_config:
        parser.error("the following arguments are required: --out")
    out = arguments.out or "."
    if "://" in out and not out_may_be_url:
        raise UserError(f"{stage} writes to local folders alone, so --out can't be {out}.")
    return resolved(cls, arguments, shortcuts(arguments), preset=preset(arguments)), Path(out), arguments


def _end_of_thread(end: threading.ExceptHookArgs) -> None:
    """Tells of bugs alone: what ends TensorBoard's thread is raised in the main one, at its next call."""
    if end.exc_value is None or explain(end.exc_value) is None:
        threading.__excepthook__(end)


def _told(text: str, code: int) -> SystemExit:
    """Says it here, and to the other processes of the run."""
    sys.stderr.write(f"\nerror: {text}\n")
    watch.tell_failure(text, code)
    return SystemExit(code)


def run_main(main: Callable[[], None]) -> None:
    """Runs a stage; what the user or the world is to blame for becomes one paragraph on stderr, no traceback.

    Exit code 2 for a UserError, 1 for a full disk, a lost file, exhausted memory and the like, 75 for a lost
    process, after which the same command may succeed.
    """
    threading.excepthook = _end_of_thread
    try:
        main()
        finished.remember()
    except UserError as error:
        raise _told(str(error), 2) from None
    except watch.TryAgain as error:
        raise _told(str(error), watch.EXIT_AGAIN) from None
    except Exception as error:
        if watch.current is not None and is_lost_peer(error):
            raise _told(watch.current.lost_peer(), watch.EXIT_AGAIN) from None
        text = explain(error)
        if text is None:  # a bug, for which the traceback is
            watch.tell_failure(f"{type(error).__name__}: {error}", 1)
            raise
        raise _told(text, 1) from None
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. Run the same command again to go on from here.\n")
        raise SystemExit(130) from None
