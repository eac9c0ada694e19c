"""The image's definition and Kubernetes' manifests: of the shapes that clusters ask for, and of one mind.

What the manifests say of one another is asked always; PyTorchJob's models only where kubeflow-training (with
kubernetes, 43 MB) is installed.
"""

import copy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "launch/kubernetes").glob("*.yaml"))
DOCKERFILE = ROOT / "launch/Dockerfile"
EXIT_CODES = [75, 137, 143]
"""A process or machine was lost; killed; saved at SIGTERM."""


def documents() -> dict[str, Any]:
    """By kind and name."""
    found = [each for path in FILES for each in yaml.safe_load_all(path.read_text())]
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in found}


def of_key(value: Any, key: str) -> Iterator[Any]:
    """All values of a key, at any depth."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    if isinstance(value, dict) and key in value:
        yield value[key]
    for child in children:
        yield from of_key(child, key)


def test_what_they_start_exists() -> None:
    for name, document in documents().items():
        words = [word for key in ("command", "args") for each in of_key(document, key) for word in each]
        for word in words:
            if word.startswith(("configs/", "launch/")):
                assert (ROOT / word).is_file(), name
        starts = {"encoder.train", "sampling", "launch/pipeline.sh"} & set(words)
        assert starts or document["kind"] == "PersistentVolumeClaim", name


def test_all_run_one_image_without_root_and_without_rights() -> None:
    for name, document in documents().items():
        if document["kind"] == "PersistentVolumeClaim":
            continue
        assert set(of_key(document, "image")) == {"REGISTRY/shapeloom:0.1.0"}, name
        contexts = list(of_key(document, "securityContext"))
        pods = [each for each in contexts if "runAsNonRoot" in each]
        containers = [each for each in contexts if "capabilities" in each]
        assert pods and len(pods) == len(containers) and len(contexts) == 2 * len(pods), name
        assert all(each["runAsNonRoot"] and each["runAsUser"] == 1000 for each in pods), name
        assert all(each["capabilities"] == {"drop": ["ALL"]} for each in containers), name
        assert set(of_key(document, "claimName")) == {"shapeloom"}, name


def test_pods_meet_at_the_first_and_are_as_many_as_they_wait_for() -> None:
    found = documents()
    job_set = found["JobSet/shapeloom"]
    (replicated,) = job_set["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    env = {each["name"]: each["value"] for each in container["env"]}
    assert int(env["NNODES"]) == job["completions"] == job["parallelism"]
    name = job_set["metadata"]["name"]
    # Pods are JOBSET-REPLICATED-JOB-POD, in a headless service of the JobSet's name.
    assert env["MASTER_ADDR"] == f"{name}-{replicated['name']}-0-0.{name}"
    roles = found["PyTorchJob/shapeloom"]["spec"]["pytorchReplicaSpecs"]
    for each in of_key(roles, "env"):
        assert each == [{"name": "NNODES", "value": str(sum(role["replicas"] for role in roles.values()))}]
    sampling = found["Job/shapeloom-sampling"]["spec"]
    (words,) = of_key(sampling, "args")
    shard = words[words.index("--shard") + 1]
    assert shard == f"$(JOB_COMPLETION_INDEX)/{sampling['completions']}"


def test_only_what_is_lost_or_saved_starts_again_under_jobset() -> None:
    job_set = documents()["JobSet/shapeloom"]["spec"]
    (replicated,) = job_set["replicatedJobs"]
    job = replicated["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    (container,) = job["template"]["spec"]["containers"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "NotIn"
    assert rule["onExitCodes"]["values"] == EXIT_CODES
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert job_set["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]


def parse(document: dict[str, Any]) -> dict[str, Any]:
    """What a kind's own models make of a manifest: names that they don't know are gone, wrong types raise."""
    if document["kind"] == "PyTorchJob":
        training = pytest.importorskip("kubeflow.training")
        client = pytest.importorskip("kubernetes.client").ApiClient()
        client_models = vars(training.models)
        read = client._ApiClient__deserialize_model
        models = {name: each for name, each in client_models.items() if name.startswith("KubeflowOrgV1")}
        vars(sys.modules["kubernetes.client.models"]).update(models)
        return dict(client.sanitize_for_serialization(read(document, models["KubeflowOrgV1PyTorchJob"])))
    models = pytest.importorskip("kubeflow_trainer_api.models")
    kind = {
        "JobSet": "JobsetV1alpha2JobSet", "TrainJob": "TrainerV1alpha1TrainJob", "Job": "IoK8sApiBatchV1Job",
    }[document["kind"]]  # fmt: skip
    return dict(getattr(models, kind).from_dict(document).to_dict())


@pytest.mark.parametrize("name", [name for name in documents() if not name.startswith("Persistent")])
def test_manifests_are_of_their_kinds_models(name: str) -> None:
    document = documents()[name]
    assert parse(document) == document
    wrong = copy.deepcopy(document)
    next(of_key(wrong, "securityContext"))["runAsNonRot"] = True
    assert parse(wrong) != wrong


def test_the_image_is_built_and_run_without_root() -> None:
    lines = [line.strip() for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    users = [line for line in lines if line.startswith("USER")]
    assert users == ["USER 1000:1000"]
    (place,) = [number for number, line in enumerate(lines) if line == users[0]]
    assert not any("apt-get" in line for line in lines[place:])
    assert not any(line.startswith(("ADD ", "VOLUME")) for line in lines)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs", "assets"} <= set(ignored)


def test_the_image_s_definition_passes_its_linter() -> None:
    beside = Path(sys.executable).with_name("hadolint")
    linter = str(beside) if beside.is_file() else shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint isn't installed")
    done = subprocess.run([linter, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
