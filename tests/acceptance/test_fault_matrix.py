"""The fault matrix, see `faults/matrix.py`: a short round of each line; with `-m faults` each line in full."""

import os
from collections.abc import Iterator
from pathlib import Path
from random import SystemRandom

import pytest

from tests.faults.instances import PROGRAMS, program
from tests.faults.lines import LINES, Line
from tests.faults.matrix import run, told
from tests.faults.result import Result
from tests.faults.stage import Instances
from tests.faults.table import BEGIN, END, markdown, write

SEED = SystemRandom().randrange(1_000_000)
ALLOWANCE = 0.5  # seconds; the promise is 0.25, and this machine may be busy
WORST_MS = 3000.0  # generous, too

by_line = pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())


@pytest.fixture(scope="module")
def instances() -> Iterator[Instances]:
    """Database servers that may be broken; in CI their programs must be there."""
    if os.environ.get("CI") == "true":
        for name in PROGRAMS:
            program(name)
    with Instances() as made:
        yield made


def check(result: Result) -> None:
    """Every answered call has its row and the right tokens, and nobody had to wait."""
    if result.missing:
        pytest.skip(result.missing)
    said = f"seed {SEED}\n{told(result)}"
    assert result.problems == [], said
    assert 0 < result.answered == result.found == result.right, said
    assert result.worst_ms < WORST_MS, said


@by_line
def test_quick(line: Line, instances: Instances) -> None:
    """Found equals answered, and the tokens are right, in a short round of each line."""
    check(run(line, instances, quick=True, seed=SEED, allowance=ALLOWANCE))


@pytest.mark.slow
@pytest.mark.faults
@by_line
def test_full(line: Line, instances: Instances) -> None:
    """The same for longer."""
    check(run(line, instances, quick=False, seed=SEED))


def test_a_missing_row_is_noticed() -> None:
    """A result whose numbers differ, or that compares nothing, is no good one."""
    assert Result("x", "X", answered=2, found=2, right=2).good
    assert not Result("x", "X", answered=2, found=1, right=1).good
    assert not Result("x", "X", answered=2, found=2, right=1).good
    assert not Result("x", "X").good
    assert not Result("x", "X", answered=1, found=1, right=1, problems=["exit status 1"]).good
    assert Result("x", "X", missing="no mount(8)").good


def test_the_table_goes_into_the_page(tmp_path: Path) -> None:
    """It replaces what is between the two comments and nothing else, and says what could not be run."""
    page = tmp_path / "page.md"
    page.write_text(f"# before\n\n{BEGIN}\nold\n{END}\nafter\n")
    results = [Result("a", "A", "how", 3, 2, 2, 2, 12.3), Result("b", "B", missing="no mount(8)")]
    write(page, markdown(results))
    text = page.read_text()
    assert text.startswith(f"# before\n\n{BEGIN}\n\n| fault | how |")
    assert "| A | how | 2 | 2 | 2 | 12 |\n| B | not run here: no mount(8) | - | - | - | - |\n" in text
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    write(page, markdown(results))
    assert page.read_text() == text
    with pytest.raises(ValueError, match=r"has no <!-- fault matrix -->"):
        write(Path(__file__), "x")
