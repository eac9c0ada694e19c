"""Zero-1-to-3's layout as a guide, of reduced random weights."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from sampling.refine.config import RefineConfig
from sampling.refine.distiller import Distiller
from sampling.refine.guides import Guide
from sampling.refine.loading import load_guide
from sampling.refine.refiner import Refiner
from sampling.refine.rendering import CameraConfig, random_views
from sampling.refine.zero123 import Zero123Guide
from shapeloom.box import ASSET_HALF_SIZE
from shapeloom.config import UserError, load_config
from shapeloom.viewpoints import fitting_distance
from shapeloom.zero123 import LATENT_SCALE, Zero123, Zero123Networks
from tests.shapeloom.test_zero123 import SMALL, write_folders


@pytest.fixture(scope="module")
def model() -> Zero123:
    torch.manual_seed(0)
    return Zero123(Zero123Networks(SMALL))


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def guide(model, picture) -> Zero123Guide:
    return Zero123Guide(model, picture, elevation=20.0)


def views(**ranges):
    cameras = CameraConfig(**ranges)
    return random_views(cameras, 1, 3, size=16, generator=torch.Generator().manual_seed(0))


def test_it_is_told_the_relative_pose_and_the_pictures_own_latent(guide, model, picture):
    assert isinstance(guide, Guide)
    told, seen = {}, views(elevation=(50.0, 50.0), distance=(1.2, 1.2))
    model_told = model.told

    def told_of(clip, latent, pose):
        told.update(clip=clip, latent=latent, pose=pose)
        return model_told(clip, latent, pose)

    guide.model = type("Spy", (), {"told": staticmethod(told_of)})()
    guide.condition(["a chair"] * 3, seen)
    angle = seen.azimuth.deg2rad()
    farther = 0.2 * fitting_distance(math.radians(40)) / (2 * ASSET_HALF_SIZE)
    expected = torch.stack(
        [torch.full((3,), math.radians(-30)), angle.sin(), angle.cos(), torch.full((3,), farther)], dim=1
    )
    torch.testing.assert_close(told["pose"], expected, atol=1e-5, rtol=1e-5)
    whole = model.condition(picture[None], expected[:1])
    assert torch.equal(told["latent"][0], whole.latent[0])


def test_the_same_camera_is_the_identity_pose_and_nothing_is_shown_to_null(guide, model, picture):
    same = views(elevation=(20.0, 20.0))
    same.cam_to_world[:] = guide._given
    found = guide.condition([], same)
    plain = model.condition(picture[None].expand(3, -1, -1, -1), torch.tensor([[0.0, 0, 1, 0]]).expand(3, 4))
    torch.testing.assert_close(found.token, plain.token, atol=1e-6, rtol=1e-5)
    null = guide.null(same)
    assert not null.token.any() and not null.latent.any() and len(null.token) == 3


def test_it_diffuses_scaled_latents_of_pictures_on_white(guide, model):
    pictures = torch.zeros(1, 4, 16, 16)
    pictures[:, 0, 4:9], pictures[:, 3, 4:9] = 0.7, 1.0
    shown = torch.ones(1, 3, 16, 16)
    shown[:, :, 4:9] = torch.tensor([0.7, 0, 0])[:, None, None]
    large = torch.nn.functional.interpolate(shown, (32, 32), mode="bilinear", antialias=True)
    expected = model.networks.vae.encode(2 * large - 1).latent_dist.mode() * LATENT_SCALE
    torch.testing.assert_close(guide.encode(pictures, torch.zeros(1, 3)), expected, atol=1e-5, rtol=1e-4)
    steps = torch.tensor([200, 900])
    torch.testing.assert_close(
        guide.sigma(steps / 1000).double(), model.process.sigmas[steps], rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("estimator", ["sds", "vsd", "ism"])
def test_a_shape_follows_it(balls, picture, estimator):
    torch.manual_seed(0)
    guide = Zero123Guide(Zero123(Zero123Networks(SMALL)), picture, elevation=20.0)  # VSD changes its network
    settings = load_config(
        RefineConfig, None,
        ["guide=views", f"estimator.kind={estimator}", "views=2", "size=8", "samples.coarse=8",
         "samples.fine=4"],
    )  # fmt: skip
    refiner = Refiner(balls.pipe, balls.shapes[:1], Distiller(guide, "a ball", settings), settings)
    before = refiner.subject.leaves[0].detach().clone()
    assert refiner.step(0)["gradient"] > 0
    assert not torch.equal(refiner.subject.leaves[0].detach(), before)


def test_a_folder_is_loaded_with_a_picture_and_not_without(balls, model, tmp_path):
    write_folders(model.networks, tmp_path / "zero123")
    rgb = np.full((40, 40, 3), 255, np.uint8)
    rgb[10:30, 10:30] = (200, 30, 30)
    Image.fromarray(rgb).save(tmp_path / "red.png")
    given = [f"guide={tmp_path / 'zero123'}"]
    guide = load_guide(load_config(RefineConfig, None, [*given, f"image={tmp_path / 'red.png'}"]), balls.pipe)
    assert isinstance(guide, Zero123Guide)
    assert guide.size == 256 and len(guide.digest) == 64
    with pytest.raises(UserError, match="follows a picture: image=FILE"):
        load_guide(load_config(RefineConfig, None, given), balls.pipe)
    (tmp_path / "zero123" / "unet" / "config.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="no configs of a Zero-1-to-3"):
        load_guide(load_config(RefineConfig, None, [*given, f"image={tmp_path / 'red.png'}"]), balls.pipe)
