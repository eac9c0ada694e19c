"""Which renderer a run has: what it was begun with, whatever is there when it goes on."""

import shutil
from pathlib import Path

import pytest
import yaml

from data_prep.build import prepare
from data_prep.pipeline import DataConfig
from data_prep.render import views, zbuffer
from shapeloom.config import UserError
from shapeloom.native import COMPILERS
from shapeloom.shards import AssetShards

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C++ compiler")


@pytest.fixture
def compiled(monkeypatch):
    """Says whether there is compiled code here."""

    def say(reason: str) -> None:
        for module in (zbuffer, views):
            monkeypatch.setattr(module, "reason_against", lambda: reason)

    return say


@pytest.fixture
def config(tmp_path: Path, make_box) -> DataConfig:
    make_box(tmp_path / "assets" / "box.glb")
    return DataConfig(
        assets=tmp_path / "assets", num_views=2, resolution=16, num_points=64, num_sdf=64, workers=0
    )


def names(out: Path) -> tuple[str, str]:
    """The renderer as the run's config has it, and as its asset says."""
    return yaml.safe_load((out / "config.yaml").read_text())["renderer"], AssetShards(out).facts(0)[
        "renderer"
    ]["name"]


def lose_shard(out: Path) -> None:
    (out / "shards" / "000000.tar").unlink()
    (out / "shards" / "000000.index.json").unlink()


def test_without_a_compiler_it_is_the_ray_caster_and_one_line_says_so(config, compiled, tmp_path, caplog):
    compiled("no C++ compiler was found")
    prepare(config, tmp_path / "out")
    assert names(tmp_path / "out") == ("embree", "embree")
    assert [text.count("no C++ compiler was found") for text in caplog.messages].count(1) == 1
    with pytest.raises(UserError, match=r"zbuffer can't be used here: no C\+\+ compiler"):
        prepare(config.model_copy(update={"renderer": "zbuffer"}), tmp_path / "other")


@needs_compiler
def test_what_the_ray_caster_began_it_ends_although_there_is_a_compiler_now(config, compiled, tmp_path):
    out = tmp_path / "out"
    compiled("no C++ compiler was found")
    prepare(config, out)
    before = (out / "shards" / "000000.tar").read_bytes()
    lose_shard(out)
    compiled("")
    prepare(config, out)
    assert names(out) == ("embree", "embree")
    assert (out / "shards" / "000000.tar").read_bytes() == before
    with pytest.raises(UserError, match="renderer was 'embree', now 'zbuffer'"):
        prepare(config.model_copy(update={"renderer": "zbuffer"}), out)


@needs_compiler
def test_what_compiled_code_began_is_refused_where_there_is_none(config, compiled, tmp_path):
    out = tmp_path / "out"
    prepare(config, out)
    assert names(out) == ("zbuffer", "zbuffer")
    compiled("no C++ compiler was found")
    prepare(config, out)  # is done: nothing has to be drawn
    lose_shard(out)
    with pytest.raises(UserError, match="zbuffer can't be used here"):
        prepare(config, out)
