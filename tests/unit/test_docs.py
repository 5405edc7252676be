"""The pages say what is in the code, link to what exists, and have no block that nobody runs."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from arbstr_asgi.config.config import Config
from arbstr_asgi.database.columns import ATTEMPT_COLUMNS, COLUMNS
from arbstr_asgi.providers.headers import ABOUT_THE_BYTES, TO_CLIENT, TO_PROVIDER, WITH_AUTHORIZATION
from tests.support.doc_blocks import PAGES, ROOT, Block, all_blocks, blocks

DOCS = ROOT / "docs"
RUN = {"python", "sh", "sql"}  # by tests/acceptance/test_docs.py
NO_CODE = {"", "text", "{toctree}", "{eval-rst}"}  # pictures, and what only the site reads
RUN_FILES = (ROOT / "tests" / "acceptance" / "test_examples.py").read_text("utf-8")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def section(page: str, title: str) -> str:
    """What a page of docs/ has below a heading of the second order."""
    return (DOCS / page).read_text("utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def table(text: str) -> Iterator[list[str]]:
    """The cells of the lines of its tables, without the heads."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        after = "".join(lines[number + 1 : number + 2])
        if line.startswith("|") and not line.startswith("| ---") and not after.startswith("| ---"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def code(cell: str) -> list[str]:
    """What is in backticks."""
    return re.findall(r"`([^`]+)`", cell)


@cache
def generate() -> ModuleType:
    """docs/generate.py."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_a_door() -> None:
    """It is 120 to 160 lines long, and shows each page."""
    text = (ROOT / "README.md").read_text("utf-8")
    assert 120 <= len(text.splitlines()) <= 160
    for page in DOCS.rglob("*.md"):
        assert f"({page.relative_to(ROOT)})" in text, page


def test_what_is_generated_is_up_to_date() -> None:
    """The configuration is that of the types, and each file that a page shows is as it is (docs/generate.py)."""
    assert [str(page.relative_to(ROOT)) for page in generate().outdated()] == []


@pytest.mark.parametrize("block", all_blocks(), ids=lambda block: block.name)
def test_every_block_is_run_or_says_why_not(block: Block) -> None:
    """A block is run by a test, is a file that a test runs, or has a comment that says why it is neither."""
    if block.file is not None:
        assert (ROOT / block.file).is_file()
        assert re.search(
            rf'"{Path(block.file).with_suffix("").as_posix().partition("/")[2].replace("/", ".")}:', RUN_FILES
        )
    elif block.mark.startswith("not run:"):
        assert len(block.mark.removeprefix("not run:").split()) >= 3, "say why"
    else:
        assert block.language in RUN | NO_CODE | {"toml"}


def test_no_block_escapes() -> None:
    """Every fence of a page belongs to a block that is seen here."""
    for page in PAGES:
        fences = re.findall(r"^\s*```", page.read_text("utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(blocks(page)), page


@pytest.mark.parametrize("block", [one for one in all_blocks() if one.language == "toml"], ids=lambda block: block.name)
def test_configurations(block: Block, tmp_path: Path) -> None:
    """A configuration of a page loads as it is."""
    path = tmp_path / "arbstr.toml"
    path.write_text(block.text, "utf-8")
    assert Config.load(path, {"ARBSTR_TOKEN": "t", "ALPHA_KEY": "k"}).providers


def anchors(page: Path) -> set[str]:
    """The headings of a page, as forges link to them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links() -> None:
    """Every link to a file is to one that is there, and to a heading that it has."""
    for page in (*PAGES, ROOT / "CHANGELOG.md"):
        targets = [target for target in _LINK.findall(page.read_text("utf-8")) if "://" not in target]
        for target in targets:
            name, _, anchor = target.partition("#")
            there = (page.parent / name).resolve() if name else page
            assert there.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(there), f"{page.name}: {target}"


def test_every_page_is_in_the_index() -> None:
    """The first page of the site lists each other one, and so does what builds its menu."""
    text = (DOCS / "index.md").read_text("utf-8")
    for page in DOCS.rglob("*.md"):
        name = str(page.relative_to(DOCS))
        assert name == "index.md" or (f"({name})" in text and f"\n{name.removesuffix('.md')}\n" in text), name


@pytest.mark.parametrize(
    ("title", "columns"),
    [("Calls", {"id", *(column.name for column in COLUMNS)}), ("Attempts", {one.name for one in ATTEMPT_COLUMNS})],
)
def test_columns(title: str, columns: set[str]) -> None:
    """The page of the row says of every column what it holds, and of no other."""
    named = [name for cells in table(section("guide/row.md", title)) for name in code(cells[0])]
    assert set(named) == columns
    assert len(named) == len(columns)


def test_headers() -> None:
    """The page of security has the allow-lists as they are."""
    there, back = section("guide/security.md", "Headers").split("| from the provider to the client")
    lists = {cells[0]: code(cells[1]) for cells in table(there)}
    assert lists["always"] == [*sorted(name.decode() for name in TO_PROVIDER), "x-stainless-"]
    assert lists["with `forward_authorization = true`"] == sorted(name.decode() for name in WITH_AUTHORIZATION)
    lists = {cells[0]: code(cells[1]) for cells in table(f"|{back}")}
    assert lists["always"] == [*sorted(name.decode() for name in TO_CLIENT), "x-ratelimit-"]
    assert lists["not where the body is changed"] == sorted(name.decode() for name in ABOUT_THE_BYTES)


@cache
def strings() -> str:
    """Every text in the package, one a line; what an f-string or a format fills in is left out."""
    found = []
    for path in sorted((ROOT / "arbstr_asgi").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(str(part) for part in parts))
    return "\n".join(re.sub(r"%[sdr]|%\.\df|\0", "…", text) for text in found)


@pytest.mark.parametrize("title", ["At start", "In the log, later"])
def test_messages(title: str) -> None:
    """The messages that the page of troubleshooting explains are ones that the package says."""
    messages = [code(cells[0])[0] for cells in table(section("operations/troubleshooting.md", title))]
    assert len(messages) > 10
    for message in messages:
        for part in message.split("…"):
            assert part.strip(" :.[]()") in strings(), message


def test_error_codes() -> None:
    """Each code that a client may get from us is explained, and no other."""
    rows = table(section("operations/troubleshooting.md", "What a client gets"))
    explained = [name for cells in rows for name in code(cells[1])]
    found: set[str] = set()
    for path in (ROOT / "arbstr_asgi").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
                found.add(str(node.value.value))
    assert set(explained) - {"provider_401", "provider_402", "provider_403"} == found - {"client_disconnected"}
    assert len(explained) == len(set(explained))
