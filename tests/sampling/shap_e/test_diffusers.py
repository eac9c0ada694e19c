"""Conversion to and from diffusers' Shap-E, against diffusers itself where it is installed."""

from pathlib import Path

import pytest
import torch
import trimesh
from safetensors.torch import load_file, save_file

from prior.model import load_prior
from sampling.shap_e.convert import ConvertConfig, convert
from sampling.shap_e.reference import reference_mesh
from shapeloom.config import UserError
from shapeloom.decoder import load_decoder
from shapeloom.diffusion.discrete import exponential_process
from shapeloom.shap_e.diffusers import triangle_table
from shapeloom.shap_e.field import ShapEFieldConfig
from shapeloom.shap_e.prior import ShapEPriorConfig
from shapeloom.shap_e.published import FILES, GRID_WIDTH, Sizes, skeleton
from tests.golden_data import assert_same

SIZES = Sizes(
    field=ShapEFieldConfig(width=8, channels=16),
    text300M=ShapEPriorConfig(reads="text", width=32, depth=2, heads=4),
    image300M=ShapEPriorConfig(reads="image", width=32, depth=2, heads=2),
)
# numpy asks of torch's tensors what they can't yet say, in diffusers' scheduler.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
MODELS = pytest.mark.parametrize("model", ["text300M", "image300M"])


def make(folder: Path, model: str) -> tuple[Path, Path]:
    """Small checkpoints as a pipeline of ours, and that as diffusers'."""
    generator = torch.Generator().manual_seed(0)
    source = folder / "source"
    source.mkdir(parents=True)
    for part in ("decoder", model):
        state = {
            name: 0.3 * torch.randn(value.shape, generator=generator)
            for name, value in skeleton(part, SIZES).state_dict().items()
        }
        if part == "decoder":  # a field that is inside here and outside there
            state = {k: 4 * v if ".mlp." in k and "weight" in k else v for k, v in state.items()}
            state["renderer.nerstf.mlp.6.bias"].zero_()
            # Four octaves: places that are computed in another order differ by a float's last digit.
            low = torch.zeros(93)
            low[:15] = low[48:60] = 1
            rows = "params_proj.projections.nerstf__mlp__0__weight."
            for name in ("norm.weight", "norm.bias"):
                state[rows + name] *= low
            state[f"{rows}proj.bias"] *= low.repeat(8)
        torch.save(state, source / FILES[part][0])
    ours, theirs = folder / "ours", folder / "theirs"
    convert(ConvertConfig(source=source, model=model, allow_other=True), ours, sizes=SIZES)
    convert(ConvertConfig(source=ours, to="diffusers"), theirs)
    return ours, theirs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    return {m: make(tmp_path_factory.mktemp(m), m) for m in ("text300M", "image300M")}


@MODELS
def test_there_and_back_is_the_same(made: dict, model: str, tmp_path: Path) -> None:
    ours, theirs = made[model]
    convert(ConvertConfig(source=theirs), tmp_path / "back")
    for name in ("prior", "encoder"):
        before, after = (load_file(f / name / "weights.safetensors") for f in (ours, tmp_path / "back"))
        assert before.keys() == after.keys()
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        # Of the colour behind everything diffusers has its own.
        assert changed <= {"decoder.field.void.background"}


@MODELS
@torch.no_grad()
def test_diffusers_prior_says_the_same(made: dict, model: str) -> None:
    transformers = pytest.importorskip("diffusers.models.transformers.prior_transformer")
    ours, theirs = made[model]
    their_prior = transformers.PriorTransformer.from_pretrained(theirs / "prior", low_cpu_mem_usage=False)
    network = load_prior(ours / "prior").network
    x, step = torch.randn(2, 32, 16), torch.tensor([3, 700])
    if model == "text300M":
        embedding = torch.nn.functional.normalize(torch.randn(2, 768), dim=-1)
        shown = embedding * 768**0.5
    else:
        embedding = shown = torch.randn(2, 6, GRID_WIDTH)
    answer = their_prior(x, timestep=step, proj_embedding=shown).predicted_image_embedding
    assert_same(torch.cat(network.raw(x, step.float(), embedding), dim=-1), answer, tolerance=1e-5)


def test_diffusers_scheduler_walks_the_models_own_noise_levels(made: dict) -> None:
    schedulers = pytest.importorskip("diffusers.schedulers.scheduling_heun_discrete")
    scheduler = schedulers.HeunDiscreteScheduler.from_pretrained(made["text300M"][1] / "scheduler")
    scheduler.set_timesteps(8)
    ends = exponential_process().sigmas[[0, -1]].float()
    torch.testing.assert_close(scheduler.sigmas[[-2, 0]], ends, rtol=1e-3, atol=0)


@torch.no_grad()
def test_diffusers_renderer_makes_the_same(made: dict) -> None:
    renderer = pytest.importorskip("diffusers.pipelines.shap_e.renderer")
    ours, theirs = made["text300M"]
    their_renderer = renderer.ShapERenderer.from_pretrained(
        theirs / "shap_e_renderer", low_cpu_mem_usage=False
    )
    decoder = load_decoder(ours / "encoder")
    latent = torch.randn(1, 32, 16).tanh()
    weights = decoder.weights(latent)
    for name, matrix in their_renderer.params_proj(latent).items():
        assert_same(weights[int(name.split(".")[2])], matrix, tolerance=1e-5)
    # Sets the matrices of this asset's own, and decodes with the reference's mistakes.
    mesh = their_renderer.decode_to_mesh(latent, "cpu", grid_size=12)
    faithful = reference_mesh(decoder, weights, resolution=12)
    assert len(faithful.vertices) > 100
    assert_same(torch.from_numpy(faithful.vertices), mesh.verts, tolerance=1e-5)
    colours = torch.stack([mesh.vertex_channels[name] for name in "RGB"], dim=-1)
    assert_same(torch.from_numpy(faithful.rgb).float(), colours)
    points = torch.rand(1, 50, 3) * 2 - 1
    there = their_renderer.mlp(position=points, direction=None, ts=None, nerf_level="fine")
    here = decoder.query(weights, 0.95 * points)
    assert_same(here[0].density[0] * 0.95, there.density[0, :, 0])
    assert_same(here[1].rgb, there.channels)


@torch.no_grad()
def test_diffusers_mesh_decoder_closes_surfaces_with_our_triangles(made: dict) -> None:
    renderer = pytest.importorskip("diffusers.pipelines.shap_e.renderer")
    decoder = renderer.MeshDecoder()
    decoder.cases, decoder.masks = triangle_table()
    field = torch.randn(9, 9, 9, generator=torch.Generator().manual_seed(0))
    field = torch.nn.functional.pad(field, (1,) * 6, value=-1.0)
    out = decoder(field, torch.tensor([-1.0] * 3), torch.tensor([2.0] * 3))
    mesh = trimesh.Trimesh(out.verts.numpy(), out.faces.numpy(), process=False)
    # On noise, cells of one face may be cut in two ways; the table must choose alike on both sides.
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0


def test_a_diffusers_folder_that_lacks_a_tensor_names_it(made: dict, tmp_path: Path) -> None:
    _, theirs = made["text300M"]
    for name in ("prior", "shap_e_renderer"):
        (tmp_path / name).mkdir()
        for file in (theirs / name).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "prior" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["norm_in.bias"]
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"prior/diffusion_pytorch_model\.safetensors has no norm_in\.bias"):
        convert(ConvertConfig(source=tmp_path), tmp_path / "out")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="can't be read"):
        convert(ConvertConfig(source=tmp_path), tmp_path / "out")


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, made: dict) -> None:
    ours, _ = made["text300M"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="isn't empty"):
        convert(ConvertConfig(source=ours, to="diffusers"), tmp_path)
