"""Changes the code a little and sees whether its own tests notice: `make mutants`, outside CI.

Mutants are cosmic-ray's (https://cosmic-ray.readthedocs.io), of the files on which figures rest. Each is
tried against the test file that mirrors the changed one and no other, in a process forked after torch's
import, in a copy of the tree: the checkout is never touched. Results collect in build/mutants.jsonl, so the
same command resumes; a killed mutant is tried again when its file changes, a survivor when its tests do too.
Prints each file's killed fraction, and every survivor as a diff.

    make mutants                            60 mutants, drawn from all files
    make mutants NUM=300 SEED=1             more of them, others
    make mutants FILES="encoder/losses.py"  of these files alone
"""

import argparse
import ast
import difflib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

ROOT = Path(__file__).resolve().parents[1]
TREE = ROOT / "build" / "mutants"
RESULTS = ROOT / "build" / "mutants.jsonl"
ROOMS = ("encoder", "prior", "shapeloom/diffusion", "shapeloom/fields", "shapeloom/rendering")
GEOMETRY = {
    "edges", "faces", "lighting", "mesh", "normalize", "points", "polygons", "raster", "raycast", "sdf",
    "solids", "views",
}  # fmt: skip
MIRRORS = {
    "conditions": "test_denoiser", "encoding": "test_mlp", "faces": "test_polygons", "heads": "test_mlp",
    "latents": "test_train", "lighting": "test_views", "normalize": "test_geometry",
    "occupancy": "test_volume", "points": "test_geometry", "raycast": "test_views", "rays": "test_cameras",
    "sdf": "test_geometry",
    "solids": "test_mesh", "steps": "test_samplers", "training_loop": "test_training",
    "training_task": "test_training",
}  # fmt: skip
"""Test files of those that have none of their own name."""
# The change nearest in meaning for each operator: adding for shifting, say, is an error that any test finds.
_BINARY = (
    "Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "Pow_Mul", "FloorDiv_Mul", "Mod_Add", "BitOr_BitAnd",
    "BitAnd_BitOr",
)  # fmt: skip
_COMPARISONS = ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is")
OPERATORS = (
    *(f"core/ReplaceBinaryOperator_{name}" for name in _BINARY),
    *(f"core/ReplaceComparisonOperator_{name}" for name in _COMPARISONS),
    "core/ReplaceUnaryOperator_Delete_USub", "core/ReplaceUnaryOperator_Delete_Not",
    "core/ReplaceUnaryOperator_Delete_Invert", "core/AddNot", "core/ReplaceTrueWithFalse",
    "core/ReplaceFalseWithTrue",
    "core/ReplaceAndWithOr", "core/ReplaceOrWithAnd", "core/NumberReplacer", "core/ZeroIterationForLoop",
)  # fmt: skip
MEGABYTES = 16000
"""That a mutant may take: DeepSpeed alone asks for several buckets of 2 GB, which it hardly touches."""


@dataclass(frozen=True)
class Mutant:
    """A change of one place of a file; `occurrence` counts the places that the operator can change."""

    file: str
    operator: str
    occurrence: int
    line: int


def files() -> list[Path]:
    """The files on which figures rest, relative to the root."""
    found = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    found += [
        path for path in (ROOT / "shapeloom").rglob("*.py") if "training" in path.relative_to(ROOT).parts[1]
    ]
    found += [path for path in (ROOT / "data_prep").rglob("*.py") if path.stem in GEOMETRY]
    return sorted(path.relative_to(ROOT) for path in found if path.name != "__init__.py")


def tests_of(file: Path) -> Path:
    """The test file that mirrors a file; raises SystemExit if there is none."""
    tests = ROOT / "tests"
    names = [f"test_{file.stem}.py", f"{MIRRORS.get(file.stem, 'none')}.py"]
    beside = [tests / file.parent / name for name in names]
    anywhere = [path for name in names for path in sorted((tests / file.parts[0]).rglob(name))]
    for path in [*beside, *anywhere]:
        if path.is_file():
            return path.relative_to(ROOT)
    raise SystemExit(
        f"error: {file} has no test file of its name; name one in MIRRORS in scripts/mutants.py."
    )


def mutants_of(file: Path) -> list[Mutant]:
    """Every mutant of a file but those of settings, messages, annotations and decorators."""
    code = (ROOT / file).read_text()
    left_out = set(_lines_left_out(ast.parse(code)))
    tree, found = get_ast(code), []
    for name in OPERATORS:
        operator = get_operator(name)()
        places = [start for node in ast_nodes(tree) for start, _ in operator.mutation_positions(node)]
        found += [
            Mutant(str(file), name, i, line) for i, (line, _) in enumerate(places) if line not in left_out
        ]
    return found


def _lines_left_out(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.ClassDef) and any(
            ast.unparse(base).endswith("Config") for base in node.bases
        ):
            parts += [each for each in node.body if isinstance(each, ast.AnnAssign)]
        elif isinstance(node, ast.FunctionDef):
            parts += [node.returns, *node.decorator_list, *(each.annotation for each in node.args.args)]
            parts += [each.annotation for each in node.args.kwonlyargs]
        elif isinstance(node, ast.AnnAssign):
            parts.append(node.annotation)
        elif isinstance(node, ast.Raise) or (
            isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log.")
        ):
            parts.append(node)
        for part in parts:
            if part is not None:
                yield from range(part.lineno, (part.end_lineno or part.lineno) + 1)  # type: ignore[attr-defined]


def copy_tree() -> None:
    """Copies what git tracks, as it lies in the checkout."""
    shutil.rmtree(TREE, ignore_errors=True)
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, TREE / name)


def passes(tests: Path, cpu_seconds: int) -> bool:
    """Whether the copy's test file passes, in a process of its own within so many CPU seconds."""
    child = os.fork()
    if child == 0:
        _run_tests(tests, cpu_seconds)
    deadline = time.monotonic() + 100 * cpu_seconds  # a loaded machine gives a process little
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.05)


def _run_tests(tests: Path, cpu_seconds: int) -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_DATA, (MEGABYTES << 20, MEGABYTES << 20))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    os.chdir(TREE)
    os.environ["PYTHONPATH"] = str(TREE)
    sys.path.insert(0, str(TREE))
    import pytest

    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(tests)])
    os._exit(min(int(code), 255))


def digest(*paths: Path) -> str:
    return hashlib.sha256(b"".join((ROOT / path).read_bytes() for path in paths)).hexdigest()[:16]


def known_results() -> dict[Mutant, dict]:
    """Results that still hold."""
    found = {}
    for line in RESULTS.read_text().splitlines() if RESULTS.is_file() else ():
        each = json.loads(line)
        mutant, file = Mutant(**each["mutant"]), Path(each["mutant"]["file"])
        if (ROOT / file).is_file() and each["code"] == digest(file):
            if each["killed"] or each["tests"] == digest(tests_of(file)):
                found[mutant] = each
            else:
                found.pop(mutant, None)
    return found


def try_out(mutant: Mutant, cpu_seconds: int) -> dict:
    """Runs the mirroring tests on a mutant, and returns the result as it is kept."""
    file, copy = Path(mutant.file), TREE / mutant.file
    code = (ROOT / file).read_text()
    changed = mutate_code(code, get_operator(mutant.operator)(), mutant.occurrence)
    assert changed is not None and changed != code
    diff = difflib.unified_diff(
        code.splitlines(), changed.splitlines(), mutant.file, mutant.file, "", "", 0, ""
    )
    start = time.monotonic()
    try:
        copy.write_text(changed)
        killed = not passes(tests_of(file), cpu_seconds)
    finally:
        copy.write_text(code)
    return {
        "mutant": asdict(mutant), "killed": killed, "diff": "\n".join(diff), "code": digest(file),
        "tests": digest(tests_of(file)), "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip


def report(results: list[dict]) -> None:
    """Prints each file's share, and the survivors."""
    print(f"\n{'killed':>8} {'of':>4}  file")
    for file in sorted({each["mutant"]["file"] for each in results}):
        its_own = [each["killed"] for each in results if each["mutant"]["file"] == file]
        print(f"{sum(its_own):8d} {len(its_own):4d}  {file}")
    killed = [each["killed"] for each in results]
    print(f"{sum(killed):8d} {len(killed):4d}  all ({sum(killed) / max(1, len(killed)):.0%})")
    for each in results:
        if not each["killed"]:
            print(f"\nsurvived: {each['mutant']['file']}:{each['mutant']['line']}\n{each['diff']}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="of these files; by default of all")
    parser.add_argument("--num", type=int, default=60, help="how many mutants, results at hand included")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    arguments = parser.parse_args()
    chosen = arguments.files or files()
    mutants = [mutant for file in chosen for mutant in mutants_of(file)]
    random.Random(arguments.seed).shuffle(mutants)
    print(f"{min(arguments.num, len(mutants))} of {len(mutants)} mutants of {len(chosen)} files")
    mutants = mutants[: arguments.num]
    known = known_results()
    copy_tree()
    import deepspeed  # noqa: F401  - here once, so that each fork needn't
    import torch  # noqa: F401

    budgets: dict[Path, int] = {}
    for mutant in mutants:
        if mutant in known:
            continue
        tests = tests_of(Path(mutant.file))
        if tests not in budgets:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            if not passes(tests, 900):
                raise SystemExit(f"error: {tests} fails without any change; mend that first.")
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            budgets[tests] = 20 + int(
                4 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            )
            print(f"{tests}: {(budgets[tests] - 20) / 4:.0f} CPU seconds", flush=True)
        known[mutant] = try_out(mutant, budgets[tests])
        with RESULTS.open("a") as lines:
            lines.write(json.dumps(known[mutant]) + "\n")
        print(f"{'killed' if known[mutant]['killed'] else 'SURVIVED'} {mutant}", flush=True)
    report([known[mutant] for mutant in mutants])


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.dont_write_bytecode = True
    main()
