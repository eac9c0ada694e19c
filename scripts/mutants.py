"""Changes the code a little and sees whether its own tests notice: `make mutants`, outside CI.

Mutants are cosmic-ray's (https://cosmic-ray.readthedocs.io), of the files on which figures rest. Each is
tried against the test file that mirrors the changed one, or those that MIRRORS names, quickest tests first,
in a copy of the tree: the checkout is never touched. One that runs out of time counts as killed, one that
no test file mirrors survives. Survivors that no test could or should notice are explained, by the text of
their lines, in scripts/mutants_explained.yaml. Results collect in build/mutants.jsonl, so the same command
resumes; a killed mutant is tried again when its file changes, a survivor when its tests do too. Prints how
many of each file's mutants were killed, are explained and are not, and the last as diffs.

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
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from scripts.forked_tests import import_others, measure, run, written

ROOT = Path(__file__).resolve().parents[1]
TREE = ROOT / "build" / "mutants"
RESULTS = ROOT / "build" / "mutants.jsonl"
SECONDS = ROOT / "build" / "mutants_seconds.json"
EXPLAINED = ROOT / "scripts" / "mutants_explained.yaml"
ROOMS = ("encoder", "prior", "shapeloom/diffusion", "shapeloom/fields", "shapeloom/rendering")
GEOMETRY = {
    "edges", "faces", "lighting", "mesh", "normalize", "points", "polygons", "raster", "raycast", "sdf",
    "solids", "views",
}  # fmt: skip
MIRRORS = {
    "data_prep/formats/faces": ["data_prep/formats/test_polygons"],
    "data_prep/geometry/normalize": ["data_prep/geometry/test_geometry"],
    "data_prep/geometry/points": ["data_prep/geometry/test_geometry"],
    "data_prep/geometry/sdf": ["data_prep/geometry/test_geometry"],
    "data_prep/render/raycast": ["data_prep/render/test_views"],
    "encoder/model": ["encoder/test_model", "encoder/test_encode"],
    "prior/description": ["prior/test_description", "prior/test_denoiser", "prior/test_train"],
    "prior/latents": ["prior/test_denoiser", "prior/test_task", "prior/test_train"],
    "prior/model": ["prior/test_denoiser", "prior/test_train"],
    "prior/task": ["prior/test_task", "prior/test_denoiser", "prior/test_train"],
    "prior/train": ["prior/test_task", "prior/test_train"],
    "prior/views": ["prior/test_train_views"],
    "shapeloom/diffusion/guidance": [
        "shapeloom/diffusion/test_guidance", "shapeloom/diffusion/test_distillation",
    ],
    "shapeloom/diffusion/samplers": [
        "shapeloom/diffusion/test_samplers", "shapeloom/diffusion/test_variance",
    ],
    "shapeloom/diffusion/steps": ["shapeloom/diffusion/test_samplers"],
    "shapeloom/fields/encoding": ["shapeloom/fields/test_mlp"],
    "shapeloom/fields/heads": ["shapeloom/fields/test_mlp"],
    "shapeloom/rendering/occupancy": ["shapeloom/test_decoder"],
    "shapeloom/rendering/rays": ["shapeloom/rendering/test_cameras", "shapeloom/rendering/test_volume"],
    "shapeloom/training_loop": ["shapeloom/test_training"],
    "shapeloom/training_task": ["shapeloom/test_training"],
    "shapeloom/viewpoints": ["shapeloom/rendering/test_cameras"],
}  # fmt: skip
"""Test files of those that have none of their own name, or whose claims are in several."""
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
    found.append(ROOT / "shapeloom" / "viewpoints.py")
    return sorted(path.relative_to(ROOT) for path in found if path.name != "__init__.py")


def tests_of(file: Path) -> list[Path]:
    """The test files that a file's mutants are tried against: none if nothing mirrors it."""
    name = file.with_suffix("").as_posix()
    mirrors = MIRRORS.get(name, [f"{file.parent}/test_{file.stem}"])
    found = [Path("tests") / f"{each}.py" for each in mirrors]
    return [path for path in found if (ROOT / path).is_file()]


def mutants_of(file: Path) -> list[Mutant]:
    """Every mutant of a file but those of settings, messages, annotations and decorators."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator

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
        if isinstance(node, ast.ClassDef):
            parts += node.decorator_list
            if any(ast.unparse(base).endswith("Config") for base in node.bases):
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


def drawn(mutant: Mutant, seed: int) -> str:
    """What mutants are sorted by: a hash, so that changes of one file leave the draw of others as it was."""
    text = f"{seed} {mutant.file} {mutant.operator} {mutant.occurrence}"
    return hashlib.sha256(text.encode()).hexdigest()


def copy_tree() -> None:
    """Copies what git tracks, as it lies in the checkout."""
    shutil.rmtree(TREE, ignore_errors=True)
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, TREE / name)


def changed(mutant: Mutant) -> str:
    """The text of a mutant's file."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    code = (TREE / mutant.file).read_text()
    text = mutate_code(code, get_operator(mutant.operator)(), mutant.occurrence)
    assert text is not None and text != code
    return text


def digest(root: Path, *paths: Path) -> str:
    return hashlib.sha256(b"".join((root / path).read_bytes() for path in paths)).hexdigest()[:16]


def known_results(limit: float) -> dict[Mutant, dict]:
    """Results that still hold."""
    found, explained = {}, explanations()
    for line in RESULTS.read_text().splitlines() if RESULTS.is_file() else ():
        each = json.loads(line)
        mutant, file = Mutant(**each["mutant"]), Path(each["mutant"]["file"])
        if (ROOT / file).is_file() and each["code"] == digest(ROOT, file):
            same_tests = each["tests"] == digest(ROOT, *tests_of(file)) and each["limit"] >= limit
            if each["killed"] or same_tests or key_of(each) in explained:
                found[mutant] = each
            else:
                found.pop(mutant, None)
    return found


def try_out(mutant: Mutant, text: str, limit: float) -> dict:
    """Runs a mutant's tests in the copy of the tree, and returns the result as it is kept.

    text: of the changed file. limit: of the tests' CPU seconds. Raises SystemExit if the tests fail without
    a change.
    """
    file, start, outcome = Path(mutant.file), time.monotonic(), "passed"
    if tests := tests_of(file):
        seconds = seconds_of(tests, limit)
        with written(TREE / file, text):
            outcome = run(TREE, tests, seconds, limit=limit)
    before = (TREE / file).read_text().splitlines()
    diff = difflib.unified_diff(before, text.splitlines(), mutant.file, mutant.file, n=0, lineterm="")
    return {
        "mutant": asdict(mutant), "killed": outcome != "passed",
        "outcome": outcome if tests else "no tests", "diff": "\n".join(diff),
        "code": digest(TREE, file), "tests": digest(TREE, *tests), "limit": limit,
        "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip


def seconds_of(tests: list[Path], limit: float) -> dict[str, float]:
    """What the tests of some files and their fixtures take, measured at their first use."""
    kept = json.loads(SECONDS.read_text()) if SECONDS.is_file() else {}
    key = digest(TREE, *tests)
    if key not in kept or kept[key]["limit"] < limit:
        outcome, seconds = measure(TREE, tests, limit=limit)
        if outcome != "passed":
            names = " ".join(map(str, tests))
            raise SystemExit(f"error: {names} {outcome} without any change; mend that first.")
        kept[key] = {"limit": limit, "seconds": seconds}
        SECONDS.write_text(json.dumps(kept))
    return kept[key]["seconds"]


def explanations() -> dict[tuple[str, str, str], str]:
    """(file, lines as they are, lines as they were changed) -> why no test notices that."""
    listed = yaml.safe_load(EXPLAINED.read_text()) if EXPLAINED.is_file() else []
    return {(each["file"], each["before"], each["after"]): each["why"] for each in listed}


def key_of(result: dict) -> tuple[str, str, str]:
    """What an explanation of a result is found by."""
    lines = result["diff"].splitlines()[3:]
    before, after = ("\n".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
    return result["mutant"]["file"], before, after


def report(results: list[dict]) -> None:
    """Prints each file's killed, explained and unexplained mutants, and the last in full."""
    explained = explanations()

    def fate(result: dict) -> str:
        return "killed" if result["killed"] else "explained" if key_of(result) in explained else "unexplained"

    rows: dict[str, Counter[str]] = {}
    for each in results:
        rows.setdefault(each["mutant"]["file"], Counter())[fate(each)] += 1
    rows = dict(sorted(rows.items())) | {"all": sum(rows.values(), Counter())}
    print(f"\n{'killed':>8} {'explained':>10} {'unexplained':>12} {'of':>5}  file")
    for name, row in rows.items():
        counts = f"{row['killed']:8d} {row['explained']:10d} {row['unexplained']:12d} {row.total():5d}"
        print(f"{counts}  {name}")
    print(f"{rows['all']['unexplained'] / max(1, len(results)):.1%} unexplained")
    for each in results:
        if fate(each) == "unexplained":
            place = f"{each['mutant']['file']}:{each['mutant']['line']}"
            print(f"\nunexplained ({each['outcome']}): {place}\n{each['diff']}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="of these files; by default of all")
    parser.add_argument("--num", type=int, default=60, help="how many mutants, results at hand included")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--limit", type=float, default=30, help="of each one's tests, in CPU seconds")
    arguments = parser.parse_args()
    chosen = arguments.files or files()
    mutants = [mutant for file in chosen for mutant in mutants_of(file)]
    mutants.sort(key=lambda each: drawn(each, arguments.seed))
    print(f"{min(arguments.num, len(mutants))} of {len(mutants)} mutants of {len(chosen)} files")
    mutants = mutants[: arguments.num]
    known = known_results(arguments.limit)
    copy_tree()
    import_others()
    for mutant in mutants:
        if mutant in known:
            continue
        known[mutant] = try_out(mutant, changed(mutant), arguments.limit)
        with RESULTS.open("a") as lines:
            lines.write(json.dumps(known[mutant]) + "\n")
        print(known[mutant]["outcome"], known[mutant]["seconds"], mutant, flush=True)
    report([known[mutant] for mutant in mutants])


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
