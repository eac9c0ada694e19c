"""Recorded numbers of Shap-E's reference: small files in tests/golden, larger ones beside the project."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent / "golden"
BESIDE = Path(__file__).parents[2] / "shared" / "golden"


def golden(name: str) -> dict[str, Tensor]:
    """The tensors of a file; skips the test where it isn't there."""
    for folder in (HERE, BESIDE, Path("../shared/golden")):
        if (folder / f"{name}.safetensors").is_file():
            return load_file(folder / f"{name}.safetensors")
    pytest.skip(f"{name}.safetensors is too large to be kept here, and not in ../shared/golden")


def part(data: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in data.items() if name.startswith(prefix)}


def assert_same(ours: Tensor, theirs: Tensor, *, tolerance: float = 1e-4) -> None:
    """Fails unless they agree to `tolerance` of the largest number, or of 1 if that is larger.

    Sines of 2^14 x are good to 5e-4 in float32 at most, so the last digits differ between machines.
    """
    assert ours.shape == theirs.shape
    scale = max(1.0, float(theirs.abs().max()))
    worst = float((ours.double() - theirs.double()).abs().max())
    assert worst <= tolerance * scale, f"differs by {worst:.3g} where numbers reach {scale:.3g}"


def published_shapes(model: str) -> tuple[dict[str, list[int]], int]:
    """Every key and shape of a published state dict, and how many numbers it holds."""
    entry = json.loads((HERE / "manifest.json").read_text())[model]
    shapes: dict[str, list[int]] = {}
    for key, value in entry["state_dict"].items():
        if isinstance(value, dict):
            shapes |= {key.replace("*", str(block)): value["shape"] for block in range(value["blocks"])}
        else:
            shapes[key] = value
    assert len(shapes) == entry["num_tensors"]
    return shapes, entry["num_elements"]


def projected(data: dict[str, Tensor]) -> list[Tensor]:
    """Recorded matrices of assets' own."""
    return [data[f"projected.nerstf.mlp.{layer}.weight"] for layer in range(4)]
