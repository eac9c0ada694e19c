"""What an edit can start from: a saved latent, a picture, or a 3D file that is encoded on the spot."""

from pathlib import Path
from tempfile import TemporaryDirectory

from data_prep.failures import from_jsonl
from data_prep.formats.load import SUFFIXES
from data_prep.pipeline import DataConfig, Limits, ShardTask, prepare_shard, quarantine_path
from data_prep.sources.find import SplitFractions, make_sources
from data_prep.sources.listings import Listed
from encoder.model import load_encoder, read_for_encoding
from sampling.cutouts import DEFAULT, PictureConfig, load_image
from sampling.guidance import DEFAULTS
from sampling.pipeline import ShapePipeline
from sampling.shape import ShapeSample
from shapeloom.config import UserError, load_config
from shapeloom.executors import run_tasks
from shapeloom.shards import AssetShards, finish_dataset

PICTURES = (".png", ".jpg", ".jpeg")
DEFAULT_LIMITS = Limits()


def read_shape(
    pipe: ShapePipeline, path: Path, *, seed: int = 0, steps: int = DEFAULTS.steps,
    guidance_scale: float = DEFAULTS.guidance_scale, pictures: PictureConfig = DEFAULT,
) -> ShapeSample:  # fmt: skip
    """Returns the shape of a file: .safetensors holds its latent, 3D files are encoded, pictures followed.

    seed, steps, guidance_scale: of the sample that follows a picture; pictures: how that is made ready.
    Raises UserError for a file of another kind, or one that can't be read as what it says it is.
    """
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return pipe.load_latent(path)
    if suffix in PICTURES:
        picture = load_image(path, pictures)
        (shape,) = pipe("", image=picture, seed=seed, steps=steps, guidance_scale=guidance_scale)
        return shape
    if suffix in SUFFIXES:
        return encode_asset(pipe, path)
    kinds = ", ".join((".safetensors", *PICTURES, *SUFFIXES))
    raise UserError(f"{path} is no shape to start from; name a file of {kinds}.")


def encode_asset(
    pipe: ShapePipeline, path: Path, *, limits: Limits = DEFAULT_LIMITS, by_server: bool = False
) -> ShapeSample:
    """Returns a 3D file's shape: prepared as the model's data was (or as by default), then encoded.

    limits: what preparing it may cost. by_server: in a process of a fork server, for callers with threads (a
    fork of theirs may hang); else in a fork of this one, which any script can have.
    Raises UserError for a pipeline without its encoder's own half, and for a file that can't be prepared.
    """
    if pipe.parts is None or not (pipe.parts.encoder / "encoder.yaml").is_file():
        raise UserError("This model came without its encoder (encoder.yaml), so it can't encode 3D files.")
    model = load_encoder(pipe.parts.encoder, pipe.prior.device)
    of_data = pipe.parts.encoder.parent / "data" / "config.yaml"
    config = load_config(DataConfig, of_data if of_data.is_file() else None, ["objaverse=null"])
    # The model's data may be a stranger's: what preparing an asset may cost is for this machine to say.
    config = config.model_copy(update={"workers": 1, "limits": limits})
    sources, failures = make_sources(path.parent, {path.name: Listed()}, [], SplitFractions())
    with TemporaryDirectory() as name:
        task = ShardTask(Path(name, "shards", "000000.tar"), path.parent, sources, config)
        if not failures:
            for _ in run_tasks(
                prepare_shard, [task], workers=1 if by_server else 0, on_report=lambda *_: None,
                preload=["data_prep.pipeline"],
            ):  # fmt: skip
                failures = from_jsonl(quarantine_path(task.path).read_text())
        if failures:
            raise UserError(f"{path} can't be prepared: {failures[0].reason} ({failures[0].message}).")
        facts = {"views": config.num_views, "resolution": config.resolution}
        finish_dataset(Path(name), kind="assets", facts=facts)
        sample = read_for_encoding(AssetShards(name), 0, model)
    return ShapeSample(model.encode([sample])[0].float().cpu(), path.stem, 0, pipe.decoder)
