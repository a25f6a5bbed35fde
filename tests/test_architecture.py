"""The structure itself: the order of the wings, no ring of modules, and who imports Ray and torch.

Read from the imports themselves, those within functions and those for type checkers included.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from conftest import REPOSITORY, config_for, run_here, write_config

PACKAGE = REPOSITORY / "pipeline"
WINGS = ("storage", "source", "index", "prepare", "tower", "encode", "output", "run", "estimate", "read", "cli")
GROUND = ("config", "config_fields", "errors", "rejects", "grid", "sampling", "fault", "process")
# What is imported from outside; nothing inside imports it but `cli`.
FACE = ("", "__main__", "batch_encoder", "vision_encoder")
RAY_READER = "read.ray_data"  # the one module outside `run/` that imports Ray
MAX_LINES = 320


def module_name(path: Path) -> str:
    """`storage.files`, of `pipeline/storage/files.py`; "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def sources() -> dict[str, str]:
    return {module_name(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def is_package(name: str) -> bool:
    return (PACKAGE / name.replace(".", "/") / "__init__.py").exists()


def targets(name: str, text: str, known: Mapping[str, str]) -> Iterator[str]:
    """What a module imports: modules of ours by their names, others by their first one with a `!` before it."""
    inside = name.split(".") if is_package(name) and name else name.split(".")[:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ("!" + alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield f"!{node.module}"
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                full = ".".join([*base, alias.name])
                yield full if full in known else ".".join(base)


def wing_of(name: str) -> str:
    first = name.partition(".")[0]
    return first if first in WINGS else "face" if name in FACE else "ground"


def violations(modules: Mapping[str, str]) -> list[str]:
    """Every import that the structure does not allow, and every ring."""
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    for name, text in modules.items():
        graph[name] = set()
        here = wing_of(name)
        for target in targets(name, text, modules):
            if target.startswith("!"):
                top = target[1:].split(".")[0]
                if top in ("pipeline", "jobs", "visionbake"):
                    found.append(f"{name} imports {target[1:]}: imports inside the package are relative")
                if top == "ray" and here != "run" and name != RAY_READER:
                    found.append(f"{name} imports ray")
                continue
            graph[name].add(target)
            there = wing_of(target)
            if there == "face" and here not in ("face", "cli") and target:
                found.append(f"{name} imports {target}, which is for those outside")
            if here == "ground" and there != "ground":
                found.append(f"{name} of the ground floor imports {target}")
            if here in WINGS and there in WINGS and WINGS.index(there) > WINGS.index(here):
                found.append(f"{name} imports {target}, of a wing below")
    return found + [f"a ring: {' → '.join(ring)}" for ring in rings(graph)]


def rings(graph: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """One ring for each edge that closes one, depth first."""
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> Iterator[list[str]]:
        path.append(name)
        for target in sorted(graph.get(name, ())):
            if target in path:
                yield [*path[path.index(target) :], target]
            elif target not in done:
                yield from visit(target)
        path.pop()
        done.add(name)

    for name in graph:
        if name not in done:
            yield from visit(name)


def test_wings_import_the_wings_above_them_and_no_module_is_in_a_ring() -> None:
    modules = sources()
    assert {name.partition(".")[0] for name in modules} == {*WINGS, *GROUND, *FACE}
    assert violations(modules) == []


@pytest.mark.parametrize(
    ("module", "line", "says"),
    [
        ("source.plan", "from ..output.shard import DATA_SCHEMA", "source.plan imports output.shard, of a wing below"),
        ("index.headers", "def f():\n    from ..prepare import guard", "index.headers imports prepare.guard"),
        ("grid", "from .index.units import Unit", "grid of the ground floor imports index.units"),
        ("read.stream", "from .reader import EmbeddingDataset", "a ring: read.reader → read.stream → read.reader"),
        ("output.commit", "import ray", "output.commit imports ray"),
        ("encode.unit", "from ray.util import metrics", "encode.unit imports ray"),
        ("read.stream", "import ray.data", "read.stream imports ray"),
        ("run.driver", "from pipeline.errors import RunFailed", "imports inside the package are relative"),
        ("estimate.estimate", "from ..vision_encoder import VisionEncoder", "which is for those outside"),
    ],
)
def test_a_planted_import_is_seen(module: str, line: str, says: str) -> None:
    modules = sources()
    modules[module] += f"\n{line}\n"
    assert any(says in violation for violation in violations(modules))


def questions(name: str, text: str) -> list[str]:
    """Where a module asks which format a source has, or whether bytes are local or remote."""
    found = []
    for node in ast.walk(ast.parse(text)):
        asks_format = isinstance(node, ast.Compare) and any(
            isinstance(side, ast.Attribute) and side.attr == "format" and ast.unparse(side.value) != "image"
            for side in (node.left, *node.comparators)
        )
        if asks_format and name != "source.resolve":
            found.append(f"{name} asks for a format: {ast.unparse(node)}")
        if isinstance(node, ast.Name) and node.id == "is_remote" and wing_of(name) != "storage":
            found.append(f"{name} asks where bytes lie")
    return found


def test_format_and_storage_are_asked_where_they_are_chosen() -> None:
    assert [found for name, text in sources().items() for found in questions(name, text)] == []
    planted = "def f(part):\n    return part.format in ('parquet', 'jsonl') and is_remote(part.root)"
    assert len(questions("prepare.unit", planted)) == 2


def test_modules_are_short() -> None:
    lines = {path.relative_to(PACKAGE).as_posix(): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name for name, count in lines.items() if count > MAX_LINES} == set()


LONG = {"output.card.data_set_card": "the text of a page"}
MANY = {
    "tower.fused._add_norm": "a kernel's arguments",
    "tower.fused._rotate": "a kernel's arguments",
    "tower.fused._normalize": "a kernel's arguments",
    "tower.fused._activate_fp8": "a kernel's arguments",
    "vision_encoder.VisionEncoder.from_pretrained": "a public signature, by keyword",
}


def functions(name: str, tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            full = f"{prefix or name}.{node.name}"
            if isinstance(node, ast.FunctionDef):
                yield full, node
            yield from functions(name, node, full)


def test_functions_are_short_and_take_little_or_are_listed_with_a_reason() -> None:
    long, many = set(), set()
    for name, text in sources().items():
        for full, node in functions(name, ast.parse(text)):
            arguments = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            if node.end_lineno - node.lineno + 1 > 60:
                long.add(full)
            if len([one for one in arguments if one not in ("self", "cls")]) > 6:
                many.add(full)
    assert long == set(LONG)
    assert many == set(MANY)


UNCLEAR = ("Of", "What", "As", "Behind")  # of what, what of, as whom: unclear without the name below it


def test_docstrings_say_what_a_thing_is_or_does() -> None:
    for path in [*PACKAGE.rglob("*.py"), *REPOSITORY.glob("jobs/**/*.py")]:
        text = path.read_text(encoding="utf-8")
        assert "fmt: " + "skip" not in text, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                words = (ast.get_docstring(node) or "-").split()
                assert words[0] not in UNCLEAR, f"{path}: {' '.join(words[:8])}"


def test_every_wing_lists_its_modules_and_no_others() -> None:
    for wing in (*WINGS, "source/formats", "tower/families", "cli/report"):
        lines = (ast.get_docstring(ast.parse((PACKAGE / wing / "__init__.py").read_text())) or "").splitlines()[2:]
        entries = itertools.takewhile(str.strip, lines)  # what follows the list is text
        listed = {name for line in entries for name in re.split(r" {2,}", line.strip())[0].split(", ")}
        there = {path.stem for path in (PACKAGE / wing).glob("*.py")} - {"__init__"}
        folders = {path.parent.name for path in (PACKAGE / wing).glob("*/__init__.py")}
        assert there | folders == {name.rstrip("/") for name in listed}, wing


LOADED = """
import json, sys
from pipeline.cli import main
code = main(sys.argv[1:])
heavy = {name.partition(".")[0] for name in sys.modules} & {"torch", "ray", "matplotlib"}
print(json.dumps([code, sorted(heavy)]))
"""


def loaded_by(*words: object) -> tuple[int, list[str]]:
    """A command's exit code, and what it loaded of what is heavy."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *map(str, words)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    code, names = json.loads(done.stdout.splitlines()[-1])
    return code, names


@pytest.mark.slow
def test_what_only_reads_numbers_loads_neither_torch_nor_ray(source: Path, model_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    config = config_for(source, output, model_path, cluster={"engine": "ray"})
    assert run_here(config_for(source, output, model_path)).complete
    path = write_config(tmp_path / "c.yaml", config)
    for words in (["plan", path], ["run", path], ["status", output], ["stats", output]):
        assert loaded_by(*words) == (0, []), words


@pytest.mark.slow
def test_a_preparer_loads_torch_with_its_first_unit_and_nobody_loads_dynamo() -> None:
    """`torch.nn.attention.varlen` alone brings Dynamo and sympy, half of the time that a process takes to start."""
    code = (
        "import sys, pipeline.run.prepare_stage; early = 'torch' in sys.modules; import pipeline.run.encode_stage;"
        "sys.exit(early or bool({'sympy', 'torch._dynamo', 'triton', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_a_process_that_decodes_loads_no_storage() -> None:
    """One is started in every preparer, and after every image that kills it: what it loads is waited for each time."""
    code = (
        "import sys, pipeline.prepare.guard_child;"
        "sys.exit(bool({'fsspec', 'asyncio', 'av', 'pyarrow', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
