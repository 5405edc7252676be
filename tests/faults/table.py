"""The results as a Markdown table, and into the page of docs/."""

from collections.abc import Sequence
from pathlib import Path

from tests.faults.result import Result

BEGIN, END = "<!-- fault matrix -->", "<!-- end of the fault matrix -->"
HEAD = ("fault", "how", "answered", "rows found", "right tokens", "worst delay, ms")


def markdown(results: Sequence[Result]) -> str:
    """One line for each fault."""
    rows = [HEAD, ("---", "---", "---:", "---:", "---:", "---:")]
    rows += [_cells(result) for result in results]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(result: Result) -> tuple[str, ...]:
    if result.missing:
        return result.fault, f"not run here: {result.missing}", *["-"] * 4
    numbers = (result.answered, result.found, result.right)
    return result.fault, result.how, *(f"{number:,}" for number in numbers), f"{result.worst_ms:,.0f}"


def write(page: Path, text: str) -> None:
    """Replace what is between the two comments. Raises ValueError where they are missing."""
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page.name} has no {BEGIN} … {END}")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", "utf-8")
