"""The pipeline's interface for programs: prompts in, shapes out.

    pipe = ShapePipeline.from_pretrained("runs/demo-tiny")     # or a saved folder, or "owner/name" of a hub
    shape = pipe("a red chair", num_samples=4, steps=32, guidance_scale=5.0, seed=7)[0]
    shape.save("chair.glb"); shape.save("chair.gif")

A shape depends on its prompt, its seed and the settings, not on what else is in its batch, except that other
batch sizes may round the last bits of float32 products differently.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError
from torch import Tensor

from prior.classifier import LatentClassifier, load_classifier
from prior.description import Distilled
from prior.model import Prior, load_prior
from sampling.guidance import (
    DEFAULTS,
    GuidanceConfig,
    classifier_log_probability,
    clip_score,
    prior_sigmas,
    steered,
)
from sampling.hub import Parts, fetch_package, upload_package, write_package
from sampling.shape import ShapeSample, read_latent
from shapeloom.clip import Clip, TextEmbedding, load_clip
from shapeloom.config import UserError
from shapeloom.decoder import Decoder, load_decoder
from shapeloom.denoising import Condition
from shapeloom.diffusion.samplers import Denoise, SamplerName, initial_noise, sample
from shapeloom.diffusion.steps import StepChoice, karras_sigmas
from shapeloom.noise import normal

MAX_PROMPT_LENGTH = 1000
MAX_SEED = 2**63 - 1
Picture = UInt8[np.ndarray, "_ _ 3"]
"""Square; those of a batch may differ in size."""
Pictures = Picture | Sequence[Picture]
"""A picture of an object, or several of the same one."""


class ShapePipeline:
    """A prior, the decoder of its latents and the CLIP of its conditions.

    parts: the folders that they were loaded from, which `save_pretrained` copies.
    view_prior: from captions to pictures' CLIP vectors; prompts then become pictures' vectors first, and the
    prior follows those (unCLIP).
    weaker: a worse prior of the same latents to guide away from (autoguidance), in place of no condition.
    classifier: of the prior's noisy latents, for `GuidanceConfig.classifier_scale`.
    """

    def __init__(
        self, prior: Prior, decoder: Decoder, clip: Clip, parts: Parts | None = None,
        view_prior: Prior | None = None, weaker: Prior | None = None,
        classifier: LatentClassifier | None = None,
    ) -> None:  # fmt: skip
        if prior.predicts != "latents":
            raise UserError("`prior` was trained with predict=views and makes no shapes: name it view_prior.")
        prior.check(encoder_digest=decoder.digest, clip_digest=clip.digest)
        self.prior, self.decoder, self.clip = prior, decoder, clip
        self.parts, self.view_prior, self.weaker = parts, view_prior, weaker
        self.classifier = classifier
        if classifier is not None:
            classifier.check(prior)
        if any(other is not None and other.distilled is not None for other in (view_prior, weaker)):
            raise UserError("view_prior and weaker are asked at any noise level: name undistilled ones.")
        if weaker is not None:
            weaker.check(encoder_digest=decoder.digest, clip_digest=clip.digest)
        if view_prior is None:
            return
        view_prior.check(clip_digest=clip.digest)
        if view_prior.predicts != "views" or prior.shapes.grid_width:
            raise UserError(
                "view_prior must be trained with predict=views, and serves priors without mixture.grid."
            )

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, revision: str | None = None, device: torch.device | str = "cpu"
    ) -> "ShapePipeline":
        """Loads a run folder, what `save_pretrained` wrote, or a hub's "owner/name" (at a revision).

        Of a hub's repository the files of a pipeline alone are fetched, and nothing is unpickled.
        Raises UserError for what is none of them, can't be reached, or doesn't fit together.
        """
        parts = fetch_package(source, revision=revision)
        try:
            pipe = cls.load(prior=parts.prior, encoder=parts.encoder, clip=parts.clip, device=device)
            pipe.parts = parts
            return pipe
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{source} isn't an intact pipeline ({type(error).__name__}: {reason})."
            ) from error

    def save_pretrained(self, folder: str | Path, *, licence: str | None = None) -> None:
        """Writes safetensors, their descriptions and a model card (README.md), ready for a hub.

        licence: of the model, as an SPDX identifier. Training data, its licences and the metrics come from
        the run that the prior lies in, where it has them.
        Raises UserError if the folder holds something else, or the pipeline wasn't loaded from folders.
        """
        if self.parts is None:
            raise UserError(
                "Only a pipeline that was loaded from folders can be saved: it copies their files."
            )
        write_package(Path(folder), self.parts, licence=licence)

    def push_to_hub(
        self, repository: str, *, licence: str | None = None, private: bool = False, token: str | None = None
    ) -> str:
        """Saves to "owner/name" on the Hugging Face hub; returns its address.

        Raises UserError for what `save_pretrained` refuses, or if the hub refuses.
        """
        return upload_package(self.save_pretrained, repository, licence=licence, private=private, token=token)

    @classmethod
    def load(
        cls, *, prior: str | Path, encoder: str | Path, clip: str | Path,
        view_prior: str | Path | None = None, weaker: str | Path | None = None,
        classifier: str | Path | None = None, ema: float | None = None, device: torch.device | str = "cpu",
        bf16: bool = False,
    ) -> "ShapePipeline":  # fmt: skip
        """Loads finished runs (clip: also an open_clip name); raises UserError if they don't fit together.

        ema: which average of the prior's weights to sample with (see `load_prior`).
        bf16: the priors' networks compute in bfloat16; the decoder and CLIP don't.
        """
        # The prior and the decoder say at once if they aren't there; CLIP may have to be downloaded.
        loaded, decoder = load_prior(Path(prior), device, ema=ema), load_decoder(Path(encoder), device)
        views = None if view_prior is None else load_prior(Path(view_prior), device)
        worse = None if weaker is None else load_prior(Path(weaker), device)
        for each in (loaded, views, worse):
            if bf16 and each is not None:
                each.use_bf16()
        parts = Parts(Path(prior), Path(encoder), str(clip))
        known = None if classifier is None else load_classifier(Path(classifier), device)
        return cls(loaded, decoder, load_clip(clip, device), parts, views, worse, known)

    def __call__(
        self, prompts: str | Sequence[str], *, num_samples: int = 1, seed: int = 0,
        generator: torch.Generator | None = None, seeds: Sequence[int] | None = None,
        steps: int = DEFAULTS.steps, guidance_scale: float = DEFAULTS.guidance_scale,
        sampler: SamplerName = DEFAULTS.sampler, step_choice: StepChoice = DEFAULTS.step_choice,
        negative_prompt: str = DEFAULTS.negative_prompt, guidance: GuidanceConfig = DEFAULTS.guidance,
        image: Pictures | Sequence[Pictures] | None = None, on_step: Callable[[int], None] | None = None,
    ) -> list[ShapeSample]:  # fmt: skip
        """Returns `num_samples` shapes of each prompt, those of the first prompt first, all in one batch.

        seed: each prompt's shapes have the seeds seed, seed + 1, ...; or generator: where to draw them from;
            or seeds: one for each shape.
        image: what they follow too; prompts may be empty then (""). One prompt takes a picture of the object
            or several, from any sides and in any order: cameras aren't asked for, since the prior is shown
            the pictures' CLIP vectors alone. A list of prompts takes a picture for all, or one or several
            for each.
        guidance_scale: 1 is the plain conditional model; more follows the condition more closely.
        guidance: its interval, rescaling, thresholds, more prompts, and the gradients that it follows.
        on_step: called with 0, 1, ... as the steps are taken.
        A distilled prior takes its own number of steps, sampler=euler and guidance_scale=1, nothing else.
        Raises UserError for a prompt that is empty or too long, for what a distilled prior doesn't take and
        for classes that the classifier doesn't know, ValueError for numbers that don't fit.
        """
        asked, shown = check_request(prompts, image)
        if not asked:
            return []
        numbers = check_seeds(len(asked), num_samples, seed=seed, generator=generator, seeds=seeds)
        texts = [text for text in asked for _ in range(num_samples)]
        pictures = [picture for picture in shown for _ in range(num_samples)]
        sigmas = prior_sigmas(self.prior, steps, step_choice)
        if self.prior.distilled is not None:
            steering = bool(negative_prompt) or self.weaker is not None or guidance != DEFAULTS.guidance
            check_distilled(
                self.prior.distilled, steps=steps, scale=guidance_scale, sampler=sampler, steering=steering
            )
            sigmas = torch.tensor(self.prior.distilled.sigmas, dtype=torch.float64)
        condition = self._condition(texts, pictures, numbers, steps)
        learned = sampler == "ddpm" and self.prior.diffusion.learned_variance
        x0 = sample(
            self._steered(condition, texts, guidance, scale=guidance_scale, negative_prompt=negative_prompt),
            initial_noise(self.noise(numbers), sigmas), sigmas, condition, method=sampler,
            log_variance=self.prior.log_variance if learned else None,
            noise=lambda i: self.noise(numbers, stream=f"sampling step {i}"), on_step=on_step,
        )  # fmt: skip
        return self.shapes(x0, texts, numbers)

    @property
    def digests(self) -> dict[str, str]:
        """Of the weights of every part that there is."""
        parts: dict[str, Any] = {
            "prior": self.prior, "encoder": self.decoder, "clip": self.clip, "view_prior": self.view_prior,
            "weaker": self.weaker, "classifier": self.classifier,
        }  # fmt: skip
        return {name: part.digest for name, part in parts.items() if part is not None}

    def noise(self, seeds: Sequence[int], *, stream: str = "sampling") -> Float[Tensor, "batch _ _"]:
        """Standard normal numbers for each shape, by its seed; the default stream is where samples start."""
        return normal(torch.tensor(seeds), self.prior.shape, stream=stream, device=self.prior.device)

    def shapes(
        self, x0: Float[Tensor, "batch _ _"], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[ShapeSample]:
        """The shapes of standardised latents."""
        latents = self.prior.unstandardise(x0).float().cpu()
        return [
            ShapeSample(latent, prompt, seed, self.decoder)
            for latent, prompt, seed in zip(latents, prompts, seeds, strict=True)
        ]

    def _condition(
        self, texts: list[str], pictures: Sequence[Sequence[Picture]], seeds: Sequence[int], steps: int
    ) -> Condition:
        """What the prior is told of each shape; through `view_prior`, if there is one, of captions alone."""
        text = self.clip.text(texts) if all(texts) else None
        pooled, grid, has_view = self._embed_pictures(pictures)
        if self.view_prior is not None and text is not None and pooled is None:
            pooled, text = self._imagine(text, seeds, karras_sigmas(steps)), None
        return self.prior.condition(text, pooled, grid=grid, has_view=has_view, batch=len(texts))

    def _steered(
        self, condition: Condition, texts: Sequence[str], guidance: GuidanceConfig, *, scale: float,
        negative_prompt: str,
    ) -> Denoise[Condition]:  # fmt: skip
        """The prior's denoiser under all that guides it."""
        return steered(
            self.prior,
            self._prompted(negative_prompt, len(texts)) if negative_prompt else condition.without(),
            [(self._prompted(more, len(texts)), weight) for more, weight in guidance.mix.items()],
            guidance,
            scale=scale,
            weaker=self.weaker,
            score=clip_score(self.prior, self.decoder, self.clip, guidance),
            log_probability=classifier_log_probability(self.classifier, texts, guidance),
        )

    def _prompted(self, prompt: str, batch: int) -> Condition:
        """A prompt for all of a batch."""
        return self.prior.condition(self.clip.text([check_prompt(prompt)]), batch=batch)

    def _imagine(
        self, text: TextEmbedding, seeds: Sequence[int], sigmas: Float[Tensor, " levels"]
    ) -> Float[Tensor, "batch embed"]:
        """Pictures' CLIP vectors that fit the captions."""
        prior = self.view_prior
        assert prior is not None
        noise = normal(torch.tensor(seeds), prior.shape, stream="views", device=prior.device)
        x0 = sample(prior.denoise, initial_noise(noise, sigmas), sigmas, prior.condition(text))
        return torch.nn.functional.normalize(prior.unstandardise(x0).flatten(1), dim=-1)

    def _embed_pictures(
        self, pictures: Sequence[Sequence[Picture]]
    ) -> tuple[
        Float[Tensor, "batch views embed"] | None, Float[Tensor, "batch views cells grid_width"] | None,
        Bool[Tensor, "batch views"] | None,
    ]:  # fmt: skip
        """CLIP's vectors of each shape's pictures, its grids where the prior reads them, and which there are.

        Each picture is embedded once; None without pictures.
        """
        known = {id(picture): picture for several in pictures for picture in several}
        if not known:
            return None, None, None
        place = {key: number for number, key in enumerate(known)}
        most = max(map(len, pictures))
        # Shapes with fewer pictures repeat one that isn't looked at.
        chosen = torch.tensor(
            [[place[id(p)] for p in (*row, *[row[0]] * (most - len(row)))] for row in pictures]
        )
        has_view = torch.tensor([[number < len(row) for number in range(most)] for row in pictures])
        pooled = torch.cat([self.clip.image(picture[None]) for picture in known.values()])
        if not self.prior.shapes.grid_width:
            return pooled[chosen], None, has_view
        grid = torch.cat([self.clip.grid(picture[None]) for picture in known.values()])
        return pooled[chosen], grid[chosen], has_view

    def load_latent(self, path: str | Path) -> ShapeSample:
        """Reads a .safetensors that a shape's `save` wrote; raises UserError if it is another encoder's."""
        return read_latent(path, self.decoder)


def check_request(
    prompts: str | Sequence[str], image: Pictures | Sequence[Pictures] | None
) -> tuple[list[str], list[Sequence[Picture]]]:
    """Returns the prompts, checked, and the pictures (or none) of each.

    Raises UserError for a bad prompt, ValueError for pictures that are too few or too many.
    """
    given = [prompts] if isinstance(prompts, str) else list(prompts)
    rows: list[Any] = [image] * len(given)  # for all prompts the same
    if not isinstance(prompts, str) and image is not None and not isinstance(image, np.ndarray):
        rows = [*image]
    if len(rows) != len(given):
        raise ValueError(f"each prompt needs an image of its own, got {len(given)} and {len(rows)}.")
    pictures: list[Sequence[Picture]]
    pictures = [[row] if isinstance(row, np.ndarray) else list(row or ()) for row in rows]
    if any(pictures) and not all(pictures):
        raise ValueError("either all shapes of a batch have an image or none has.")
    texts = [check_prompt(prompt, may_be_empty=any(pictures)) for prompt in given]
    if any(texts) and not all(texts):
        raise UserError("With an image, either all shapes of a batch have a prompt or none has.")
    return texts, pictures


def check_seeds(
    num_prompts: int, num_samples: int, *, seed: int, generator: torch.Generator | None,
    seeds: Sequence[int] | None,
) -> list[int]:  # fmt: skip
    """Returns the seed of each shape; raises UserError for one that is out of range.

    Raises ValueError if `num_samples` isn't positive or `seeds` are too few or too many.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be positive, got {num_samples}.")
    count = num_prompts * num_samples
    if seeds is not None:
        numbers = list(seeds)
    elif generator is not None:
        drawn = torch.randint(MAX_SEED, (count,), generator=generator, device=generator.device)
        numbers = drawn.tolist()
    else:
        numbers = list(range(seed, seed + num_samples)) * num_prompts
    if len(numbers) != count:
        raise ValueError(f"each shape needs a seed of its own, got {count} and {len(numbers)}.")
    if any(not 0 <= number <= MAX_SEED for number in numbers):
        raise UserError(f"A seed is a number from 0 to {MAX_SEED}, got {numbers}.")
    return numbers


def check_distilled(
    distilled: Distilled, *, steps: int, scale: float, sampler: SamplerName, steering: bool
) -> None:
    """Raises UserError for settings that a distilled prior can't follow."""
    if (steps, scale, sampler in ("euler", "ddim"), steering) != (distilled.steps, 1, True, False):
        raise UserError(
            f"This prior was distilled to {distilled.steps} steps with guidance {distilled.guidance_scale:g} "
            f"baked in: sample it with steps={distilled.steps} guidance_scale=1 sampler=euler, and without "
            "negative_prompt, guidance or weaker. For other settings use the prior that it was made from."
        )


def check_prompt(prompt: str, *, may_be_empty: bool = False) -> str:
    """Returns the prompt, its white space made single; raises UserError if nothing or too much is left."""
    text = " ".join(prompt.split())
    if not text and not may_be_empty:
        raise UserError('A prompt says what to make, such as "a red chair"; this one is empty.')
    if len(text) > MAX_PROMPT_LENGTH:
        raise UserError(
            f"A prompt has at most {MAX_PROMPT_LENGTH} characters, this one {len(text)}: {text[:60]}..."
        )
    return text
