"""Who may import whom: physics knows nothing of LiberTEM, engines nothing of physics."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "libertem_parallax"
#: What knows LiberTEM, which opens data and runs UDFs, or a detector.
GLUE = {"udf", "live", "cli"}
#: What an engine adds, and how, is said by numbers alone.
ENGINES = {"accumulate"}


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere, by their full names."""
    found = set()
    package = ("libertem_parallax", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_imports_are_found() -> None:
    found = imports(PACKAGE / "udf" / "frames.py")
    assert "libertem.udf" in found
    assert "libertem_parallax.accumulate" in found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_glue_knows_libertem(path: Path) -> None:
    libertem = {
        name for name in imports(path) if name.split(".")[0] in ("libertem", "libertem_live")
    }
    assert not libertem or room(path) in GLUE, libertem


@pytest.mark.parametrize(
    "path",
    [path for path in modules() if room(path) in ENGINES],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_engines_know_nothing_of_physics(path: Path) -> None:
    own = {name for name in imports(path) if name.startswith("libertem_parallax.")}
    foreign = {name for name in own if name.split(".")[1] not in ENGINES}
    assert not foreign


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_flows_back(path: Path) -> None:
    """The command line is above all, and glue above what it joins."""
    used = {name.split(".")[1] for name in imports(path) if name.startswith("libertem_parallax.")}
    if room(path) not in ("cli", "__init__", "__main__"):
        assert "cli" not in used
    if room(path) not in (*GLUE, "show", "__init__"):
        assert not used & {"udf", "live"}
