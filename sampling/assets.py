"""What an edit can start from: a saved latent, a picture, or a 3D file that is encoded on the spot."""

from pathlib import Path
from tempfile import TemporaryDirectory

from data_prep.failures import Failure
from data_prep.formats.load import SUFFIXES
from data_prep.pipeline import DataConfig, Limits, prepare_asset
from data_prep.sources.find import SplitFractions, make_sources
from data_prep.sources.listings import Listed
from encoder.model import load_encoder, read_for_encoding
from sampling.cutouts import DEFAULT, PictureConfig, load_image
from sampling.guidance import DEFAULTS
from sampling.pipeline import ShapePipeline
from sampling.shape import ShapeSample
from shapeloom.config import UserError, load_config
from shapeloom.shards import AssetShards, finish_dataset, write_shard

PICTURES = (".png", ".jpg", ".jpeg")


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


def encode_asset(pipe: ShapePipeline, path: Path) -> ShapeSample:
    """Returns a 3D file's shape: prepared as the model's data was (or as by default), then encoded.

    Raises UserError for a pipeline without its encoder's own half, and for a file that can't be prepared.
    """
    if pipe.parts is None or not (pipe.parts.encoder / "encoder.yaml").is_file():
        raise UserError("This model came without its encoder (encoder.yaml), so it can't encode 3D files.")
    model = load_encoder(pipe.parts.encoder, pipe.prior.device)
    of_data = pipe.parts.encoder.parent / "data" / "config.yaml"
    config = load_config(DataConfig, of_data if of_data.is_file() else None, ["objaverse=null"])
    # The model's data may be a stranger's: what preparing an asset may cost is for this machine to say.
    config = config.model_copy(update={"workers": 1, "limits": Limits()})
    sources, failures = make_sources(path.parent, {path.name: Listed()}, [], SplitFractions())
    outcome = failures[0] if failures else prepare_asset(sources[0], path.parent, config)[0]
    if isinstance(outcome, Failure):
        raise UserError(f"{path} can't be prepared: {outcome.reason} ({outcome.message}).")
    with TemporaryDirectory() as name:
        write_shard(Path(name, "shards", "000000.tar"), [outcome])
        facts = {"views": config.num_views, "resolution": config.resolution}
        finish_dataset(Path(name), kind="assets", facts=facts)
        sample = read_for_encoding(AssetShards(name), 0, model)
    return ShapeSample(model.encode([sample])[0].float().cpu(), path.stem, 0, pipe.decoder)
