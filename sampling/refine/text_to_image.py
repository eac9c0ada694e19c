"""Any diffusers text-to-image folder, as a guide or to draw pictures.

Stable Diffusion 1.x and 2.x, and DeepFloyd IF's first stage.

What it is comes from its files: unet/ with UNet2DConditionModel, scheduler/ with the noise levels and what is
predicted (eps or v), vae/ where it works on latents, text_encoder/ and tokenizer/ (CLIP or T5, by the library
transformers). Nothing is fetched, and weights are read from safetensors alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor, nn

from sampling.refine.guides import composited, resized
from sampling.refine.rendering import Views
from shapeloom.config import UserError
from shapeloom.diffusion.discrete import DiscreteSchedule
from shapeloom.diffusion.guidance import classifier_free
from shapeloom.diffusion.objectives import Target, to_x0
from shapeloom.diffusion.samplers import sample
from shapeloom.diffusion.steps import karras_sigmas
from shapeloom.noise import normal
from shapeloom.pictures import to_uint8
from shapeloom.runs import text_digest
from shapeloom.storage import file_digest, read_json

CAMERA_NUMBERS = 16
CAMERA_DROPOUT = 0.1
"""How often VSD's own network isn't told the camera (ProlificDreamer's code)."""
EncodeText = Callable[[Sequence[str]], Tensor]
"""Prompts to [prompts, tokens, channels]."""
TARGETS: dict[str, Target] = {"epsilon": "eps", "v_prediction": "v"}


@dataclass(frozen=True)
class TextCondition:
    """A text embedding for each picture, and the camera of VSD's own network's (zeros: unknown)."""

    text: Float[Tensor, "batch tokens channels"]
    camera: Float[Tensor, "batch 16"] | None = None


class TextToImage:
    """A `Guide`. Make it with `load_text_to_image`."""

    reads_cameras, sees_alpha, joins_views = False, False, False

    def __init__(
        self, unet: Any, vae: Any, scheduler: Any, encode_text: EncodeText, *, digest: str = "",
    ) -> None:  # fmt: skip
        """unet: UNet2DConditionModel; vae: AutoencoderKL or none; scheduler: any with DDPM's config.

        Raises UserError for a kind of network or prediction that isn't known."""
        config, kind = unet.config, scheduler.config.prediction_type
        if kind not in TARGETS:
            raise UserError(f"This model predicts {kind!r}; known are {', '.join(TARGETS)}.")
        extra = config.addition_embed_type or config.class_embed_type
        if extra not in (None, "text"):
            raise UserError(
                f"This model's network wants more than a text embedding ({extra}), as SDXL's does; Stable "
                "Diffusion 1.x and 2.x and DeepFloyd IF's first stage are known."
            )
        self.network: nn.Module = unet.eval().requires_grad_(False)
        self.vae = None if vae is None else vae.eval().requires_grad_(False)
        self.schedule, self.target = DiscreteSchedule(scheduler.alphas_cumprod), TARGETS[kind]
        self.digest, self._encode_text, self._known = digest, encode_text, dict[str, Tensor]()
        down = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        self.size = int(config.sample_size) * down
        self._camera: nn.Module | None = None

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def sigma(self, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """See `Guide`; of the nearest whole step."""
        return self.schedule.sigma(t) / self.schedule.alpha(t)

    def encode(
        self, pictures: Float[Tensor, "batch 4 height width"], background: Float[Tensor, "batch 3"]
    ) -> Float[Tensor, "batch channels side side"]:
        """Pixels in [-1, 1], or the autoencoder's scaled latents (their distribution's mode)."""
        pixels = 2 * resized(composited(pictures, background), self.size) - 1
        if self.vae is None:
            return pixels
        config = self.vae.config
        latent: Tensor = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode().float()
        return (latent - (config.shift_factor or 0.0)) * config.scaling_factor

    @torch.no_grad()
    def draw(self, prompt: str, *, seed: int, steps: int, scale: float) -> UInt8[ndarray, "size size 3"]:
        """Returns a picture of a prompt.

        scale: of classifier-free guidance, x(null) + scale (x(prompt) - x(null)); these models want some 7.5.
        """
        low, high = self.sigma(torch.tensor([0.0, 1.0])).tolist()
        sigmas = karras_sigmas(steps, sigma_min=low, sigma_max=high)
        config: Any = self.network.config
        shape = (config.in_channels, config.sample_size, config.sample_size)
        noise = normal(torch.tensor([seed]), shape, stream="drawing", device=self._device)
        denoise = classifier_free(self.denoise, self._told([""]), scale=scale)
        x = sample(denoise, noise * float(sigmas[0]), sigmas, self._told([prompt]))
        if self.vae is not None:
            known = self.vae.config
            x = self.vae.decode(
                x.to(self.vae.dtype) / known.scaling_factor + (known.shift_factor or 0.0)
            ).sample
        return to_uint8((x[0].float().cpu().movedim(0, -1).numpy() + 1) / 2)

    def _told(self, prompts: Sequence[str]) -> TextCondition:
        """The prompts' condition; each is embedded once."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if new:
            self._known |= dict(zip(new, self._encode_text(new).to(self._device), strict=True))
        return TextCondition(torch.stack([self._known[prompt] for prompt in prompts]))

    def condition(self, prompts: Sequence[str], views: Views) -> TextCondition:
        """See `Guide`."""
        return self._told(prompts)

    def null(self, views: Views) -> TextCondition:
        """The empty prompt, as these models are trained."""
        return self._told([""] * len(views.azimuth))

    def denoise(
        self, x: Float[Tensor, "batch channels side side"], sigma: Float[Tensor, " batch"],
        condition: TextCondition,
    ) -> Float[Tensor, "batch channels side side"]:  # fmt: skip
        """See `Guide`."""
        t = self.schedule.time(sigma)
        x_t = self.schedule.alpha(t)[:, None, None, None] * x
        network: Any = self.network
        network.class_embedding = self._camera if condition.camera is not None else None
        answer = network(
            x_t.to(network.dtype), self.schedule.step(t), condition.text.to(network.dtype),
            class_labels=condition.camera,
        ).sample.float()  # fmt: skip
        # IF's network says a variance too, after the noise.
        return to_x0(self.target, self.schedule, answer[:, : x.shape[1]], x_t, t)

    def own_parts(self) -> list[nn.Parameter]:
        """An embedding of the 16 numbers of the camera's pose, in the place of a class's."""
        width = cast("Any", self.network).time_embedding.linear_1.out_features
        self._camera = TimestepEmbedding(CAMERA_NUMBERS, width).to(self._device)
        last = cast("Any", self._camera).linear_2
        nn.init.zeros_(last.weight)  # so that it starts as the pretrained network
        nn.init.zeros_(last.bias)
        return list(self._camera.parameters())

    def own_condition(
        self, prompts: Sequence[str], views: Views, generator: torch.Generator
    ) -> TextCondition:
        """See `Guide`."""
        told = torch.rand(len(prompts), 1, generator=generator) >= CAMERA_DROPOUT
        camera = (views.cam_to_world.flatten(1) * told).to(self._device)
        return TextCondition(self.condition(prompts, views).text, camera)

    def own_denoise(
        self, x: Float[Tensor, "batch channels side side"], sigma: Float[Tensor, " batch"],
        condition: TextCondition,
    ) -> Float[Tensor, "batch channels side side"]:  # fmt: skip
        """See `Guide`."""
        return self.denoise(x, sigma, condition)


def load_text_to_image(folder: Path, device: torch.device | str = "cpu") -> TextToImage:
    """Loads a diffusers folder; networks in float16 on a GPU, but for the autoencoder, which overflows there.

    Raises UserError for a folder that isn't one, or lacks something.
    """
    if not (folder / "unet" / "config.json").is_file():
        raise UserError(
            f"{folder} is no diffusers text-to-image folder: there is no unet/config.json. `hf download` of "
            "a Stable Diffusion 1.x or 2.x or a DeepFloyd IF repository makes one."
        )
    dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
    try:
        unet = UNet2DConditionModel.from_pretrained(
            folder / "unet", torch_dtype=dtype, use_safetensors=True, local_files_only=True
        )
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
        vae = None
        if (folder / "vae").is_dir():
            vae = AutoencoderKL.from_pretrained(
                folder / "vae", torch_dtype=torch.float32, use_safetensors=True, local_files_only=True
            )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} can't be loaded as a diffusers model: {error}") from error
    weights = sorted(path for path in folder.glob("*/*.safetensors") if path.parent.name in ("unet", "vae"))
    digest = text_digest(" ".join(file_digest(path) for path in weights))
    encode = load_text_encoder(folder, device)
    moved = None if vae is None else vae.to(device)
    return TextToImage(unet.to(device), moved, scheduler, encode, digest=digest)


def load_text_encoder(folder: Path, device: torch.device | str) -> EncodeText:
    """Returns text_encoder/ and tokenizer/ of a folder as a function; by transformers.

    Raises UserError if that isn't installed, or the encoder is neither CLIP's nor T5's.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            "Text encoders of diffusers folders need the library transformers: pip install -e '.[refine]'."
        ) from error
    path = folder / "text_encoder" / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no text_encoder/config.json. Copy the model again.")
    names = read_json(path, advice="Copy the model again.").get("architectures") or [""]
    kinds = {"CLIPTextModel": transformers.CLIPTextModel, "T5EncoderModel": transformers.T5EncoderModel}
    if names[0] not in kinds:
        raise UserError(f"The text encoder in {folder} is a {names[0]!r}; known are {', '.join(kinds)}.")
    try:
        encoder = kinds[names[0]].from_pretrained(
            folder / "text_encoder", use_safetensors=True, local_files_only=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}'s text encoder can't be loaded: {error}") from error
    encoder = encoder.to(device).eval().requires_grad_(False)
    # T5 has no length of its own; IF was trained with 77, as CLIP.
    length = min(int(getattr(encoder.config, "max_position_embeddings", 77)), 77)
    masked = names[0] == "T5EncoderModel"

    @torch.no_grad()
    def encode(prompts: Sequence[str]) -> Tensor:
        ids = tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).to(device)
        mask = ids.attention_mask if masked else None
        return cast("Tensor", encoder(ids.input_ids, attention_mask=mask)[0]).float()

    return encode
