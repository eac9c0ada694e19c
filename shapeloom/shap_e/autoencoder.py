"""Shap-E's encoder and decoder together, as `encoder` and `eval` use any autoencoder of assets."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shapeloom.config import UserError, load_config
from shapeloom.decoder import Decoder
from shapeloom.shap_e.encoder import ShapEEncoder, random_permutations
from shapeloom.shap_e.field import ShapEProjection
from shapeloom.shap_e.inputs import ShapEEncoderConfig, official_inputs
from shapeloom.shards import AssetSample
from shapeloom.weights import halve_weights, read_tensors


class ShapEAutoencoder(nn.Module):
    """Encoder and decoder of the published transmitter, whose projection both share.

    bf16: computes in bfloat16 (see `halve_weights`); latents differ by about 1%. Fields stay in float32.
    """

    def __init__(self, encoder: ShapEEncoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder, self.bf16 = encoder, decoder, False
        self.num_views = encoder.config.num_views

    def use_bf16(self) -> None:
        """From now on."""
        for name, part in self.encoder.named_children():
            if name != "params_proj":  # its matrices are the decoder's
                halve_weights(part)
        self.bf16 = True

    @torch.no_grad()
    def encode(
        self, samples: Sequence[AssetSample], *, shuffle: torch.Generator | None = None
    ) -> Float[Tensor, "batch tokens channels"]:
        """Returns the latents of assets read by `read_for_encoding`; deterministic.

        shuffle: permutes neighbours' samples as the reference does.
        """
        device = self.encoder.output_tokens.device
        orders = None
        if shuffle is not None:
            drawn = random_permutations(self.encoder.config, len(samples), shuffle)
            orders = [order.to(device) for order in drawn]
        inputs = official_inputs(samples, self.encoder.config, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            latent: Tensor = self.encoder(inputs, orders)
        return latent


def load_shap_e(folder: Path, decoder: Decoder) -> ShapEAutoencoder:
    """Returns the autoencoder of a converted checkpoint; UserError if it has no encoder."""
    if not (folder / "encoder.yaml").is_file():
        raise UserError(
            f"{folder} was converted from Shap-E's decoder alone: convert transmitter.pt to encode assets."
        )
    assert decoder.config.shap_e is not None
    config = load_config(ShapEEncoderConfig, folder / "encoder.yaml")
    with torch.device("meta"):
        encoder = ShapEEncoder(config, decoder.config.shap_e)
    assert isinstance(decoder.projection, ShapEProjection)
    state = {f"params_proj.{name}": value for name, value in decoder.projection.state_dict().items()}
    state |= read_tensors(folder / "weights.safetensors", "encoder.")
    encoder.load_state_dict(state, assign=True)
    encoder.params_proj = decoder.projection
    device = next(decoder.parameters()).device
    return ShapEAutoencoder(encoder.to(device), decoder).eval().requires_grad_(False)
