"""What the web page lets in and out: addresses, files, uploads, the network, and what stays when it ends."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub.constants
import pytest

pytest.importorskip("gradio", reason="the web page's library isn't installed")

from benchmarks.drills.page import STRANGERS, fake_hub, get, picture, routes, slow_upload
from benchmarks.drills.page_load import upload
from serving import uploads
from serving.gate import API, MAX_BODY_BYTES, OPEN, Gate, check_launch, is_open
from serving.uploads import Refusal, Uploads
from shapeloom.config import UserError
from tests.small_page import small_site

CLOSED = {
    "/gradio_api/api/{api_name}", "/gradio_api/call/v2/{api_name}",
    "/gradio_api/call/v2/{api_name}/{event_id}", "/gradio_api/call/{api_name}",
    "/gradio_api/call/{api_name}/{event_id}", "/gradio_api/component_server",
    "/gradio_api/custom_component/{id}/{environment}/{type}/{file_name}", "/gradio_api/deep_link",
    "/gradio_api/dev/reload", "/gradio_api/file/{path:path}", "/gradio_api/login_check",
    "/gradio_api/openapi.json", "/gradio_api/process_recording", "/gradio_api/proxy={url_path:path}",
    "/gradio_api/queue/status", "/gradio_api/runs", "/gradio_api/stream/{event_id}",
    "/gradio_api/stream/{event_id}/close",
    "/gradio_api/stream/{session_hash}/{run}/{component_id}/playlist-file",
    "/gradio_api/stream/{session_hash}/{run}/{component_id}/playlist.m3u8",
    "/gradio_api/stream/{session_hash}/{run}/{component_id}/{segment_id}.{ext}",
    "/gradio_api/theme.css", "/gradio_api/token", "/gradio_api/undo-vibe-edit",
    "/gradio_api/upload_progress", "/gradio_api/user", "/gradio_api/vibe-code", "/gradio_api/vibe-edit",
    "/gradio_api/vibe-starter-queries", "/login", "/logout", "/monitoring", "/monitoring/summary",
    "/monitoring/{key}", "/openapi.json", "/pwa_icon", "/pwa_icon/{size}", "/svelte/{path:path}",
}  # fmt: skip
"""Gradio's addresses that were looked at and aren't needed."""


@pytest.fixture(scope="module")
def small(pipeline, tmp_path_factory):
    with small_site(pipeline, tmp_path_factory.mktemp("gate")) as blocks:
        yield blocks


@pytest.fixture
def site(small):
    return small.local_url.rstrip("/")


def test_every_address_of_the_running_app_is_open_or_known_to_be_closed(small):
    found = {(method, path.rstrip("/") or "/") for method, path in routes(small.app)}
    assert len(found) > 60
    unknown = {(method, path) for method, path in found if path not in CLOSED and not is_open(method, path)}
    assert unknown == set()  # a new version's: look at them, then list them here or in OPEN
    assert not any(is_open(method, path) for method, path in found if path in CLOSED)


@pytest.mark.parametrize(("method", "path"), STRANGERS)
def test_strangers_get_nothing_from_other_addresses(site, method, path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_owner")
    with fake_hub() as (hub, asked):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub)
        status, words = get(site, method, path, b'{"bucket_id": "me/bucket"}' if method == "POST" else None)
    assert status in (403, 404)
    assert "no such address" in words or "own files" in words
    assert asked == []


def test_the_fake_hub_hears_of_a_page_without_the_gate(monkeypatch, tmp_path):
    """So that the test above can fail."""
    import gradio

    from benchmarks.drills.page_load import free_port

    monkeypatch.setenv("HF_TOKEN", "hf_owner")
    with gradio.Blocks(analytics_enabled=False) as blocks:
        gradio.Textbox()
    with fake_hub() as (hub, asked):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub)
        how = {"prevent_thread_lock": True, "quiet": True, "ssr_mode": False, "run_history": True}
        blocks.launch(server_port=free_port(), **how)
        get(blocks.local_url.rstrip("/"), "GET", f"{API}/run-history/buckets")
        blocks.close(verbose=False)
    assert any("hf_owner" in each for each in asked)


def test_a_file_is_what_its_bytes_say_whatever_it_was_called():
    stl = b"\0" * 80 + (2).to_bytes(4, "little") + b"\0" * 100
    latent = (16).to_bytes(8, "little") + b'{"a":' + b" " * 11
    known = {
        b"\x89PNG\r\n": ".png", b"\xff\xd8\xff": ".jpg", b"glTF\2": ".glb", b"ply\n": ".ply", stl: ".stl",
        latent: ".safetensors", stl[:-1]: ".bin", b"#!/bin/sh": ".bin", b"": ".bin",
    }  # fmt: skip
    assert {data: uploads.suffix_of(data) for data in known} == known


def test_settings_that_nobody_has_looked_at_end_the_start():
    import gradio

    check_launch(gradio.Blocks.launch, gradio.__version__)

    def newer(self, run_history=None, enable_monitoring=None, ssr_mode=None, phones_home=True):
        """A launch with a new default."""

    with pytest.raises(UserError, match=r"Gradio 7.0 has settings that this page doesn't know .phones_home"):
        check_launch(newer, "7.0")
    with pytest.raises(UserError, match="too old"):
        check_launch(lambda self: None, "5.0")


def test_a_process_that_is_offline_reaches_this_machine_alone():
    code = """
import socket
from serving.offline import stay_offline
server = socket.create_server(("127.0.0.1", 0))
stay_offline()
socket.create_connection(server.getsockname()).close()
socket.getaddrinfo("localhost", 80)
for reach in (lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
              lambda: socket.getaddrinfo("example.com", 80),
              lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53))):
    try:
        reach()
    except PermissionError as error:
        print(error)
"""
    run = [sys.executable, "-W", "ignore", "-c", code]
    said = subprocess.run(run, capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.count("asks nothing of the network") == 3


def test_uploads_have_addresses_that_nobody_guesses_and_are_served_to_whoever_has_them(site):
    data = picture(0)
    texts = {upload(site, "../../a name.png", data)[1] for _ in range(2)}
    assert len(texts) == 2
    path = texts.pop().strip('[]"')
    assert Path(path).suffix == ".png" and len(Path(path).stem) == 32 and "name" not in path
    assert get(site, "GET", f"{API}/file={path}")[0] == 200
    assert get(site, "GET", f"{API}/file={Path(path).parent}")[0] == 403
    status, words = upload(site, "a.png", b"x", stated=1 << 30)
    assert (status, "at most 10 MB" in words) == (413, True)


def test_the_progress_of_an_upload_which_browsers_ask_for_is_done(site):
    assert get(site, "GET", f"{API}/upload_progress?upload_id=a") == (200, 'data: {"msg": "done"}\n\n')


def test_uploads_that_stall_are_ended(site, monkeypatch):
    monkeypatch.setattr(uploads, "STALL_SECONDS", 0.5)
    seconds, words = slow_upload(site)
    assert seconds < uploads.REQUEST_SECONDS
    assert "Nothing more came of that request" in words


def test_the_oldest_uploads_make_room_for_new_ones(tmp_path):
    kept = Uploads(tmp_path / "uploads", max_bytes=100)
    paths = []
    for _ in range(4):
        with (tmp_path / "file").open("w+b") as file:
            file.write(b"x" * 40)
            file.seek(0)
            paths.append(kept.keep(file))
            time.sleep(0.02)
    assert [path.is_file() for path in paths] == [False, False, True, True]
    kept.close()
    with (tmp_path / "file").open("rb") as file, pytest.raises(Refusal, match="ending"):
        kept.keep(file)


def test_a_body_without_a_stated_size_is_cut_off(tmp_path):
    async def receive():
        return {"type": "http.request", "body": b"x" * 100_000, "more_body": True}

    sent = []

    async def send(message):
        sent.append(message)

    async def application(scope, receive, send):
        raise AssertionError("it must not come this far")

    scope = {"type": "http", "method": "POST", "path": f"{API}/queue/join", "headers": []}
    asyncio.run(Gate(application, uploads=Uploads(tmp_path), files=[])(scope, receive, send))
    assert sent[0]["status"] == 413
    assert b"at most 256 kB" in sent[1]["body"]
    assert MAX_BODY_BYTES == 256 * 1024


def test_web_sockets_are_closed(tmp_path):
    sent = []

    async def receive():
        raise AssertionError("nothing is read of it")

    async def send(message):
        sent.append(message["type"])

    gate = Gate(None, uploads=Uploads(tmp_path), files=[])
    asyncio.run(gate({"type": "websocket", "path": "/"}, receive, send))
    assert sent == ["websocket.close"]


def test_the_page_ends_at_sigterm_and_leaves_nothing(tmp_path):
    from benchmarks.drills.page import Findings, end, page
    from benchmarks.drills.tiny_model import write_tiny_model

    found = Findings()
    with (
        fake_hub() as (hub, asked),
        page(write_tiny_model(tmp_path / "m"), tmp_path / "home", hub) as (url, process),
    ):
        assert upload(url, "a.png", picture(0))[0] == 200
        end(process, tmp_path / "home", found)
    assert (found.problems, asked) == ([], [])


def test_the_page_s_own_addresses_are_open(site):
    assert (
        get(site, "GET", "/")[0]
        == get(site, "GET", "/config")[0]
        == get(site, "GET", f"{API}/info")[0]
        == 200
    )
    assert all(pattern.startswith("/") for patterns in OPEN.values() for pattern in patterns)
