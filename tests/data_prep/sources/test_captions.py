"""Captions files as spreadsheets and people leave them, and files that change or can't be read."""

import os
import time
import zipfile
from pathlib import Path

import pytest

from data_prep.failures import Failure
from data_prep.pipeline import DataConfig, prepare_asset
from data_prep.sources.content import content_digest
from data_prep.sources.find import SplitFractions, find_sources

FRACTIONS = SplitFractions()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/Chair.obj", "b.obj", "c.obj", "d.obj"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def listed(folder: Path, text: str) -> tuple[dict[str, list[str]], list[str]]:
    (folder / "captions.csv").write_bytes(text.encode())
    sources, failures = find_sources(folder, FRACTIONS)
    return {source.path: source.captions for source in sources}, [f.message for f in failures]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_an_unclosed_quote_costs_its_own_line(folder, line_end):
    text = line_end.join(["path,caption", 'b.obj,"a red box', 'c.obj,"a box, blue"', "d.obj,a box", ""])
    captions, messages = listed(folder, text)
    assert (captions["b.obj"], captions["c.obj"], captions["d.obj"]) == (["b"], ["a box, blue"], ["a box"])
    assert messages == ["captions.csv, line 2, has a quote that isn't closed"]


def test_an_unclosed_quote_in_the_last_line_is_told(folder):
    captions, messages = listed(folder, 'path,caption\nb.obj,a box\nc.obj,"a blue box')
    assert (captions["b.obj"], captions["c.obj"]) == (["a box"], ["c"])
    assert messages == ["captions.csv, line 3, has a quote that isn't closed"]


def test_quoted_lines_and_stray_quotes_are_captions(folder):
    text = 'path,caption\nb.obj,"a box\nof ""oak"",\nold"\nc.obj,a 5" box\nd.obj,"a 5" box"\n'
    captions, messages = listed(folder, text)
    assert captions["b.obj"] == ['a box of "oak", old']
    assert (captions["c.obj"], captions["d.obj"]) == (['a 5" box'], ['a 5 box"'])
    assert messages == []


def test_blank_rows_and_columns_are_skipped(folder):
    captions, messages = listed(folder, "path,caption,,\n,,,\n\nb.obj,a box,,\n , ,\nc.obj,a box\n\n")
    assert (captions["b.obj"], captions["c.obj"], messages) == (["a box"], ["a box"], [])


def test_paths_may_be_written_otherwise(folder):
    captions, messages = listed(
        folder, "path,caption\n./a//chair.obj,red\na\\Chair.obj,blue\nA/CHAIR.OBJ,old\n"
    )
    assert sorted(captions["a/Chair.obj"]) == ["blue", "old", "red"]
    assert messages == []
    (source,) = (source for source in find_sources(folder, FRACTIONS)[0] if source.path == "a/Chair.obj")
    assert source.warnings == ["captions.csv calls it a/chair.obj", "captions.csv calls it A/CHAIR.OBJ"]


def test_rows_without_a_file_cost_linear_time(folder):
    """Each row looked for through all the others took 80 CPU-seconds for 20,000."""
    rows = "".join(f"lost/{n}.obj,a caption\n" for n in range(20_000))
    start = time.process_time()
    _, messages = listed(folder, "path,caption\n" + rows)
    assert time.process_time() - start < 20  # 20,000 rows take half a second
    assert len(messages) == 20_000
    assert "captions.csv, line 20001, names a file that is not in the folder" in messages


def test_file_names_that_are_no_utf8_are_recorded(folder):
    with open(os.fsencode(folder) + b"/gr\xfcn.obj", "wb") as stream:
        stream.write(b"v 0 0 0\n")
    sources, failures = find_sources(folder, FRACTIONS)
    assert len(sources) == 4
    assert [(f.path, f.reason) for f in failures] == [("gr\\udcfcn.obj", "bad_name")]


def test_folders_that_cannot_be_read_are_recorded(folder, monkeypatch):
    scandir = os.scandir

    def guarded(place):
        if str(place).endswith("/a"):
            raise PermissionError(13, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", guarded)
    sources, failures = find_sources(folder, FRACTIONS)
    assert [source.path for source in sources] == ["b.obj", "c.obj", "d.obj"]
    assert [(f.path, f.reason) for f in failures] == [("a", "unreadable")]
    assert "Permission denied" in failures[0].message


def test_hidden_companions_are_no_assets(folder):
    for name in ("._b.obj", "__MACOSX/a/._Chair.obj", "__MACOSX/x.obj", ".git/x.obj"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    with zipfile.ZipFile(folder / "z.zip", "w") as archive:
        for name in ("e/f.obj", "__MACOSX/e/._f.obj", "e/.DS_Store", "e\\g\\h.obj"):
            archive.writestr(name, name)
    sources, failures = find_sources(folder, FRACTIONS)
    assert [source.path for source in sources] == [
        "a/Chair.obj", "b.obj", "c.obj", "d.obj", "z.zip/e/f.obj", "z.zip/e/g/h.obj",
    ]  # fmt: skip
    assert failures == []


def test_an_asset_that_changed_since_it_was_listed_is_left_out(tmp_path):
    corners = "".join(f"v {n & 1} {n >> 1 & 1} {n >> 2}\n" for n in range(8))
    (tmp_path / "a.obj").write_text(corners + "f 1 2 4\nf 5 7 8\n")
    (source,), _ = find_sources(tmp_path, FRACTIONS)
    (tmp_path / "a.obj").write_text(corners + "f 1 2 4\nf 5 6 8\n")
    outcome, _ = prepare_asset(source, tmp_path, DataConfig(assets=tmp_path, workers=0))
    assert isinstance(outcome, Failure)
    assert (outcome.stage, outcome.reason) == ("load", "changed")
    assert content_digest(tmp_path / "a.obj") != source.sha256
