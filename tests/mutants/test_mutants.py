"""Each patch in tests/mutants/ breaks one promise, and the tests that it names must notice."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATCHES = sorted((ROOT / "tests" / "mutants").glob("*.patch"))
COPIED = ("arbstr_asgi", "migrations", "tests", "pyproject.toml", "README.md")
SECONDS = 300.0
FAILED = 1  # pytest's exit status for failed tests; others mean that none was run
_KILLS = re.compile(r"^# kills: (\S+)$", re.MULTILINE)
# A plugin of each run: what is under test is the copy.
WHOSE = """
from pathlib import Path
import arbstr_asgi
assert Path(arbstr_asgi.__file__).is_relative_to(Path(__file__).parent), arbstr_asgi.__file__
"""

pytestmark = pytest.mark.slow


def copied(folder: Path) -> Path:
    """A copy of the project, without this test."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("mutants", "test_mutants*"))
        else:
            shutil.copy2(source, folder / name)
    (folder / "whose.py").write_text(WHOSE, "utf-8")
    return folder


def run_tests(folder: Path, *selection: str) -> subprocess.CompletedProcess[str]:
    """Run tests of a copy in a process of their own."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "whose", *selection]
    return subprocess.run(
        command,
        cwd=folder,
        env={**environ, "PYTHONPATH": str(folder), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # none is needed
        capture_output=True,
        encoding="utf-8",
        timeout=SECONDS,
        check=False,
    )


def selection_of(patch: Path) -> str:
    """The tests that a patch says it fails."""
    found = _KILLS.findall(patch.read_text("utf-8"))
    assert len(found) == 1, f"{patch.name} must name its tests in one '# kills:' line"
    return str(found[0])


def test_unbroken(tmp_path: Path) -> None:
    """Without any patch, all the named tests pass in a copy."""
    selections = sorted({selection_of(patch) for patch in PATCHES})
    done = run_tests(copied(tmp_path), *selections)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_noticed(patch: Path, tmp_path: Path) -> None:
    """The patch applies cleanly, and the tests that it names fail."""
    folder = copied(tmp_path)
    apart = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}  # a repository around it is none of ours
    command = ["git", "apply", "--whitespace=nowarn", str(patch)]
    applied = subprocess.run(command, cwd=folder, env=apart, capture_output=True, encoding="utf-8", check=False)
    assert applied.returncode == 0, f"{patch.name} does not fit the code any more: {applied.stderr}"
    done = run_tests(folder, selection_of(patch))
    assert done.returncode == FAILED, f"{done.returncode}\n{done.stdout}{done.stderr}"


def test_enough_patches() -> None:
    """Every patch says which promise it breaks."""
    assert len(PATCHES) >= 14
    assert all(patch.read_text("utf-8").startswith("# promise: ") for patch in PATCHES)
