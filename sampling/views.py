"""New views of an object, from pictures of it or from a caption: a turntable by the view model.

    python -m sampling.views --model RUN --image chair.png --out DIR
    python -m sampling.views --model RUN --prompt "a red chair" --out DIR
    python -m sampling.views --set zero123=zero123-xl.ckpt --image chair.png --out DIR
    python -m sampling.views --model RUN --set drawn_by=stable-diffusion --prompt "a red chair" --out DIR

Views are made together, so that they agree: `joint` at once, spread around the turn, and those between them
are shown some of these. DIR gets turntable.gif, views.png (a contact sheet), view_000.png and so on with
straight alpha, and cameras.json. The first view stands where the picture was taken, at the elevation that
`elevation` says. The same command and seed write the same bytes. Zero-1-to-3's published weights (`zero123`)
make each view alone, 256 x 256, opaque on white. `drawn_by` draws the prompt's picture (drawn.png) first, by
any diffusers text-to-image folder, and the views are of that.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from pydantic import Field as Key
from torch import Tensor

from sampling.cutouts import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, OBJECT_SHARE, PictureConfig, read_picture
from sampling.cutouts import cut_out as matted
from sampling.pictures import contact_sheet, png, save_frames
from sampling.pipeline import MAX_SEED, check_prompt
from shapeloom.config import Config, UserError, parse_stage, run_main
from shapeloom.diffusion.samplers import SamplerName
from shapeloom.log import get_logger, start_logging
from shapeloom.pictures import on_white
from shapeloom.rendering.cameras import Cameras, intrinsics, spherical
from shapeloom.runs import Run
from shapeloom.seed import derive_seed
from shapeloom.storage import file_digest, write_atomic
from shapeloom.view_diffusion import References, ViewModel, load_view_model, straight_rgba, to_picture
from shapeloom.viewpoints import fitting_distance
from shapeloom.zero123 import Zero123, load_zero123, pose_difference

log = get_logger("views")
ZERO123_SIZE, ZERO123_SHARE = 256, 200 / 256
"""Of Zero-1-to-3's pictures, and how much of them its own preparation lets an object take."""
DRAWN_WORDS, DRAWN_STEPS, DRAWN_SCALE = ", one whole object, on a plain white background", 30, 7.5
"""Added to a prompt that is drawn, so that its object can be cut out; and how it is sampled."""


class ViewsConfig(Config):
    """What is seen from where, and how it is sampled."""

    model: Path | None = Key(None, description="a finished prior.train_views, or a run folder with views/")
    zero123: Path | None = Key(
        None, description="Zero-1-to-3's weights in place of a model: CompVis' file or diffusers' folder"
    )
    drawn_by: Path | None = Key(
        None, description="diffusers text-to-image folder that draws the prompt; the views are of its picture"
    )
    clip: Path | None = Key(
        None, description="CLIP that it was trained with; none: the folder clip beside it"
    )
    vae: Path | None = Key(None, description="folder of the VAE whose latents it diffuses, if it does")
    matting: Path | None = Key(None, description="as pictures.matting of sampling: a network of rembg's")
    views: int = Key(12, ge=1, le=360, description="of one turn")
    joint: int = Key(6, ge=1, le=64, description="views that are made together, so that they agree")
    elevation: float = Key(
        20.0, ge=-89, le=89, description="of the picture's camera and of the turn, degrees"
    )
    fov: float = Key(40.0, gt=1, lt=150, description="field of view of the views, degrees")
    distance: float | None = Key(
        None,
        gt=1,
        le=100,
        description="of the cameras from the object's middle; none: its box fills the view",
    )
    steps: int = Key(18, ge=1, le=1000, description="noise levels that are walked through")
    guidance: float = Key(1.5, ge=0, le=50, description="scale of classifier-free guidance; 1: none")
    sampler: SamplerName = Key("dpmpp_2m", description="see docs/sampling.md")
    prompt: str = Key("", description="what to see, alone or beside pictures")
    seed: int = Key(0, ge=0, le=MAX_SEED, description="the same one gives the same bytes")


@dataclass(frozen=True)
class Turn:
    """A turntable: pictures with straight alpha, and where they are seen from."""

    rgba: UInt8[np.ndarray, "views size size 4"]
    cam_to_world: Float[Tensor, "views 4 4"]
    intrinsics: Float[Tensor, "3 3"]


def cut_out(
    picture: UInt8[np.ndarray, "height width 4"],
    *,
    size: int,
    share: float = OBJECT_SHARE,
    name: str = "the picture",
) -> UInt8[np.ndarray, "size size 4"]:
    """Returns an object as training views show it: centred, its longer side `share` of the frame.

    Raises UserError if it is see-through all over.
    """
    alpha = picture[..., 3].astype(np.float32) / 255
    rows, columns = np.nonzero(alpha > 0.02)
    if len(rows) < 4:
        raise UserError(
            f"{name} shows no object: every pixel is see-through. Give a picture of one object, cut out or "
            "with its background."
        )
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    longer = max(bottom - top, right - left)
    side = max(1, round(longer / share))
    square = np.zeros((side, side, 4), np.float32)
    y, x = (side - (bottom - top)) // 2, (side - (right - left)) // 2
    crop = picture[top:bottom, left:right].astype(np.float32) / 255
    crop[..., :3] *= crop[..., 3:]
    square[y : y + bottom - top, x : x + right - left] = crop
    # Premultiplied, so that colours of transparent pixels don't bleed into edges.
    channels = [
        np.array(Image.fromarray(square[..., c]).resize((size, size), Image.Resampling.BOX)) for c in range(4)
    ]
    small = np.stack(channels, axis=-1).clip(0, 1)
    small[..., :3] = np.where(small[..., 3:] > 0, small[..., :3] / small[..., 3:].clip(1e-6), 0)
    return (small.clip(0, 1) * 255).round().astype(np.uint8)


def read_object(
    path: Path, *, size: int, share: float = OBJECT_SHARE, matting: Path | None = None, name: str = "",
    max_bytes: int = MAX_IMAGE_BYTES, max_pixels: int = MAX_IMAGE_PIXELS,
) -> UInt8[np.ndarray, "size size 4"]:  # fmt: skip
    """Returns the object of a PNG or JPEG; UserError for what `sampling.cutouts` refuses.

    name: what errors call the picture; "": its path.
    """
    name = name or str(path)
    rgba = read_picture(path, name=name, max_bytes=max_bytes, max_pixels=max_pixels)
    found = matted(rgba, PictureConfig(matting=matting), name=name)
    return cut_out(found, size=size, share=share, name=name)


def turn_cameras(config: ViewsConfig, *, size: int) -> Cameras:
    """Returns one object's cameras: even azimuths from 0 on, at the config's elevation, [1, views]."""
    fov, num = float(np.radians(config.fov)), config.views
    distance = config.distance or fitting_distance(fov)
    azimuth = torch.arange(num) * (2 * torch.pi / num)
    pose = spherical(azimuth, torch.full((num,), float(np.radians(config.elevation))), distance)
    return Cameras(pose[None], intrinsics(fov, size, size).expand(1, num, 3, 3), size, size)


def chosen(cameras: Cameras, views: Sequence[int]) -> Cameras:
    """Returns those of an object's cameras."""
    rows = list(views)
    return Cameras(cameras.cam_to_world[:, rows], cameras.intrinsics[:, rows], cameras.height, cameras.width)


def groups_of(views: int, joint: int) -> list[list[int]]:
    """Returns which views are made together: groups of at most `joint`, each spread around the turn.

    groups_of(6, 3) is [[0, 2, 4], [1, 3, 5]].
    """
    num = -(-views // joint)
    return [list(range(first, views, num)) for first in range(num)]


def turntable(
    model: ViewModel, config: ViewsConfig, pictures: Sequence[UInt8[np.ndarray, "size size 4"]] = (), *,
    on_step: Callable[[int], None] | None = None,
) -> Turn:  # fmt: skip
    """Returns a turn of new views, from pictures, the config's prompt, or both.

    pictures: of one object as `cut_out` makes them, the first from azimuth 0 and the others evenly around the
    turn, all at the config's elevation. on_step: called with the number of views that are made so far.
    Raises UserError for more pictures than the model was trained with, or neither pictures nor a prompt.
    """
    most = model.network.shapes.references
    if len(pictures) > most:
        raise UserError(f"This view model was trained with up to {most} picture(s), but got {len(pictures)}.")
    if not pictures and not config.prompt:
        raise UserError('Say what to see: --image FILE, --prompt "a red chair", or both.')
    captions = [check_prompt(config.prompt)] if config.prompt else None
    cameras = turn_cameras(config, size=model.size)
    seeds = torch.tensor([derive_seed("sampling views", config.seed, view) for view in range(config.views)])
    given = _given(pictures, config, model.size)
    made = torch.zeros(config.views, 4, model.size, model.size)
    groups = groups_of(config.views, config.joint)
    for group in groups:
        shown = given
        if group is not groups[0]:
            room = most - len(pictures)
            extra = [groups[0][(2 * i + 1) * len(groups[0]) // (2 * room)] for i in range(room)]
            shown = _joined(given, made, chosen(cameras, extra), extra)
        condition = model.condition(captions, cameras=chosen(cameras, group), references=shown)
        found = model.sample(
            condition, seeds=seeds[group], steps=config.steps, scale=config.guidance, method=config.sampler
        )
        made[group] = found.cpu()
        if on_step is not None:
            on_step(sum(map(len, groups[: groups.index(group) + 1])))
    return Turn(straight_rgba(made), cameras.cam_to_world[0], cameras.intrinsics[0, 0])


def zero123_turntable(
    model: Zero123, config: ViewsConfig, pictures: Sequence[UInt8[np.ndarray, "size size 4"]]
) -> Turn:
    """Returns a turn by Zero-1-to-3's weights from one picture, each view made alone and opaque."""
    (picture,) = pictures
    size = picture.shape[0]
    cameras = turn_cameras(config, size=size)
    poses = cameras.cam_to_world[0]
    shown = to_picture(picture)[None, :3]
    made = torch.ones(config.views, 4, size, size)
    for view in range(config.views):
        pose = pose_difference(poses[:1], poses[view : view + 1])
        seed = torch.tensor([derive_seed("sampling views", config.seed, view)])
        condition = model.condition(shown, pose)
        made[view, :3] = model.sample(
            condition, seeds=seed, steps=config.steps, scale=config.guidance, method=config.sampler
        )[0].cpu()
    return Turn(straight_rgba(made), poses, cameras.intrinsics[0, 0])


def _given(pictures: Sequence[np.ndarray], config: ViewsConfig, size: int) -> References | None:
    """Pictures with the cameras that they are taken to be from."""
    if not pictures:
        return None
    own = config.model_copy(update={"views": len(pictures), "fov": 40.0, "distance": None})
    return References(to_picture(np.stack(pictures))[None], turn_cameras(own, size=size))


def _joined(
    given: References | None, made: Tensor, cameras: Cameras, views: Sequence[int]
) -> References | None:
    """The given pictures and some of the views made so far."""
    if not views:
        return given
    more = References(made[list(views)][None], cameras)
    if given is None:
        return more
    poses = torch.cat([given.cameras.cam_to_world, cameras.cam_to_world], dim=1)
    matrices = torch.cat([given.cameras.intrinsics, cameras.intrinsics], dim=1)
    both = Cameras(poses, matrices, cameras.height, cameras.width)
    return References(torch.cat([given.pictures, more.pictures], dim=1), both)


def sheet_of(
    turn: Turn, pictures: Sequence[UInt8[np.ndarray, "size size 4"]]
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns a contact sheet of a turn, the given pictures first."""
    num = len(turn.rgba)
    labels = [f"picture {i + 1}" for i in range(len(pictures))] + [f"{360 * v / num:g}°" for v in range(num)]
    return contact_sheet([on_white(rgba) for rgba in (*pictures, *turn.rgba)], labels, size=128, columns=6)


def write_turn(folder: Path, turn: Turn, pictures: Sequence[UInt8[np.ndarray, "size size 4"]]) -> None:
    """Writes a turn's files."""
    for view, rgba in enumerate(turn.rgba):
        write_atomic(folder / f"view_{view:03d}.png", png(rgba))
    write_atomic(folder / "views.png", png(sheet_of(turn, pictures)))
    save_frames(folder / "turntable.gif", turn.rgba)
    cameras = {"cam_to_world": turn.cam_to_world.tolist(), "intrinsics": turn.intrinsics.tolist()}
    write_atomic(folder / "cameras.json", json.dumps(cameras))


def shortcuts(arguments: argparse.Namespace) -> list[str]:
    """Returns what of these are keys of the config, as overrides."""
    given = {key: getattr(arguments, key) for key in ("model", "seed")}
    found = [f"{key}={value}" for key, value in given.items() if value is not None]
    return found + ([] if arguments.prompt is None else [f"prompt={json.dumps(arguments.prompt)}"])


def draw_object(
    config: ViewsConfig, folder: Path, *, size: int, share: float = OBJECT_SHARE
) -> UInt8[np.ndarray, "size size 4"]:
    """Returns the object of the picture that `drawn_by` draws of the prompt, which is written as drawn.png.

    Raises UserError if no object stands out in it.
    """
    from sampling.refine.text_to_image import load_text_to_image  # with diffusers' networks

    assert config.drawn_by is not None
    model = load_text_to_image(config.drawn_by, "cuda" if torch.cuda.is_available() else "cpu")
    seed = derive_seed("drawing", config.seed)
    prompt = check_prompt(config.prompt) + DRAWN_WORDS
    picture = model.draw(prompt, seed=seed, steps=DRAWN_STEPS, scale=DRAWN_SCALE)
    write_atomic(folder / "drawn.png", png(picture))
    name = str(folder / "drawn.png")
    opaque = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
    return cut_out(matted(opaque, PictureConfig(matting=config.matting), name=name), size=size, share=share,
                   name=name)  # fmt: skip


Objects = list[UInt8[np.ndarray, "size size 4"]]


def _maker(
    config: ViewsConfig, images: Sequence[Path]
) -> tuple[Callable[[Path], tuple[Turn, Objects]], dict[str, str]]:
    """Returns what makes the turn in a folder, with the pictures that it is of, and its models' digests."""
    drawn = config.drawn_by is not None
    if drawn and (images or not config.prompt):
        raise UserError("drawn_by draws a prompt's picture: give a --prompt and no --image.")
    if config.zero123 is not None:
        if not drawn and (len(images) != 1 or config.prompt):
            raise UserError("Zero-1-to-3 makes views of one picture: give one --image and no --prompt.")
        sizes: dict[str, Any] = {"size": ZERO123_SIZE, "share": ZERO123_SHARE}
        weights = config.zero123
        digest = file_digest(weights if weights.is_file() else weights / "unet" / "config.json")
        published = load_zero123(weights)
        turn: Callable[[Objects], Turn] = partial(zero123_turntable, published, config)
    else:
        assert config.model is not None
        for path in images:
            read_picture(path, name=str(path), max_bytes=MAX_IMAGE_BYTES, max_pixels=MAX_IMAGE_PIXELS)
        model = load_view_model(config.model, clip=config.clip, vae=config.vae)
        sizes, digest = {"size": model.size}, model.digest
        knows = bool(model.clip_digest) or not drawn  # a drawn picture says what the prompt would have
        turn = partial(turntable, model, config if knows else config.model_copy(update={"prompt": ""}))
    shown = [read_object(path, matting=config.matting, **sizes) for path in images]

    def make(folder: Path) -> tuple[Turn, Objects]:
        pictures = [draw_object(config, folder, **sizes)] if drawn else shown
        return turn(pictures), pictures

    return make, {"model": digest}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    config, out, arguments = parse_stage(
        ViewsConfig, stage="sampling.views", description=__doc__ or "", argv=argv,
        shortcuts=shortcuts,
    )  # fmt: skip
    start_logging()
    if (config.model is None) == (config.zero123 is None):
        raise UserError(
            "sampling.views needs --model RUN (a finished prior.train_views, or its run folder), or --set "
            "zero123=FILE in its place."
        )
    make, digests = _maker(config, arguments.image)
    inputs = digests | {f"image{i}": file_digest(p) for i, p in enumerate(arguments.image)}
    with Run.open(
        out, config, stage="sampling.views", inputs=inputs, places=("clip", "vae", "zero123", "drawn_by")
    ) as run:
        if run.done:
            log.info("%s already holds these views", out)
            return
        write_turn(run.folder, *make(run.folder))
        run.finish(num_views=config.views)
    log.info("%d views are in %s; views.png shows them", config.views, out)


if __name__ == "__main__":
    run_main(main)
