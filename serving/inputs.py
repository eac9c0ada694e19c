"""What the page's events share: work that can be stopped, inputs that nobody opens before they are checked.

Importing this needs Gradio (the extra `serve`).
"""

import base64
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path

import gradio
from gradio.data_classes import FileData, ImageData

from sampling.pictures import png
from serving.studio import MAX_PICTURES, MAX_UPLOAD_BYTES, Cancelled, OnStep, Studio
from shapeloom.config import UserError
from shapeloom.log import get_logger

log = get_logger("app")


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


def distrust(given: gradio.Image | gradio.File) -> None:
    """Makes an input give the path of an upload, which nobody opens before the studio looks at it.

    Gradio's own way is to open whatever came, and to fetch what is given by an address.
    """
    move = given.async_move_resource_to_block_cache

    def preprocess(payload: ImageData | FileData | None) -> str | None:
        return None if payload is None else payload.path

    async def move_upload(path: str | Path | None) -> str | None:
        if "://" in str(path):
            raise refusal("Files are uploaded here, not fetched from an address.")
        return await move(path)

    vars(given).update(preprocess=preprocess, async_move_resource_to_block_cache=move_upload)


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
