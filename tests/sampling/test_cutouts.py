"""Pictures as people have them: what becomes of them, and what is refused."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sampling.cutouts import OBJECT_SHARE, PictureConfig, load_image
from sampling.matting import load_network, matte
from shapeloom.config import UserError
from tests.small_pictures import disc, save_disc

KEEP = PictureConfig(background="keep")


def extent(picture: np.ndarray) -> tuple[float, float, float, float]:
    """Centre (x, y) and size (x, y) of what is far from white, as shares of the side."""
    rows, columns = np.nonzero((picture < 160).any(axis=-1))
    spans = [(columns.min(), columns.max() + 1), (rows.min(), rows.max() + 1)]
    centre = [(low + high) / 2 / len(picture) for low, high in spans]
    return (*centre, *((high - low) / len(picture) for low, high in spans))


def shaded(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A background that goes from one colour to another, with noise."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    base = np.array([170, 190, 210]) - 40 * x[..., None] + 30 * y[..., None]
    return np.clip(base + rng.normal(0, 3, (height, width, 3)), 0, 255).astype(np.uint8)


def test_a_disc_before_a_shaded_noisy_background_is_found():
    rng = np.random.default_rng(0)
    for width, height, radius in ((300, 200, 60), (100, 500, 30), (40, 40, 10)):
        truth = disc(width=width, height=height, radius=radius, alpha=True)[..., 3] > 0
        picture = np.where(truth[..., None], (180, 60, 30), shaded(rng, width, height)).astype(np.uint8)
        found = matte(picture) > 0.5
        assert (found & truth).sum() / (found | truth).sum() > 0.95
        assert matte(shaded(rng, width, height)).max() == 0


def test_specks_of_the_background_are_left_out():
    picture = disc(width=200, height=200, radius=40, background=(90, 120, 90))
    picture[20:26, 20:26] = (180, 20, 20)
    alpha = matte(picture)
    assert alpha[100, 100] > 0.95 and alpha[:40, :40].max() < 0.5


@pytest.mark.parametrize("alpha", [True, False])
def test_an_object_comes_to_the_middle_at_the_size_of_training_views(tmp_path, alpha):
    picture = np.zeros((300, 500, 4), np.uint8)
    picture[...] = (210, 210, 215, 0 if alpha else 255)
    picture[40:100, 330:450] = (30, 90, 40, 255)  # twice as wide as high, in a corner
    Image.fromarray(picture).save(tmp_path / "a.png")
    seen = load_image(tmp_path / "a.png")
    assert extent(seen) == pytest.approx((0.5, 0.5, OBJECT_SHARE, OBJECT_SHARE / 2), abs=0.02)
    middle = seen[len(seen) // 2, len(seen) // 2].astype(int)
    assert np.abs(middle - (30, 90, 40)).max() <= 2
    # Neither the background nor black shines through along the edge, but white alone.
    mixed = seen.reshape(-1, 3) / 255
    share = (1 - mixed[:, 0]) / (1 - 30 / 255)
    assert np.abs(mixed - (1 - share[:, None] * (1 - np.array([30, 90, 40]) / 255))).max() < 0.05


def test_exif_turns_a_picture_before_anything_is_looked_at(tmp_path):
    image = Image.fromarray(disc(width=60, height=120, radius=20)).rotate(90, expand=True)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    assert load_image(tmp_path / "turned.jpg", KEEP).shape == (120, 120, 3)
    wide = np.array(Image.fromarray(disc(width=120, height=60, radius=1)))
    wide[28:32, 20:100] = (0, 0, 200)  # a rod that lies, and stands once it is turned
    Image.fromarray(wide).save(tmp_path / "rod.jpg", exif=exif, quality=95)
    _, _, width, height = extent(load_image(tmp_path / "rod.jpg"))
    assert height > 4 * width


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "LA", "I;16", "MPO"])
def test_other_colour_modes_are_read(tmp_path, mode):
    grey = Image.fromarray(disc((40, 40, 40), width=160, height=120, radius=35))
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "MPO") else "a.png")
    if mode == "I;16":
        Image.fromarray(np.array(grey.convert("L")).astype(np.uint16) * 257).save(path)
    elif mode == "MPO":  # a phone's, with a second picture
        grey.save(path, "MPO", save_all=True, append_images=[Image.new("RGB", grey.size)])
    else:
        (grey.quantize(8) if mode == "P" else grey.convert(mode)).save(path)
    plain = load_image(path, KEEP)
    assert np.abs(plain[80, 80].astype(int) - 40).max() <= 8
    assert plain[30, 10].min() > 200
    assert extent(load_image(path))[2:] == pytest.approx((OBJECT_SHARE, OBJECT_SHARE), abs=0.05)


def test_an_opaque_alpha_channel_is_no_cut_out(tmp_path):
    Image.fromarray(disc()).convert("RGBA").save(tmp_path / "a.png")
    save_disc(tmp_path / "b.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), load_image(tmp_path / "b.png"))


def save(path: Path, image: Image.Image, **how) -> None:
    image.save(path, **how)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.write_text("not a picture"), "can't be read as a PNG or JPEG"),
        (lambda p: save(p, Image.new("RGB", (8, 8)), format="BMP"), "can't be read as a PNG or JPEG"),
        (lambda p: save(p, Image.new("RGB", (1, 1))), "1x1 pixels, too few to show an object"),
        (lambda p: save(p, Image.new("1", (16_000, 16_000))), "far too many pixels; at most 64 million"),
        (lambda p: save(p, Image.new("RGBA", (64, 64))), "see-through all over"),
        (lambda p: save(p, Image.new("RGB", (64, 64), "red")), "shows no object that stands out"),
        (
            lambda p: save(
                p, Image.fromarray(disc()), save_all=True, append_images=[Image.fromarray(disc((0, 0, 9)))]
            ),
            "is animated: save the frame",
        ),
    ],
)
def test_what_cannot_be_used_is_told_with_its_name(tmp_path, write, message):
    write(tmp_path / "mine.png")
    with pytest.raises(UserError, match=message) as told:
        load_image(tmp_path / "mine.png")
    assert "mine.png" in str(told.value)


def test_cut_off_and_too_large_files_are_refused(tmp_path):
    save_disc(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:80])
    with pytest.raises(UserError, match="can't be read as a PNG or JPEG"):
        load_image(tmp_path / "cut.png")
    with pytest.raises(UserError, match="64x48 pixels"):
        load_image(tmp_path / "a.png", max_pixels=63)
    with pytest.raises(UserError, match="larger than"):
        load_image(tmp_path / "a.png", max_bytes=10)


# ---------------------------------------------------------------- networks


class Session:
    """As rembg's: asks its class for the file."""

    def __init__(self, name, options, providers):
        self.file = self.download_models()

    @classmethod
    def download_models(cls):
        raise AssertionError("nothing is downloaded")

    def predict(self, image):
        assert Path(self.file).read_bytes() == b"weights"
        return [Image.fromarray((np.array(image)[..., 0] > 100).astype(np.uint8) * 255)]


def test_a_network_is_read_from_the_file_that_is_named_and_never_fetched(tmp_path, monkeypatch):
    known = {"u2net": Session, "sam": Session}
    monkeypatch.setitem(sys.modules, "rembg", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "rembg.sessions", SimpleNamespace(sessions=known))
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(SessionOptions=object))
    (tmp_path / "u2net.onnx").write_bytes(b"weights")
    save_disc(tmp_path / "a.png", (200, 0, 0), background=(20, 200, 20))
    seen = load_image(tmp_path / "a.png", PictureConfig(matting=tmp_path / "u2net.onnx"))
    assert extent(seen)[2] == pytest.approx(OBJECT_SHARE, abs=0.05)
    for name in ("sam.onnx", "mine.onnx"):
        (tmp_path / name).write_bytes(b"weights")
        with pytest.raises(UserError, match="must have the name that rembg gives to its network"):
            load_network(tmp_path / name)
    with pytest.raises(UserError, match="does not exist"):
        load_network(tmp_path / "none.onnx")
    load_network.cache_clear()


def test_without_rembg_a_network_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rembg", None)
    (tmp_path / "u2net.onnx").write_bytes(b"weights")
    with pytest.raises(UserError, match=r"pip install 'shapeloom\[matting\]'"):
        load_network(tmp_path / "u2net.onnx")


def test_rembg_itself_takes_the_file_that_is_named(tmp_path, monkeypatch):
    pytest.importorskip("rembg", reason="the extra `matting` isn't installed")
    onnx = pytest.importorskip("onnx", reason="onnx isn't installed")
    monkeypatch.setenv("U2NET_HOME", str(tmp_path / "nowhere"))
    h = onnx.helper
    sizes = [h.make_tensor_value_info(name, 1, [1, c, 320, 320]) for name, c in (("x", 3), ("y", 1))]
    red = h.make_tensor("w", 1, [1, 3, 1, 1], [1.0, 0.0, 0.0])
    graph = h.make_graph([h.make_node("Conv", ["x", "w"], ["y"])], "red", sizes[:1], sizes[1:], [red])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 13)], ir_version=8)
    (tmp_path / "u2netp.onnx").write_bytes(model.SerializeToString())
    picture = disc((200, 0, 0), background=(20, 200, 20))
    alpha = load_network(tmp_path / "u2netp.onnx")(picture)
    # The network hands on the red channel of what rembg resizes; rembg spreads that over [0, 1].
    resized = Image.fromarray(picture).resize((320, 320), Image.Resampling.LANCZOS)
    seen = np.asarray(resized, np.float32)[..., 0]
    spread = Image.fromarray(np.uint8(255 * (seen - seen.min()) / np.ptp(seen)))
    expected = np.asarray(spread.resize((64, 48), Image.Resampling.LANCZOS), np.float32) / 255
    np.testing.assert_allclose(alpha, expected, atol=2 / 255)
    assert alpha[24, 32] - alpha[2, 2] > 0.7
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "silueta.onnx").write_bytes(b"no network")
    with pytest.raises(UserError, match="can't be read as a network in ONNX format"):
        load_network(tmp_path / "silueta.onnx")
