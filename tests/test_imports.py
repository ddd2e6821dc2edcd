"""The architecture as a test: imports run downwards only, the framework knows no plugin, files stay short, import is quick."""

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import latentknobs

PACKAGE = Path(latentknobs.__file__).parent
# Lowest first. A module may import its own layer and those below.
LAYERS = [
    {"errors", "files", "progress", "entry_points", "tensors", "stages", "content"},
    {"knobs"},
    {"likelihood"},
    {"heads"},
    {"policies"},
    {"engines", "rewards"},
    {"data", "testbed"},
    {"learners"},
    {"config"},
    {"models"},
    {"adapter"},
    {"serving"},
    {"evaluation"},
    {"reporting"},
    {"training"},  # above reporting: its last stage writes the report
    {"conformance", "testing"},  # above whatever has a contract to check
    {"commands", "cli", "__main__", "__init__"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def modules(root: Path) -> dict[str, str]:
    """Dotted names relative to the package, and sources."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path.read_text()
        for path in sorted(root.rglob("*.py"))
    }


def imports(source: str, inside: str) -> Iterator[str]:
    """Absolute names of everything a module imports at any depth, `if TYPE_CHECKING` and functions included."""
    package = ["latentknobs", *inside.split(".")[:-1]] if inside != "__init__" else ["latentknobs"]
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package[: len(package) - level + 1] if level else []
                full = ".".join([*base, *([module] if module else [])])
                yield from (f"{full}.{name.name}" for name in names) if full == "latentknobs" else [full]
            case ast.Call(func=ast.Name(id="import_module" | "__import__"), args=[ast.Constant(value=str(name)), *_]):
                yield name


def texts(source: str) -> Iterator[str]:
    """Every string in the code, docstrings (which may show examples) aside."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def offences(sources: dict[str, str], plugins: set[str]) -> list[str]:
    """Every import that runs upwards, every plugin package imported or named, every module without a layer."""
    found = []
    for name, source in sources.items():
        part = name.split(".")[0]
        if part not in LEVEL:
            found.append(f"{name}: has no place in LAYERS; give it one")
            continue
        for imported in imports(source, name):
            top, target = [*imported.split("."), ""][:2]
            if top in plugins or top.startswith("latentknobs_") or top == "plugins":
                found.append(f"{name}: imports the plugin {imported}")
            elif top == "latentknobs" and part != "__init__" and LEVEL.get(target, 0) > LEVEL[part]:
                found.append(f"{name}: imports {imported}, which lies above it")
        found += [f"{name}: names the plugin package {p}" for p in plugins for text in texts(source) if p in text]
    return found


PLUGINS = {path.name for path in (PACKAGE.parent / "plugins").iterdir() if (path / "__init__.py").exists()}


def test_imports_run_downwards_only_and_never_into_plugins() -> None:
    assert {"latentknobs_temperature", "latentknobs_truncation"} <= PLUGINS
    assert offences(modules(PACKAGE), PLUGINS) == []


@pytest.mark.parametrize(("name", "source", "complaint"), [
    ("knobs.knob", "from latentknobs.likelihood import option_logps", "which lies above it"),
    ("knobs.knob", "from ..likelihood import option_logps", "which lies above it"),
    ("heads.option_head", "import latentknobs.engines.transformers.attach", "which lies above it"),
    ("heads.option_head", "from latentknobs import policies", "which lies above it"),
    ("engines.transformers.attach", "from ...training import train", "which lies above it"),
    ("knobs.space", "def f():\n    from latentknobs.cli import main", "which lies above it"),
    ("knobs.space", "if TYPE_CHECKING:\n    from latentknobs.policies import Policy", "which lies above it"),
    ("knobs.registry", "from latentknobs_temperature import Temperature", "imports the plugin"),
    ("training.train", "import_module('latentknobs_truncation')", "imports the plugin"),
    ("cli", "DEFAULT = 'latentknobs_temperature:Temperature'", "names the plugin"),
    ("cli", "import plugins.latentknobs_contrib", "imports the plugin"),
    ("surprise", "import torch", "has no place in LAYERS"),
])  # fmt: skip
def test_the_check_can_fail(name: str, source: str, complaint: str) -> None:
    assert [offence for offence in offences({name: source}, PLUGINS) if complaint in offence]


def test_the_check_lets_good_imports_pass() -> None:
    good = {
        "engines.transformers.attach": "from latentknobs.policies import Policy\nimport torch\nfrom .record import Record",
        "cli": "import latentknobs.training",
    }
    assert offences(good, PLUGINS) == []


def test_plugins_import_only_the_public_contract() -> None:
    """As a third party would: the package itself, or the modules that hold the contract."""
    contract = {"latentknobs", "latentknobs.knobs.knob", "latentknobs.knobs.context", "latentknobs.errors"}
    for plugin in sorted(PLUGINS):
        for path in (PACKAGE.parent / "plugins" / plugin).rglob("*.py"):
            named = {"latentknobs" if n.count(".") == 1 and n.split(".")[1] in latentknobs.__all__ else n
                     for n in imports(path.read_text(), "plugin") if n.split(".")[0] == "latentknobs"}  # fmt: skip
            assert named <= contract, path


def test_files_are_short() -> None:
    lengths = {name: source.count("\n") for name, source in modules(PACKAGE).items() if source.strip()}
    assert statistics.median(lengths.values()) < 120
    assert {name: length for name, length in lengths.items() if length > 350} == {}


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, latentknobs; latentknobs.__all__; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_there() -> None:
    for name in latentknobs.__all__:
        assert getattr(latentknobs, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'temperture'"):
        _ = latentknobs.temperture
