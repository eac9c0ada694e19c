"""CLIP for the pipeline: records a pretrained open_clip model, or trains a small one on the shards.

    python -m prior.train_clip --config configs/clip/tiny.yaml --out RUN/clip --set data=RUN/data

The small model is open_clip's CLIP class with few layers. It learns from (view on white, caption) pairs by
contrast (Radford et al. 2021); pictures whose captions read the same are positives of each other, since
a dataset of many red chairs would otherwise teach that one of them is not "a red chair".
RUN/clip holds config.yaml, meta.json, model.json, weights.safetensors; `shapeloom.clip.load_clip` reads it.
"""

import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from shapeloom import distributed
from shapeloom.clip import UNKNOWN, Clip, CompactTokenizer, build_network, load_clip, make_tokenizer
from shapeloom.config import Config, UserError, parse_stage, run_main
from shapeloom.log import get_logger, progress, start_logging
from shapeloom.minilm import load_minilm, model_folder
from shapeloom.pictures import on_white
from shapeloom.runs import Run
from shapeloom.seed import numpy_rng
from shapeloom.shards import AssetShards, ReadingOrder
from shapeloom.shared_run import open_run
from shapeloom.storage import Location, file_digest, put_file, scratch_file, write_atomic
from shapeloom.training import TrainConfig, train

log = get_logger("clip")
MAX_LOGIT_SCALE = 100.0
"""As in CLIP: a sharper softmax makes training unstable."""


class DualEncoderConfig(Config):
    """What `train_clip` does; sizes are those of the small model and mean nothing with `pretrained`."""

    data: Location | None = Field(default=None, description="a data_prep run to train on: a folder or a URL")
    split: str = Field(default="train", description="which assets to learn from")
    pretrained: str | None = Field(
        None, description='"MODEL/TAG" or "MODEL/FILE" of open_clip, instead of training'
    )
    num_views: int = Field(default=12, ge=1, description="views of an asset to learn from, at most")
    embed_dim: int = Field(128, ge=8, description="channels of the common embedding")
    image_size: int = Field(
        default=64, ge=16, description="side of the picture that the network sees, pixels"
    )
    image_tower: Literal["vit", "resnet"] = Field(
        default="vit", description="resnet learns shapes from fewer steps; its image_size is a multiple of 32"
    )
    resnet_width: int = Field(default=16, ge=1, description="channels of a resnet's first stage")
    patch_size: int = Field(default=8, ge=2, description="of a vit")
    image_width: int = Field(default=128, ge=32, multiple_of=32, description="channels of a vit's patch")
    image_layers: int = Field(default=4, ge=1, description="of a vit")
    text_tower: Literal["words", "minilm"] = Field(
        default="words",
        description="minilm: a pretrained sentence encoder, kept as it is (see docs/prior.md)",
    )
    context_length: int = Field(default=32, ge=4, description="BPE tokens of a caption; longer ones are cut")
    text_width: int = Field(128, ge=32, multiple_of=32, description="channels of a text token")
    text_layers: int = Field(2, ge=1, description="transformer blocks of the text tower")
    word_dropout: float = Field(
        default=0.05, ge=0, lt=1, description="share of words shown as unknown in training"
    )
    train: TrainConfig = TrainConfig(
        steps=300, batch_size=128, learning_rate=1e-3, weight_decay=0.1, warmup_steps=30, ema_decay=0.99
    )

    @model_validator(mode="after")
    def _resnet_divides(self) -> "DualEncoderConfig":
        if self.image_tower == "resnet" and self.image_size % 32:
            raise ValueError(f"image_size must be a multiple of 32 for a resnet, got {self.image_size}")
        return self

    def vision(self) -> dict[str, Any]:
        """open_clip's settings of the image tower; heads have 32 channels."""
        if self.image_tower == "resnet":
            shape: dict[str, Any] = {"width": self.resnet_width, "layers": [1, 1, 1, 1]}
        else:
            shape = {"width": self.image_width, "layers": self.image_layers, "patch_size": self.patch_size}
        return {"image_size": self.image_size, "head_width": 32, **shape}


def describe(config: DualEncoderConfig, captions: Sequence[str]) -> dict[str, Any]:
    """The model.json of a small CLIP that knows the words of `captions`, or those of MiniLM."""
    common = {
        "kind": "dual_encoder", "name": f"dual encoder ({config.split})", "embed_dim": config.embed_dim,
        "vision": config.vision(), "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    if config.text_tower == "minilm":
        digest = file_digest(model_folder() / "model.safetensors")
        text = {"kind": "minilm", "context_length": config.context_length, "sha256": digest}
        return {**common, "text": text}
    tokenizer = CompactTokenizer.from_captions(captions, config.context_length)
    text = {
        "context_length": config.context_length, "width": config.text_width,
        "layers": config.text_layers, "heads": config.text_width // 32,
    }  # fmt: skip
    return {**common, "text": text, "vocabulary": tokenizer.vocabulary}


def read_pairs(
    shards: AssetShards, *, size: int, num_views: int
) -> tuple[UInt8[np.ndarray, "assets views size size 3"], list[list[str]]]:
    """All assets' views, evenly chosen, on white and resized to `size`, and each asset's captions."""
    chosen = (
        np.linspace(0, shards.num_views, min(num_views, shards.num_views), endpoint=False)
        .astype(int)
        .tolist()
    )
    images = np.empty((len(shards), len(chosen), size, size, 3), np.uint8)
    with progress(len(shards), "reading views") as bar:
        for i in range(len(shards)):
            rgba = shards.read(i, views=chosen).rgba
            assert rgba is not None  # views were asked for
            images[i] = _resized(on_white(rgba), size)
            bar.advance()
    return images, [row.captions for row in shards.rows]


def _resized(
    pictures: UInt8[np.ndarray, "views height width 3"], size: int
) -> UInt8[np.ndarray, "views size size 3"]:
    if pictures.shape[1:3] == (size, size):
        return pictures
    channels_first = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    small = F.interpolate(channels_first, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return small.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def augment(
    picture: UInt8[np.ndarray, "size size 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "size size 3"]:
    """Mirrors, shifts by up to a sixteenth, and sometimes coarsens; hues stay, as captions name them."""
    size = picture.shape[0]
    reach = size // 16
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    padded = np.pad(picture, ((reach, reach), (reach, reach), (0, 0)), constant_values=255)
    top, left = rng.integers(0, 2 * reach + 1, 2)
    picture = padded[top : top + size, left : left + size]
    if rng.random() < 0.25:  # renders of generated shapes are softer than those of meshes
        coarse = picture[: size // 2 * 2, : size // 2 * 2].reshape(size // 2, 2, size // 2, 2, 3).mean((1, 3))
        picture = coarse.round().astype(np.uint8).repeat(2, 0).repeat(2, 1)
        picture = np.pad(picture, ((0, size % 2), (0, size % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(picture)


def contrastive_loss(
    image: Float[Tensor, "batch embed"], text: Float[Tensor, "batch embed"], scale: Float[Tensor, ""],
    same: Bool[Tensor, "batch batch"],
) -> Float[Tensor, ""]:  # fmt: skip
    """Symmetric InfoNCE in which the pairs of `same` share the probability of being right.

    image, text: unit vectors. With `same` the identity it is CLIP's loss.
    """
    logits = scale.clamp(max=MAX_LOGIT_SCALE) * image.float() @ text.float().T
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class DualEncoderTask:
    """Pairs and loss for `shapeloom.training.train`."""

    def __init__(
        self, images: UInt8[np.ndarray, "assets views size size 3"], captions: Sequence[Sequence[str]],
        config: DualEncoderConfig,
    ) -> None:  # fmt: skip
        known = sorted({caption for each in captions for caption in each})
        self.description = describe(config, known)
        self.tokenizer = make_tokenizer(self.description)
        with torch.random.fork_rng():
            torch.manual_seed(config.train.seed)
            self.model: nn.Module = build_network(self.description)
        number = {caption: i for i, caption in enumerate(known)}
        ids = self.tokenizer(known)
        self._images = images
        # A frozen sentence encoder's vectors are computed once; otherwise token ids.
        self._texts = (load_minilm()(ids)[0] if config.text_tower == "minilm" else ids).numpy()
        self._captions = [[number[caption] for caption in each] for each in captions]
        self._first_captions = [each[0] for each in captions]
        self._config, self._seed = config, config.train.seed
        self._order = ReadingOrder([len(images)], seed=self._seed)

    def batch(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """An augmented view, a caption's token rows and the caption's number for each sample."""
        pictures, texts, labels = [], [], []
        for n in samples:
            asset, rng = self._order.index(n), numpy_rng("clip", self._seed, n)
            pictures.append(augment(self._images[asset, rng.integers(self._images.shape[1])], rng))
            label = int(rng.choice(self._captions[asset]))
            text = self._texts[label].copy()
            if self._config.text_tower == "words":
                words = np.flatnonzero(text > UNKNOWN)[1:-1]  # start and end stay
                text[words[rng.random(len(words)) < self._config.word_dropout]] = UNKNOWN
            texts.append(text)
            labels.append(label)
        return {
            "image": torch.from_numpy(np.stack(pictures)),
            "text": torch.from_numpy(np.stack(texts)),
            "label": torch.tensor(labels),
        }

    def names(self, samples: Sequence[int]) -> list[str]:
        """The assets' first captions."""
        return [f"{self._first_captions[self._order.index(n)]!r}" for n in samples]

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Contrast within this process's batch."""
        pixels = batch["image"].permute(0, 3, 1, 2).float() / 127.5 - 1  # the mean and std of `describe`
        out = model(pixels, batch["text"])
        same = batch["label"][:, None] == batch["label"][None, :]
        scale = out["logit_scale"].squeeze()
        loss = contrastive_loss(out["image_features"], out["text_features"], scale, same)
        return loss, {"logit_scale": scale}

    def pictures(self, model: nn.Module, step: int) -> dict[str, np.ndarray]:
        """None: what CLIP knows is measured, see `caption_accuracy`."""
        return {}


def fit(
    images: UInt8[np.ndarray, "assets views size size 3"],
    captions: Sequence[Sequence[str]],
    config: DualEncoderConfig,
    run: Run,
    world: distributed.World,
) -> Clip:
    """Trains a small CLIP in `run`'s folder, resuming there, and returns it; `load_clip` reads the folder.

    Serves the conditioner, and with other assets and another `train.seed` the judge of an evaluation.
    Raises UserError when there is nothing to tell apart.
    """
    if len({caption for each in captions for caption in each}) < 2 or not all(captions):
        raise UserError(
            "A CLIP learns by telling captions apart, but these assets have fewer than two different "
            "captions, or some have none. Give the assets a captions.csv (path,caption), or name a "
            "pretrained CLIP instead."
        )
    task = DualEncoderTask(images, captions, config)
    if world.is_main:
        write_atomic(run.folder / "model.json", json.dumps(task.description))
    train(task, config.train, run, world)
    return Clip(task.model.cpu(), task.tokenizer, task.description, name=task.description["name"])


def caption_accuracy(
    clip: Clip, images: UInt8[np.ndarray, "assets views size size 3"], captions: Sequence[Sequence[str]]
) -> float:
    """Share of views whose nearest caption, among all here, is one of their own asset's."""
    known = sorted({caption for each in captions for caption in each})
    text = clip.text(known).pooled
    own = torch.tensor([[caption in set(each) for caption in known] for each in captions])
    nearest = (
        (clip.image(images.reshape(-1, *images.shape[2:])) @ text.T).argmax(1).view(len(images), -1).cpu()
    )
    return float(own.gather(1, nearest).float().mean())


def _record_pretrained(spec: str, run: Run, world: distributed.World) -> Clip:
    clip = load_clip(spec, "cpu")
    if world.is_main:
        state = {name: tensor.contiguous() for name, tensor in clip.network.state_dict().items()}
        with scratch_file(path := run.folder / "weights.safetensors") as temporary:
            save_file(state, temporary)
            put_file(temporary, path)
        write_atomic(run.folder / "model.json", json.dumps(clip.description))
    return clip


def main(argv: Sequence[str] | None = None) -> None:
    """Trains or records, or goes on, or says that it is done."""
    config, out, _ = parse_stage(DualEncoderConfig, stage="prior.train_clip", description=__doc__, argv=argv)
    world = distributed.start(hang_seconds=config.train.hang_seconds)
    start_logging(quiet=not world.is_main)
    if world.size > 1:  # its loss compares all pairs of a batch
        raise UserError("train_clip runs in one process: start it without torchrun or the like.")
    if config.pretrained is None and config.data is None:
        raise UserError("train_clip needs --set data=RUN/data (asset shards), or --set pretrained=MODEL/TAG.")
    shards = None if config.pretrained or config.data is None else AssetShards(config.data, config.split)
    inputs = {"data": shards.digest} if shards else {}
    with open_run(out, config, stage="clip", inputs=inputs, world=world) as run:
        if run.done:
            log.info("%s already holds a finished CLIP", out)
            return
        _make(config, shards, run, world)


def _make(config: DualEncoderConfig, shards: AssetShards | None, run: Run, world: distributed.World) -> None:
    facts: dict[str, Any] = {}
    if shards is None:
        clip = _record_pretrained(str(config.pretrained), run, world)
    else:
        images, captions = read_pairs(shards, size=config.image_size, num_views=config.num_views)
        clip = fit(images, captions, config, run, world)
        facts["train_caption_accuracy"] = caption_accuracy(clip, images[:200, :2], captions[:200])
        log.info("own caption found for %.0f%% of training views", 100 * facts["train_caption_accuracy"])
    run.finish(digest=clip.digest, name=clip.name, **facts)


if __name__ == "__main__":
    run_main(main)
