"""Code structure: allowed imports, the owner of each library, and the length of modules."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import gru_lm

ROOT = Path(gru_lm.__file__).parent
# A module may import from layers to its left and from its own layer.
SERVICES = {
    "errors",
    "signals",
    "atomic",
    "caches",
    "canonical",
    "config",
    "config_layers",
    "layout",
}
ORDER = [
    "services",
    "text",
    "model",
    "training",
    "planning",
    "evaluation",
    "generation",
    "reporting",
    "commands",
    "integrations",
    "harness",
    "cli",
]
# The same for the packages and modules in commands/.
COMMANDS = ["load", "train", "sample", "eval", "compare", "bench"]
OWNERS = {
    "rich": {"reporting/console.py"},
    "typer": {"cli/"},
    "sentencepiece": {"text/tokenizer"},
    "safetensors": {"training/checkpoint.py"},
    "matplotlib": {"reporting/plots.py"},
    "kenlm": {"evaluation/arpa.py"},
    "scipy": {"evaluation/statistics.py"},
    "lm_eval": {"integrations/lm_eval.py"},
    "fcntl": {"atomic.py", "training/folder.py", "text/"},
    "platformdirs": {"caches.py"},
    "zstandard": {"text/files.py"},
    "pyarrow": {"text/parquet.py"},
}
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
LONGEST = 350  # lines
LONGEST_FUNCTION = 80


def layer(module: Path) -> str:
    name = module.parts[0].removesuffix(".py")
    return "services" if name in SERVICES else name


def imports(module: Path, *, top: bool = False) -> Iterator[str]:
    """The dotted names imported by a module, including imports in functions and for type checkers.

    With `top`, only imports executed at module level.
    """
    nodes: list[ast.AST] = [ast.parse((ROOT / module).read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if top and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if top and isinstance(node, ast.FunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            assert node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        nodes.extend(ast.iter_child_nodes(node))


def ours(name: str) -> Path | None:
    """The module file of a dotted name, relative to the package; None for names of other packages."""
    parts = name.split(".")
    if parts[0] != "gru_lm":
        return None
    for length in range(len(parts), 0, -1):
        stem = ROOT.joinpath(*parts[1:length])
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file() and path != ROOT / "__init__.py":
                return path.relative_to(ROOT)
    return None


def test_the_walk_sees_what_it_should() -> None:
    assert "gru_lm.errors.InputError" in set(imports(Path("training/checkpoint.py")))
    assert ours("gru_lm.errors.InputError") == Path("errors.py")
    assert ours("gru_lm.text.store") == Path("text/store.py")
    checkpoint = Path("training/checkpoint.py")
    assert "torch.Tensor" in set(imports(checkpoint)), "imports for type checkers count"
    assert "torch.Tensor" not in set(imports(checkpoint, top=True))
    assert len(ORDER) <= 16


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_go_from_right_to_left_alone(module: Path) -> None:
    here = layer(module)
    if here in ("__init__", "__main__"):
        return
    assert here in ORDER, f"{module}: not in ORDER"
    for name in imports(module):
        target = ours(name)
        if target is None:
            continue
        there = layer(target)
        assert ORDER.index(there) <= ORDER.index(here), f"{module} imports {name}"
        if here == "model":
            known = SERVICES - {"config", "layout"}
            assert there == "model" or target.stem in known, f"{module} imports {name}"
        if here == there == "commands" and len(module.parts) > 1 and module.stem != "__init__":
            commands = [path.parts[1].removesuffix(".py") for path in (target, module)]
            assert COMMANDS.index(commands[0]) <= COMMANDS.index(commands[1]), (
                f"{module} imports {name}"
            )
        if here == "cli" and target.name != "__init__.py":
            allowed = module.name == "__init__.py" or target.name == "options.py"
            assert there != "cli" or allowed, f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_foreign_library_has_one_owner(module: Path) -> None:
    for name in imports(module):
        library = name.split(".")[0]
        owners = OWNERS.get(library)
        if owners:
            assert str(module).startswith(tuple(owners)), f"{module} imports {name}"
        assert library != "pickle", f"{module} imports pickle"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_modules_are_short_and_say_what_they_are(module: Path) -> None:
    text = (ROOT / module).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_functions_are_short(module: Path) -> None:
    """Except commands in cli/, which consist mostly of options."""
    if module.parts[0] == "cli" and module.stem != "__init__":
        return
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno
            length = node.end_lineno - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{module}: {node.name} has {length} lines"


def test_the_command_line_loads_no_torch_and_no_numpy() -> None:
    """All modules that `gru_lm.cli` imports at module level, directly or indirectly."""
    seen: set[Path] = set()
    todo = [Path("cli/__init__.py")]
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        for name in imports(module, top=True):
            library = name.split(".")[0]
            heavy = ("torch", "numpy", "scipy", "matplotlib", "sentencepiece", "safetensors")
            assert library not in heavy, f"{module} imports {name}"
            target = ours(name)
            if target:
                todo.append(target)
    assert Path("config.py") in seen


def test_only_atomic_writes_durable_files() -> None:
    for module in MODULES:
        text = (ROOT / module).read_text(encoding="utf-8")
        if str(module) != "atomic.py":
            assert ".write_bytes(" not in text.replace("atomic.write_bytes(", ""), module
            assert ".write_text(" not in text, module
            assert "torch.save" not in text, module
        assert "torch.load" not in text, module


def test_what_is_not_python_travels_in_the_wheel() -> None:
    with (ROOT.parent / "pyproject.toml").open("rb") as file:
        carried = tomllib.load(file)["tool"]["setuptools"]["package-data"]
    for path in ROOT.rglob("*"):
        if path.suffix in (".c", ".toml"):
            package = ".".join(("gru_lm", *path.relative_to(ROOT).parts[:-1]))
            assert any(path.match(pattern) for pattern in carried.get(package, ())), path
    assert {"gru_lm.model.native", "gru_lm.corpora_recipes"} <= carried.keys()
