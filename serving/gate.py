"""The web page's gate: what may be asked of Gradio at all.

Gradio has more addresses than the page uses, and each version adds some; several act with the credentials of
whoever runs the page (its run history writes to that person's hub account). Whatever isn't listed in `OPEN`
is answered "not found" before Gradio sees it. `offline` is the other half: the process reaches no other
machine.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from serving.studio import MAX_UPLOAD_BYTES
from serving.uploads import Receive, Refusal, Send, Uploads, measured, refuse, respond, too_large
from shapeloom.config import UserError

MAX_BODY_BYTES = 256 * 1024
"""Of requests other than uploads: prompts and numbers."""
FORM_BYTES = 16 * 1024
"""Of a form beside its file."""
API = "/gradio_api"
FILE, UPLOAD, PROGRESS = f"{API}/file=", f"{API}/upload", f"{API}/upload_progress"
OPEN = {
    "GET": (
        "/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/static/*",
        "/assets/*",
        f"{API}/info", f"{API}/app_id", f"{API}/startup-events", f"{API}/heartbeat/*", f"{API}/queue/data",
        f"{FILE}*",
    ),
    "POST": (f"{API}/queue/join", f"{API}/run/*", f"{API}/cancel", f"{API}/reset", UPLOAD),
}  # fmt: skip
"""What the page and its clients use, by method (a GET's HEAD too); * stands for anything."""

LAUNCH = frozenset(
    [
        "self", "inline", "inbrowser", "share", "debug", "max_threads", "auth", "auth_message",
        "prevent_thread_lock", "show_error", "server_name", "server_port", "height", "width",
        "favicon_path", "ssl_keyfile", "ssl_certfile", "ssl_keyfile_password", "ssl_verify", "quiet",
        "footer_links", "run_history", "allowed_paths", "blocked_paths", "root_path", "app_kwargs",
        "state_session_capacity", "share_server_address", "share_server_protocol",
        "share_server_tls_certificate", "auth_dependency", "max_file_size", "enable_monitoring",
        "strict_cors", "node_server_name", "node_port", "ssr_mode", "pwa", "mcp_server", "num_workers",
        "_app", "_frontend", "i18n", "theme", "css", "css_paths", "js", "head", "head_paths",
    ]
)  # fmt: skip
"""Settings of `gradio.Blocks.launch` whose defaults were looked at (6.31)."""


def check_launch(launch: Callable[..., Any], version: str) -> None:
    """Raises UserError if Gradio has settings that nobody has looked at: they may be on by default."""
    unknown = sorted(inspect.signature(launch).parameters.keys() - LAUNCH)
    missing = sorted(
        {"run_history", "enable_monitoring", "ssr_mode"} - inspect.signature(launch).parameters.keys()
    )
    if unknown or missing:
        what = f"has settings that this page doesn't know ({', '.join(unknown)})" if unknown else "is too old"
        raise UserError(
            f"Gradio {version} {what}, so what it does for strangers is unknown. Install the one that was "
            "looked at: pip install -c constraints.txt gradio."
        )


def is_open(method: str, path: str) -> bool:
    """Whether the page uses this address."""
    patterns = OPEN.get("GET" if method == "HEAD" else method, ())
    return any(re.fullmatch(re.escape(each).replace(r"\*", ".+"), path) for each in patterns)


class Gate:
    """ASGI middleware before Gradio: lets through what is `OPEN`, within its size and time.

    files: the folders whose files are served.
    """

    def __init__(self, app: Any, *, uploads: Uploads, files: Sequence[Path]) -> None:
        self.app, self.uploads, self.files = app, uploads, files

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Passes a request on with its whole body, or refuses it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            try:
                await self._pass(scope, receive, send)
            except Refusal as refusal:
                await refuse(send, refusal)

    async def _pass(self, scope: Any, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if (method, path) == ("GET", PROGRESS):  # of uploads, which Gradio doesn't see here
            await respond(send, {"msg": "done"}, event=True)
            return
        if not is_open(method, path):
            raise Refusal(404, "This page has no such address.")
        if path.startswith(FILE) and not self._serves(path.removeprefix(FILE)):
            raise Refusal(403, "Only the page's own files are served.")
        limit = MAX_UPLOAD_BYTES + FORM_BYTES if path == UPLOAD else MAX_BODY_BYTES
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > limit:
            raise too_large(limit)
        incoming = measured(receive, limit=limit)
        if path == UPLOAD:
            await self.uploads.take(scope, incoming, send)
            return
        body, more = b"", True
        while more:
            message = await incoming()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def whole() -> Any:
            return parts.pop() if parts else await receive()

        await self.app(scope, whole, send)

    def _serves(self, path: str) -> bool:
        """Whether a path, links in it followed, lies in one of the folders; addresses of the web never do."""
        file = Path(path)
        if "\0" in path or not file.is_absolute():
            return False
        real = file.resolve()
        return any(real.is_relative_to(folder.resolve()) for folder in self.files)
