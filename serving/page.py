"""The web page: Gradio's widgets and queue around a `Studio`, and a 3D view by `shapeloom.viewer`.

One object is made at a time, the others wait in a queue that has an end. Visitors have a history each.
Importing this needs Gradio (the extra `serve`).
"""

import base64
import json
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio
from gradio.data_classes import ImageData

from sampling.faults import FAULTS
from sampling.pictures import png
from serving.stage import STAGE, STAGE_CODE
from serving.studio import (
    KINDS,
    MAX_GUIDANCE,
    MAX_PICTURES,
    MAX_PROMPT,
    MAX_SEED,
    MAX_STEPS,
    MAX_UPLOAD_BYTES,
    Cancelled,
    Edit,
    Item,
    OnStep,
    Order,
    Studio,
    Turned,
)  # fmt: skip
from shapeloom.config import UserError
from shapeloom.log import get_logger

log = get_logger("app")

MAX_WAITING = 20
"""Requests in the queue; more are told to come back."""
HISTORY = 12
_LABELS = {"obj.zip": "OBJ", "safetensors": "Latent"}
_CHANGES = [("Shape and look", "all"), ("Look only", "color"), ("Shape only", "geometry")]


def refusal(text: str, title: str = "Not like this") -> gradio.Error:
    """Returns what the page shows as a note that goes away."""
    return gradio.Error(text, title=title, print_exception=False)


class Visits:
    """Which sessions have work under way, and how to stop it."""

    def __init__(self) -> None:
        self._stops: dict[str, threading.Event] = {}

    @contextmanager
    def work(self, session: str, progress: gradio.Progress) -> Iterator[OnStep]:
        """Gives an `OnStep` that shows progress and stops on demand; turns failures into kind words."""
        stop = self._stops[session] = threading.Event()

        def on_step(done: int, total: int, what: str) -> None:
            if stop.is_set():
                raise Cancelled
            progress((done, total), desc=what)

        try:
            yield on_step
        except UserError as error:
            raise refusal(str(error)) from error
        except Cancelled as error:
            raise refusal("Nothing was kept of it.", "Cancelled") from error
        except Exception as error:
            log.exception("a request failed")
            raise refusal("The terminal that serves this page says what.", "Something went wrong") from error
        finally:
            if self._stops.get(session) is stop:  # and not already that of the session's next request
                del self._stops[session]

    def stop(self, session: str) -> None:
        """Stops a session's work at its next step."""
        if (event := self._stops.get(session)) is not None:
            event.set()


def distrust(image: gradio.Image) -> None:
    """Makes an input give the path of an upload, which nobody opens before the studio looks at it.

    Gradio's own way is to open whatever came, and to fetch pictures that are given by an address.
    """
    move = image.async_move_resource_to_block_cache

    def preprocess(payload: ImageData | None) -> str | None:
        return None if payload is None else payload.path

    async def move_upload(path: str | Path | None) -> str | None:
        if "://" in str(path):
            raise refusal("Pictures are uploaded here, not fetched from an address.")
        return await move(path)

    vars(image).update(preprocess=preprocess, async_move_resource_to_block_cache=move_upload)


def as_seen(studio: Studio, paths: Sequence[str | None]) -> str:
    """Returns HTML of what the model will see of uploads, or why one can't be used."""
    parts = []
    for number, path in enumerate(paths, start=1):
        if path is None:
            continue
        try:
            data = base64.b64encode(png(studio.check_upload(path))).decode()
            parts.append(f'<img alt="the picture as the model sees it" src="data:image/png;base64,{data}">')
        except UserError as error:
            parts.append(f"<p>Picture {number}: {escape(str(error))}</p>")
    return f"<p>What the model will see:</p><div>{''.join(parts)}</div>" if parts else ""


def answer(item: Item, history: list[str]) -> list[Any]:
    """Returns an object for the page's outputs: the view, the downloads, its key, the history."""
    files = {kind: str(path) for kind, path in item.files.items()}
    url = f"gradio_api/file={files['glb']}" if "glb" in files else None
    title = item.title
    if item.fault:
        title += f": {item.fault}, {FAULTS[item.fault]}. Try another seed, or more guidance"
    keys = [item.key, *(key for key in history if key != item.key)][:HISTORY]
    shown = json.dumps({"url": url, "title": title, "key": item.key})
    downloads = [gradio.update(value=files.get(kind), interactive=kind in files) for kind in KINDS]
    return [shown, *downloads, item.key, keys]


def about_pictures(studio: Studio) -> str:
    """Returns what a visitor should know of pictures before choosing some."""
    text = (
        f"Up to {MAX_PICTURES} PNG or JPEG pictures of the same object, {MAX_UPLOAD_BYTES >> 20} MB each, "
        "from any sides: the model asks for no cameras."
    )
    if studio.config.pictures.background == "remove":
        text += " The background is removed."
    if studio.pipeline.prior.max_views < 2:
        text += " This model learned from one at a time: more help little."
    return text


class Page:
    """The widgets, and what their events do."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.visits = studio, Visits()
        gradio.set_static_paths([studio.objects])  # its files are served where they are, not copied
        with gradio.Blocks(title="Shapeloom", analytics_enabled=False, fill_width=True) as self.blocks:
            gradio.Markdown(
                "# Shapeloom\nSay what to make, or show a picture; a textured model comes back.",
                elem_id="title",
            )
            self.key, self.history = gradio.State(""), gradio.State([])
            with gradio.Row(elem_id="columns"):
                with gradio.Column(scale=2, min_width=300):
                    self._settings()
                with gradio.Column(scale=3, min_width=300):
                    self._view()
            self._events()
        self.blocks.queue(max_size=MAX_WAITING, api_open=False)

    def _settings(self) -> None:
        config = self.studio.config
        with gradio.Tabs():
            with gradio.Tab("Make"):
                self._make_tab()
            with gradio.Tab("Edit"):
                self._edit_tab()
            if self.studio.views is not None:
                with gradio.Tab("Views"):
                    self._views_tab()
        with gradio.Row(equal_height=True):
            self.seed = gradio.Number(
                config.seed, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, scale=2, min_width=120,
                elem_id="seed",
            )  # fmt: skip
            self.dice = gradio.Button("New seed", scale=1, min_width=110, size="md", elem_id="dice")
        with gradio.Accordion("Steps, guidance, negative prompt", open=False):
            steps = min(config.steps, MAX_STEPS)
            self.steps = gradio.Slider(1, MAX_STEPS, steps, step=1, label="Steps")
            self.guidance = gradio.Slider(0, MAX_GUIDANCE, config.guidance_scale, step=0.5, label="Guidance")
            self.negative = gradio.Textbox(
                config.negative_prompt, label="Negative prompt: what to keep away from", max_length=MAX_PROMPT
            )

    def _make_tab(self) -> None:
        prompts = self.studio.config.prompts
        self.prompt = gradio.Textbox(
            prompts[0] if prompts else "a red chair", label="Prompt", max_length=MAX_PROMPT, max_lines=4,
            elem_id="prompt",
        )  # fmt: skip
        with gradio.Accordion("Follow pictures of one object", open=False):
            gradio.Markdown(about_pictures(self.studio))
            with gradio.Row(elem_id="pictures"):
                self.images = [self._picture(number) for number in range(1, MAX_PICTURES + 1)]
            self.seen = gradio.HTML(elem_id="seen")
        with gradio.Row():
            self.make = gradio.Button("Make it", variant="primary", scale=3, min_width=120, elem_id="make")
            self.cancel_make = gradio.Button("Cancel", scale=1, min_width=90, elem_id="cancel")

    def _picture(self, number: int) -> gradio.Image:
        image = gradio.Image(
            label=f"Picture {number or ''}".strip(), type="filepath", image_mode=None,
            sources=["upload", "clipboard"], height=130, min_width=130, elem_id=f"picture-{number}",
        )  # fmt: skip
        distrust(image)
        return image

    def _edit_tab(self) -> None:
        self.change = gradio.Textbox(
            label="Turn the object that is shown into", max_length=MAX_PROMPT, max_lines=4,
            placeholder="a blue chair", elem_id="change",
        )  # fmt: skip
        self.layers = gradio.Radio(_CHANGES, value="all", label="What may change")
        self.strength = gradio.Slider(0.05, 1, 0.6, step=0.05, label="How much (1: made anew)")
        with gradio.Row():
            self.edit = gradio.Button("Change it", variant="primary", scale=3, min_width=120, elem_id="edit")
            self.cancel_edit = gradio.Button("Cancel", scale=1, min_width=90)

    def _views_tab(self) -> None:
        gradio.Markdown(
            "Pictures of an object from all around, by the view model: of yours, of your words, or both. "
            "A picture is taken to be from slightly above."
        )
        self.turn_prompt = gradio.Textbox(label="Prompt", max_length=MAX_PROMPT, elem_id="turn-prompt")
        self.turn_image = self._picture(0)
        with gradio.Row():
            self.turn = gradio.Button("Turn it", variant="primary", scale=3, min_width=120, elem_id="turn")
            self.cancel_turn = gradio.Button("Cancel", scale=1, min_width=90)
        shown: dict[str, Any] = {"interactive": False, "buttons": ["download"], "show_label": False}
        self.turned = [
            gradio.Image(label="Turntable", height=256, elem_id="turned", **shown),
            gradio.Image(label="Views", elem_id="turned-sheet", **shown),
        ]

    def _view(self) -> None:
        self.view = gradio.HTML(
            html_template=STAGE, js_on_load=STAGE_CODE, apply_default_css=False, elem_id="view"
        )
        with gradio.Row(elem_id="downloads"):
            self.downloads = [
                gradio.DownloadButton(
                    _LABELS.get(kind, kind.upper()), size="sm", min_width=60, interactive=False,
                    elem_id="download-" + kind.replace(".", "-"),
                )
                for kind in KINDS
            ]  # fmt: skip
        self.strip = gradio.Gallery(
            label="What you made", columns=6, height="auto", allow_preview=False, object_fit="contain",
            fit_columns=False, buttons=[], elem_id="history",
        )  # fmt: skip

    def _events(self) -> None:
        numbers, (first, *others) = [self.seed, self.steps, self.guidance], self.images
        gradio.on(
            [image.change for image in self.images], self._see, self.images, self.seen,
            show_progress="minimal", api_visibility="private", trigger_mode="always_last",
        )  # fmt: skip
        outputs = [self.view, *self.downloads, self.key, self.history]
        made = gradio.on(
            [self.make.click, self.prompt.submit], self._make,
            [self.prompt, first, self.negative, *numbers, self.history, *others], outputs, api_name="make",
            concurrency_limit=1, concurrency_id="model", show_progress_on=self.view, scroll_to_output=True,
        )  # fmt: skip
        edited = gradio.on(
            [self.edit.click, self.change.submit], self._edit,
            [self.key, self.change, self.layers, self.strength, *numbers, self.history], outputs,
            api_name="edit", concurrency_id="model", show_progress_on=self.view, scroll_to_output=True,
        )  # fmt: skip
        chosen = self.strip.select(
            self._show, [self.history], outputs, queue=False, show_progress="hidden", api_visibility="private"
        )
        for done in (made, edited, chosen):
            done.success(
                self._pictures, [self.history], self.strip, queue=False, show_progress="hidden",
                api_visibility="private",
            )  # fmt: skip
        self.dice.click(
            lambda: random.randrange(10**6), None, self.seed, queue=False, show_progress="hidden",
            api_visibility="private",
        )  # fmt: skip
        cancels, work = [self.cancel_make.click, self.cancel_edit.click], [made, edited]
        if self.studio.views is not None:
            cancels.append(self.cancel_turn.click)
            work.append(gradio.on(
                [self.turn.click, self.turn_prompt.submit], self._turn,
                [self.turn_prompt, self.turn_image, self.seed], self.turned, api_name="turn",
                concurrency_id="model", show_progress_on=self.turned[0],
            ))  # fmt: skip
        gradio.on(cancels, self._stop, None, None, queue=False, cancels=work, api_name="cancel")
        self.blocks.unload(self._stop)

    def _see(self, *paths: str | None) -> str:
        return as_seen(self.studio, paths)

    def _make(
        self, prompt: Any, image: str | None, negative: Any, seed: Any, steps: Any, guidance: Any,
        history: list[str], request: gradio.Request,
        progress: gradio.Progress = gradio.Progress(),  # noqa: B008
        image_2: str | None = None, image_3: str | None = None, image_4: str | None = None,
    ) -> list[Any]:  # fmt: skip
        # Further pictures come last and may be left out: scripts of before send six values.
        images = tuple(path for path in (image, image_2, image_3, image_4) if path is not None)
        with self.visits.work(str(request.session_hash), progress) as on_step:
            order = Order(prompt, negative, images, seed, steps, guidance)
            return answer(self.studio.make(order, on_step), history)

    def _edit(
        self, key: str, prompt: Any, layers: Any, strength: Any, seed: Any, steps: Any, guidance: Any,
        history: list[str], request: gradio.Request, progress: gradio.Progress = gradio.Progress(),  # noqa: B008
    ) -> list[Any]:  # fmt: skip
        if not key:
            raise refusal("Make an object first; then it can be changed.")
        with self.visits.work(str(request.session_hash), progress) as on_step:
            edit = Edit(key, prompt, layers, strength, seed, steps, guidance)
            return answer(self.studio.edit(edit, on_step), history)

    def _turn(
        self, prompt: Any, image: str | None, seed: Any, request: gradio.Request,
        progress: gradio.Progress = gradio.Progress(),  # noqa: B008
    ) -> list[str]:  # fmt: skip
        with self.visits.work(str(request.session_hash), progress) as on_step:
            files = self.studio.turn(Turned(prompt, image, seed), on_step).files
            return [str(files[kind]) for kind in ("gif", "png")]

    def _show(self, history: list[str], chosen: gradio.SelectData) -> list[Any]:
        try:
            return answer(self.studio.find(history[int(chosen.index)]), history)
        except UserError as error:
            raise refusal(str(error), "Gone") from error

    def _pictures(self, history: list[str]) -> list[tuple[str, str]]:
        items = [self.studio.get(key) for key in history]
        return [(str(item.files["gif"]), item.title) for item in items if item is not None]

    def _stop(self, request: gradio.Request) -> None:
        self.visits.stop(str(request.session_hash))
