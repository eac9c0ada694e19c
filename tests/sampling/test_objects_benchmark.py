"""The benchmark of what GLBs are worth runs, and says so where one is worth nothing."""

from pathlib import Path

import pytest

from benchmarks.experiments import objects
from sampling.pipeline import ShapePipeline


def test_objects_are_made_and_examined(
    pipeline: ShapePipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(ShapePipeline, "from_pretrained", lambda model: pipeline)
    arguments = ["--model", "any", "--out", str(tmp_path), "--num", "2", "--steps", "2", "--max-faces", "300"]
    with pytest.raises(SystemExit) as end:
        objects.main(arguments)
    told = capsys.readouterr().out
    assert end.value.code == 0 and "no problems" in told and len(list(tmp_path.glob("*.glb"))) == 2
    assert (
        "2 objects: 2 sound" in told and "2 files: 2 watertight, 0 with inner shells, 2 of one part" in told
    )


def test_objects_say_what_is_wrong_with_them():
    sound = objects.Object("a.glb", "", 1, 300, True, 0, 0.001, 1.0)
    assert sound.problems(300) == []
    broken = objects.Object("b.glb", "", 3, 301, False, 2, 0.1, 1.0)
    assert len(broken.problems(300)) == 4


def test_a_file_that_is_no_glb_is_told(tmp_path: Path):
    path = tmp_path / "broken.glb"
    path.write_bytes(b"glTF, or so it says")
    problems = objects.not_shown([path])
    if problems is None:
        pytest.skip("no browser here")
    assert len(problems) == 1 and problems[0].startswith("broken.glb: ")


def test_a_texture_of_another_colour_is_far_from_the_field(
    pipeline: ShapePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (shape,) = pipeline("a red chair", steps=2)
    path = tmp_path / "object.glb"
    shape.save(path, mesh=objects.MeshConfig(resolution=32, max_faces=300, texture_size=64))
    assert objects.texture_error(path, shape) < objects.LARGEST_ERROR
    own = shape.decoder.texture
    monkeypatch.setattr(shape.decoder, "texture", lambda *given: 1 - own(*given))
    assert objects.texture_error(path, shape) > objects.LARGEST_ERROR
