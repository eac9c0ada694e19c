"""Shap-E as users type it: converted, sampled, compared, encoded with, fine-tuned, handed to diffusers."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from safetensors.torch import load_file

import encoder.encode as encode_stage
import prior.train as prior_stage
import sampling.__main__ as sampling_stage
import sampling.pipeline
import sampling.shap_e.convert as convert_stage
import sampling.shap_e.reference as faithful_stage
from prior.model import load_prior
from sampling.pipeline import ShapePipeline
from shapeloom.config import UserError
from shapeloom.decoder import load_decoder
from shapeloom.shards.tensors import LatentShards
from tests.small_pictures import save_disc
from tests.small_shap_e import SMALL, FakeClip, write_published

QUICK = (
    "mesh={resolution: 32, texture_size: 64, max_faces: 500}",
    "turntable={frames: 2, size: 16}",
    "steps=2",
)
TRAIN = (
    "network={kind: shap_e_text, width: 32, depth: 2, heads: 4}",
    "train={steps: 8, batch_size: 4, learning_rate: 0.01, warmup_steps: 0, precision: bf16, ema_decay: 0.5, "
    "checkpoint_every: 4, picture_every: 100, accumulation: 2, log_every: 1}",
)


@pytest.fixture(autouse=True)
def _no_clip_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sampling.pipeline, encode_stage):
        monkeypatch.setattr(module, "load_clip", lambda *_: FakeClip())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pipelines, converted on the command line (at small sizes)."""
    folder = tmp_path_factory.mktemp("models")
    source, out = write_published(folder), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert_stage, "convert", partial(convert_stage.convert, sizes=SMALL))
        for model in ("text300M", "image300M"):
            out[model] = folder / model
            convert_stage.main(
                ["--out", str(out[model]), "--set", f"source={source}", f"model={model}", "allow_other=true"]
            )
    return out


@pytest.fixture(scope="module")
def latents(models: dict[str, Path], ball_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of own assets, with grids."""
    out = tmp_path_factory.mktemp("encoded") / "latents"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_stage, "load_clip", lambda *_: FakeClip())
        encode_stage.main([
            "--config", "configs/encode/shap_e.yaml", "--out", str(out), "--set", f"data={ball_dataset}",
            f"encoder={models['text300M'] / 'encoder'}", "clip=fake", "fidelity_size=8", "workers=0",
            "clip_grid=true",
        ])  # fmt: skip
    return out


def test_files_that_are_not_the_published_ones_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    source = models["text300M"].parent
    with pytest.raises(UserError, match=r"text_cond\.pt has no|text_cond\.pt: wrapped"):
        convert_stage.main(["--out", str(tmp_path / "out"), "--set", f"source={source}"])
    assert not (tmp_path / "out").exists()


def test_prompts_and_pictures_become_textured_glb_files(models: dict[str, Path], tmp_path: Path) -> None:
    save_disc(tmp_path / "chair.png")
    for model, asked in (
        ("text300M", ["--prompt", "a chair"]),
        ("image300M", ["--image", f"{tmp_path}/chair.png"]),
    ):
        out = tmp_path / model
        sampling_stage.main([
            "--config", "configs/sampling/shap_e.yaml", "--model", str(models[model]), "--out", str(out),
            *asked, "--set", *QUICK, "formats=[gif, glb, safetensors]",
        ])  # fmt: skip
        mesh = trimesh.load(next(out.glob("*.glb")), force="mesh")
        assert mesh.visual.material.baseColorTexture is not None and len(mesh.faces) > 100
        assert json.loads((out / "metadata.json").read_text())["samples"][0]["guidance_scale"] == 15


def test_the_faithful_command_shrinks_the_same_latent(models: dict[str, Path], tmp_path: Path) -> None:
    model = models["text300M"]
    settings = [f"model={model}", "size=8", "resolution=24", "steps=2"]
    faithful_stage.main(["--out", str(tmp_path / "a"), "--set", *settings, "prompt=a chair"])
    shape = ShapePipeline.from_pretrained(model).load_latent(tmp_path / "a" / "latent.safetensors")
    latent = f"latent={tmp_path / 'a' / 'latent.safetensors'}"
    faithful_stage.main(["--out", str(tmp_path / "b"), "--set", *settings, latent])
    first, again = (tmp_path / name / "mesh.ply" for name in "ab")
    assert first.read_bytes() == again.read_bytes()
    extents = trimesh.load(first, process=False).extents
    # The recorded ellipsoid, fitted to about 0.05, shrunk by 23/25.
    assert np.allclose(extents, np.array([1.4, 1.0, 0.8]) * 23 / 25, atol=0.06)
    assert shape.prompt == "a chair"
    with pytest.raises(UserError, match="name one of prompt, image and latent"):
        faithful_stage.main(["--out", str(tmp_path / "c"), "--set", *settings, latent, "prompt=a chair"])


def test_own_assets_become_latent_shards(latents: Path, ball_dataset: Path) -> None:
    encoded = LatentShards(latents)
    assert encoded.header["layers"] == [32] * 4
    row = encoded.read(1)
    assert row["latent"].shape == (128, 16) and row["image_grid"].shape == (4, 256, 1024)
    assert encoded.facts(1)["fidelity"]["psnr"] > 0


def fine_tune(models: dict[str, Path], latents: Path, out: Path, *settings: str) -> list[dict]:
    model = "image300M" if "network.kind=shap_e_image" in settings else "text300M"
    preset = f"configs/prior/shap_e_{model.removesuffix('300M')}_lora.yaml"
    prior_stage.main([
        "--config", preset, "--out", str(out), "--set", f"latents={latents}",
        f"fine_tune.init_from={models[model] / 'prior'}", *TRAIN, "fine_tune.lora_rank=2", *settings,
    ])  # fmt: skip
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def changed(models: dict[str, Path], tuned: Path, model: str = "text300M") -> set[str]:
    before, after = (load_file(f / "weights.safetensors") for f in (models[model] / "prior", tuned))
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_low_rank_changes_touch_the_blocks_matrices_alone(
    models: dict[str, Path], latents: Path, tmp_path: Path
) -> None:
    fine_tune(models, latents, tmp_path / "a")
    blocks = changed(models, tmp_path / "a")
    assert blocks and all("resblocks" in name and name.endswith("weight") for name in blocks)
    fine_tune(models, latents, tmp_path / "b", "fine_tune.last_layers=1")
    assert all("resblocks.1." in name for name in changed(models, tmp_path / "b"))


def test_the_last_layers_alone_can_be_trained(models: dict[str, Path], latents: Path, tmp_path: Path) -> None:
    fine_tune(models, latents, tmp_path / "a", "fine_tune.lora_rank=0", "fine_tune.last_layers=1")
    names = changed(models, tmp_path / "a")
    assert all("resblocks.1." in name or "ln_post" in name or "output_proj" in name for name in names)
    with pytest.raises(UserError, match="last_layers=3, of 2 blocks"):
        fine_tune(models, latents, tmp_path / "b", "fine_tune.lora_rank=0", "fine_tune.last_layers=3")


@pytest.mark.parametrize("way", ["lora", "full"])
def test_a_resumed_run_ends_with_the_same_bytes(
    models: dict[str, Path], latents: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = () if way == "lora" else ("fine_tune.lora_rank=0", "train.zero_stage=2", "train.offload=true")
    fine_tune(models, latents, tmp_path / "whole", *settings)

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        # Killed after the checkpoint of step 4, in step 6.
        patch.setattr(
            "shapeloom.training_loop.Loop._log", lambda loop, done, _: stop() if done == 6 else None
        )
        with pytest.raises(Stop):
            fine_tune(models, latents, tmp_path / "cut", *settings)
    fine_tune(models, latents, tmp_path / "cut", *settings)
    whole, cut = (tmp_path / name / "weights.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()


def test_the_image_model_learns_from_grids(models: dict[str, Path], latents: Path, tmp_path: Path) -> None:
    network = ("network.kind=shap_e_image", "network.heads=2", "network.depth=1")
    fine_tune(models, latents, tmp_path / "a", *network)
    assert changed(models, tmp_path / "a", "image300M")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("mixture.image_only=0.1",), "reads captions alone: set mixture"),
        (("network.kind=shap_e_image", "network.heads=2", "network.depth=1", "mixture.image_only=0.5"),
         "reads one picture alone"),
        (("network.depth=3",), "was trained with network"),
    ],
)  # fmt: skip
def test_what_a_published_model_cannot_learn_from_is_said_at_once(
    models: dict[str, Path], latents: Path, tmp_path: Path, settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        fine_tune(models, latents, tmp_path, *settings)


def test_a_fine_tuned_prior_samples_here_and_goes_to_diffusers_and_back(
    models: dict[str, Path], latents: Path, tmp_path: Path
) -> None:
    fine_tune(models, latents, tmp_path / "mine")
    decoder = load_decoder(models["text300M"] / "encoder")
    pipe = ShapePipeline(load_prior(tmp_path / "mine"), decoder, FakeClip())
    assert torch.isfinite(pipe("a ball", steps=2)[0].latent).all()
    for out, settings in (
        ("theirs", [f"source={models['text300M']}", f"prior={tmp_path / 'mine'}", "to=diffusers"]),
        ("back", [f"source={tmp_path / 'theirs'}"]),
    ):
        convert_stage.main(["--out", str(tmp_path / out), "--set", *settings])
    mine, back = (
        load_file(f / "weights.safetensors") for f in (tmp_path / "mine", tmp_path / "back" / "prior")
    )
    assert mine.keys() == back.keys() and all(torch.equal(mine[name], back[name]) for name in mine)
