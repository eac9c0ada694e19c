"""Latent shards as tensors, and any shards as a stream of training samples."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from shapeloom.config import UserError
from shapeloom.shards.members import decode_npy
from shapeloom.shards.order import ReadingOrder
from shapeloom.shards.reading import Shards

T = TypeVar("T")


class LatentShards(Shards):
    """Reader of latents with their text and image embeddings; `header` holds the digests of their makers."""

    kind = "latents"

    def read(self, index: int) -> dict[str, Tensor]:
        """Every array of row `index` as a tensor of its stored type: latent [tokens, channels],
        text_pooled [captions, dim], text_tokens [captions, length, width], text_mask [captions, length],
        image_pooled [views, dim], and where encode was asked for them latent_copies
        [copies, tokens, channels] and image_grid [views, cells, width]."""
        names = [name for name in self.rows[index].members if name.endswith(".npy")]
        raw = self.members(index, names)
        return {
            n.removesuffix(".npy"): torch.from_numpy(decode_npy(r)) for n, r in zip(names, raw, strict=True)
        }

    def leave_out(self, *, below_psnr: float) -> list[str]:
        """Leaves out the rows whose latents' renders encode found below so many dB, and returns their keys.

        Raises UserError if it recorded none, or if no row is left.
        """
        fidelity = [self.facts(i).get("fidelity") for i in range(len(self))]
        if not all(fidelity):
            raise UserError(
                f"{self.folder} doesn't say how faithful its latents are, so min_psnr can't choose among "
                "them. Leave it out, or encode the assets again."
            )
        quality = np.array([each["psnr"] for each in fidelity if each])
        if not (quality >= below_psnr).any():
            raise UserError(
                f"min_psnr={below_psnr:g} leaves none of the {len(self)} latents in {self.folder}: their "
                f"renders reach {np.median(quality):.1f} dB at the median and {quality.max():.1f} dB at best."
            )
        kept = quality >= below_psnr
        left_out = [row.key for row, keep in zip(self.rows, kept, strict=True) if not keep]
        self.rows = self.rows.chosen(lambda index: bool(kept[index]))
        return left_out

    def load(self) -> dict[str, Tensor]:
        """All rows stacked, for sets that fit into memory: each entry of `read` with a leading [assets].

        Assets may have different numbers of captions: the text entries are padded with zeros along captions,
        and `num_captions` int64 [assets] tells how many are real.
        """
        samples = [self.read(i) for i in range(len(self))]
        stacked = {}
        for name in samples[0]:
            entries = [sample[name] for sample in samples]
            widths = [(entry.shape[-1], entry.ndim) for entry in entries]
            odd = next((i for i, width in enumerate(widths) if width != widths[0]), None)
            if odd is not None:
                raise UserError(
                    f"{self.folder}: {name} of asset {self.rows[odd].key} is {list(entries[odd].shape)}, "
                    f"which doesn't fit the others' {list(entries[0].shape)}: they are different models'. "
                    "Encode all assets anew with one encoder and one CLIP."
                )
            stacked[name] = _stack_padded(entries) if name.startswith("text_") else torch.stack(entries)
        stacked["num_captions"] = torch.tensor([len(row.captions) for row in self.rows])
        return stacked


def _stack_padded(entries: Sequence[Tensor]) -> Tensor:
    longest = max(1, *(len(entry) for entry in entries))
    stacked = entries[0].new_zeros(len(entries), longest, *entries[0].shape[1:])
    for row, entry in zip(stacked, entries, strict=True):
        row[: len(entry)] = entry
    return stacked


# ---------------------------------------------------------------- streams


class SampleStream(IterableDataset, Generic[T]):
    """The samples of a run from number `consumed` on, without end, for a `torch.utils.data.DataLoader`.

    Yields `read(n, index)` of each sample number n and row index of `shards`. Rank r of a world takes every
    world-th number. `batch_size` is the DataLoader's (1 where that is None): workers then take batches in
    turn, and the order is the same whatever their number. Samples `consumed`, by the whole world, are all
    that a checkpoint has to keep.
    """

    def __init__(
        self,
        shards: Shards,
        order: ReadingOrder,
        read: Callable[[int, int], T],
        *,
        consumed: int = 0,
        rank: int = 0,
        world: int = 1,
        batch_size: int = 1,
    ) -> None:
        self.shards, self.order, self.read = shards, order, read
        self.consumed, self.rank, self.world, self.batch_size = consumed, rank, world, batch_size

    def __iter__(self) -> Iterator[T]:
        """Samples of this process's share."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for batch in itertools.count(worker, workers):  # a DataLoader takes batches from its workers in turn
            for place in range(batch * self.batch_size, (batch + 1) * self.batch_size):
                n = self.consumed + self.rank + self.world * place
                self.shards.read_ahead(self.order.shards_from(n))
                yield self.read(n, self.order.index(n))
