"""A web page on this machine: a prompt or a picture in, a textured model out.

    python -m sampling.app --set model=RUN [--port 7860] [--host 127.0.0.1]

It listens on localhost alone unless told otherwise, makes one object at a time and sends nothing elsewhere.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sampling.__main__ import SamplingConfig, captions_of, load_pipeline
from sampling.stage import CSS, head
from sampling.studio import MAX_UPLOAD_BYTES, Studio
from shapeloom.config import UserError, load_config, run_main
from shapeloom.log import get_logger, start_logging

log = get_logger("app")

LOCAL = ("127.0.0.1", "localhost")
MAX_BODY_BYTES = 256 * 1024
"""Of requests other than uploads: prompts and numbers."""
MAX_SESSIONS = 500
"""Visitors whose history is remembered at once."""


class Guard:
    """ASGI middleware before Gradio.

    Bodies beyond the limits are refused, before they are read where they state a size; so are paths by which
    Gradio would fetch other sites' files for a visitor.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes a request on, counting its bytes as they come."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if "/file=http" in scope["path"].lower() or "/proxy=" in scope["path"].lower():
            await _refuse(send, 403, "Only the page's own files are served.")
            return
        # Multipart needs some room beside the file itself.
        limit = MAX_UPLOAD_BYTES + 16 * 1024 if scope["path"].endswith("/upload") else MAX_BODY_BYTES
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > limit:
            size = f"{limit >> 20} MB" if limit >> 20 else f"{limit >> 10} kB"
            await _refuse(send, 413, f"That is too large: at most {size} are taken here.")
            return
        received = 0

        async def counted() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            # A client that streams without a stated size is dropped.
            return message if received <= limit else {"type": "http.disconnect"}

        await self.app(scope, counted, send)


async def _refuse(send: Any, status: int, words: str) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": words}).encode()})


def serve(studio: Studio, *, host: str = LOCAL[0], port: int = 7860, wait: bool = True) -> Any:
    """Serves the page until interrupted, or in the background without `wait`; returns the Gradio page.

    Raises UserError if Gradio isn't installed or the port is taken.
    """
    # Gradio reports its use to its makers unless told not to before it is imported.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    # Uploads lie here; Gradio deletes them after an hour, and the folder goes when the page does.
    os.environ["GRADIO_TEMP_DIR"] = str(studio.uploads)
    try:
        import gradio
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        from sampling.page import Page
    except ImportError as error:
        raise UserError(
            "The web page needs Gradio, which isn't installed. Run `make serve`, which installs it, or "
            '`pip install -c constraints.txt -e ".[serve]"`.'
        ) from error
    middleware = [Middleware(Guard)]
    if host in LOCAL:
        # So that no other site can reach this one under a name of its own.
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL)))
    blocks = Page(studio).blocks
    fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    try:
        blocks.launch(
            server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=not wait,
            ssr_mode=False, footer_links=[], max_file_size=MAX_UPLOAD_BYTES, enable_monitoring=False,
            state_session_capacity=MAX_SESSIONS, app_kwargs={"middleware": middleware},
            theme=gradio.themes.Default(primary_hue="blue", **fonts), css=CSS, head=head(),
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"Port {port} is taken; choose another with --port.") from error
    return blocks


def main(argv: Sequence[str] | None = None) -> None:
    """Serves the page until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m sampling.app", description=__doc__)
    parser.add_argument("--config", type=Path, help="YAML preset, e.g. configs/sampling/tiny.yaml")
    parser.add_argument("--set", action="append", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--host", default=LOCAL[0], help="another address lets others in: there is no login")
    arguments = parser.parse_args(argv)
    overrides = [item for group in arguments.set for item in group]
    config = load_config(SamplingConfig, arguments.config, overrides)
    if not 0 < arguments.port < 65536:
        raise UserError(f"--port is a number from 1 to 65535, got {arguments.port}.")
    start_logging()
    config = config.model_copy(update={"prompts": config.prompts or captions_of(config)})
    with tempfile.TemporaryDirectory(prefix="shapeloom-") as folder:
        studio = Studio(load_pipeline(config), config, Path(folder))
        log.info("open http://%s:%d in a browser; Ctrl-C ends it", arguments.host, arguments.port)
        serve(studio, host=arguments.host, port=arguments.port)


if __name__ == "__main__":
    run_main(main)
