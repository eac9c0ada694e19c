"""Published checkpoints: the file that was named, read without running anything that it holds.

A file is safetensors, or torch's own format by its reader of tensors alone, which also lets through what
training scripts put beside them: numpy's numbers and argparse's namespaces, of which no method runs.
"""

import argparse
import re
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy._core.multiarray import scalar
from safetensors.torch import load_file
from torch import Tensor, nn

from shapeloom.config import UserError
from shapeloom.storage import file_digest

HARMLESS: list[Any] = [
    argparse.Namespace, np.dtype, type(np.dtype("f8")), type(np.dtype("f4")), type(np.dtype("i8")),
    (scalar, "numpy._core.multiarray.scalar"),
    (scalar, "numpy.core.multiarray.scalar"),  # as numpy 1 called it
]  # fmt: skip
WRAPPERS = ("state_dict", "model_state_dict", "module")
"""Names under which training scripts keep a network's tensors."""
IGNORED = "num_batches_tracked"
"""A counter of batch norms, which older files lack and inference doesn't read."""
NetworkT = TypeVar("NetworkT", bound=nn.Module)


def read_checked(file: str, sha256: str, what: str) -> dict[str, Tensor]:
    """Returns a checkpoint's tensors by name, without the wrapper and the prefix `module.` of training.

    Raises UserError if the file is missing, has another SHA-256, or holds anything but tensors and numbers.
    """
    path = Path(file)
    if path.is_file() and (digest := file_digest(path)) != sha256.lower():
        raise UserError(f"{path} isn't the file that was named: its SHA-256 is {digest}, not {sha256}.")
    return read_bare(path, what)


def read_bare(path: Path, what: str) -> dict[str, Tensor]:
    """As `read_checked`, of a file whose digest nobody has given."""
    if not path.is_file():
        raise UserError(f"The weights of {what} are missing: {path} is no file.")
    content = _content(path)
    while isinstance(content, dict) and (inner := [content[k] for k in WRAPPERS if k in content]):
        content = inner[0]
    named = content if isinstance(content, dict) else {}
    tensors = {str(k).removeprefix("module."): v for k, v in named.items() if isinstance(v, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors by name, so it isn't a checkpoint of {what}.")
    return tensors


def _content(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken pickles raise anything
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise UserError(f"{path} can't be read as a checkpoint. Copy it again.") from error
        raise UserError(
            f"{path} holds {found[1]} beside tensors, and reading that could run a stranger's code. Save its "
            "tensors alone where you trust it (safetensors.torch.save_file), and name that file."
        ) from error


def fit(network: NetworkT, tensors: dict[str, Tensor], *, file: str, what: str) -> NetworkT:
    """Returns the network with these weights, frozen; UserError unless names and shapes are its own."""
    own, given = (
        {name: list(tensor.shape) for name, tensor in each.items() if not name.endswith(IGNORED)}
        for each in (network.state_dict(), tensors)
    )
    unlike = [name for name in sorted(own.keys() | given.keys()) if own.get(name) != given.get(name)]
    if unlike:
        first = unlike[0]
        have = f"is {given[first]} in the file" if first in given else "the file lacks"
        need = f"should be {own[first]}" if first in own else "the network lacks"
        raise UserError(
            f"{file} doesn't hold the weights of {what}: {len(unlike)} of {len(own | given)} tensors are "
            f"unlike, such as {first}, which {have} and which {need}."
        )
    network.load_state_dict(tensors, strict=False)
    return network.eval().requires_grad_(False)
