"""Pipelines as folders and through a stub of a hub: what travels and what is refused."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from sampling.hub import ALLOWED, FILES, Parts, fetch_package, model_card, write_package
from sampling.pipeline import ShapePipeline
from shapeloom.config import UserError


@pytest.fixture
def run(tmp_path: Path, ball_dataset: Path) -> Path:
    """Folders that look like a run's to whoever copies files, with files that must not travel."""
    folder = tmp_path / "run"
    for part, names in FILES.items():
        (folder / part / "state").mkdir(parents=True)
        (folder / part / "state" / "model.pt").write_bytes(b"a pickle")
        for name in names:
            (folder / part / name).write_text(f"{part} {name}")
    facts = {
        "stage": "prior", "status": "done", "shapeloom": "0.1.0", "commit": "abc", "versions": {"torch": "2"},
        "inputs": {"encoder": "e", "clip": "c"}, "weights_digest": "w", "seconds": 1.0,
    }  # fmt: skip
    (folder / "prior" / "meta.json").write_text(json.dumps(facts))
    (folder / "clip" / "model.json").write_text(json.dumps({"kind": "dual_encoder"}))
    (folder / "metrics.json").write_text(json.dumps({"generation": {"r_at_1": 0.825, "splits": {}}}))
    (folder / "data").symlink_to(ball_dataset)
    return folder


class Hub:
    """The calls of huggingface_hub that are used, on folders below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> str:
        (self.root / repository).mkdir(parents=True, exist_ok=exist_ok)
        return f"https://hub/{repository}"

    def upload_folder(self, *, repo_id: str, folder_path: str, allow_patterns: list[str]) -> None:
        for name in allow_patterns:
            if Path(folder_path, name).is_file():
                (self.root / repo_id / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path(folder_path, name), self.root / repo_id / name)

    def download(self, repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        if not (self.root / repository).is_dir():
            raise LocalEntryNotFoundError("no connection\nand more")
        self.asked = allow_patterns
        return str(self.root / repository)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    stub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: stub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stub.download)
    return stub


def test_a_package_holds_the_listed_files_and_no_others(run, tmp_path):
    write_package(tmp_path / "package", fetch_package(run), licence="MIT")
    files = {p.relative_to(tmp_path / "package").as_posix() for p in (tmp_path / "package").rglob("*.*")}
    assert files == set(ALLOWED)
    assert (tmp_path / "package/prior/weights.safetensors").read_text() == "prior weights.safetensors"
    write_package(tmp_path / "package", fetch_package(run), licence="MIT")  # over itself


def test_links_out_of_a_package_are_followed_neither_in_nor_out(run, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    (run / "prior" / "prior.json").unlink()
    (run / "prior" / "prior.json").symlink_to(secret)
    with pytest.raises(UserError, match=r"is a link to .*secret\.txt, outside of"):
        write_package(tmp_path / "package", fetch_package(run), licence=None)
    assert not (tmp_path / "package").exists()
    (run / "prior" / "prior.json").unlink()
    (run / "prior" / "prior.json").write_text("{}")
    (run / "encoder").rename(tmp_path / "elsewhere")
    (run / "encoder").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="outside of"):
        write_package(tmp_path / "package", fetch_package(run), licence=None)
    named = Parts(run / "prior", run / "encoder", str(run / "clip"))  # by someone who knows where they are
    write_package(tmp_path / "package", named, licence=None)
    # What a link in the package points to is not written to.
    (tmp_path / "package" / "prior" / "prior.json").unlink()
    (tmp_path / "package" / "prior" / "prior.json").symlink_to(secret)
    write_package(tmp_path / "package", named, licence=None)
    assert secret.read_text() == "a secret"
    shutil.rmtree(tmp_path / "package" / "clip")
    (tmp_path / "package" / "clip").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="outside of"):
        write_package(tmp_path / "package", named, licence=None)


def test_the_hub_s_own_links_to_its_blobs_are_followed(run, tmp_path, monkeypatch):
    cache = tmp_path / "models--me--chairs"
    shutil.copytree(run, cache / "snapshots" / "abc", symlinks=True)
    (cache / "blobs").mkdir()
    weights = cache / "snapshots" / "abc" / "prior" / "weights.safetensors"
    weights.rename(cache / "blobs" / "digest")
    weights.symlink_to("../../../blobs/digest")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(weights.parents[1]))
    write_package(tmp_path / "package", fetch_package("me/chairs"), licence=None)
    assert (tmp_path / "package/prior/weights.safetensors").read_text() == "prior weights.safetensors"


def test_the_card_tells_data_licences_and_metrics(run):
    card = model_card(fetch_package(run), licence="MIT")
    assert "license: mit" in card
    assert "8 assets (digest" in card
    assert "| not stated | 8 |" in card
    assert "ball (8)" in card
    assert "| generation: r_at_1 | 0.825 |" in card
    (run / "data").unlink()
    (run / "metrics.json").unlink()
    bare = model_card(fetch_package(run), licence=None)
    assert "not stated by its maker" in bare
    assert "Not recorded" in bare
    assert "Not measured" in bare


def test_a_pipeline_travels_through_a_hub(run, hub, pipeline):
    sender = ShapePipeline(pipeline.prior, pipeline.decoder, pipeline.clip, fetch_package(run))
    assert sender.push_to_hub("me/chairs", licence="MIT") == "https://hub/me/chairs"
    (hub.root / "me/chairs/prior/evil.pkl").write_bytes(b"a pickle")
    parts = fetch_package("me/chairs")
    assert hub.asked == ALLOWED
    assert (parts.prior / "prior.json").read_text() == "prior prior.json"
    assert not any("pkl" in pattern or "*" in pattern for pattern in hub.asked)
    # What isn't safetensors under that name isn't opened as anything else.
    (parts.prior / "prior.json").write_text("{}")
    with pytest.raises(UserError, match=r"prior\.json doesn't describe a prior"):
        ShapePipeline.from_pretrained("me/chairs")


def test_what_is_no_pipeline_is_named(run, hub, tmp_path, pipeline):
    for source, message in (
        ("no/where", "the hub didn't give it .LocalEntryNotFoundError: no connection."),
        ("nowhere", "neither a folder nor a hub's owner/name"),
        ("../a", "neither a folder nor a hub's owner/name"),
        (str(run / "prior"), "has no folder prior/"),
    ):
        with pytest.raises(UserError, match=message):
            fetch_package(source)
    with pytest.raises(UserError, match="loaded from folders"):
        pipeline.save_pretrained(tmp_path / "new")
    with pytest.raises(UserError, match="holds something else"):
        write_package(tmp_path, fetch_package(run), licence=None)
    (run / "pipeline.json").write_text('{"format": 1, "clip": null}')
    with pytest.raises(UserError, match="another folder"):
        write_package(run, fetch_package(run), licence=None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "isn't what save_pretrained writes"),
        ("{", "isn't what save_pretrained writes"),
        ('{"format": 2, "clip": null}', "has format 2"),
        ('{"format": 1, "clip": "ViT-B-32//tmp/evil.pt"}', "which open_clip doesn't have"),
        ('{"format": 1, "clip": "hf-hub:evil/model"}', "which open_clip doesn't have"),
    ],
)
def test_hostile_descriptions_are_refused(run, text, message):
    (run / "pipeline.json").write_text(text)
    with pytest.raises(UserError, match=message):
        fetch_package(run)


def test_a_clip_of_elsewhere_is_refused_and_a_known_one_is_named(run):
    (run / "pipeline.json").write_text('{"format": 1, "clip": "ViT-B-32/openai"}')
    assert fetch_package(run).clip == "ViT-B-32/openai"
    (run / "pipeline.json").write_text('{"format": 1, "clip": null}')
    (run / "clip" / "model.json").write_text('{"kind": "pretrained", "model": "hf-hub:evil/model"}')
    with pytest.raises(UserError, match="evil/model"):
        fetch_package(run)
