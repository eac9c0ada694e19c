"""Whether the weights of a model, perhaps a stranger's, fit its description, before memory is taken for them.

A description says how large a network is to be made. It is compared with the shapes in the weights' file, of
which no number is read.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from shapeloom.config import UserError


def check_fits(make: Callable[[], nn.Module], weights: Path, *, prefix: str = "") -> None:
    """Raises UserError unless a file of weights holds just the tensors of the network that `make` makes.

    The network is made without memory for its numbers. prefix: of its tensors' names in the file; other
    tensors are left alone.
    """
    with torch.device("meta"):
        network = make()
    expected = {prefix + name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    try:
        with safe_open(weights, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118  no mapping
            found = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights} can't be read as a model's weights ({error}). Copy it again.") from error
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            have, need = (str(list(each[name])) if name in each else "missing" for each in (found, expected))
            raise UserError(
                f"{weights} doesn't fit the description beside it: its {name} is {have}, but should be "
                f"{need}. They are of two models, or one of them was changed: copy both again."
            )
