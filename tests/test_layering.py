"""Who may import whom (docs/design.md). Reads the source; imports nothing."""

import ast
from collections.abc import Iterable
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"shapeloom", "data_prep", "encoder", "prior", "sampling", "serving", "eval"}
MAY_IMPORT = {
    "shapeloom": set(),
    "data_prep": {"shapeloom"},
    "encoder": {"shapeloom"},
    "prior": {"shapeloom"},
    "sampling": {"shapeloom", "data_prep", "encoder", "prior"},
    "serving": {"shapeloom", "data_prep", "encoder", "prior", "sampling"},
    "eval": {"shapeloom", "data_prep", "encoder", "prior", "sampling"},
}
PLAN = ROOT / "shapeloom" / "plan.py"
"""A command over the trainers, which nothing imports."""
APART = {"fields", "rendering", "diffusion", "nn"}  # within shapeloom
MAKERS = {"shapeloom/decoder.py", "encoder/model.py", "prior/description.py"}  # of what a config names


@cache
def parsed(path: Path) -> ast.Module:
    """A file's tree, read once for all tests."""
    return ast.parse(path.read_text())


@cache
def imports(path: Path, *, at_once: bool = False) -> frozenset[str]:
    """Names of what a file imports; at_once: when it is imported itself, not later in a function."""
    found: set[str] = set()
    tree = parsed(path)
    nodes: Iterable[ast.AST] = tree.body if at_once else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_only_what_it_may(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        rooms = {name.split(".")[0] for name in imports(path)} & ROOMS
        if path == PLAN:
            rooms -= {"encoder", "prior"}
        assert rooms <= MAY_IMPORT[room] | {room}, path


@pytest.mark.parametrize("room", sorted(APART))
def test_rooms_of_the_ground_floor_stay_apart(room: str) -> None:
    for path in (ROOT / "shapeloom" / room).rglob("*.py"):
        for other in APART - {room}:
            assert not any(name.startswith(f"shapeloom.{other}") for name in imports(path)), path


def test_nothing_imports_the_plan_which_knows_the_trainers() -> None:
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            assert "shapeloom.plan" not in imports(path), path


def test_only_the_decoder_joins_fields_and_rendering() -> None:
    for path in (ROOT / "shapeloom").glob("*.py"):
        names = imports(path)
        both = all(any(n.startswith(f"shapeloom.{room}") for n in names) for room in ("fields", "rendering"))
        assert not both or path.name == "decoder.py", path


def test_one_module_imports_ray() -> None:
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            uses = any(name.split(".")[0] == "ray" for name in imports(path))
            assert not uses or path == ROOT / "shapeloom" / "executors.py", path


def test_one_module_imports_deepspeed_and_two_process_groups() -> None:
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            names = imports(path)
            if any(name.split(".")[0] == "deepspeed" for name in names):
                assert path == ROOT / "shapeloom" / "distributed.py", path
            if any(name.startswith("torch.distributed") for name in names):
                assert path.name in ("distributed.py", "joining.py", "torchrun.py"), path


def test_shap_e_s_networks_are_known_to_their_folders_and_to_what_makes_them_alone() -> None:
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            uses = any(name.startswith("shapeloom.shap_e") for name in imports(path))
            name = path.relative_to(ROOT).as_posix()
            assert not uses or path.parent.name == "shap_e" or name in MAKERS, path


def test_no_file_imports_itself_through_others() -> None:
    paths = [path for room in ROOMS for path in (ROOT / room).rglob("*.py") if path.name != "__init__.py"]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    graph = {name: imports(path, at_once=True) & names.keys() for name, path in names.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(names)  # a cycle raises CycleError
