"""Weights as they are loaded: the file that its run wrote, whole, and finite numbers; and in half."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from shapeloom.config import UserError
from shapeloom.storage import file_digest

_ADVICE = "Copy it again, or delete it and run the stage that writes it again."


def checked_digest(path: Path, expected: str | None) -> str:
    """Returns the SHA-256 of a weights file; UserError that names it if it is missing or another.

    expected: what its run's meta.json says; None where nothing was recorded.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing, and nothing can be made without these weights. {_ADVICE}")
    digest = file_digest(path)
    if expected is not None and digest != expected:
        raise UserError(
            f"{path} isn't the file that its run wrote: its digest is {digest[:12]}, and meta.json says "
            f"{expected[:12]}. {_ADVICE}"
        )
    return digest


def read_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file whose names begin with `prefix`, without it.

    Raises UserError that names the file if it is missing or damaged, or if a number isn't finite.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing. {_ADVICE}")
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118  no mapping
            tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}). {_ADVICE}") from error
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(
                f"{path} holds NaN or infinity (in {name}): the training that wrote it has diverged. Train "
                "again with a lower train.learning_rate."
            )
    return tensors


def halve_weights(module: nn.Module) -> None:
    """Keeps the matrices and kernels of `module` in bfloat16, for use under autocast.

    Norms, embeddings and whatever is added up stay in float32. Half of the memory, and nothing to convert at
    each call.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.to(torch.bfloat16)
