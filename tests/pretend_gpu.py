"""A device that isn't there: tensors that say they are on "cuda", with their numbers on the CPU.

Where tensors of both places meet in one operation it raises as a GPU would, and so does NumPy on a tensor
that isn't on the CPU. Otherwise everything is computed, gradients included, with the CPU's own results.
torch's FakeTensorMode has no numbers, so it can't run code that looks at its tensors (masks, meshes, adaptive
steps), nor a backward pass "on" a GPU where there is none.

What it can't see: operations within one call of torch's, and kernels that a GPU lacks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
_MIXED = {  # take tensors of both places
    Tensor.to, Tensor.copy_, Tensor.data.__set__, Tensor.type_as, torch._has_compatible_shallow_copy_type,
}  # fmt: skip
_JOINED = {torch.stack, torch.cat, torch.concat, torch.hstack, torch.vstack}  # not even single numbers mix


def place(tensor: Tensor) -> torch.device:
    """Where a tensor says that it is."""
    return tensor.__dict__.get("pretended", CPU)


def put(tensor: Tensor, device: torch.device) -> Tensor:
    """Marks a tensor."""
    tensor.pretended = device  # type: ignore[attr-defined]
    return tensor


class PretendGenerator(torch.Generator):
    """A generator of either place; both draw the same numbers."""

    def __new__(cls, device: Any = "cpu") -> "PretendGenerator":
        generator = super().__new__(cls, device="cpu")
        generator.pretended = GPU if torch.device(device).type == "cuda" else CPU
        return generator

    @property
    def device(self) -> torch.device:
        """Where it says that it is."""
        return self.pretended


class PretendGpu(TorchFunctionMode):
    """While it is on, `device="cuda"` works.

    calls: how many worked on a tensor that is there; moves don't count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        places = [place(tensor) for tensor in tensors]
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return places[0]
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return places[0] == GPU
        if func in (Tensor.numpy, Tensor.__array__) and GPU in places:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if func is Tensor.pin_memory:
            return args[0]
        if func not in _MIXED:
            _check(func, args, tensors)
        asked, args, kwargs = _take_device(func, args, kwargs)
        where = asked or (places[0] if func in _MIXED and places else _gpu_first(places))
        _check_generator(kwargs.get("generator"), where)
        if func is Tensor.__iter__:
            return iter([put(part, where) for part in Tensor.unbind(args[0], 0)])
        result = func(*args, **kwargs)
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            put(args[0], places[-1])
        self.calls += GPU in places and func not in _MIXED
        return tree_map(lambda value: _marked(value, tensors, where), result)


def _marked(value: Any, given: list[Tensor], where: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    if any(value is tensor for tensor in given) and place(value) != where:
        value = value.clone()  # moved: the one given stays where it is
    return put(value, where)


def _gpu_first(places: list[torch.device]) -> torch.device:
    return GPU if GPU in places else CPU


def _check(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Raises RuntimeError where places meet that may not."""
    if func in (Tensor.__getitem__, Tensor.__setitem__):
        own = place(args[0])
        others = tensors[1:] if own == CPU else list(args[2:])  # an index may be on the CPU
        others = [tensor for tensor in others if isinstance(tensor, Tensor) and tensor.ndim]
        mixed = any(place(tensor) != own for tensor in others)
    else:
        counted = [tensor for tensor in tensors if tensor.ndim or func in _JOINED or place(tensor) == GPU]
        mixed = len({place(tensor) for tensor in counted}) > 1
    if mixed:
        name = getattr(func, "__name__", func)
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} has cuda:0 and cpu")


def _check_generator(generator: torch.Generator | None, where: torch.device) -> None:
    if generator is not None and generator.device != where:
        raise RuntimeError(f"Expected a {where} device type for generator but found {generator.device}")


def _take_device(
    func: Any, args: Any, kwargs: dict[str, Any]
) -> tuple[torch.device | None, Any, dict[str, Any]]:
    """The place that a call asks for, and its arguments with the CPU in its stead."""
    if func is Tensor.cpu:
        return CPU, args, kwargs
    if func is Tensor.cuda:
        return GPU, (args[0], CPU), kwargs
    if func is Tensor.type_as:
        return place(args[1]), args, kwargs
    asked = None
    if kwargs.get("device") is not None:
        asked, kwargs["device"] = torch.device(kwargs["device"]), CPU
    if func is Tensor.to:
        found = [torch.device(value) if isinstance(value, str) else value for value in args[1:]]
        for value in (*found, kwargs.get("other")):
            if isinstance(value, Tensor | torch.device):
                asked = place(value) if isinstance(value, Tensor) else value
        args = (args[0], *(CPU if isinstance(value, torch.device) else value for value in found))
    return (GPU if asked is not None and asked.type == "cuda" else asked), args, kwargs


@contextmanager
def pretend_gpu() -> Iterator[PretendGpu]:
    """The device that isn't there."""
    real = torch.Generator
    torch.Generator = PretendGenerator  # type: ignore[misc]
    try:
        with PretendGpu() as mode:
            yield mode
    finally:
        torch.Generator = real  # type: ignore[misc]


def is_all_there(module: nn.Module) -> bool:
    """Whether all weights and buffers say that they are on the GPU."""
    return all(place(tensor) == GPU for tensor in (*module.parameters(), *module.buffers()))
