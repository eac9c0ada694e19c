"""Whole files or none, locally and elsewhere."""

import hashlib
from contextlib import suppress
from pathlib import Path

import pytest
from upath import UPath

from shapeloom.storage import (
    fetch_file,
    file_digest,
    is_local,
    parse_path,
    put_file,
    scratch_file,
    write_atomic,
)


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path: Path):
    if request.param == "local":
        yield tmp_path / "new" / "folder"
    else:
        yield UPath("memory://bucket/folder")
        UPath("memory://bucket").fs.store.clear()


def test_what_is_put_can_be_fetched(folder, tmp_path):
    write_atomic(folder / "a.txt", "one")
    write_atomic(folder / "a.txt", b"two")
    fetch_file(folder / "a.txt", tmp_path / "copy.txt")
    assert (tmp_path / "copy.txt").read_text() == "two"
    assert file_digest(folder / "a.txt") == hashlib.sha256(b"two").hexdigest()
    assert [path.name for path in folder.iterdir()] == ["a.txt"]


def test_interrupted_write_leaves_nothing(folder):
    write_atomic(folder / "a.txt", "one")
    with suppress(KeyboardInterrupt), scratch_file(folder / "a.txt") as temporary:
        temporary.write_text("half of tw")
        raise KeyboardInterrupt
    assert (folder / "a.txt").read_text() == "one"
    assert not temporary.exists()


def test_two_writers_of_one_file_do_not_meet(folder):
    with scratch_file(folder / "a.txt") as first, scratch_file(folder / "a.txt") as second:
        first.write_text("first")
        second.write_text("second")
        put_file(second, folder / "a.txt")
        put_file(first, folder / "a.txt")
    assert (folder / "a.txt").read_text() == "first"


def test_paths_are_local_unless_they_name_another_protocol():
    assert is_local(parse_path("some/where"))
    assert is_local(parse_path("file:///some/where"))
    assert not is_local(parse_path("memory://some/where"))
