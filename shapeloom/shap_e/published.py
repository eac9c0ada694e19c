"""Shap-E's published checkpoints: what they hold, and reading them without running anything of theirs.

    transmitter.pt      encoder and decoder     vector_decoder.pt  the decoder alone
    text_cond.pt        text300M                image_cond.pt      image300M

A file is read by torch's loader of bare tensors, and every key and shape is checked. One whose SHA-256 isn't
the published file's is refused unless the caller allows it.
"""

import mmap
import pickle
import re
import zipfile
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from shapeloom.config import Config, UserError
from shapeloom.denoising import Shapes
from shapeloom.shap_e.encoder import ShapEEncoder
from shapeloom.shap_e.field import ShapEField, ShapEFieldConfig, ShapEProjection
from shapeloom.shap_e.inputs import ShapEEncoderConfig
from shapeloom.shap_e.prior import ShapEDenoiser, ShapEPriorConfig
from shapeloom.storage import file_digest

Part = Literal["transmitter", "decoder", "text300M", "image300M"]
FILES: dict[Part, tuple[str, str]] = {
    "transmitter": ("transmitter.pt", "af02a0b85a8abdfb3919584b63c540ba175f6ad4790f574a7fef4617e5acdc3b"),
    "decoder": ("vector_decoder.pt", "d7e7ebbfe3780499ae89b2da5e7c1354012dba5a6abfe295bed42f25c3be1b98"),
    "text300M": ("text_cond.pt", "e6b4fa599a7b3c3b16c222d5f5fe56f9db9289ff0b6575fbe5c11bc97106aad4"),
    "image300M": ("image_cond.pt", "cb8072c64bbbcf6910488814d212227de5db291780d4ea99c6152f9346cf12aa"),
}
CLIP_DIM, GRID_WIDTH = 768, 1024
"""Of CLIP ViT-L/14: its vectors (and its text tokens), and the cells of its image tower."""


class Sizes(Config):
    """Of the models; the defaults are the published ones."""

    encoder: ShapEEncoderConfig = ShapEEncoderConfig()
    field: ShapEFieldConfig = ShapEFieldConfig()
    text300M: ShapEPriorConfig = ShapEPriorConfig(reads="text", width=1024, depth=24, heads=16)
    image300M: ShapEPriorConfig = ShapEPriorConfig(reads="image", width=1024, depth=24, heads=8)

    def prior(self, part: Part) -> ShapEPriorConfig:
        """Those of a prior's network."""
        return self.text300M if part == "text300M" else self.image300M

    def shapes(self, part: Part) -> Shapes:
        """What a prior reads and writes."""
        layout = self.field.layout
        grid_width = GRID_WIDTH if self.prior(part).reads == "image" else 0
        return Shapes(*layout.shape, CLIP_DIM, CLIP_DIM, grid_width, (), layout.layers)


PUBLISHED = Sizes()


def skeleton(part: Part, sizes: Sizes = PUBLISHED) -> nn.Module:
    """Returns the model of a file on the meta device: its keys, in the file's order, and shapes."""
    with torch.device("meta"):
        match part:
            case "transmitter":
                encoder = ShapEEncoder(sizes.encoder, sizes.field)
                return nn.ModuleDict({"encoder": encoder, "renderer": ShapEField(sizes.field)})
            case "decoder":
                projection = ShapEProjection(sizes.field)
                return nn.ModuleDict({"params_proj": projection, "renderer": ShapEField(sizes.field)})
            case "text300M" | "image300M":
                return ShapEDenoiser(sizes.shapes(part), sizes.prior(part))


def shapes_of(part: Part, sizes: Sizes = PUBLISHED) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor in a file, in its order."""
    return {name: tuple(value.shape) for name, value in skeleton(part, sizes).state_dict().items()}


def read_published(
    path: Path, part: Part, *, sizes: Sizes = PUBLISHED, allow_other: bool = False
) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint, float32, under their official names, backed by the file.

    allow_other: takes a file of other numbers than the published one's, such as a fine-tuned model's.
    Raises UserError that names the file and the first bad key of one that is cut off, damaged, of another
    model, or, without `allow_other`, not the published one.
    """
    if not path.is_file():
        raise UserError(f"{path} isn't there: it should be Shap-E's published {FILES[part][0]}.")
    expected = shapes_of(part, sizes)
    genuine = file_digest(path) == FILES[part][1]
    if not genuine:
        _check_archive(path, list(expected))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path} is no checkpoint of bare tensors ({reason}). Download {FILES[part][0]} again."
        ) from error
    check_state(state, expected, path)
    if not genuine and not allow_other:
        raise UserError(
            f"{path} has the keys and shapes of Shap-E's {part}, but isn't the published file: its SHA-256 "
            f"is not {FILES[part][1]}. Its numbers may be anyone's: download it again, or set "
            "allow_other=true if you trust where it comes from."
        )
    return {name: state[name] for name in expected}


def check_state(state: object, expected: dict[str, tuple[int, ...]], path: Path) -> None:
    """Raises UserError for the first key that is missing, unknown, of another shape, or not finite."""
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, not a state dict.")
    missing = [name for name in expected if name not in state]
    unknown = [str(name) for name in state if name not in expected]
    if missing or unknown:
        what = f"has no {missing[0]}" if missing else f"has the unknown key {unknown[0]}"
        raise UserError(
            f"{path} {what} ({len(missing)} keys missing, {len(unknown)} unknown): it is another model's."
        )
    for name, shape in expected.items():
        value = state[name]
        if not isinstance(value, Tensor) or tuple(value.shape) != shape or value.dtype != torch.float32:
            found = (
                f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            )
            raise UserError(f"{path}: {name} is {found}, but should be torch.float32 {list(shape)}.")
        if not bool(torch.isfinite(value.sum(dtype=torch.float64))):
            raise UserError(f"{path}: {name} holds NaN or infinity, so the file is damaged.")


def _check_archive(path: Path, keys: list[str]) -> None:
    """Raises UserError that names the first tensor whose bytes are cut off or don't have their checksum.

    A checkpoint is a zip archive with a member data/N for tensor N.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return  # some other format, which the loader judges
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            problem = "doesn't have the checksum that it was saved with"
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        damaged, problem = _last_member(path), f"is where the file is cut off ({error})"
        if damaged is None:
            damaged = "its table of contents"
    if damaged is None:
        return
    number = re.search(r"/data/(\d+)$", damaged)
    key = keys[int(number[1])] if number and int(number[1]) < len(keys) else damaged
    raise UserError(f"{path} is damaged: {key} {problem}. Download it again.")


def _last_member(path: Path) -> str | None:
    """The last member of an archive that has lost its end: the first one of which bytes may be missing."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.rfind(b"PK\x03\x04")
        while start >= 0:
            length = int.from_bytes(data[start + 26 : start + 28], "little")
            name = data[start + 30 : start + 30 + length]
            if re.fullmatch(rb"[\w./-]+", name):
                return name.decode()
            start = data.rfind(b"PK\x03\x04", 0, start)
    return None
