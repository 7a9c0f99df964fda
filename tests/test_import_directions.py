"""Imports point downwards only, from room to room."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# From the lowest room to the highest: a room may import itself and the rooms before it.
ROOMS = (
    "settings",
    "runtime",
    "native",
    "collectives",
    "models",
    "optim",
    "data",
    "config",
    "step",
    "placement",
    "trainer",
    "planning",
    "cli",
)
# The laboratory may import everything; nothing else imports it.
LABORATORY = ("bench", "study", "faults")
# Rooms that may not import each other although one comes first.
SIBLINGS = (("collectives", "models", "optim", "data"), ("trainer", "planning"))
# Modules outside the rooms: the library, and its names at the top.
LIBRARY = ("jaxdp", "jaxdp.api", "jaxdp.__main__")


def module_paths(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Every module of the package by its dotted name."""
    paths = sorted((root / "jaxdp").rglob("*.py"))
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports(path: pathlib.Path, modules: set[str]) -> set[str]:
    """The modules of jaxdp that a file imports: at its top, inside functions, and for types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxdp":
            assert node.level == 0, f"{path} has a relative import"
            found |= {
                name if (name := f"{node.module}.{alias.name}") in modules else node.module for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "jaxdp"}
    return found


def is_command(path: pathlib.Path) -> bool:
    """A command is a module that runs something when Python starts it."""
    return 'if __name__ == "__main__"' in path.read_text() or path.name == "__main__.py"


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def violations(root: pathlib.Path) -> list[str]:
    """Every import that points upwards or sideways, as `importer -> imported`."""
    paths = module_paths(root)
    commands = {module for module, path in paths.items() if is_command(path)}
    wrong = []
    for module, path in paths.items():
        for target in sorted(imports(path, set(paths))):
            if not _is_allowed(module, target, commands):
                wrong.append(f"{module} -> {target}")
    return wrong


def _is_allowed(module: str, target: str, commands: set[str]) -> bool:
    here, there = room(module), room(target)
    if target == "jaxdp":  # its version
        return True
    if here in LABORATORY or here == there != "":
        return True
    if there in LABORATORY:
        return module in commands and there not in ROOMS
    if target in commands or target in LIBRARY:
        return module in commands or module == "jaxdp"
    if module in commands or module in LIBRARY:
        return True
    if any(here in group and there in group for group in SIBLINGS):
        return False
    return ROOMS.index(there) < ROOMS.index(here)


def cycles(root: pathlib.Path) -> list[list[str]]:
    """Circles of modules that import one another, for types too; each from its first module."""
    paths = module_paths(root)
    graph = {module: imports(path, set(paths)) - {module, "jaxdp"} for module, path in paths.items()}
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append(trail[trail.index(module) :])
        elif module not in done:
            for target in sorted(graph.get(module, ())):
                visit(target, [*trail, module])
            done.add(module)

    for module in graph:
        visit(module, [])
    return found


def test_imports_point_downwards():
    assert violations(ROOT) == []


def test_no_modules_import_each_other_in_a_circle():
    assert cycles(ROOT) == []


def test_few_modules_lie_outside_the_rooms():
    outside = [
        path.stem for path in (ROOT / "jaxdp").glob("*.py") if not is_command(path) and path.stem not in ("__init__",)
    ]
    assert len(outside) < 6, outside


def test_every_folder_is_a_known_room():
    folders = {path.name for path in (ROOT / "jaxdp").iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert folders - {"configs"} == {*ROOMS, *LABORATORY}


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("step/update.py", "from jaxdp.trainer import loop"),
        ("settings/rules.py", "from jaxdp.runtime.world import World"),
        ("planning/explain.py", "    from jaxdp.trainer import loop"),
        ("trainer/loop.py", "from jaxdp.bench import peers"),
        ("trainer/loop.py", "from jaxdp.train import train"),
        ("collectives/cost.py", "from jaxdp.models import layers"),
    ],
)
def test_an_import_upwards_or_sideways_is_found(tmp_path, importer, line):
    folder = tmp_path / "jaxdp"
    for module in ("", "step", "settings", "planning", "trainer", "collectives", "runtime", "bench", "models"):
        (folder / module).mkdir(exist_ok=True)
        (folder / module / "__init__.py").touch()
    for path in ("step/update", "trainer/loop", "runtime/world", "bench/peers", "models/layers"):
        (folder / f"{path}.py").touch()
    (folder / "train.py").write_text('if __name__ == "__main__":\n    pass\n')
    (folder / importer).write_text(f"if True:\n    {line.strip()}\n")
    assert len(violations(tmp_path)) == 1


def test_a_circle_for_types_is_found(tmp_path):
    (tmp_path / "jaxdp").mkdir()
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / "jaxdp" / f"{name}.py").write_text(f"if TYPE_CHECKING:\n    from jaxdp.{other} import x\n")
    assert cycles(tmp_path) == [["jaxdp.a", "jaxdp.b"]]
