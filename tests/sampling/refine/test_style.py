"""The style of a picture: what pulls vanishes where statistics agree, and brings them there."""

import numpy as np
import pytest
import torch
from PIL import Image

from sampling.refine.config import RefineConfig
from sampling.refine.distiller import Distiller
from sampling.refine.refiner import Refiner
from sampling.refine.style import Statistics, Style, gaussian, patches_of, read_style
from shapeloom.config import UserError, load_config
from shapeloom.rendering.isosurface import extract_surface

SMALL = ["views=2", "samples.coarse=16", "samples.fine=8", "estimator.scale=1", "rate=0.1"]


def striped(side: int = 24) -> torch.Tensor:
    """An opaque picture: yellow and dark green stripes, softly noisy."""
    dark = (torch.arange(side) // 3 % 2).expand(side, side)[..., None]
    rgb = torch.where(dark > 0, torch.tensor([0.1, 0.3, 0.1]), torch.tensor([0.9, 0.8, 0.2]))
    rgb = rgb + 0.03 * torch.randn(side, side, 3, generator=torch.Generator().manual_seed(0))
    return torch.cat([rgb.permute(2, 0, 1).clamp(0, 1), torch.ones(1, side, side)])


def test_nothing_pulls_where_the_statistics_are_the_pictures_own():
    gradient, distance = Style(striped()).slope(striped()[None])
    assert float(gradient.abs().max()) < 1e-9
    assert distance < 1e-5


def test_the_denoiser_is_the_gaussians_conditional_mean():
    """By sampling: the regression of x on z = x + sigma eps."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    x = torch.randn(200_000, 3, generator=generator, dtype=torch.float64) @ mix + 1
    z = x + 0.7 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    design = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], dim=1)
    line = torch.linalg.lstsq(design, x).solution
    found = gaussian(z[:100], torch.full((100,), 0.7, dtype=z.dtype), Statistics.of(x))
    torch.testing.assert_close(found, design[:100] @ line, atol=0.02, rtol=0)


def test_the_distance_of_gaussians_is_that_of_their_means_and_spreads():
    eye = torch.eye(2, dtype=torch.float64)
    first = Statistics(torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, 4.0]).double(), eye)
    last = Statistics(torch.tensor([3.0, 0.0]).double(), torch.tensor([4.0, 4.0]).double(), eye)
    assert first.distance(last) == pytest.approx(((9 + 1) / 2) ** 0.5)  # (2 - 1)^2 of the first axis' spread


def test_pixels_that_follow_take_on_the_pictures_statistics():
    style = Style(striped())
    grey = torch.cat([torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(2)) * 0.2 + 0.4,
                      torch.ones(1, 1, 24, 24)], dim=1)  # fmt: skip
    pixels, first = grey.clone(), style.slope(grey)[1]
    for _ in range(300):
        gradient, distance = style.slope(pixels)
        assert not gradient[:, 3].any()
        pixels = pixels - 20 * gradient
    assert distance < 0.1 * first
    found, known = (patches_of(each, 1)[0].double() for each in (pixels, striped()[None]))
    torch.testing.assert_close(found.mean(0), known.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(found.std(0), known.std(0), atol=0.04, rtol=0)


def test_a_shape_takes_a_style_and_keeps_every_vertex(balls, guide, tmp_path):
    green = np.zeros((40, 60, 4), np.uint8)
    green[:, 10:] = (20, 200, 40, 255)
    Image.fromarray(green).save(tmp_path / "green.png")
    settings = load_config(
        RefineConfig, None, ["guide=views", *SMALL, f"style={tmp_path / 'green.png'}", "style_share=3"]
    )
    assert settings.layers == "color"
    guide.size = 40
    start = balls.shapes[1]
    refiner = Refiner(balls.pipe, [start], Distiller(guide, start.prompt, settings), settings)
    curve = [refiner.step(number)["style"] for number in range(8)]
    assert curve[-1] < 0.97 * curve[0]
    found = refiner.subject.shapes("")[0]
    for before, after in zip(
        extract_surface(start._sdf, resolution=24), extract_surface(found._sdf, resolution=24), strict=True
    ):
        assert (before == after).all()


def test_what_a_style_may_be(tmp_path):
    settings = load_config(RefineConfig, None, ["style=a.png", "layers=all"])
    assert settings.layers == "all"  # where it is said
    Image.new("RGBA", (40, 40), (255, 0, 0, 0)).save(tmp_path / "nothing.png")
    with pytest.raises(UserError, match="see-through"):
        read_style(tmp_path / "nothing.png", size=24)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match="can't be read as a PNG or JPEG"):
        read_style(tmp_path / "text.png", size=24)


def test_too_little_of_an_object_says_nothing():
    gradient, distance = Style(striped()).slope(torch.zeros(1, 4, 24, 24))
    assert not gradient.any() and distance != distance
