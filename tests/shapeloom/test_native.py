"""C++ is compiled once, found again, made anew when damaged, and done without where it can't be had."""

import shutil
from pathlib import Path

import pytest

from shapeloom.native import COMPILERS, NotBuilt, library_path, load

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C++ compiler")


@pytest.fixture
def source(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    path = tmp_path / "answer.cpp"
    path.write_text('extern "C" int answer() { return 42; }\n')
    return path


@needs_compiler
def test_what_was_compiled_once_needs_no_compiler_again(source: Path, monkeypatch):
    assert load(source).answer() == 42
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert load(source).answer() == 42
    source.write_text(source.read_text().replace("42", "43"))  # other code is another library
    with pytest.raises(NotBuilt, match=r"no-such-compiler.*install"):
        load(source)
    monkeypatch.delenv("CXX")
    assert load(source).answer() == 43
    made = sorted((source.parent / "cache" / "shapeloom").iterdir())
    assert [path.suffix for path in made] == [".so", ".so"]  # and no leftovers


@needs_compiler
def test_a_damaged_library_is_made_anew(source: Path):
    path = library_path(source)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"torn")
    assert load(source).answer() == 42


@needs_compiler
def test_code_that_does_not_compile_says_why(source: Path):
    source.write_text("int answer( {")
    with pytest.raises(NotBuilt, match=r"failed on answer\.cpp: .*answer\.cpp:1"):
        load(source)


def test_a_cache_that_cannot_be_written_is_named(source: Path, monkeypatch):
    monkeypatch.setattr("shapeloom.native.shutil.which", lambda name: "/bin/true")
    (source.parent / "cache").write_text("a file")
    with pytest.raises(NotBuilt, match="XDG_CACHE_HOME"):
        load(source)
