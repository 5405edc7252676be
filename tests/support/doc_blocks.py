"""The blocks of code in the project's pages, and what the comment before each says about it."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "example_app" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)
_BLOCK = re.compile(
    r"^(?:[ \t]*<!-- (?P<mark>[^\n]*?) -->\n)?(?P<indent>[ \t]*)```(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """One fenced block; `mark` is the comment on the line before it."""

    page: Path
    line: int
    language: str
    mark: str
    text: str

    @property
    def name(self) -> str:
        """Where it is."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that it shows."""
        return self.mark.removeprefix("file: ") if self.mark.startswith("file: ") else None

    @property
    def runs(self) -> bool:
        """Whether nothing says that it is not run."""
        return not self.mark.startswith(("not run: ", "file: "))

    @property
    def in_background(self) -> bool:
        """Whether it runs on while what follows is run."""
        return self.mark.startswith(("server", "runs on"))

    @property
    def port(self) -> str | None:
        """The port that a server takes, as the page says it."""
        return ("8000" if "8000" in self.text else "8080") if self.mark.startswith("server") else None


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text = page.read_text("utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        indent = match["indent"]
        body = "".join(line.removeprefix(indent) for line in match["text"].splitlines(keepends=True))
        line = text.count("\n", 0, match.start("language")) + 1
        found.append(Block(page, line, match["language"].strip(), match["mark"] or "", body))
    return found


def all_blocks() -> list[Block]:
    """Those of every page."""
    return [block for page in PAGES for block in blocks(page)]
