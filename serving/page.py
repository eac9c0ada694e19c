"""The web page: Gradio's widgets and queue around a `Studio`, and a 3D view by `shapeloom.viewer`.

One object is made at a time, the others wait in a queue that has an end. Visitors have a history each.
Importing this needs Gradio (the extra `serve`).
"""

import json
import random
from typing import Any

import gradio

from sampling.faults import FAULTS
from sampling.refine.config import RefineConfig
from serving.inputs import Visits, about_pictures, as_seen, distrust, refusal
from serving.orders import (
    MAX_GUIDANCE,
    MAX_PROMPT,
    MAX_REFINE_STEPS,
    MAX_SEED,
    MAX_STEPS,
    Edit,
    Order,
    Refinement,
    Turned,
)
from serving.stage import STAGE, STAGE_CODE
from serving.studio import KINDS, MAX_PICTURES, NO_JUDGE, Item, Studio
from shapeloom.config import UserError

MAX_WAITING = 20
"""Requests in the queue; more are told to come back."""
HISTORY = 12
_LABELS = {"obj.zip": "OBJ", "safetensors": "Latent"}
_CHANGES = [("Shape and look", "all"), ("Look only", "color"), ("Shape only", "geometry")]


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


def _check_source(key: str, source: str | None) -> None:
    if not key and source is None:
        raise refusal("Make an object first, or choose a file of yours; then it can be changed.")


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
        self.source = gradio.File(
            label="Or a file of yours: GLB, PLY, STL or a latent",
            file_types=[".glb", ".ply", ".stl", ".safetensors"], height=140, elem_id="source",
        )  # fmt: skip
        distrust(self.source)
        gradio.Markdown("**Change it**: made again by the model that makes objects. Seconds.")
        self.strength = gradio.Slider(0.05, 1, 0.6, step=0.05, label="How much (1: made anew)")
        with gradio.Row():
            self.edit = gradio.Button("Change it", variant="primary", scale=3, min_width=120, elem_id="edit")
            self.cancel_edit = gradio.Button("Cancel", scale=1, min_width=90)
        if self.studio.judge is None:
            gradio.Markdown(f"**Refine it**: not here. {NO_JUDGE}", elem_id="no-refine")
            return
        gradio.Markdown(
            "**Refine it**: moved step by step until its pictures fit the words better by CLIP, as far as "
            "the model knows such shapes. A minute or more; it stays nearer to what it was."
        )
        self.refine_steps = gradio.Slider(
            1, MAX_REFINE_STEPS, RefineConfig().iterations, step=1, label="Steps of the refinement",
            elem_id="refine-steps",
        )  # fmt: skip
        with gradio.Row():
            self.refine = gradio.Button(
                "Refine it", variant="primary", scale=3, min_width=120, elem_id="refine"
            )
            self.cancel_refine = gradio.Button("Cancel", scale=1, min_width=90, elem_id="cancel-refine")

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
        self.note = gradio.Markdown(visible=False, elem_id="note")
        self.way = gradio.Image(
            label="The way there", visible=False, interactive=False, buttons=["download"], elem_id="way"
        )
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
            [self.key, self.change, self.layers, self.strength, *numbers, self.history, self.source], outputs,
            api_name="edit", concurrency_id="model", show_progress_on=self.view, scroll_to_output=True,
        )  # fmt: skip
        chosen = self.strip.select(
            self._show, [self.history], outputs, queue=False, show_progress="hidden", api_visibility="private"
        )
        cancels, work = [self.cancel_make.click, self.cancel_edit.click], [made, edited]
        shown = [made, edited, chosen]
        if self.studio.judge is not None:
            refined = self.refine.click(
                self._refine,
                [self.key, self.change, self.layers, self.refine_steps, self.seed, self.history, self.source],
                outputs, api_name="refine", concurrency_id="model", show_progress_on=self.view,
                scroll_to_output=True,
            )  # fmt: skip
            shown.append(refined)
            cancels.append(self.cancel_refine.click)
            work.append(refined)
        if self.studio.views is not None:
            turned = gradio.on(
                [self.turn.click, self.turn_prompt.submit], self._turn,
                [self.turn_prompt, self.turn_image, self.seed], self.turned, api_name="turn",
                concurrency_id="model", show_progress_on=self.turned[0],
            )  # fmt: skip
            cancels.append(self.cancel_turn.click)
            work.append(turned)
        for done in shown:
            done.success(
                self._beside, [self.history, self.key], [self.strip, self.note, self.way], queue=False,
                show_progress="hidden", api_visibility="private",
            )  # fmt: skip
        self.dice.click(
            lambda: random.randrange(10**6), None, self.seed, queue=False, show_progress="hidden",
            api_visibility="private",
        )  # fmt: skip
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
        source: str | None = None,
    ) -> list[Any]:  # fmt: skip
        _check_source(key, source)
        with self.visits.work(str(request.session_hash), progress) as on_step:
            edit = Edit(key, prompt, layers, strength, seed, steps, guidance, source)
            return answer(self.studio.edit(edit, on_step), history)

    def _refine(
        self, key: str, prompt: Any, layers: Any, steps: Any, seed: Any, history: list[str],
        request: gradio.Request, progress: gradio.Progress = gradio.Progress(),  # noqa: B008
        source: str | None = None,
    ) -> list[Any]:  # fmt: skip
        _check_source(key, source)
        with self.visits.work(str(request.session_hash), progress) as on_step:
            asked = Refinement(key, prompt, layers, steps, seed, source)
            return answer(self.studio.refine(asked, on_step), history)

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

    def _beside(self, history: list[str], key: str) -> list[Any]:
        """The visitor's objects as pictures, and what is to be said and seen of the one that is shown."""
        items = [self.studio.get(each) for each in history]
        pictures = [(str(item.files["gif"]), item.title) for item in items if item is not None]
        shown = self.studio.get(key)
        note = shown.note if shown else ""
        way = str(shown.files["png"]) if shown and "png" in shown.files else None
        return [
            pictures, gradio.update(value=note, visible=bool(note)),
            gradio.update(value=way, visible=way is not None),
        ]  # fmt: skip

    def _stop(self, request: gradio.Request) -> None:
        self.visits.stop(str(request.session_hash))
