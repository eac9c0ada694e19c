"""What the web page asks for (`orders`), made and kept. Knows nothing of browsers.

Everything that comes in is taken for hostile: numbers out of range, long texts and files that aren't what
they say are refused with a `UserError` that says why, and no name from outside is ever part of a path.
"""

import hashlib
import io
import secrets
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from jaxtyping import UInt8

from sampling.album import file_stem
from sampling.config import SamplingConfig
from sampling.cutouts import load_image
from sampling.edit import vary
from sampling.export import TexturedMesh
from sampling.faults import Fault
from sampling.formats import MESH_FORMATS
from sampling.pictures import png, save_frames
from sampling.pipeline import Picture, ShapePipeline
from sampling.refine.scores import SCORE_VIEWS
from sampling.refine.work import Refined
from sampling.shape import ShapeSample
from sampling.views import ViewsConfig, read_object, sheet_of, turntable
from serving.orders import (
    MAX_REFINE_STEPS,
    MAX_SEED,
    Edit,
    Order,
    Refinement,
    Turned,
    layers_of,
    number_of,
    numbers_of,
    text_of,
)
from serving.sources import read_source, refined
from shapeloom.clip import Clip
from shapeloom.config import UserError
from shapeloom.storage import file_digest, private_folder, write_atomic
from shapeloom.view_diffusion import ViewModel

MAX_UPLOAD_BYTES = 10 * 2**20
MAX_UPLOAD_PIXELS = 16_000_000
MAX_PICTURES = 4
"""Of an object."""
MAX_SEEN = 4 * MAX_PICTURES
"""Pictures that are kept as the model sees them, up to 0.8 MB each."""
MODELS = tuple(
    "obj.zip" if kind == "obj" else kind for kind in MESH_FORMATS if kind != "usdz" or find_spec("pxr")
)
KINDS = (*MODELS, "gif", "safetensors")
"""Suffixes of an object's files; USDZ where OpenUSD is installed."""

NO_VIEWS = "The run that this page shows has no view model (make train-views)."
NO_JUDGE = "The run that this page shows has no judge but the CLIP that a refinement follows (make eval)."

OnStep = Callable[[int, int, str], None]
"""Called with what is done, out of how much, and what comes next; may raise to stop the work."""


class Cancelled(Exception):
    """The visitor doesn't want it any more."""


@dataclass(frozen=True)
class Item:
    """An object with its files, by suffix. Without a surface it has a turntable and a latent alone.

    Views have a turntable ("gif") and a contact sheet ("png"); a refined object has the way there ("png").

    fault: what is wrong with its surface; "": nothing. note: what else is to be said of it.
    """

    key: str
    title: str
    faces: int
    files: dict[str, Path]
    fault: Fault = ""
    note: str = ""


class Studio:
    """Makes objects, one at a time, and keeps the newest `capacity` of them.

    All of them are made on one thread of its own, whichever thread asks: the C library keeps freed memory for
    each thread by itself, and those of a server come and go (100 MB and more of the demo's model).
    folder: gets `objects/`, and `uploads/`, where whoever receives pictures puts them. Cleaners of temporary
    files may take anything away from it: what is missing is made again.
    views: without one, nothing is turned. judge: of what is refined by the pipeline's CLIP, so another one;
    without it nothing is.
    """

    def __init__(
        self, pipeline: ShapePipeline, config: SamplingConfig, folder: Path, *, capacity: int = 100,
        views: ViewModel | None = None, judge: Clip | None = None,
    ) -> None:  # fmt: skip
        self.pipeline, self.config, self.capacity, self.views = pipeline, config, capacity, views
        self.judge = judge if judge is not None and judge.digest != pipeline.clip.digest else None
        self.folder, self.objects, self.uploads = folder, folder / "objects", folder / "uploads"
        private_folder(folder)
        self.uploads.mkdir(exist_ok=True)
        self._items: dict[str, Item] = {}
        self._seen: dict[Path, Picture] = {}
        # Keys are in addresses: nobody who doesn't know this can tell what others have made.
        self._secret = secrets.token_bytes(32)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="studio")
        self._looking, self._closed = threading.Lock(), threading.Event()

    def close(self) -> None:
        """Stops what is being made at its next step, and makes nothing more."""
        self._closed.set()
        self._worker.shutdown(cancel_futures=True)

    def make(self, order: Order, on_step: OnStep) -> Item:
        """Returns the object of an order: the same one for the same order."""
        on_step = self._while_open(on_step)
        prompt = text_of(order.prompt, may_be_empty=bool(order.images))
        negative = text_of(order.negative, may_be_empty=True)
        seed, steps, guidance = numbers_of(order)
        if len(order.images) > MAX_PICTURES:
            raise UserError(f"At most {MAX_PICTURES} pictures of an object are taken here.")
        pictures = [self.check_upload(path) for path in order.images]
        pixels = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures]

        def shape() -> ShapeSample:
            return self.pipeline(
                prompt, seed=seed, steps=steps, guidance_scale=guidance, sampler=self.config.sampler,
                step_choice=self.config.step_choice, guidance=self.config.guidance,
                negative_prompt=negative, image=pictures or None,
                on_step=lambda i: on_step(i + 1, steps + 1, f"step {i + 1} of {steps}"),
            )[0]  # fmt: skip

        identity = ("make", prompt, negative, pixels, seed, steps, guidance)
        label = prompt or ("your pictures" if len(pictures) > 1 else "your picture")
        return self._answer(identity, lambda key: self._write(key, label, seed, shape(), on_step))

    def edit(self, edit: Edit, on_step: OnStep) -> Item:
        """Returns an edited object."""
        on_step = self._while_open(on_step)
        prompt, layers = text_of(edit.prompt), layers_of(edit.layers)
        seed, steps, guidance = numbers_of(edit)
        strength = number_of("Strength", edit.strength, 0.05, 1)
        name, source = self._source(edit.source, edit.upload, on_step)

        def shape() -> ShapeSample:
            return vary(
                self.pipeline, source(), prompt, strength=strength, layers=layers, seed=seed, steps=steps,
                guidance_scale=guidance, sampler=self.config.sampler,
                on_step=lambda i: on_step(i + 1, steps + 1, f"step {i + 1}"),
            )[0]  # fmt: skip

        identity = ("edit", name, prompt, layers, strength, seed, steps, guidance)
        return self._answer(identity, lambda key: self._write(key, prompt, seed, shape(), on_step))

    def refine(self, asked: Refinement, on_step: OnStep) -> Item:
        """Returns an object that what CLIP takes for the words has moved, step by step."""
        on_step, judge = self._while_open(on_step), self.judge
        if judge is None:
            raise UserError(NO_JUDGE)
        prompt, layers = text_of(asked.prompt), layers_of(asked.layers)
        steps = int(number_of("The number of steps", asked.steps, 1, MAX_REFINE_STEPS))
        seed = int(number_of("The seed", asked.seed, 0, MAX_SEED))
        name, source = self._source(asked.source, asked.upload, on_step)

        def write(key: str) -> Item:
            done = refined(
                self.pipeline, source(), judge, self.config, prompt=prompt, layers=layers,
                steps=steps, seed=seed, folder=self.folder,
                on_step=lambda i, total: on_step(i, total, f"refining, step {i + 1} of {total}"),
            )  # fmt: skip
            return self._write(key, prompt, seed, done.shape, on_step, done)

        return self._answer(("refine", name, prompt, layers, steps, seed), write)

    def _source(
        self, key: str, upload: object, on_step: OnStep
    ) -> tuple[str, Callable[[], ShapeSample]]:  # fmt: skip
        """What a change starts from: what tells it from others, and how it is read."""
        if upload is not None:
            file = self._upload(upload)

            def read() -> ShapeSample:
                on_step(0, 1, "reading your file")
                return read_source(self.pipeline, file)

            return file_digest(file), read
        latent = self.find(key).files.get("safetensors")
        if latent is None:
            raise UserError("Views are pictures: only objects can be changed.")
        return key, lambda: self.pipeline.load_latent(latent)

    def turn(self, asked: Turned, on_step: OnStep) -> Item:
        """Returns views of an object from all around, by the view model."""
        on_step, model = self._while_open(on_step), self.views
        if model is None:
            raise UserError(NO_VIEWS)
        prompt = text_of(asked.prompt, may_be_empty=asked.image is not None)
        seed = int(number_of("The seed", asked.seed, 0, MAX_SEED))
        pictures = [] if asked.image is None else [self._object(asked.image, model.size)]
        config = ViewsConfig(prompt=prompt, seed=seed)

        def write(key: str) -> Item:
            label = prompt or "your picture"
            turn = turntable(
                model, config, pictures,
                on_step=lambda done: on_step(done, config.views, f"view {done} of {config.views}"),
            )  # fmt: skip
            with _folder(self.objects / key) as folder:
                files = {kind: folder / f"{file_stem(label, seed)}.{kind}" for kind in ("gif", "png")}
                save_frames(files["gif"], turn.rgba)
                write_atomic(files["png"], png(sheet_of(turn, pictures)))
            return Item(key, f"{label} · seed {seed}", 0, files)

        pixels = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures]
        return self._answer(("turn", prompt, pixels, seed), write)

    def get(self, key: str) -> Item | None:
        """Returns an object by its key, if it is still kept with all its files."""
        item = self._items.get(key)
        return item if item is not None and all(path.is_file() for path in item.files.values()) else None

    def check_upload(self, path: object) -> Picture:
        """Returns an uploaded picture as the model sees it; raises UserError for what can't be used."""
        file = self._upload(path)
        with self._looking:  # one at a time, since a decoded picture is large
            if file not in self._seen:  # uploads are never written again
                self._seen[file] = load_image(
                    file, self.config.pictures, name="The picture", max_bytes=MAX_UPLOAD_BYTES,
                    max_pixels=MAX_UPLOAD_PIXELS,
                )  # fmt: skip
            for old in list(self._seen)[:-MAX_SEEN]:
                del self._seen[old]
            return self._seen[file]

    def _object(self, path: object, size: int) -> UInt8[np.ndarray, "size size 4"]:
        """An uploaded picture's object, as the view model is shown it."""
        file = self._upload(path)
        with self._looking:
            return read_object(
                file, size=size, matting=self.config.pictures.matting, name="The picture",
                max_bytes=MAX_UPLOAD_BYTES, max_pixels=MAX_UPLOAD_PIXELS,
            )  # fmt: skip

    def _upload(self, path: object) -> Path:
        # Before it is asked whether a file is there: that alone would tell of files elsewhere.
        if not isinstance(path, str) or not Path(path).resolve().is_relative_to(self.uploads.resolve()):
            raise UserError("Files are uploaded here; no other files are read.")
        if not Path(path).is_file():
            raise UserError("That file isn't kept any more: upload it again.")
        return Path(path)

    def find(self, key: str) -> Item:
        """Returns an object by its key; raises UserError if it isn't kept any more."""
        item = self.get(key)
        if item is None:
            raise UserError("That object isn't kept any more. The same prompt and seed make it again.")
        return item

    def _while_open(self, on_step: OnStep) -> OnStep:
        def step(done: int, total: int, what: str) -> None:
            if self._closed.is_set():
                raise Cancelled
            on_step(done, total, what)

        return step

    def _answer(self, identity: tuple[object, ...], write: Callable[[str], Item]) -> Item:
        key = hashlib.blake2b(repr(identity).encode(), key=self._secret, digest_size=16).hexdigest()

        def work() -> Item:
            item = self.get(key) or write(key)
            self._items.pop(key, None)
            self._items[key] = item  # the newest comes last
            for old in list(self._items)[: -self.capacity]:
                del self._items[old]
                shutil.rmtree(self.objects / old, ignore_errors=True)
            return item

        try:
            # `on_step` finds its visitor by the context of the thread that asks.
            return self._worker.submit(copy_context().run, work).result()
        except (CancelledError, RuntimeError) as error:
            if self._closed.is_set():
                raise Cancelled from error
            raise

    def _write(
        self, key: str, label: str, seed: int, shape: ShapeSample, on_step: OnStep, way: Refined | None = None
    ) -> Item:
        private_folder(self.folder)
        with _folder(self.objects / key) as folder:
            stem, table = file_stem(label, seed), self.config.turntable
            on_step(1, 2, "turntable")
            frames = shape.turntable(table.frames, table.size, samples=table.samples)
            on_step(3, 4, "mesh and texture")
            mesh = shape.mesh(self.config.mesh)
            kinds = KINDS if mesh.num_faces else ("gif", "safetensors")
            files = {kind: folder / f"{stem}.{kind}" for kind in kinds}
            save_frames(files["gif"], frames)
            shape.save(files["safetensors"])
            for kind in kinds:
                if kind == "obj.zip":
                    write_atomic(files[kind], obj_archive(mesh, stem))
                elif kind in MODELS:
                    mesh.save(files[kind])
            if way is not None:
                files["png"] = folder / f"{stem}_way.png"
                write_atomic(files["png"], way.strip)
        note = "" if way is None else told(way)
        return Item(key, f"{label} · seed {seed}", mesh.num_faces, files, mesh.mesh.surface.fault, note)


def told(way: Refined) -> str:
    """Returns what a visitor should know of a refinement."""
    words = (
        f"How well it fits its words: {way.before:.3f} before, {way.after:.3f} after (another CLIP's cosine, "
        f"mean of {SCORE_VIEWS} views)."
    )
    if way.is_worse:
        words += (
            " **It fits them less than what it started from**, which is unchanged: fewer steps or another "
            "seed may do better."
        )
    return words


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """A new folder, gone again if what is to fill it fails."""
    shutil.rmtree(path, ignore_errors=True)  # what a cleaner has left of it
    path.mkdir(parents=True)
    try:
        yield path
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def obj_archive(mesh: TexturedMesh, stem: str) -> bytes:
    """Returns a zip of the OBJ, its MTL and its texture; the same bytes each time."""
    data = io.BytesIO()
    with TemporaryDirectory() as name, zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        mesh.save(Path(name, f"{stem}.obj"))
        for path in sorted(Path(name).iterdir()):
            # A ZipInfo of its own has no time of day.
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return data.getvalue()
