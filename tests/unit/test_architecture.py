"""docs/architecture.md names what is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text("utf-8")
_PLACE = re.compile(r"`([a-z_/]+\.py)`((?:[,\s]+(?:and )?`[A-Za-z_][A-Za-z_.]*`)*)")


def names_in(path: Path) -> set[str]:
    """The functions, classes, methods and constants that a module defines."""
    found: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (inner for inner in node.body if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef))
            found.update(f"{node.name}.{method.name}" for method in methods)
        if isinstance(node, ast.Assign):
            found.update(target.id for target in node.targets if isinstance(target, ast.Name))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def test_files_and_functions_exist() -> None:
    """Each file of the text exists, and has the functions that are named behind it."""
    places = [(file, re.findall(r"`([^`]+)`", names)) for file, names in _PLACE.findall(TEXT)]
    assert len(places) > 40
    for file, names in places:
        path = ROOT / ("tests/unit/test_structure.py" if file.startswith("tests/") else f"arbstr_asgi/{file}")
        assert path.exists(), file
        assert set(names) <= names_in(path), f"{file}: {sorted(set(names) - names_in(path))}"


def test_three_lives() -> None:
    """A request's, a row's and a question's life are there, each with its steps."""
    for title, steps in (("One request", 10), ("One row", 6), ("One question", 6)):
        section = TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        assert len(re.findall(r"^\d+\. ", section, re.MULTILINE)) >= steps, title
