"""Published checkpoints to pipelines: read, checked, converted both ways, and sampled from."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prior.model import load_prior
from sampling.shap_e.convert import ConvertConfig, convert
from shapeloom.config import UserError
from shapeloom.shap_e.field import ShapEFieldConfig
from shapeloom.shap_e.inputs import ShapEEncoderConfig
from shapeloom.shap_e.prior import ShapEPriorConfig
from shapeloom.shap_e.published import FILES, Part, Sizes, read_published, skeleton
from tests.golden_data import BESIDE, published_shapes

SMALL = Sizes(
    encoder=ShapEEncoderConfig(
        width=32, heads=4, num_layers=1, num_points=64, num_centres=16, num_views=2, size=16
    ),
    field=ShapEFieldConfig(width=8, channels=16),
    text300M=ShapEPriorConfig(reads="text", width=32, depth=2, heads=4),
    image300M=ShapEPriorConfig(reads="image", width=32, depth=2, heads=2),
)


def random_state(part: Part) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(len(part))
    return {
        name: 0.2 * torch.randn(value.shape, generator=generator)
        for name, value in skeleton(part, SMALL).state_dict().items()
    }


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the published one, small."""
    folder = tmp_path_factory.mktemp("published")
    for part in ("transmitter", "text300M", "image300M"):
        torch.save(random_state(part), folder / FILES[part][0])
    return folder


@pytest.mark.parametrize("part", ["transmitter", "text300M", "image300M"])
def test_skeletons_are_the_published_models_key_by_key(part: Part) -> None:
    model = skeleton(part)
    shapes, elements = published_shapes(part)
    state = model.state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == shapes
    assert sum(value.numel() for value in state.values()) == elements


def test_golden_order_of_keys_is_that_of_the_files() -> None:
    manifest = BESIDE / "state_dict_manifest.json"
    if not manifest.is_file():
        pytest.skip("the whole manifest isn't in ../shared/golden")
    for part, model in json.loads(manifest.read_text())["models"].items():
        assert list(skeleton(part).state_dict()) == list(model["state_dict"])


def test_parameters_of_the_transmitter_are_counted_as_published() -> None:
    assert sum(p.numel() for p in skeleton("transmitter").parameters()) == 443_771_357


def test_a_checkpoint_is_read_as_it_was_saved(published: Path) -> None:
    state = read_published(published / "text_cond.pt", "text300M", sizes=SMALL, allow_other=True)
    for name, value in random_state("text300M").items():
        assert torch.equal(state[name], value)


def test_another_file_than_the_published_one_is_refused(published: Path) -> None:
    with pytest.raises(UserError, match=r"text_cond\.pt.*isn't the published file.*e6b4fa59.*allow_other"):
        read_published(published / "text_cond.pt", "text300M", sizes=SMALL)


def test_a_file_of_another_model_names_the_first_bad_key(published: Path) -> None:
    with pytest.raises(
        UserError, match=r"image_cond\.pt has no wrapped\.clip_embed\.weight \(2 keys missing, 4 unknown"
    ):
        read_published(published / "image_cond.pt", "text300M", sizes=SMALL, allow_other=True)
    wider = SMALL.model_copy(update={"field": ShapEFieldConfig(width=16, channels=16)})
    with pytest.raises(UserError, match=r"wrapped\.pos_emb is torch\.float32 \[32, 32\].*\[64, 32\]"):
        read_published(published / "text_cond.pt", "text300M", sizes=wider, allow_other=True)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.999])
def test_a_truncated_file_names_the_first_key_that_is_cut_off(
    published: Path, tmp_path: Path, share: float
) -> None:
    whole = (published / "text_cond.pt").read_bytes()
    end = int(share * len(whole))
    path = tmp_path / "text_cond.pt"
    path.write_bytes(whole[:end])
    with zipfile.ZipFile(published / "text_cond.pt") as archive:
        started = [info.filename for info in archive.infolist() if info.header_offset < end]
    keys = list(skeleton("text300M", SMALL).state_dict())
    last = started[-1].rsplit("/", 1)[-1]
    expected = keys[int(last)] if last.isdigit() else last
    with pytest.raises(UserError, match=f"{path.name} is damaged: .*{expected}"):
        read_published(path, "text300M", sizes=SMALL, allow_other=True)


def test_a_tampered_file_names_the_key_whose_bytes_were_changed(published: Path, tmp_path: Path) -> None:
    data = bytearray((published / "text_cond.pt").read_bytes())
    victim = random_state("text300M")["wrapped.ln_post.weight"].numpy().tobytes()
    place = bytes(data).index(victim)
    data[place + 2] ^= 1
    path = tmp_path / "text_cond.pt"
    path.write_bytes(data)
    with pytest.raises(
        UserError, match=r"text_cond\.pt is damaged: wrapped\.ln_post\.weight doesn't have the checksum"
    ):
        read_published(path, "text300M", sizes=SMALL, allow_other=True)


class Malice:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("/tmp/shapeloom-was-here"),))


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "text_cond.pt"
    torch.save({"wrapped.pos_emb": Malice()}, path)
    with pytest.raises(UserError, match="no checkpoint of bare tensors"):
        read_published(path, "text300M", sizes=SMALL, allow_other=True)
    assert not Path("/tmp/shapeloom-was-here").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04"])
def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text_cond.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"text_cond\.pt is (no checkpoint|damaged)"):
        read_published(path, "text300M", sizes=SMALL, allow_other=True)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = random_state("text300M")
    state["wrapped.ln_pre.bias"][3] = torch.nan
    torch.save(state, tmp_path / "text_cond.pt")
    with pytest.raises(UserError, match=r"wrapped\.ln_pre\.bias holds NaN"):
        read_published(tmp_path / "text_cond.pt", "text300M", sizes=SMALL, allow_other=True)


@pytest.fixture(scope="module")
def pipeline(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pipeline") / "text"
    convert(ConvertConfig(source=published, allow_other=True), out, sizes=SMALL)
    return out


def test_a_converted_prior_says_the_same(pipeline: Path) -> None:
    prior = load_prior(pipeline / "prior")
    theirs = random_state("text300M")
    assert isinstance(prior.network, nn.Module) and prior.shape == (32, 16)
    for name, value in prior.network.state_dict().items():
        assert torch.equal(value, theirs[name])
    assert json.loads((pipeline / "pipeline.json").read_text())["clip"] == "ViT-L-14/openai"
