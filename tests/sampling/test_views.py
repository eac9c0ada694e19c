"""`python -m sampling.views`: pictures cut out as training shows them, turns, files, words of refusal."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sampling.refine import text_to_image
from sampling.views import (
    OBJECT_SHARE,
    ZERO123_SHARE,
    ViewsConfig,
    cut_out,
    groups_of,
    main,
    read_object,
    turn_cameras,
    turntable,
    write_turn,
    zero123_turntable,
)
from shapeloom.config import UserError
from shapeloom.pictures import on_white
from shapeloom.seed import derive_seed
from shapeloom.storage import file_digest
from shapeloom.view_diffusion import CONDITIONER, UNET, ViewModel, random_view_model, save_layout
from shapeloom.view_network import azimuths
from shapeloom.viewpoints import fitting_distance
from shapeloom.zero123 import Zero123, Zero123Networks, Zero123Sizes

QUICK = ViewsConfig(views=5, joint=2, steps=2, guidance=1.5)


@pytest.fixture(scope="module")
def model() -> ViewModel:
    return random_view_model()


def disk(side: int = 64, *, centre: tuple[int, int] = (40, 20), radius: int = 10) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2
    alpha = (255 * inside[..., None]).astype(np.uint8)
    return np.concatenate([np.full((side, side, 3), (200, 30, 40), np.uint8), alpha], axis=-1)


def test_an_object_is_centred_at_the_size_that_training_shows() -> None:
    found = cut_out(disk(), size=32)
    rows, columns = np.nonzero(found[..., 3] > 127)
    for places in (rows, columns):
        assert abs((places.min() + places.max() + 1) / 2 - 16) <= 0.5
        assert abs((places.max() + 1 - places.min()) / 32 - OBJECT_SHARE) < 1.5 / 32
    # Colours of transparent pixels (here the same everywhere) don't matter, and edges keep the object's.
    seen = found[found[..., 3] > 0][:, :3].astype(int)
    assert np.abs(seen - [200, 30, 40]).max() <= 2


def test_transparent_and_white_backgrounds_give_the_same_object(tmp_path: Path) -> None:
    own = Image.fromarray(disk())
    own.save(tmp_path / "alpha.png")
    white = Image.new("RGBA", own.size, "white")
    white.alpha_composite(own)
    white.convert("RGB").save(tmp_path / "white.png")
    first, second = (read_object(tmp_path / name, size=32) for name in ("alpha.png", "white.png"))
    assert np.abs(first.astype(int) - second.astype(int)).max() <= 2


@pytest.mark.parametrize("kind", ["white", "clear"])
def test_a_picture_without_an_object_is_refused(tmp_path: Path, kind: str) -> None:
    color = (255, 255, 255, 255) if kind == "white" else (9, 9, 9, 0)
    Image.new("RGBA", (32, 32), color).save(tmp_path / "none.png")
    with pytest.raises(
        UserError, match=r"none\.png (shows no object that stands out|is see-through all over)"
    ):
        read_object(tmp_path / "none.png", size=16)


def test_cameras_stand_around_the_object_at_the_distance_that_shows_all_of_it() -> None:
    cameras = turn_cameras(ViewsConfig(views=8, fov=40, elevation=30), size=16)
    eyes = cameras.cam_to_world[0, :, :3, 3]
    fits = torch.full((8,), fitting_distance(float(np.radians(40))))
    torch.testing.assert_close(eyes.norm(dim=-1), fits)
    torch.testing.assert_close(eyes[:, 2], fits * 0.5)
    steps = torch.remainder(azimuths(cameras.cam_to_world[0]).diff(), 2 * torch.pi)
    torch.testing.assert_close(steps, torch.full((7,), torch.pi / 4))


@pytest.mark.parametrize(("views", "joint"), [(12, 6), (5, 2), (7, 10), (1, 1)])
def test_groups_hold_every_view_once_and_spread_around_the_turn(views: int, joint: int) -> None:
    groups = groups_of(views, joint)
    assert sorted(view for group in groups for view in group) == list(range(views))
    assert all(1 <= len(group) <= joint and len(set(np.diff(group))) <= 1 for group in groups)


def test_a_turn_is_the_same_each_time_and_another_for_another_seed(model: ViewModel, tmp_path: Path) -> None:
    shown = cut_out(disk(), size=16)
    turns = [turntable(model, QUICK.model_copy(update={"seed": seed}), [shown]) for seed in (3, 3, 4)]
    assert (turns[0].rgba == turns[1].rgba).all()
    assert (turns[0].rgba != turns[2].rgba).any()
    for name, turn in zip(("a", "b"), turns, strict=False):
        write_turn(tmp_path / name, turn, [shown])
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [
        "cameras.json", "turntable.gif", *(f"view_{v:03d}.png" for v in range(5)), "views.png",
    ]  # fmt: skip
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    with Image.open(tmp_path / "a" / "turntable.gif") as opened:
        assert getattr(opened, "n_frames", 1) == 5
    saved = json.loads((tmp_path / "a" / "cameras.json").read_text())
    assert np.array(saved["cam_to_world"]).shape == (5, 4, 4)


def test_what_cannot_be_asked_for_is_told(model: ViewModel, tmp_path: Path) -> None:
    shown = cut_out(disk(), size=16)
    with pytest.raises(UserError, match=r"up to 2 picture\(s\), but got 3"):
        turntable(model, QUICK, [shown] * 3)
    with pytest.raises(UserError, match="Say what to see"):
        turntable(model, QUICK)
    with pytest.raises(UserError, match="needs --model"):
        main(["--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match="does not exist"):
        main(["--out", str(tmp_path / "out"), "--model", "nowhere", "--image", "no.png"])


def test_published_weights_turn_a_picture_at_the_size_that_they_are_for() -> None:
    sizes = Zero123Sizes(
        channels=(8, 16), layers=1, heads=2, context=8, vae_channels=(8, 8), vae_layers=1, tower_width=16,
        tower_layers=1, tower_heads=2, tower_patch=8, tower_size=16, groups=4,
    )  # fmt: skip
    torch.manual_seed(0)
    published = Zero123(Zero123Networks(sizes))
    shown = cut_out(disk(), size=16, share=ZERO123_SHARE)
    turns = [zero123_turntable(published, QUICK.model_copy(update={"views": 2}), [shown]) for _ in range(2)]
    assert turns[0].rgba.shape == (2, 16, 16, 4) and (turns[0].rgba[..., 3] == 255).all()
    assert (turns[0].rgba == turns[1].rgba).all() and (turns[0].rgba[0] != turns[0].rgba[1]).any()


@pytest.fixture
def saved(model: ViewModel, tmp_path: Path) -> Path:
    """A run's folder with the model in views/."""
    network, folder = model.network, tmp_path / "run" / "views"
    save_layout(folder, network.shapes, network.config, model.diffusion, network.state_dict())
    digests = {name: file_digest(folder / name) for name in (UNET, CONDITIONER)}
    meta = {"stage": "views", "status": "done", "seconds": 1, "inputs": {}, "layout_digests": digests}
    (folder / "meta.json").write_text(json.dumps(meta))
    return tmp_path / "run"


def test_the_command_writes_a_turn_and_says_when_it_is_there(saved: Path, tmp_path: Path) -> None:
    Image.fromarray(disk()).save(tmp_path / "disk.png")
    given = ["--model", str(saved), "--image", str(tmp_path / "disk.png"), "--out", str(tmp_path / "o")]
    main([*given, "--set", "views=3", "steps=2"])
    before = (tmp_path / "o" / "views.png").stat().st_mtime_ns
    main([*given, "--set", "views=3", "steps=2"])
    assert (tmp_path / "o" / "views.png").stat().st_mtime_ns == before


def test_a_prompt_s_picture_is_drawn_first_and_then_turned(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Drawer:
        def draw(self, prompt: str, *, seed: int, steps: int, scale: float) -> np.ndarray:
            assert prompt.startswith("a ball, ") and "white background" in prompt
            return on_white(disk(radius=10 if seed == derive_seed("drawing", 3) else 0))

    monkeypatch.setattr(text_to_image, "load_text_to_image", lambda folder, device: Drawer())
    given = ["--model", str(saved), "--prompt", "a ball", "--set", "drawn_by=drawer", "views=2", "steps=1"]
    main([*given, "seed=3", "--out", str(tmp_path / "drawn")])
    np.testing.assert_array_equal(Image.open(tmp_path / "drawn" / "drawn.png"), on_white(disk()))
    Image.fromarray(disk()).save(tmp_path / "disk.png")
    shown = ["--image", str(tmp_path / "disk.png"), "--out", str(tmp_path / "shown")]
    main(["--model", str(saved), *shown, "--set", "views=2", "steps=1", "seed=3"])
    drawn, same = (np.asarray(Image.open(tmp_path / o / "view_001.png"), int) for o in ("drawn", "shown"))
    assert np.abs(drawn - same).max() <= 2
    with pytest.raises(UserError, match=r"drawn\.png shows no object"):
        main([*given, "seed=4", "--out", str(tmp_path / "nothing")])
    with pytest.raises(UserError, match="give a --prompt and no --image"):
        main([*given, "--image", str(tmp_path / "disk.png"), "--out", str(tmp_path / "both")])
