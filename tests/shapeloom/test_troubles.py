"""What the world does is told in words with a place and a remedy; mistakes keep their traceback."""

import errno
import os
from pathlib import Path

import pytest
import torch

from shapeloom.config import run_main
from shapeloom.storage import scratch_file, write_atomic
from shapeloom.troubles import explain


def raised(number: int, name: str | None) -> OSError:
    return OSError(number, os.strerror(number), *([] if name is None else [name]))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (raised(errno.ENOSPC, "/nowhere/run/f"), ["/nowhere/run/f", "disk that holds / is full", "MB free"]),
        (raised(errno.EDQUOT, None), ["quota", "Make space"]),
        (raised(errno.EROFS, "/run/f"), ["/run/f", "read-only"]),
        (raised(errno.EACCES, "/run/f"), ["/run/f", "who owns it"]),
        (raised(errno.ENOENT, "/run/f"), ["/run/f is not there"]),
        (raised(errno.EIO, "/run/f"), ["/run/f", "failed"]),
        (raised(errno.EMFILE, "/run/f"), ["ulimit"]),
        (raised(errno.EADDRINUSE, None), ["MASTER_PORT"]),
        (MemoryError(), ["Memory is exhausted", "train.batch_size"]),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), ["The GPU's memory"]),
        (RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed"), ["is full"]),
        (RuntimeError("basic_ios::clear: iostream error"), ["is full"]),
        (RuntimeError("[...] Connection closed by peer [127.0.0.1]:1"), ["Another process"]),
    ],
)  # fmt: skip
def test_troubles_have_a_sentence(error: Exception, words: list[str]) -> None:
    text = explain(error)
    assert text is not None and all(word in text for word in words), text


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), RuntimeError("x"), OSError("x")])
def test_mistakes_have_none(error: Exception) -> None:
    assert explain(error) is None


def test_a_mistake_made_while_a_trouble_was_handled_is_a_mistake() -> None:
    mistake = KeyError("x")
    mistake.__context__ = raised(errno.ENOENT, "/run/f")
    assert explain(mistake) is None


def test_memory_that_torch_can_not_have_is_told() -> None:
    with pytest.raises(RuntimeError) as told:
        torch.empty(1 << 62, dtype=torch.uint8)
    assert "Memory is exhausted" in str(explain(told.value))


def test_a_command_ends_with_the_sentence_and_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise raised(errno.ENOSPC, "/run/f")

    with pytest.raises(SystemExit) as end:
        run_main(main)
    told = capsys.readouterr().err
    assert end.value.code == 1 and told.startswith("\nerror: /run/f") and told.count("\n") == 2


def test_a_write_that_fails_in_its_middle_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"a\.txt"), scratch_file(tmp_path / "a.txt"):
        raise raised(errno.ENOSPC, None)
    write_atomic(tmp_path / "b", "")
    with pytest.raises(OSError, match="b"):
        write_atomic(tmp_path / "b" / "c", "")
