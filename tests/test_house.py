"""The house: imports go one way, as docs/design.md lists the rooms; nobody reaches into the privates of another."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/guided_backprop"
FILES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def rooms() -> list[list[str]]:
    """Return the rooms of docs/design.md from top to bottom; those on one floor know nothing of each other."""
    design = (ROOT / "docs/design.md").read_text()
    drawn = re.search(r"## The rooms\n.*?```text\n(.*?)```", design, re.DOTALL)
    assert drawn is not None
    floors = [re.split(r"\s{2,}", line)[0].split(" | ") for line in drawn[1].splitlines() if line.strip()]
    return [[room.strip() for room in floor] for floor in floors]


def room_of(name: str, floors: list[list[str]]) -> tuple[int, str]:
    """Return the floor and the room of a file: the longest that its name begins with."""
    found = [
        (len(room), number, room)
        for number, floor in enumerate(floors)
        for room in floor
        if name == room or name.startswith(f"{room}/")
    ]
    assert found, f"{name} is in no room of docs/design.md"
    _, number, room = max(found)
    return number, room


def imports(name: str, trees: dict[str, ast.Module]) -> Iterator[str]:
    """Yield the files that a file imports, wherever in it, and in whatever way."""
    for module in _modules(trees[name]):
        if module.split(".")[0] != "guided_backprop":
            continue
        path = module.replace(".", "/").removeprefix("guided_backprop").lstrip("/")
        # A name of a module, a module, or a folder.
        above = path.rpartition("/")[0]
        ways = (path, f"{path}/__init__".lstrip("/"), above, f"{above}/__init__".lstrip("/"))
        yield next(way for way in ways if way in trees)


def _modules(tree: ast.Module) -> Iterator[str]:
    """Yield what is imported, with its dots: ``import a.b``, ``from a import b``, ``import_module("a.b")``."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str(module)):
                yield from (f"{module}.{alias.name}" for alias in node.names)
            case ast.Call(func=ast.Name("import_module"), args=[ast.Constant(str(module))]):
                yield module


def upward(trees: dict[str, ast.Module], floors: list[list[str]]) -> list[str]:
    """Return the imports that go up, or to another room of the same floor."""
    found = []
    for name in trees:
        floor, room = room_of(name, floors)
        for imported in imports(name, trees):
            other_floor, other = room_of(imported, floors)
            if other_floor < floor or (other_floor == floor and other != room):
                found.append(f"{name} -> {imported}")
    return found


def circle(trees: dict[str, ast.Module]) -> list[str]:
    """Return files that import each other in a circle, or nothing."""
    graph = {name: set(imports(name, trees)) - {name} for name in trees}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def reaches(trees: dict[str, ast.Module]) -> list[str]:
    """Return where a private attribute is reached that another class, or another file, of this package defines.

    A class may look into another object of its own kind: ``other._ranks`` in the class that has ``_ranks``.
    """
    own = {name for tree in trees.values() for name in _privates(tree)}
    found = []
    for file, tree in trees.items():
        in_class = {
            id(inner): kind for kind in ast.walk(tree) if isinstance(kind, ast.ClassDef) for inner in ast.walk(kind)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or node.attr not in own or _is_self(node.value):
                continue
            kind = in_class.get(id(node))
            if kind is None or node.attr not in _privates(kind):
                found.append(f"{file}:{node.lineno} {ast.unparse(node)}")
    return found


def _privates(tree: ast.AST) -> set[str]:
    """Return the private names that are defined in a tree, as functions or on ``self``."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    names |= {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value)
    }
    names |= {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return {name for name in names if re.match(r"_[^_]", name)}


def _is_self(value: ast.expr) -> bool:
    is_super = isinstance(value, ast.Call) and ast.unparse(value.func) == "super"
    return is_super or (isinstance(value, ast.Name) and value.id in ("self", "cls"))


def test_imports_go_from_top_to_bottom():
    assert upward(TREES, rooms()) == []


def test_an_import_that_goes_up_is_seen():
    for name, line in {
        "rules": "from guided_backprop.methods import gradients",
        "arrays": "from guided_backprop.backends import base",
        "errors": "import guided_backprop",
        "coverage": "import_module('guided_backprop.backends.torch.model.layers')",
    }.items():
        assert len(upward(TREES | {name: ast.parse(line)}, rooms())) == 1
    inside = ast.parse("def run():\n    from guided_backprop.backends.torch.backend import TorchBackend\n")
    assert upward(TREES | {"backends/jax/run": inside}, rooms()) != []


def test_there_is_no_circle():
    assert circle(TREES) == []
    planted = TREES | {
        "coverage": ast.parse("from guided_backprop.labels.box import Box"),
        "labels/box": ast.parse("from guided_backprop.coverage import Coverage"),
    }
    assert set(circle(planted)) == {"coverage", "labels/box"}


def test_nobody_reaches_into_the_privates_of_another():
    assert reaches(TREES) == []
    planted = ast.parse("class A:\n    def _b(self): ...\ndef f(a):\n    a._b()\n")
    assert reaches({"planted": planted}) == ["planted:4 a._b"]


def test_the_idea_of_pytorch_reads_in_an_hour():
    """All but what makes it faster or leaner, calls a model, judges values, or takes it elsewhere: docs/design.md."""
    beside = re.compile(r"backends/torch/(export/|fast/|hidden/|model/|dispatch$|lean$|layouts$)")
    files = [path for name, path in FILES.items() if name.startswith("backends/torch/") and not beside.match(name)]
    assert 1_000 < sum(len(path.read_text().splitlines()) for path in files) < 1_800


def branches(function: ast.FunctionDef) -> int:
    """Return how often a function chooses or repeats: also within expressions, and by "and" and "or"."""
    kinds = (ast.If, ast.For, ast.While, ast.IfExp, ast.ExceptHandler, ast.comprehension, ast.match_case)
    every = list(ast.walk(function))
    within = [len(node.ifs) if isinstance(node, ast.comprehension) else 0 for node in every]
    within += [len(node.values) - 1 for node in every if isinstance(node, ast.BoolOp)]
    return sum(isinstance(node, kinds) for node in every) + sum(within)


def test_functions_are_not_dense():
    functions = {
        f"{file}.{node.name}": branches(node)
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: count for name, count in functions.items() if count > 20} == {}
    (planted,) = ast.parse("def f(x): return [a and b for a in x if a or b] if x else 0").body
    assert branches(planted) == 5


def share_of_any(trees: dict[str, ast.Module]) -> float:
    """Return the share of annotations that say ``Any``."""
    annotations = []
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation is not None:
                annotations.append(node.annotation)
            if isinstance(node, ast.FunctionDef) and node.returns is not None:
                annotations.append(node.returns)
    return sum(bool(re.search(r"\bAny\b", ast.unparse(each))) for each in annotations) / len(annotations)


def test_annotations_say_what_is_meant():
    assert share_of_any(TREES) < 0.06
    assert share_of_any({"planted": ast.parse("def f(x: 'dict[str, Any]', y: int) -> Any: ...")}) == pytest.approx(
        2 / 3
    )
