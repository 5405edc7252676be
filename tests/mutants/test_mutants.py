"""Each patch in this folder breaks one promise, and the tests that it names must notice.

    pytest tests/mutants                             all
    pytest tests/mutants --mutants-third N           a third of them, by turns
    pytest tests/mutants --mutants-changed REF       those whose files have changed since a git reference

With both options, the mutants of either.
"""

import compileall
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from py_compile import PycInvalidationMode

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATCHES = sorted(Path(__file__).parent.glob("*.patch"))
COPIED = ("arbstr_asgi", "migrations", "tests", "pyproject.toml", "README.md", "docs")
SECONDS = 900.0  # all the named tests at once, on a busy machine
FAILED = 1  # pytest's exit status for failed tests; others mean that none was run
_KILLS = re.compile(r"^# kills: (\S+)$", re.MULTILINE)
_FILE = re.compile(r"^\+\+\+ b/(\S+)", re.MULTILINE)
# A plugin of each run: what is under test is the copy.
WHOSE = """
from pathlib import Path
import arbstr_asgi
assert Path(arbstr_asgi.__file__).is_relative_to(Path(__file__).parent), arbstr_asgi.__file__
"""

pytestmark = pytest.mark.slow


def named_tests(patch: Path) -> str:
    """The tests that a patch says it fails."""
    found = _KILLS.findall(patch.read_text("utf-8"))
    assert len(found) == 1, f"{patch.name} must name its tests in one '# kills:' line"
    return str(found[0])


def touched(patch: Path, changed: set[str]) -> bool:
    """Whether the patch, what it patches or the file of its tests is among the changed files."""
    files = {f"tests/mutants/{patch.name}", named_tests(patch).partition("::")[0]}
    return not changed.isdisjoint(files | set(_FILE.findall(patch.read_text("utf-8"))))


def selected(config: pytest.Config) -> list[Path]:
    """The patches that the options ask for."""
    third, since = config.getoption("--mutants-third"), config.getoption("--mutants-changed")
    if third is None and since is None:
        return PATCHES
    changed: set[str] = set()
    if since is not None:
        for command in (
            ["diff", "--name-only", "--relative", since, "--"],
            ["ls-files", "--others", "--exclude-standard"],
        ):
            done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
            if done.returncode:
                raise pytest.UsageError(f"--mutants-changed: {done.stderr.strip()}")
            changed.update(done.stdout.splitlines())
    return [
        patch
        for number, patch in enumerate(PATCHES)
        if (third is not None and number % 3 == third % 3) or touched(patch, changed)
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each patch that is asked for."""
    if "patch" in metafunc.fixturenames:
        metafunc.parametrize("patch", selected(metafunc.config), ids=lambda patch: patch.stem)


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, without this test, for all patches in turn.

    Its byte code is valid by the hash of its source, and none is written afterwards: a patch may come and go within
    the second that file times are told apart by.
    """
    folder = tmp_path_factory.mktemp("copy")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("mutants", "__pycache__"))
        else:
            shutil.copy2(source, folder / name)
    (folder / "whose.py").write_text(WHOSE, "utf-8")
    compileall.compile_dir(folder / "arbstr_asgi", quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
    return folder


def run_tests(folder: Path, *selection: str) -> subprocess.CompletedProcess[str]:
    """Run tests of a copy in a process of their own."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    plugins = ("-p", "no:randomly", "-p", "no:cacheprovider", "-p", "whose", "-n", "0")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", *plugins, *selection],
        cwd=folder,
        env={
            **environ,
            "PYTHONPATH": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HYPOTHESIS_PROFILE": "thorough",
        },
        capture_output=True,
        encoding="utf-8",
        timeout=SECONDS,
        check=False,
    )


def apply(patch: Path, folder: Path, *options: str) -> None:
    """Apply a patch to a copy; a repository around the copy is none of ours."""
    done = subprocess.run(
        ["git", "apply", "--whitespace=nowarn", *options, str(patch)],
        cwd=folder,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, f"{patch.name} does not fit the code any more: {done.stderr}"


@contextmanager
def patched(patch: Path, folder: Path) -> Iterator[None]:
    """The copy with a patch; afterwards without it again."""
    apply(patch, folder)
    try:
        yield
    finally:
        apply(patch, folder, "-R")


def test_unbroken(copy: Path, pytestconfig: pytest.Config) -> None:
    """Without any patch, all the named tests pass in a copy."""
    selections = sorted({named_tests(patch) for patch in selected(pytestconfig)})
    if selections:
        done = run_tests(copy, *selections)
        assert done.returncode == 0, done.stdout + done.stderr


def test_noticed(patch: Path, copy: Path) -> None:
    """The patch applies cleanly, and the tests that it names fail."""
    with patched(patch, copy):
        done = run_tests(copy, named_tests(patch))
    assert done.returncode == FAILED, f"{done.returncode}\n{done.stdout}{done.stderr}"


def test_enough_patches() -> None:
    """Every patch says which promise it breaks."""
    assert len(PATCHES) >= 14
    assert all(patch.read_text("utf-8").startswith("# promise: ") for patch in PATCHES)
