"""A web page on this machine: a prompt or a picture in, a textured model out.

    python -m serving --set model=RUN [--port 7860] [--host 127.0.0.1]

It listens on localhost alone unless told otherwise, makes one object at a time and sends nothing elsewhere.
Ctrl-C, a hang-up or SIGTERM end it, and its files go with it.
"""

import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sampling.config import SamplingConfig, captions_of, load_pipeline
from sampling.pipeline import ShapePipeline
from sampling.refine.loading import load_judge
from serving.offline import stay_offline
from serving.stage import CSS, head
from serving.studio import MAX_UPLOAD_BYTES, Studio
from shapeloom.config import UserError, resolved, run_main
from shapeloom.log import get_logger, start_logging
from shapeloom.options import stage_parser
from shapeloom.view_diffusion import ViewModel, load_view_model

log = get_logger("app")

LOCAL = ("127.0.0.1", "localhost")
ANY = ("0.0.0.0", "::")  # all of this machine's addresses
MAX_SESSIONS = 500
"""Visitors whose history is remembered at once."""


@contextmanager
def served(studio: Studio, *, host: str = LOCAL[0], port: int = 7860) -> Iterator[Any]:
    """Serves the page while the context lasts; gives it as Gradio's `Blocks`, which know its `local_url`.

    Raises UserError if Gradio isn't installed or isn't one that was looked at, or if the port is taken.
    """
    # Gradio reports its use to its makers unless told not to before it is imported.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    # Of each request it also keeps a record for a page of statistics, which is closed here.
    os.environ |= {"GRADIO_ANALYTICS_MAX_EVENTS": "1", "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9)}
    os.environ["GRADIO_TEMP_DIR"] = str(studio.uploads)
    try:
        import gradio
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        from serving.gate import Gate, check_launch
        from serving.page import Page
        from serving.uploads import Uploads
    except ImportError as error:
        raise UserError(
            "The web page needs Gradio, which isn't installed. Run `make serve`, which installs it, or "
            '`pip install -c constraints.txt -e ".[serve]"`.'
        ) from error
    check_launch(gradio.Blocks.launch, gradio.__version__)
    uploads = Uploads(studio.uploads)
    # On localhost no other site can reach this one under a name of its own.
    names = list(LOCAL) if host in LOCAL else ["*"]
    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=names),
        Middleware(Gate, uploads=uploads, files=[studio.objects, studio.uploads]),
    ]
    blocks = Page(studio).blocks
    fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    try:
        blocks.launch(
            server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True,
            ssr_mode=False, footer_links=[], max_file_size=MAX_UPLOAD_BYTES, enable_monitoring=False,
            run_history=False, mcp_server=False, pwa=False, num_workers=0,
            state_session_capacity=MAX_SESSIONS, app_kwargs={"middleware": middleware},
            theme=gradio.themes.Default(primary_hue="blue", **fonts), css=CSS, head=head(),
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"Port {port} is taken; choose another with --port.") from error
    try:
        yield blocks
    finally:
        studio.close()
        uploads.close()
        blocks.close(verbose=False)


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Within it SIGTERM, Ctrl-C and a hang-up leave the program by its own way out, once."""
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def end(number: int, _: object) -> None:
        for each in signals:  # its clearing up isn't to be disturbed
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(0)

    before = {each: signal.signal(each, end) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _views(config: SamplingConfig, pipeline: ShapePipeline) -> ViewModel | None:
    """The run's view model, if it has one in pixel space."""
    run = Path(config.model or "")
    if config.model is None or not (run / "views" / "meta.json").is_file():
        return None
    try:
        return load_view_model(run, pipeline.prior.device, clip=pipeline.clip)
    except UserError as error:
        log.warning("the page turns no pictures: %s", error)
        return None


def main(argv: Sequence[str] | None = None) -> None:
    """Serves the page until interrupted."""
    arguments = stage_parser("serving", __doc__ or "").parse_args(argv)
    config = resolved(SamplingConfig, arguments)
    if not 0 < arguments.port < 65536:
        raise UserError(f"--port is a number from 1 to 65535, got {arguments.port}.")
    start_logging()
    config = config.model_copy(update={"prompts": config.prompts or captions_of(config)})
    with (
        ending_on_signals(),
        tempfile.TemporaryDirectory(prefix="shapeloom-page-", ignore_cleanup_errors=True) as folder,
    ):
        pipeline = load_pipeline(config)
        views, judge = _views(config, pipeline), load_judge(config.model, pipeline)
        studio = Studio(pipeline, config, Path(folder), views=views, judge=judge)
        stay_offline({arguments.host} - set(ANY))
        with served(studio, host=arguments.host, port=arguments.port) as blocks:
            log.info("open %s in a browser; Ctrl-C ends it", blocks.local_url)
            threading.Event().wait()


if __name__ == "__main__":
    run_main(main)
